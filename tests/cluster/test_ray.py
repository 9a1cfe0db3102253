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
AT_CLUSTER = ("cluster.workers=2", "cluster.gpus=0", "cluster.cpus=1")
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
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
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")


def in_own_network():
    can_be_alone = os.geteuid() == 0 and all(map(shutil.which, ("unshare", "ip")))
    return ALONE if can_be_alone else []


def command_of(*words):
    return [*in_own_network(), sys.executable, "scripts/submit.py", "ray", *words]


def adapters(words):
    return [
        (cell.folder / "adapter/adapter_model.safetensors").read_bytes()
        for cell in plan_cells(words)
    ]


def submit(*words):
    return subprocess.run(command_of(*words), cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_two_workers_do_a_grid_to_the_bits_of_one_launcher(tmp_path):
    words, alone = ((*TINY, "seed=0,1", f"runs={tmp_path}/{name}") for name in ("ray", "alone"))
    found = submit(*words, *LOCAL, "cluster.workers=2")
    assert found.returncode == 0, found.stderr
    assert "Submitted tasks to Ray with 2 workers: 2 of 2 runs are left" in found.stdout
    subprocess.run([sys.executable, "scripts/train.py", *alone], cwd=ROOT, check=True, timeout=600)
    assert adapters(words) == adapters(alone)
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


def test_a_worker_whose_node_dies_is_started_again_on_another_to_the_same_bits(tmp_path):
    """On a running cluster of two nodes with room for one worker each, whose address is given to the command."""
    words, alone = (
        (*TINY, "seed=0,1,2,3", f"runs={tmp_path}/{name}", "protocol.max_steps=200")
        for name in ("ray", "alone")
    )
    cells = plan_cells(words)
    command = [sys.executable, "-m", "tests.cluster.two_ray_nodes", *words]
    with subprocess.Popen([*in_own_network(), *command, *AT_CLUSTER], cwd=ROOT, **PIPES) as nodes:
        try:
            wait_until(lambda: sum(bool(living_owner(cell.folder)) for cell in cells) == 2)
            nodes.stdin.write("kill\n")
            nodes.stdin.flush()
            said = nodes.communicate(timeout=500)[0]
        finally:
            nodes.kill()
    assert nodes.returncode == 0, said
    assert "with 2 workers: 4 of 4 runs are left" in said and "1 node is alive" in said
    subprocess.run([sys.executable, "scripts/train.py", *alone], cwd=ROOT, check=True, timeout=600)
    assert adapters(words) == adapters(alone)


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
