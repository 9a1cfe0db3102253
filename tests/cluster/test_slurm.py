"""Workers on a real SLURM: a grid ends with the bits of one launcher whatever the scheduler does to its workers."""

import subprocess
import sys
import time

import pytest

from condlora.grid.cells import plan_cells, state_of
from condlora.runs.lease import living_owner
from tests.cluster.one_machine import cluster, kill_node, missing
from tests.tasks import ROOT

pytestmark = pytest.mark.cluster

TINY = (
    "backbone=tiny", "data=synthetic", "protocol=embedded", "protocol.evaluate_every=null",
    "runtime.threads=1", "adapter=lora", "task=rte",
)  # fmt: skip
STEPS = 400  # long enough to be met while it trains
LONG = (200, "0,1")  # steps and seeds of a grid that outlasts all faults of a test
NODES = ("cluster.gpus=0", "cluster.cpus=1", "cluster.memory=100M")


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory):
    if absent := missing():
        pytest.skip(f"no SLURM can be started here: {', '.join(absent)} missing")
    with cluster(tmp_path_factory.mktemp("slurm")) as nodes:
        yield nodes


def words_of(folder, steps, seeds="0,1"):
    return (*TINY, f"protocol.max_steps={steps}", f"seed={seeds}", f"runs={folder}")


def submit(words, *settings, limit=600):
    command = [sys.executable, "scripts/submit.py", "slurm", *words, *NODES, *settings]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)


def states(words):
    return [state_of(cell).state for cell in plan_cells(words)]


def adapters(words):
    return [
        (cell.folder / "adapter/adapter_model.safetensors").read_bytes()
        for cell in plan_cells(words)
    ]


def job_of(found):
    return found.stdout.split("SLURM job ")[1].split()[0]


def wait_until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.5)


def queue(job):
    return subprocess.run(
        ["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True
    ).stdout.split()


def logs_of(folder):
    return "".join(p.read_text() for p in folder.glob(".cluster/*/*.log"))


def a_run_trains(words):
    return any(
        (cell.folder / "record.json").exists() and living_owner(cell.folder)
        for cell in plan_cells(words)
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The adapters of the grid as one launcher trains it."""
    words = words_of(tmp_path_factory.mktemp("alone"), STEPS)
    subprocess.run([sys.executable, "scripts/train.py", *words], cwd=ROOT, check=True, timeout=600)
    return adapters(words)


def test_two_workers_do_a_grid_and_the_next_submission_has_nothing_to_do(tmp_path):
    words = words_of(tmp_path, 20)
    found = submit(words, "cluster.workers=2", "cluster.follow=true")
    assert found.returncode == 0, found.stderr + logs_of(tmp_path)
    assert "with 2 workers: 2 of 2 runs are left" in found.stdout and states(words) == ["done"] * 2
    assert "Nothing to submit" in submit(words).stdout


def test_cancelled_workers_write_a_checkpoint_stay_away_and_are_continued_to_the_same_bits(
    tmp_path, undisturbed
):
    words = words_of(tmp_path, STEPS)
    job = job_of(submit(words, "cluster.workers=1"))
    wait_until(lambda: a_run_trains(words))
    subprocess.run(["scancel", job], check=True)
    wait_until(lambda: not queue(job))
    assert "interrupted" in states(words) and "failed" not in states(words), logs_of(tmp_path)
    found = submit(words, "cluster.workers=2", "cluster.follow=true")
    assert found.returncode == 0, found.stderr + logs_of(tmp_path)
    assert adapters(words) == undisturbed


def test_preempted_workers_come_back_by_themselves(tmp_path, undisturbed):
    words = words_of(tmp_path, STEPS)
    job = job_of(submit(words, "cluster.workers=1", "cluster.partition=main"))
    wait_until(lambda: a_run_trains(words))
    urgent = ["sbatch", "-p", "urgent", "-N", "2", "--exclusive", "-t", "2", "--wrap", "sleep 5"]
    subprocess.run([*urgent, "-o", "/dev/null"], check=True, capture_output=True)
    wait_until(lambda: "PENDING" in queue(job), 60)
    assert "failed" not in states(words)
    wait_until(lambda: states(words) == ["done"] * 2, 560)
    assert adapters(words) == undisturbed


def test_a_run_that_fails_is_named_with_its_reason_to_who_follows(tmp_path):
    words = (*words_of(tmp_path, 20, "0"), "protocol.learning_rate=1e30")
    found = submit(words, "cluster.follow=true")
    assert found.returncode == 1
    assert "rte lora seed 0" in found.stderr and "lower protocol.learning_rate" in found.stderr


def test_a_partition_that_does_not_exist_is_one_sentence(tmp_path):
    found = submit(words_of(tmp_path, 20), "cluster.partition=nowhere")
    assert found.returncode == 2 and "invalid partition" in found.stderr
    assert "Traceback" not in found.stderr and len(found.stderr.splitlines()) == 1


def test_settings_that_only_the_node_can_refuse_stop_the_worker_with_the_sentence(tmp_path):
    found = submit((*words_of(tmp_path, 20, "0"), "runtime.device=cuda"), "cluster.follow=true")
    assert found.returncode == 1 and "no CUDA device is available" in found.stderr


def test_a_grid_under_all_faults_ends_with_the_bits_of_one_without(tmp_path, slurm):
    """A preemption, a node that dies, a cancellation and a second submission, under a time limit."""
    alone, words = (words_of(tmp_path / name, *LONG) for name in ("alone", "grid"))
    limits = ("cluster.workers=2", "cluster.partition=main", "cluster.time=2", "cluster.grace=50")
    job = job_of(submit(words, *limits))
    wait_until(lambda: a_run_trains(words))
    urgent = ["sbatch", "-p", "urgent", "-N", "2", "--exclusive", "-t", "2", "--wrap", "sleep 5"]
    subprocess.run([*urgent, "-o", "/dev/null"], check=True, capture_output=True)
    wait_until(lambda: "PENDING" in queue(job), 60)
    wait_until(lambda: "RUNNING" in queue(job), 300)  # SLURM lets it wait for two minutes
    wait_until(lambda: a_run_trains(words))
    name = subprocess.run(
        ["squeue", "-h", "-j", job, "-t", "RUNNING", "-o", "%N"], capture_output=True, text=True
    ).stdout.split()[0]
    kill_node(slurm[name])
    wait_until(lambda: a_run_trains(words))
    subprocess.run(["scancel", job], check=True)
    wait_until(lambda: not queue(job), 120)
    assert "failed" not in states(words)
    assert set(states(words)) != {"done"}
    found = submit(words, *limits, "cluster.follow=true", limit=1500)
    assert found.returncode == 0, found.stderr + logs_of(tmp_path / "grid")
    records = [state_of(cell).record for cell in plan_cells(words)]
    assert any(record["resumed_at_steps"] for record in records)
    assert "DUE TO TIME LIMIT" not in logs_of(tmp_path / "grid")
    subprocess.run([sys.executable, "scripts/train.py", *alone], cwd=ROOT, check=True, timeout=900)
    assert adapters(words) == adapters(alone)
