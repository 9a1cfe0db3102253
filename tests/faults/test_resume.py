"""A run that is killed and started again ends with the bits of one that was not."""

import json
import os
import shutil
import signal
import time
from functools import partial

import pytest
from safetensors.torch import load_file

from condlora.errors import Interrupted
from condlora.runs.record import read_record, run_folder
from condlora.training import checkpoints
from condlora.training import run as finetune
from tests.faults.harness import (
    KILLED,
    Stop,
    fault,
    full_disk,
    in_child,
    kill,
    left_behind,
    small_files,
    stop,
)
from tests.tasks import compose_tiny, slow

SETTINGS = (
    "task=rte",
    "protocol.max_steps=7",
    "protocol.evaluate_every=3",
    "protocol.precision=no",
    "runtime.checkpoint_steps=2",
)


@pytest.fixture(autouse=True)
def signals_are_heeded():
    """As in a terminal, whoever started the tests: a background job's SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run_at(tmp_path):
    """A function (name, *overrides) -> config of the run kept under that name."""
    return partial(cell, tmp_path)


def cell(folder, name, *overrides):
    (cfg,) = compose_tiny(*SETTINGS, *overrides, f"runs={folder}/{name}")
    return cfg


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The files of a run without faults, and the instants it passes."""
    cfg = cell(tmp_path_factory.mktemp("undisturbed"), "runs")
    with fault(None, 0) as passed:
        finetune.run(cfg)
    return left_behind(run_folder(cfg)), passed


def test_checkpoints_change_nothing(run_at, undisturbed):
    cfg = run_at("without", "runtime.checkpoint_steps=null", "runtime.checkpoint_minutes=null")
    finetune.run(cfg)
    assert left_behind(run_folder(cfg))["files"] == undisturbed[0]["files"]


def places(passed, name):
    return [n for n, instant in enumerate(passed, start=1) if instant == name]


@pytest.mark.slow
def test_killed_at_any_kind_of_instant_it_ends_with_the_same_bits(run_at, undisturbed):
    expected, passed = undisturbed
    chosen = [places(passed, "finish_step")[k] for k in (0, 3, 6)]
    chosen += [
        places(passed, "replace")[-3],
        places(passed, "fsync")[-1],
        places(passed, "rmtree")[-1],
    ]
    for at in chosen:
        cfg = run_at(f"killed-{at}")

        def doomed(cfg=cfg, at=at):
            with fault(kill, at):
                finetune.run(cfg)

        assert in_child(doomed) == KILLED
        finetune.run(cfg)
        assert left_behind(run_folder(cfg)) == expected, passed[at - 1]


def test_killed_again_and_again_it_still_ends_with_the_same_bits(run_at, undisturbed):
    expected, _ = undisturbed
    cfg = run_at("often")

    def doomed(at):
        with fault(kill, at):
            finetune.run(cfg)

    kills = 0
    while in_child(partial(doomed, 30 + 15 * kills)) == KILLED:
        kills += 1
    assert kills >= 3
    assert left_behind(run_folder(cfg)) == expected
    resumed = read_record(run_folder(cfg))["resumed_at_steps"]
    assert resumed and all(step % 2 == 0 for step in resumed if step < 7)


def test_optimizer_schedule_and_generators_are_the_same_too(run_at, monkeypatch):
    monkeypatch.setattr(finetune, "tidy", lambda folder: None)
    found = []
    for name, at in (("whole", None), ("killed", 4)):
        cfg = run_at(name)
        if at:
            with pytest.raises(Stop), fault(stop, at, [(finetune.Run, "finish_step")]):
                finetune.run(cfg)
        finetune.run(cfg)
        (last,) = (run_folder(cfg) / "checkpoints").iterdir()
        state = json.loads((last / "state.json").read_text().partition("\n")[2])
        found.append((load_file(last / "tensors.safetensors"), state["schedule"], state["groups"]))
    (a, *rest_a), (b, *rest_b) = found
    assert rest_a == rest_b
    assert a.keys() == b.keys() and "random.cpu" in a
    assert sum(name.endswith("exp_avg_sq") for name in a) > 2
    assert all(a[name].equal(b[name]) for name in a)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(run_at, undisturbed, capsys):
    cfg = run_at("damaged")
    with pytest.raises(Stop), fault(stop, 6, [(finetune.Run, "finish_step")]):
        finetune.run(cfg)
    (path,) = (run_folder(cfg) / "checkpoints").iterdir()
    newer = path.with_name("step-00000005")
    newer.mkdir()
    for file in path.iterdir():
        if file.is_file():
            (newer / file.name).write_bytes(file.read_bytes()[:-1])
    finetune.run(cfg)
    assert "step-00000005 is damaged" in capsys.readouterr().out
    assert left_behind(run_folder(cfg)) == undisturbed[0]
    assert read_record(run_folder(cfg))["resumed_at_steps"] == [4]


def test_an_adapter_lost_between_two_renames_comes_back_from_the_checkpoint(run_at, undisturbed):
    cfg = run_at("renames")
    with pytest.raises(Stop), fault(stop, 6, [(finetune.Run, "finish_step")]):
        finetune.run(cfg)
    shutil.rmtree(run_folder(cfg) / "adapter")
    finetune.run(cfg)
    assert left_behind(run_folder(cfg)) == undisturbed[0]
    assert undisturbed[0]["record"]["best"]["step"] == 3


def test_the_previous_checkpoint_stays_until_the_next_is_proved(run_at, capsys):
    cfg = run_at("unproved")

    def read(self, path, original=checkpoints.Checkpoints._read):
        if path.name == "step-00000004":
            raise ValueError("it reads back otherwise")
        return original(self, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "_read", read)
        with pytest.raises(Stop), fault(stop, 6, [(finetune.Run, "finish_step")]):
            finetune.run(cfg)
    assert "no checkpoint at step 4 (it reads back otherwise)" in capsys.readouterr().out
    names = sorted(path.name for path in (run_folder(cfg) / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000004"]


@pytest.mark.parametrize(
    "name", ["tensors.safetensors", *slow("state.json", "adapter/adapter_config.json")]
)
def test_a_flipped_byte_in_a_checkpoint_is_found(run_at, undisturbed, capsys, name):
    cfg = run_at("flipped")
    with pytest.raises(Stop), fault(stop, 6, [(finetune.Run, "finish_step")]):
        finetune.run(cfg)
    file = run_folder(cfg) / "checkpoints" / "step-00000004" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    finetune.run(cfg)
    assert "does not match its checksum" in capsys.readouterr().out
    assert left_behind(run_folder(cfg)) == undisturbed[0]
    assert read_record(run_folder(cfg))["resumed_at_steps"] == []


def test_a_checkpoint_continues_on_another_processor_which_the_record_names(run_at, undisturbed):
    cfg = run_at("moved")
    with pytest.raises(Stop), fault(stop, 6, [(finetune.Run, "finish_step")]):
        finetune.run(cfg)
    described, other = finetune.described_environment, "cpu (another)"
    moved = {"platform": "another", "processor": "another", "device": other}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "described_environment", lambda a: described(a) | moved)
        patch.setattr(finetune, "device_name", lambda _: other)
        record = finetune.run(cfg)
    assert record["resumed_at_steps"] == [4]
    assert record["environment"]["device"] == other
    assert record["devices"] == [*undisturbed[0]["record"]["devices"], other]
    assert len(record["devices"]) == 2
    assert left_behind(run_folder(cfg))["files"] == undisturbed[0]["files"]


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(run_at, undisturbed, capsys):
    cfg = run_at("full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "_fill", lambda *_: full_disk())
        finetune.run(cfg)
    assert "no checkpoint at step 2 ([Errno 28]" in capsys.readouterr().out
    assert left_behind(run_folder(cfg)) == undisturbed[0]


def test_a_full_disk_within_safetensors_costs_the_checkpoint_and_not_the_run(
    run_at, undisturbed, monkeypatch, capsys
):
    def full(*arguments, original=checkpoints.save_file):
        with small_files():
            original(*arguments)

    monkeypatch.setattr(checkpoints, "save_file", full)
    cfg = run_at("full-within")
    finetune.run(cfg)
    assert "no checkpoint at step 2 (Error while serializing" in capsys.readouterr().out
    assert left_behind(run_folder(cfg)) == undisturbed[0]


def test_a_run_killed_after_its_last_step_ends_with_the_same_record(run_at, undisturbed):
    cfg = run_at("last", "runtime.checkpoint_steps=7")
    with pytest.raises(Stop), fault(stop, 1, [(finetune.Run, "_complete")]):
        finetune.run(cfg)
    assert finetune.run(cfg)["resumed_at_steps"] == [7]
    found, expected = left_behind(run_folder(cfg)), undisturbed[0]
    assert found["files"] == expected["files"]
    assert {**found["record"], "runtime": None} == {**expected["record"], "runtime": None}


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGUSR2, *slow(signal.SIGINT, signal.SIGUSR1)]
)
def test_a_signal_leaves_a_checkpoint_and_says_so(run_at, undisturbed, number):
    cfg = run_at("signal")

    def send():
        os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as raised, fault(send, 5, [(finetune.Run, "finish_step")]):
        finetune.run(cfg)
    assert raised.value.exit_status == 128 + number
    record = read_record(run_folder(cfg))
    assert (record["status"], record["reason"]) == ("interrupted", f"signal {int(number)}")
    assert [p.name for p in (run_folder(cfg) / "checkpoints").iterdir()] == ["step-00000005"]
    assert finetune.run(cfg)["resumed_at_steps"] == [5]
    assert left_behind(run_folder(cfg)) == undisturbed[0]


@pytest.mark.slow
def test_a_second_signal_leaves_at_once(run_at):
    def send_twice():
        first = signal.getsignal(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 5  # two that are pending at once are one to Python
        while signal.getsignal(signal.SIGINT) == first and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    with (
        pytest.raises(KeyboardInterrupt) as raised,
        fault(send_twice, 3, [(finetune.Run, "finish_step")]),
    ):
        finetune.run(run_at("twice"))
    assert not isinstance(raised.value, Interrupted)


def test_a_signal_that_is_ignored_stays_ignored(run_at):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cfg = run_at("background")
    with fault(lambda: os.kill(os.getpid(), signal.SIGINT), 5, [(finetune.Run, "finish_step")]):
        assert finetune.run(cfg)["status"] == "done"


def test_checkpoints_hold_no_frozen_weight_and_are_gone_at_the_end(run_at, monkeypatch):
    cfg = run_at("kept")
    with pytest.raises(Stop), fault(stop, 6, [(finetune.Run, "finish_step")]):
        finetune.run(cfg)
    tensors = load_file(run_folder(cfg) / "checkpoints" / "step-00000004" / "tensors.safetensors")
    trained = {n for n in tensors if n.startswith("parameter.")}
    assert trained and all("condlora" in n or "modules_to_save" in n for n in trained)
    record = finetune.run(cfg)
    assert not (run_folder(cfg) / "checkpoints").exists()
    assert record["checkpoint_seconds"] > 0 and record["checkpoint_bytes"] > 0
