"""A grid in one process: which runs are attempted, and what it costs to pass over the others."""

import pytest

from condlora.grid import cells, composition, launch
from condlora.runs.lease import Claim
from condlora.runs.record import run_folder
from tests.tasks import FEW_ROWS


@pytest.fixture
def words(tmp_path):
    tiny = (
        "backbone=tiny",
        "data=synthetic",
        *FEW_ROWS,
        "protocol=embedded",
        "task=rte",
        "adapter=lora",
    )
    steps = ("protocol.max_steps=6", "protocol.evaluate_every=3")  # as tiny_cells has them
    return (*tiny, *steps, "runtime.threads=1", "seed=0,1,2,3", f"runs={tmp_path}/runs")


def attempted(words):
    done = []
    launch.do_each(words, lambda cfg: done.append((run_folder(cfg), cfg.seed)))
    return [seed for _, seed in done]


def test_finished_runs_and_those_of_others_are_passed_over(finished, words, capsys):
    done = run_folder(finished("seed=1"))
    (done / "checkpoints").mkdir()  # as a kill after the record leaves it
    other = cells.plan_cells(words)[2].folder
    with Claim(other):
        assert attempted(words) == [0, 3]
    assert f"rte lora seed 2: left to another launcher, {other} is being run by" in (
        capsys.readouterr().out
    )
    assert not (done / "checkpoints").exists()
    assert attempted(words) == [0, 2, 3]


def test_a_finished_run_that_was_damaged_is_attempted(finished, words):
    folder = run_folder(finished("seed=1"))
    (folder / "adapter/adapter_model.safetensors").write_text("changed")
    assert attempted(words) == [0, 1, 2, 3]


def test_all_processes_of_one_run_attempt_the_same(finished, words, monkeypatch):
    finished("seed=1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert attempted(words) == [0, 1, 2, 3]


def test_a_run_that_ends_meanwhile_is_passed_over(finished, words):
    done = []
    for cfg in launch.each_to_do(words, cells.plan_cells(words)):
        done.append(cfg.seed)
        if cfg.seed == 0:
            finished("seed=2")
    assert done == [0, 1, 3]


def test_to_pass_over_a_run_composes_no_config(words, monkeypatch):
    """Hydra's own loop composes each run's config twice: a second for six runs that others have."""
    composed = []
    compose = composition.compose
    monkeypatch.setattr(
        composition, "compose", lambda *a, **k: composed.append(a) or compose(*a, **k)
    )

    def count(runs):
        composed.clear()
        composition.composed.cache_clear()
        grid = (*words[:-2], f"seed={','.join(map(str, range(runs)))}", words[-1])
        with monkeypatch.context() as patch:
            patch.setattr(launch, "living_owner", lambda folder: "another")
            assert attempted(grid) == []
        return len(composed)

    assert count(2) == count(40) == 1


@pytest.mark.parametrize(
    ("more", "is_here"),
    [
        ((), True),
        (("hydra/launcher=basic",), True),
        (("hydra/launcher=joblib",), False),
        (("profile=embedded",), False),  # its launcher starts two processes
        (("profile=embedded", "hydra/launcher=basic"), True),
        (("+hydra.job.env_set.A=b",), False),
        (("--cfg", "job"), False),
    ],
)
def test_what_else_is_asked_of_hydra_is_left_to_it(words, more, is_here):
    assert launch.is_done_here((*words, *more)) is is_here
