"""Shares explained by one map of W0: planted ones are recovered, controls stay at zero, starts are drawn again."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from analysis.maths import subspace
from analysis.maths.explained_share import (
    GAUSSIAN_W0,
    LAST,
    NO_W0,
    OTHER_LAYER,
    OWN,
    SPECTRUM,
    explained_shares,
)
from analysis.maths.planted import planted
from analysis.present import explained_share as present
from analysis.stats import shares
from analysis.study.stacks import Stack, load_stacks
from analysis.study.starts import start_of, steps_of
from condlora.grid.cells import inspect
from condlora.models.adapters import initial_factors
from condlora.training.run import run
from tests.tasks import compose_tiny

L, D, R, RUNS = 6, 40, 3, 4
CONTROLS = (OTHER_LAYER, GAUSSIAN_W0, SPECTRUM, NO_W0)


def gaussian(*shape, seed=0):
    return subspace.gaussian(shape, torch.Generator().manual_seed(seed))


def stack_of(W, A, B, adapter="lora", tasks=("rte",)):
    each = len(A) // len(tasks)
    cells = [
        SimpleNamespace(task=task, seed=n, record={}, folder=None)
        for task in tasks
        for n in range(each)
    ]
    return Stack(adapter, "value", list(range(1, len(W) + 1)), W, A, B, cells)


@pytest.fixture(scope="module")
def half(settings):
    """B of which one map of W0 explains half, A of which W0' explains .9; two tasks."""
    W, generator = gaussian(L, D, D), torch.Generator().manual_seed(5)
    B = planted(W, 0.5, R, RUNS, generator)
    A = planted(W.mT, 0.9, R, RUNS, generator).mT
    result = explained_shares([stack_of(W, A, B, tasks=("rte", "sst2"))], settings)
    return result, shares.estimates(result, 0.95)


def share(table, form, source):
    return table[(table.form == form) & (table.source == source)].iloc[0]


def test_a_planted_share_is_read_back_and_controls_are_zero(half):
    _, table = half
    own = share(table, "B", OWN)
    assert own.share == pytest.approx(0.5, abs=0.12) and own.low < own.share < own.high
    assert own.runs == RUNS
    assert share(table, "A_consistent", OWN).share == pytest.approx(0.9, abs=0.06)
    for source in CONTROLS:
        assert share(table, "B", source).share < 0.15, source
        assert share(table, "A_consistent", source).share < 0.15, source
    assert share(table, "A_code", OWN).share < 0.15  # the other side of W0


def test_one_common_matrix_is_explained_without_w0(settings):
    B = gaussian(RUNS, 1, D, R, seed=1).expand(-1, L, -1, -1) + 0.3 * gaussian(RUNS, L, D, R)
    result = explained_shares(
        [stack_of(gaussian(L, D, D), gaussian(RUNS, L, R, D, seed=2), B)], settings
    )
    table = shares.estimates(result, 0.95)
    assert share(table, "B", NO_W0).share > 0.8 > 0.2 > share(table, "B", GAUSSIAN_W0).share


def test_tables_and_figures(half, tmp_path):
    result, _ = half
    first, *details = present.tables(result, 0.95)
    assert [table.name for table in (first, *details)] == [
        "shares", "shares_by_task", "shares_by_layer", "shares_scale",
    ]  # fmt: skip
    assert {len(row) for row in first.rows} == {len(first.header)}
    assert details[1].header[2:] == [str(layer) for layer in range(1, L + 1)]
    paths = present.draw(result, 0.95, tmp_path)
    assert set(paths) == {"shares", "shares_by_layer"} and all(p.is_file() for p in paths.values())
    assert "B = W₀θ′: 0.5" in present.statement(result, 0.95)
    assert "No delta A" in result.notes[0]


def test_ranks_have_a_scale_each(settings, tmp_path):
    W, generator = gaussian(L, D, D), torch.Generator().manual_seed(5)
    stacks = [
        replace(
            stack_of(W, gaussian(2, L, r, D), planted(W, 0.5, r, 2, generator)),
            adapter=f"lora_r{r}",
        )
        for r in (1, 2)
    ]
    result = explained_shares(stacks, settings)
    table = shares.estimates(result, 0.95)
    of_B = table[(table.form == "B") & (table.source == OWN)].set_index("r")
    assert of_B.share[1] == pytest.approx(0.5, abs=0.25)
    assert of_B.share[2] == pytest.approx(0.5, abs=0.2)
    assert set(table[table.r == 1].source) == {OWN}  # controls at the shown rank alone
    assert "shares_by_rank" in present.draw(result, 0.95, tmp_path)


def test_one_layer_and_no_w0_have_no_share(settings):
    W, A, B = gaussian(1, D, D), gaussian(2, 1, R, D), gaussian(2, 1, D, R)
    assert explained_shares([stack_of(W, A, B)], settings).values.empty
    without = replace(stack_of(gaussian(L, D, D), A, B), W=None)
    assert explained_shares([without], settings).values.empty
    empty = explained_shares([], settings)
    assert present.section(empty, 0.95, None).shown == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of six steps that kept its adapters, as a cell."""
    folder = tmp_path_factory.mktemp("runs")
    (cfg,) = compose_tiny(
        "task=rte", "adapter=lora", "seed=3", f"runs={folder}", "runtime.keep_adapters_at=[0,2,6]"
    )
    run(cfg)
    return inspect(cfg)


def test_the_start_is_drawn_again_to_the_bit(trained):
    kept = load_file(trained.folder / "adapter_at_0" / "adapter_model.safetensors")
    again = initial_factors(trained.folder, trained.record["streams"]["initialisation"])
    for module in ("query", "value"):
        names = [key for key in kept if f".{module}.lora_A" in key]
        assert len(names) == len(again[module].layers) == 3
        for layer in again[module].layers:
            (key,) = (key for key in names if f".layer.{layer}." in key)
            assert torch.equal(kept[key], again[module].A[layer])
        assert not again[module].B.any()


def test_starts_and_steps_of_a_run_are_read_or_drawn(trained):
    stacks = {stack.module: stack for stack in load_stacks([trained])}
    value = stacks["value"]
    start = start_of(value)
    elsewhere = replace(trained, folder=_without_start(trained.folder))
    assert torch.equal(start, start_of(replace(value, cells=[elsewhere])))
    assert not torch.equal(start, value.A)
    steps = steps_of(value)
    assert list(steps) == [2, 6]
    assert steps[2][1].shape == value.B.shape and not torch.equal(steps[2][1], steps[6][1])


def _without_start(folder):
    """A link to the run without what it kept of its start."""
    other = folder.with_name("elsewhere")
    other.mkdir()
    for path in folder.iterdir():
        if path.name != "adapter_at_0":
            (other / path.name).symlink_to(path)
    return other


def test_delta_a_and_steps_reach_the_tables(trained, settings):
    result = explained_shares(load_stacks([trained]), settings)
    forms = set(result.values.form)
    assert {"delta_A_code", "delta_A_consistent", "B"} <= forms and not result.notes
    assert set(result.values.step) == {LAST, 2, 6}
    finished = result.values[
        result.values.step == LAST
    ]  # at step 2 of a toy, delta A lacks full rank
    assert np.isfinite(finished.left_out).all()
    names = [table.name for table in present.tables(result, 0.95)]
    assert "shares_by_step" in names
