"""One run over two processes, as `accelerate launch` starts them, is the run of one."""

import os
import subprocess
import sys

import pandas as pd
import pytest
from accelerate import Accelerator
from safetensors.torch import load_file

from condlora.errors import ConfigError
from condlora.grid import preflight
from condlora.runs.lease import Claim
from condlora.runs.record import read_record
from condlora.search.run import search
from condlora.training import distributed
from condlora.training import run as finetune
from tests.search.conftest import settings
from tests.tasks import ROOT

WORDS = [
    "task=rte", "backbone=tiny", "data=synthetic", "+data.train_rows=140", "protocol=embedded", "runtime.threads=1", "protocol.precision=no",
    "+backbone.architecture.hidden_dropout_prob=0", "+backbone.architecture.attention_probs_dropout_prob=0",
]  # fmt: skip
# What accelerate launch starts on GPUs; on a CPU it would want MPI.
LAUNCH = [
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
]  # fmt: skip


# The second of two processes is sent a signal before its seventh step.
SIGNALLED = """
import contextlib, os, runpy, signal, sys
from condlora.training import run as finetune, distributed
from tests.faults.harness import fault

def send():
    os.kill(os.getpid(), signal.SIGTERM)

sys.argv = sys.argv[1:]
with fault(send, 7, ((finetune.Run, "finish_step"),)) if distributed.rank() == 1 else contextlib.nullcontext():
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command(runs, *more, script=()):
    return [*LAUNCH, *script, "scripts/train.py", *WORDS, *more, f"runs={runs}"]


@pytest.mark.slow
def test_two_processes_come_to_what_one_comes_to(tiny_cells, tmp_path):
    # A batch of 31 has no equal halves, and the last of an epoch of 126 rows, of two, one row for each.
    steps = ["protocol.max_steps=6", "protocol.evaluate_every=3", "protocol.batch_size=31"]
    done = subprocess.run(
        command(tmp_path, *steps), cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.count("test accuracy") == 1
    (cfg,) = tiny_cells(*WORDS, *steps)
    one, folder = finetune.run(cfg), tmp_path / "adhoc/rte/condlora/seed-0"
    two, alone = read_record(folder), finetune.run_folder(cfg)
    assert [r["environment"]["processes"] for r in (one, two)] == [1, 2]
    for key in ("recipe_hash", "steps", "best", "test", "parameters"):
        assert two[key] == one[key]
    losses = [pd.read_csv(place / "curve.csv")["train_loss"].values for place in (folder, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    ours, theirs = (load_file(p / "adapter/adapter_model.safetensors") for p in (folder, alone))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).norm() <= 1e-5 * tensor.norm()


@pytest.mark.slow
def test_a_signal_to_one_ends_both_processes_at_one_step_and_the_run_goes_on_from_there(tmp_path):
    script = tmp_path / "signalled.py"
    script.write_text(SIGNALLED)
    steps = ["protocol.max_steps=20", "protocol.evaluate_every=10"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    stopped = subprocess.run(
        command(tmp_path, *steps, script=[script]), cwd=ROOT, env=env, capture_output=True
    )
    assert stopped.returncode != 0
    record = tmp_path / "adhoc/rte/condlora/seed-0"
    assert read_record(record)["status"] == "interrupted"
    subprocess.run(command(tmp_path, *steps), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    resumed = read_record(record)
    assert resumed["status"] == "done"
    assert resumed["resumed_at_steps"] == [7]


def test_every_row_is_one_processes(monkeypatch):
    for size in (1, 2, 5, 32):
        monkeypatch.setenv("WORLD_SIZE", "3")
        shares = []
        for rank in range(3):
            monkeypatch.setenv("RANK", str(rank))
            shares += distributed.own_rows(size).tolist()
        assert shares == list(range(size))


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, "and started one, as it does on CPUs"),
        ({"PMI_SIZE": "2"}, "MPI started several processes"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "srun --mpi=none"),
    ],
)  # fmt: skip
def test_processes_that_do_not_know_of_each_other_are_refused(environment, says, monkeypatch):
    monkeypatch.setattr(preflight, "has_cuda", lambda: False)
    with pytest.raises(ConfigError, match=says):
        preflight.check_launcher(environment)
    torchrun = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for well in (environment | torchrun, {"ACCELERATE_MIXED_PRECISION": "no"}, {"PMI_SIZE": "1"}):
        preflight.check_launcher(well)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_accelerate_launch_on_a_cpu_starts_one_process_or_refuses_several(tmp_path, processes):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes)]  # fmt: skip
    words = [*WORDS, "protocol.max_steps=2", "protocol.evaluate_every=2", f"runs={tmp_path}"]
    found = subprocess.run(
        [*launch, "scripts/train.py", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert (found.returncode == 0) == (processes == 1), found.stderr
    refused = "error: accelerate launch was asked for several processes and started one"
    assert (refused in found.stderr) == (processes == 2)
    assert any(tmp_path.rglob("record.json")) == (processes == 1)


@pytest.mark.slow
def test_several_processes_do_not_wait_for_ever_for_a_run_that_another_launcher_does(
    tiny_cells, tmp_path
):
    words = ["protocol.max_steps=2", "protocol.evaluate_every=2", f"runs={tmp_path}"]
    (cfg,) = tiny_cells(*WORDS, *words)
    with Claim(finetune.run_folder(cfg)):
        found = subprocess.run(
            command(tmp_path, *words[:2]), cwd=ROOT, capture_output=True, text=True, timeout=300
        )
    assert found.returncode != 0
    assert (
        "is being run by" in found.stderr and "run the same command when it is done" in found.stderr
    )


def test_a_search_is_no_work_for_several_processes_of_one_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun sets it
    with pytest.raises(ConfigError, match="start several processes for one run"):
        search(settings(tmp_path))
    assert not any(tmp_path.iterdir())


def test_workers_of_a_launcher_are_no_processes_of_one_run(tiny_cells, monkeypatch):
    class TwoProcesses(Accelerator):
        num_processes = 2

    monkeypatch.setattr("condlora.training.device.Accelerator", TwoProcesses)
    monkeypatch.setattr("condlora.training.device.is_worker", lambda: True)
    (cfg,) = tiny_cells("task=rte")
    with pytest.raises(ConfigError, match="distributes one run at a time"):
        finetune.run(cfg)
