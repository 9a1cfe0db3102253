"""Commands as a user meets them: one sentence, the exit status, no traceback."""

import errno
import subprocess
import sys

import pytest

from condlora.commands.explain import explain
from condlora.commands.train import attempt
from condlora.grid import cells as grid
from condlora.training import run as finetune
from tests.tasks import FEW_ROWS, ROOT


def command(*words, cwd):
    return subprocess.run(
        [sys.executable, *(str(ROOT / w) if w.endswith(".py") else w for w in words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


def test_user_error_is_one_line_and_status_2(tmp_path):
    done = command("scripts/train.py", "task=wnli", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert done.stderr.startswith("error: There is no task 'wnli'")
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(tmp_path):
    done = command("scripts/train.py", "task=wnli", "--debug", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_analysis_without_runs_says_what_to_do(tmp_path):
    done = command("analysis/glue_scores.py", f"runs={tmp_path}/runs", cwd=tmp_path)
    assert done.returncode == 2
    assert "make reproduce-glue PROFILE=embedded" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["-m"]], ids=["commas alone", "Hydra's flag too"])
def test_one_bad_run_of_a_grid_leaves_the_others_and_sets_status_1(tmp_path, more):
    words = ["backbone=tiny", "data=synthetic", *FEW_ROWS, "protocol=embedded", "task=rte"]
    words += ["protocol.max_steps=4", "protocol.evaluate_every=2", "adapter.config.r=4,99"]
    done = command("scripts/train.py", *words, "runtime.threads=1", *more, cwd=tmp_path)
    # Both share a folder, so this is also a recipe that replaces another only when it can run.
    assert done.returncode == 1
    assert "Rank 99 is above the smaller side" in done.stderr
    assert "1 of 2 runs are not done" in done.stderr
    assert "Traceback" not in done.stderr
    assert "seed 0: test accuracy" in done.stdout


def test_a_defect_in_one_run_is_recorded_and_the_others_go_on(tiny_cells, monkeypatch, capsys):
    cells = tiny_cells("task=rte", "seed=0,1")
    original, calls = finetune.validate, []

    def breaks_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return original(*arguments)

    monkeypatch.setattr(finetune, "validate", breaks_once)
    for cfg in cells:
        attempt(cfg, [])
    said = capsys.readouterr().err
    assert "error: rte condlora seed 0: a defect of condlora" in said and "Traceback" in said
    found = [grid.inspect(cfg) for cfg in cells]
    assert [cell.state for cell in found] == ["failed", "done"]
    assert found[0].reason == "RuntimeError: CUDA error: unspecified launch failure"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full"),
        (PermissionError(errno.EACCES, "denied", "/runs"), "No permission to write /runs"),
        (
            OSError(errno.EROFS, "Read-only file system", "/runs"),
            "No permission to write /runs, which is on a read-only disk",
        ),
        (OSError(errno.EIO, "Input/output error"), "The disk failed (Input/output error)"),
    ],
)
def test_errors_of_the_machine(error, message):
    assert message in explain(error)


def test_our_own_defects_keep_their_traceback():
    assert explain(KeyError("x")) is None
