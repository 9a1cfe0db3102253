"""Workers on a real Ray that the command starts on this machine, in a network of its own where that can be made."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from condlora.grid.cells import plan_cells, state_of
from condlora.runs.lease import living_owner
from tests.tasks import ROOT

pytestmark = pytest.mark.cluster

TINY = (
    "backbone=tiny", "data=synthetic", "protocol=embedded", "protocol.max_steps=20", "protocol.evaluate_every=null",
    "runtime.threads=1", "adapter=lora", "task=rte",
)  # fmt: skip
LOCAL = ("cluster.address=local", "cluster.gpus=0", "cluster.cpus=1")
ALONE = [
    "unshare",
    "-n",
    "sh",
    "-c",
    'ip link set lo up && exec "$@"',
    "sh",
]  # Ray listens on all interfaces


@pytest.fixture(scope="module", autouse=True)
def ray():
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")


def command_of(*words):
    can_be_alone = os.geteuid() == 0 and all(map(shutil.which, ("unshare", "ip")))
    alone = ALONE if can_be_alone else []
    return [*alone, sys.executable, "scripts/submit.py", "ray", *words]


def submit(*words):
    return subprocess.run(command_of(*words), cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_two_workers_do_a_grid_to_the_bits_of_one_launcher(tmp_path):
    words, alone = ((*TINY, "seed=0,1", f"runs={tmp_path}/{name}") for name in ("ray", "alone"))
    found = submit(*words, *LOCAL, "cluster.workers=2")
    assert found.returncode == 0, found.stderr
    assert "Submitted tasks to Ray with 2 workers: 2 of 2 runs are left" in found.stdout
    subprocess.run([sys.executable, "scripts/train.py", *alone], cwd=ROOT, check=True, timeout=600)
    ours, theirs = (
        [(cell.folder / "adapter/adapter_model.safetensors").read_bytes() for cell in plan_cells(w)]
        for w in (words, alone)
    )
    assert ours == theirs
    assert "Nothing to submit" in submit(*words, *LOCAL).stdout


def test_a_run_that_fails_is_named_with_its_reason(tmp_path):
    words = (*TINY, f"runs={tmp_path}", "seed=0", "protocol.learning_rate=1e30")
    found = submit(*words, *LOCAL)
    assert found.returncode == 1 and "lower protocol.learning_rate" in found.stderr
    assert [state_of(cell).state for cell in plan_cells(words)] == ["failed"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("cluster.gpus=8", "cluster.address=local"), "No node of the Ray cluster has 4 CPUs and 8 GPUs"),
        (("cluster.address=127.0.0.1:1",), "No Ray cluster can be reached with cluster.address=127.0.0.1:1"),
    ],
)  # fmt: skip
def test_a_cluster_that_cannot_do_it_is_one_sentence(tmp_path, settings, says):
    found = submit(*TINY, f"runs={tmp_path}", *settings)
    assert found.returncode == 2 and says in found.stderr
    assert "Traceback" not in found.stderr and not (tmp_path / ".cluster").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_command_and_leave_the_run_to_the_next(tmp_path, number):
    words = (*TINY, "seed=0", f"runs={tmp_path}", "protocol.max_steps=100000")
    (cell,) = plan_cells(words)
    launcher = subprocess.Popen(command_of(*words, *LOCAL), cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: (cell.folder / "record.json").exists())
        assert living_owner(cell.folder)
    finally:
        launcher.send_signal(number)
        launcher.wait(timeout=60)
    wait_until(lambda: not living_owner(cell.folder), 60)
    assert state_of(cell).state in ("running", "interrupted")


def wait_until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.5)
