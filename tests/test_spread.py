"""One run over two processes, as `accelerate launch` starts them, is the run of one."""

import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from safetensors.torch import load_file

from condlora import finetune, spread
from condlora.errors import ConfigError
from condlora.records import read_record
from tests.tasks import ROOT

WORDS = [
    "task=rte", "backbone=tiny", "data=synthetic", "protocol=embedded", "runtime.threads=1", "protocol.precision=no",
    "+backbone.architecture.hidden_dropout_prob=0", "+backbone.architecture.attention_probs_dropout_prob=0",
]  # fmt: skip
# What accelerate launch starts on GPUs; on a CPU it would want MPI.
LAUNCH = [
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
]  # fmt: skip


def command(runs, *more):
    return [*LAUNCH, "scripts/train.py", *WORDS, *more, f"runs={runs}"]


def test_two_processes_come_to_what_one_comes_to(tiny_cells, tmp_path):
    # A batch of 31 has no equal halves, and the last of an epoch, of two, one row for each.
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


def test_a_signal_ends_both_processes_at_one_step_and_the_run_goes_on_from_there(tmp_path):
    words = command(tmp_path, "protocol.max_steps=300", "protocol.evaluate_every=100")
    record = tmp_path / "adhoc/rte/condlora/seed-0/record.json"
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    while not record.exists():  # written as training begins
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    process.wait()
    stopped = read_record(record.parent)
    assert stopped["status"] == "interrupted"
    subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    resumed = read_record(record.parent)
    assert resumed["status"] == "done"
    (step,) = resumed["resumed_at_steps"]
    assert 0 < step < 300


def test_every_row_is_one_processes(monkeypatch):
    for size in (1, 2, 5, 32):
        monkeypatch.setenv("WORLD_SIZE", "3")
        shares = []
        for rank in range(3):
            monkeypatch.setenv("RANK", str(rank))
            shares += spread.own_rows(size).tolist()
        assert shares == list(range(size))


def test_workers_of_a_launcher_are_no_processes_of_one_run(tiny_cells, monkeypatch):
    class TwoProcesses(finetune.Accelerator):
        num_processes = 2

    monkeypatch.setattr("condlora.device.Accelerator", TwoProcesses)
    monkeypatch.setattr("condlora.device.is_worker", lambda: True)
    (cfg,) = tiny_cells("task=rte")
    with pytest.raises(ConfigError, match="spreads one run after the other"):
        finetune.run(cfg)
