"""Several launchers on one runs folder: no run twice, none lost."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from condlora.errors import RunTaken
from condlora.grid import watch
from condlora.runs import lease, owners
from condlora.runs.lease import Claim, claim_file, living_owner
from condlora.runs.owners import Watch
from condlora.runs.record import read_record, run_folder
from condlora.runs.shared_disk import SharedDisk
from condlora.training import run as finetune
from tests.faults.harness import KILLED, fault, in_child, kill
from tests.tasks import FEW_ROWS, ROOT

SLEEPER = """
import sys, time
from pathlib import Path
from condlora.runs.lease import Claim
with Claim(Path(sys.argv[1])):
    print("claimed", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "adhoc" / "rte" / "lora" / "seed-0"


@pytest.fixture
def owner(folder):
    """Another process that holds the claim on the folder."""
    words = [sys.executable, "-c", SLEEPER, str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.kill()


def left_claim(folder, **changes):
    """A claim that another process left behind, like one of ours but for the changes."""
    with Claim(folder) as claim:
        text = json.dumps(json.loads(claim.file.read_text()) | {"token": "another's"} | changes)
        claim.file.write_text(text)


def test_one_process_alone_has_a_claim_and_gives_it_back(folder):
    with Claim(folder):
        assert living_owner(folder).endswith(f"process {os.getpid()}")
        with (
            pytest.raises(RunTaken, match=f"is being run by .*, process {os.getpid()}"),
            Claim(folder),
        ):
            pass
    assert living_owner(folder) is None
    with Claim(folder):
        pass


def test_claim_of_a_living_process_is_respected_and_of_a_dead_one_taken_over(folder, owner):
    with pytest.raises(RunTaken, match=f"process {owner.pid}"), Claim(folder):
        pass
    owner.kill()
    owner.wait()
    assert living_owner(folder) is None
    with Claim(folder) as claim:
        claim.check()


def test_claim_from_another_machine_is_dead_once_it_has_been_silent(folder):
    left_claim(folder, place="another/1", pid=1, host="node7")
    assert living_owner(folder, watch=Watch(SharedDisk())) == "node7, process 1"
    long_ago = time.time() - owners.SILENCE - 5
    os.utime(claim_file(folder), (long_ago, long_ago))
    assert living_owner(folder) is None


def test_number_of_a_dead_process_that_another_got_is_no_owner(folder):
    left_claim(folder, started="1")
    assert living_owner(folder) is None


def test_heartbeat_keeps_a_claim(folder, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT", 0.01)
    with Claim(folder) as claim:
        os.utime(claim.file, (0, 0))
        deadline = time.monotonic() + 10
        while claim.file.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert claim.file.stat().st_mtime > 0


def test_a_process_that_stood_still_and_lost_its_run_writes_nothing_more(tiny_cells):
    (cfg,) = tiny_cells("task=rte", "runtime.checkpoint_steps=2")

    def lose():
        file = claim_file(run_folder(cfg))
        file.write_text(json.dumps(json.loads(file.read_text()) | {"token": "another's"}))

    with (
        pytest.raises(RunTaken, match="was taken over"),
        fault(lose, 4, [(finetune.Run, "finish_step")]),
    ):
        finetune.run(cfg)
    assert read_record(run_folder(cfg))["status"] == "running"
    assert claim_file(run_folder(cfg)).exists()
    names = [path.name for path in (run_folder(cfg) / "checkpoints").iterdir()]
    assert names == ["step-00000002"]


def test_run_of_another_is_not_done_again(tiny_cells, monkeypatch):
    (cfg,) = tiny_cells("task=rte")
    monkeypatch.setattr(finetune.Run, "_prepare", lambda *_: pytest.fail("trained"))
    with Claim(run_folder(cfg)), pytest.raises(RunTaken):
        finetune.run(cfg)


def test_launcher_waits_for_the_others_and_does_what_the_dead_left(tiny_cells, monkeypatch):
    words = ("task=rte", "seed=0,1,2")
    monkeypatch.setattr(watch, "POLL", 0.01)
    cells = tiny_cells(*words)
    monkeypatch.setattr(watch, "compose_cells", lambda _: cells)

    def doomed():
        with fault(kill, 3, [(finetune.Run, "finish_step")]):
            finetune.run(cells[1])

    finetune.run(cells[0])
    assert in_child(doomed) == KILLED
    with Claim(run_folder(cells[2])):
        left = watch.left_by_others([])
        assert next(left) is cells[1]
        finetune.run(cells[1])
    finetune.run(cells[2])
    assert list(left) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launchers", "more", "fleet"),
    [
        (2, [], 1),
        (1, ["runtime.fleet=2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], 2),
    ],
    ids=["two", "one of two processes with fleets"],
)
def test_launchers_started_together_do_every_run_once(tmp_path, launchers, more, fleet):
    words = [
        "task=rte", "backbone=tiny", "data=synthetic", *FEW_ROWS, "protocol=embedded", "protocol.max_steps=4",
        "protocol.evaluate_every=2", "runtime.threads=1", "adapter=lora,condlora", "seed=0,1",
        f"runs={tmp_path}", *more, "--multirun",
    ]  # fmt: skip
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *words]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(launchers)
    ]
    said = [launcher.communicate(timeout=300)[0] for launcher in started]
    assert [launcher.returncode for launcher in started] == [0] * launchers, said
    assert "".join(said).count("test accuracy") == 4
    assert not list(tmp_path.rglob("*.stale-*"))
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("record.json")]
    assert [record["status"] for record in records] == ["done"] * 4
    assert max(record["fleet"] for record in records) == fleet


@pytest.mark.slow
def test_signal_to_a_launcher_is_its_exit_status(tmp_path):
    words = [
        "task=rte", "backbone=tiny", "data=synthetic", *FEW_ROWS, "protocol=embedded", "protocol.max_steps=100000",
        "protocol.evaluate_every=100000", "runtime.threads=1", "adapter=lora", f"runs={tmp_path}",
    ]  # fmt: skip
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *words]
    record = tmp_path / "adhoc" / "rte" / "lora" / "seed-0" / "record.json"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as launcher:
        while not record.exists():
            time.sleep(0.1)
        time.sleep(2)
        launcher.send_signal(signal.SIGTERM)
        said = launcher.communicate(timeout=60)[1]
    assert launcher.returncode == 143
    assert "interrupted: run the same command to resume" in said
    assert read_record(record.parent)["status"] == "interrupted"
