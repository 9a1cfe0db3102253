"""Workers on a real SLURM: a grid ends with the bits of one launcher whatever the scheduler does to its workers."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
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
SEEDS = ",".join(map(str, range(40)))
RUN_SECONDS = 5  # of training of each of 40 runs, so that the grid outlasts all faults of a test
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


@contextlib.contextmanager
def following(words, *settings):
    """The command that submits and waits for its workers."""
    command = [sys.executable, "-u", "scripts/submit.py", "slurm", *words, *NODES, *settings]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "cluster.follow=true"], cwd=ROOT, **pipes) as launcher:
        yield launcher


def job_in(launcher):
    return launcher.stdout.readline().split("SLURM job ")[1].split()[0]


def assert_ends_with_a_sentence(launcher, says):
    said = launcher.communicate(timeout=120)[1]
    assert launcher.returncode == 1 and says in said, said
    assert len(said.splitlines()) == 1


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


def preempt():
    """Run a job of a more urgent partition on all nodes for five seconds."""
    urgent = ["sbatch", "-p", "urgent", "-N", "2", "--exclusive", "-t", "2", "--wrap", "sleep 5"]
    subprocess.run([*urgent, "-o", "/dev/null"], check=True, capture_output=True)


def nodes_of(job):
    command = ["squeue", "-h", "-j", job, "-t", "RUNNING", "-o", "%N"]
    return subprocess.run(command, capture_output=True, text=True).stdout.split()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The words of a grid that one launcher has trained."""
    words = words_of(tmp_path_factory.mktemp("alone"), STEPS)
    subprocess.run([sys.executable, "scripts/train.py", *words], cwd=ROOT, check=True, timeout=600)
    return words


@pytest.fixture(scope="module")
def undisturbed(alone):
    """The adapters of the grid as one launcher trains it."""
    return adapters(alone)


@pytest.fixture(scope="module")
def undisturbed_seconds(alone):
    """How long the training of one of its runs takes on this machine."""
    return min(state_of(cell).record["train_seconds"] for cell in plan_cells(alone))


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
    with following(words, "cluster.workers=1") as launcher:
        job = job_in(launcher)
        wait_until(lambda: a_run_trains(words))
        subprocess.run(["scancel", job], check=True)
        wait_until(lambda: not queue(job))
        assert_ends_with_a_sentence(launcher, "2 of 2 runs are not done")
    assert "interrupted" in states(words) and "failed" not in states(words), logs_of(tmp_path)
    found = submit(words, "cluster.workers=2", "cluster.follow=true")
    assert found.returncode == 0, found.stderr + logs_of(tmp_path)
    assert adapters(words) == undisturbed


def test_a_worker_that_is_killed_ends_the_launcher_that_waits_which_trains_nothing_itself(tmp_path):
    words = words_of(tmp_path, STEPS, "0")
    with following(words) as launcher:
        wait_until(lambda: a_run_trains(words))
        (claim,) = tmp_path.rglob(".claims/*.json")
        os.kill(json.loads(claim.read_text())["pid"], signal.SIGKILL)
        assert_ends_with_a_sentence(launcher, "1 of 1 runs are not done")
    assert states(words) == ["running"] and not a_run_trains(words)


def test_preempted_workers_come_back_by_themselves(tmp_path, undisturbed):
    words = words_of(tmp_path, STEPS)
    job = job_of(submit(words, "cluster.workers=1", "cluster.partition=main"))
    wait_until(lambda: a_run_trains(words))
    preempt()
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


def test_a_controller_that_is_down_is_one_sentence(tmp_path, slurm, monkeypatch):
    config = Path(os.environ["SLURM_CONF"])
    down = tmp_path / "slurm.conf"
    text = re.sub("SlurmctldPort=.*", "SlurmctldPort=26990", config.read_text())
    down.write_text(f"{text}\nMessageTimeout=2\n")
    monkeypatch.setenv("SLURM_CONF", str(down))
    found = submit(words_of(tmp_path, 20))
    assert found.returncode == 2 and re.search(
        "contact slurm controller|did not answer", found.stderr
    )
    assert "Traceback" not in found.stderr and len(found.stderr.splitlines()) == 1


def test_workers_of_a_search_give_the_table_of_one(tmp_path):
    overrides = ",".join(f'"{word}"' for word in (*TINY, "protocol.max_steps=20"))
    rule = ("profile=adhoc", f"overrides=[{overrides}]", "learning_rates=[1e-3,4e-3]", "further=1")

    def words(name):
        return (
            *rule,
            *(f"{kind}={tmp_path}/{name}/{kind}" for kind in ("runs", "results", "rates")),
        )

    found = submit(("search", *words("workers")), "cluster.workers=2", "cluster.follow=true")
    assert found.returncode == 0, found.stderr + logs_of(tmp_path / "workers/runs")
    assert "with 2 workers: 2 of 2 known trials are left" in found.stdout
    command = [sys.executable, "scripts/search_learning_rate.py", *words("alone")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    ours, one = (
        pd.read_csv(tmp_path / name / "results/adhoc/search.csv").drop(columns="seconds")
        for name in ("workers", "alone")
    )
    pd.testing.assert_frame_equal(ours, one)
    assert len(one) == 3
    assert "Nothing to submit" in submit(("search", *words("workers"))).stdout


def test_settings_that_only_the_node_can_refuse_stop_the_worker_with_the_sentence(tmp_path):
    found = submit((*words_of(tmp_path, 20, "0"), "runtime.device=cuda"), "cluster.follow=true")
    assert found.returncode == 1 and "no CUDA device is available" in found.stderr


def restarts(job):
    """How often SLURM queued each worker of an array again."""
    said = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout
    return [int(number) for number in re.findall(r"Restarts=(\d+)", said)]


def test_a_grid_of_40_runs_under_all_faults_ends_with_the_bits_of_one_without(
    tmp_path, slurm, undisturbed, undisturbed_seconds
):
    """Two time limits, a preemption, a node that dies, a cancellation and a second submission."""
    steps = max(20, int(STEPS * RUN_SECONDS / undisturbed_seconds))
    alone, words = (words_of(tmp_path / name, steps, SEEDS) for name in ("alone", "grid"))
    limits = ("cluster.workers=2", "cluster.partition=main", "cluster.time=2", "cluster.grace=30")
    job = job_of(submit(words, *limits))
    one_launcher = subprocess.Popen([sys.executable, "scripts/train.py", *alone], cwd=ROOT)

    wait_until(lambda: restarts(job) == [1, 1])  # both reached their time limit
    assert "interrupted" in states(words) and "failed" not in states(words)
    subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=60"], check=True)

    wait_until(lambda: queue(job) == ["RUNNING"] * 2)  # SLURM lets them wait for two minutes
    wait_until(lambda: a_run_trains(words))
    preempt()
    wait_until(lambda: restarts(job) == [2, 2], 60)
    assert "failed" not in states(words)

    wait_until(lambda: queue(job) == ["RUNNING"] * 2)
    wait_until(lambda: a_run_trains(words))
    kill_node(slurm[nodes_of(job)[0]])
    wait_until(lambda: 3 in restarts(job))
    wait_until(lambda: a_run_trains(words))

    subprocess.run(["scancel", job], check=True)
    wait_until(lambda: not queue(job), 120)
    assert "failed" not in states(words) and "done" in states(words)
    assert set(states(words)) != {"done"}
    found = submit(words, "cluster.workers=2", "cluster.follow=true", limit=1500)
    assert found.returncode == 0, found.stderr + logs_of(tmp_path / "grid")

    records = [state_of(cell).record for cell in plan_cells(words)]
    assert sum(bool(record["resumed_at_steps"]) for record in records) >= 2
    assert "DUE TO TIME LIMIT" not in logs_of(
        tmp_path / "grid"
    )  # the end with a checkpoint came before
    assert one_launcher.wait(timeout=1500) == 0
    assert len(records) == 40 and adapters(words) == adapters(alone)
