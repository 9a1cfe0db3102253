"""Runs that differ in what a table holds equal are refused or named."""

import pytest

from analysis.study.comparability import KINDS, differences, require_comparable
from condlora.errors import UserError

SHOWN = ("versions", "commit", "device")
CHANGES = {
    "versions": lambda r: r["environment"]["versions"].update(torch="2.11.0"),
    "commit": lambda r: r["environment"].update(commit="f" * 40),
    "device": lambda r: r["environment"].update(device="NVIDIA H200"),
    "weights": lambda r: r["backbone"].update(weights_sha256="f" * 64),
    "protocol": lambda r: r["recipe"]["protocol"].update(max_steps=7),
    "task": lambda r: r["recipe"]["task"].update(headline="f1"),
    "data": lambda r: r["data"]["split_sha256"].update(train="f" * 64),
}


@pytest.fixture
def cells(cell):
    return [cell(t, a, s) for t in ("rte", "mrpc") for a in ("lora", "condlora") for s in (0, 1)]


def test_equal_runs_are_joined(cells):
    assert differences(cells) == {}
    require_comparable(cells, [])


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_difference_is_found_and_refused_unless_it_may_be(cells, kind):
    CHANGES[kind](cells[1].record)
    assert differences(cells).keys() == {kind}
    with pytest.raises(
        UserError, match=f"Runs of one table differ in {kind} .*may_differ=.*{kind}"
    ):
        require_comparable(cells, [other for other in KINDS if other != kind])
    require_comparable(cells, [kind])


def test_a_difference_says_which_values_in_how_many_runs(cells):
    for one in cells[:2]:
        CHANGES["versions"](one.record)
    CHANGES["data"](cells[2].record)
    found = differences(cells)
    assert found["versions"] == "torch is 2.13.0 in 6 runs and 2.11.0 in 2 runs"
    assert found["data"] == "train of rte is 000000000000 in 3 runs and ffffffffffff in 1 run"


def test_tasks_may_have_data_and_protocols_of_their_own_and_methods_rates(cells):
    for one in cells:
        if one.task == "rte":
            CHANGES["data"](one.record)
            CHANGES["protocol"](one.record)
        if one.adapter == "lora":
            one.record["recipe"]["protocol"] |= {"learning_rate": 0.1, "adapter": {"r": 64}}
    assert differences(cells) == {}


def test_a_name_that_is_no_kind_is_said(cells):
    with pytest.raises(
        UserError, match=r"may_differ=\['weather'\] names nothing .*: choose of versions"
    ):
        require_comparable(cells, ["weather"])
