"""Commands as a user meets them: one sentence, the exit status, no traceback."""

import errno
import subprocess
import sys

import pytest

from condlora.cli import explain
from tests.tasks import ROOT


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


def test_one_bad_run_of_a_grid_leaves_the_others_and_sets_status_1(tmp_path):
    words = ["backbone=tiny", "data=synthetic", "protocol=embedded", "task=rte"]
    words += ["protocol.max_steps=4", "protocol.evaluate_every=2", "adapter.config.r=4,99"]
    done = command("scripts/train.py", *words, "runtime.threads=1", cwd=tmp_path)
    # Both share a folder, so this is also a recipe that replaces another only when it can run.
    assert done.returncode == 1
    assert "Rank 99 is above the smaller side" in done.stderr
    assert "1 of 2 runs are not done" in done.stderr
    assert "Traceback" not in done.stderr
    assert "seed 0: test accuracy" in done.stdout


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full"),
        (PermissionError(errno.EACCES, "denied", "/runs"), "No permission to write /runs"),
    ],
)
def test_errors_of_the_machine(error, message):
    assert message in explain(error)


def test_our_own_defects_keep_their_traceback():
    assert explain(KeyError("x")) is None
