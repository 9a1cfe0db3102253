"""What needs no network uses none: every attempt to connect is refused and noted, and there is none."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tasks import FEW_ROWS, ROOT

NO_NETWORK = Path(__file__).parent / "no_network"


@pytest.fixture
def python(tmp_path):
    """A function (*words) -> a finished Python process without a network; its attempts are in `attempts`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {
        "PYTHONPATH": f"{NO_NETWORK}{os.pathsep}{ROOT}",
        "NETWORK_ATTEMPTS": str(tmp_path / "attempts"),
    }

    def run(*words):
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)

    return run


def test_an_attempt_is_refused_and_noted(python, tmp_path):
    code = "import socket; socket.create_connection(('127.0.0.1', 9))"
    assert "no network here" in python("-c", code).stderr
    assert "127.0.0.1" in (tmp_path / "attempts").read_text()


@pytest.mark.slow
def test_fine_tuning_and_analysis_make_no_attempt(python, tmp_path):
    """The embedded profile in small; `.ci/run` makes the whole of it without a network."""
    words = ["task=rte", "adapter=lora,condlora", "backbone=tiny", "data=synthetic", *FEW_ROWS]
    words += ["protocol=embedded", "protocol.max_steps=2", "protocol.evaluate_every=1"]
    words += [f"runs={tmp_path}/runs"]
    trained = python("scripts/train.py", *words)
    assert trained.returncode == 0, trained.stderr
    places = [f"runs={tmp_path}/runs", f"results={tmp_path}/results"]
    reported = python("analysis/conversion_similarity.py", "profile=adhoc", *places)
    assert reported.returncode == 0, reported.stderr
    assert not (tmp_path / "attempts").exists()


def test_what_needs_the_hub_says_so_in_a_sentence(python, tmp_path):
    done = python("scripts/train.py", "task=rte", "adapter=lora", f"runs={tmp_path}/runs")
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: This run needs the Hugging Face hub \(for .*\), not found here: use .*\n",
        done.stderr,
    )
    assert (
        "huggingface.co" in (tmp_path / "attempts").read_text()
    )  # the hub's library is watched too
    assert not (tmp_path / "runs/adhoc").exists()
