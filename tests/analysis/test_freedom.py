"""The table of methods by what is free in each layer."""

from dataclasses import replace

import pytest

from analysis.present.freedom import section, table
from analysis.study.selection import Settings, Study
from condlora.grid.cells import compose_cells, compose_common
from tests.analysis.conftest import make_cell, unfinished

GROUPS = {"A and B": ["lora"], "nothing": ["condlora", "share_lora_ab"]}


@pytest.fixture
def study(tmp_path):
    """CondLoRA 1 and 3 points below LoRA on RTE; one of its runs on SST-2 failed; ShareLoRA has no run."""
    cells = [make_cell("rte", "lora", seed, 0.8) for seed in (0, 1)]
    cells += [make_cell("rte", "condlora", seed, 0.79 - 0.02 * seed) for seed in (0, 1)]
    cells += [make_cell("sst2", "lora", 0, 0.9), unfinished(make_cell("sst2", "condlora", 0), "failed")]  # fmt: skip
    cells += [unfinished(make_cell("rte", "share_lora_ab", 0), "missing")]
    return Study(
        "fake", cells, tmp_path, Settings(None, None, 0, 1), groups=GROUPS, tasks=("stsb",)
    )


def test_differences_are_paired_and_cells_without_a_run_are_listed_as_not_run(study):
    found = table(study, 0.95)
    assert found.header == ["free in each layer", "method", "parameters", "SST-2", "RTE", "STS-B"]
    assert [row[:2] for row in found.rows] == [
        ["A and B", "LoRA"], ["nothing", "CondLoRA"], ["nothing", "ShareLoRA, A and B"],
    ]  # fmt: skip
    lora, condlora, shared = (row[2:] for row in found.rows)
    assert lora[1:] == ["reference", "reference", "not run"]
    assert condlora[1:] == ["not run", "−2.0 [−14.7, 10.7] (2)", "not run"]
    assert shared == ["–", "not run", "not run", "not run"]


def test_profiles_without_groups_have_no_section(study):
    assert section(study, 0.95).shown
    assert not section(replace(study, groups={}), 0.95).shown


def test_the_groups_of_the_profile_are_its_methods_each_once():
    groups = compose_common(("profile=relatives",)).profile.groups
    listed = [method for methods in groups.values() for method in methods]
    cells = compose_cells(("profile=relatives", "seed=0", "task=sst2"))
    assert sorted(listed) == sorted(cfg.adapter.name for cfg in cells)
