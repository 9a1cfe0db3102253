"""Runs trained together: each comes to what it comes to alone."""

import contextlib
import copy
import itertools
import math
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import scipy.stats
import torch
from peft import LoraConfig, PromptTuningConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from condlora import CondLoraConfig
from condlora.errors import DeviceError, DivergedError, Interrupted, RunTaken
from condlora.grid import cells as grid_cells
from condlora.grid.cells import companions
from condlora.models.packing import pack
from condlora.runs.lease import Claim
from condlora.runs.record import read_record, run_folder
from condlora.training import checkpoints, compatibility, joint, setup, timing
from condlora.training import run as finetune
from condlora.training import step as stepping
from condlora.training.state import Training
from tests.faults.harness import Stop, fault, stop
from tests.members import ACCELERATOR, Member, batch, steps, training
from tests.tasks import FEW_ROWS, ROOT, slow

SHRUNK = (
    "backbone=tiny", "data=synthetic", *FEW_ROWS, "protocol=embedded", "protocol.max_steps=6",
    "protocol.evaluate_every=3", "runtime.threads=1",
)  # fmt: skip
NO_DROPOUT = (
    "+backbone.architecture.hidden_dropout_prob=0",
    "+backbone.architecture.attention_probs_dropout_prob=0",
    "protocol.precision=no",
)


@pytest.fixture
def passes(monkeypatch):
    """A list of the number of runs in each joint pass."""
    sizes = []

    def counted(trainings, batches, original=joint.joint_gradients):
        sizes.append(len(trainings))
        return original(trainings, batches)

    monkeypatch.setattr(stepping, "joint_gradients", counted)
    return sizes


def weights(cfg):
    return load_file(run_folder(cfg) / "adapter/adapter_model.safetensors")


def assert_equal_but_for_rounding(cfg, other, relative):
    losses = [pd.read_csv(run_folder(c) / "curve.csv")["train_loss"].values for c in (cfg, other)]
    assert losses[0] == pytest.approx(losses[1], rel=relative)
    ours, theirs = weights(cfg), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).norm() <= relative * theirs[name].norm(), name


# What a joint pass computes


@pytest.mark.parametrize(
    ("dtype", "relative"),
    [(torch.float64, 1e-9), pytest.param(torch.float32, 1e-5, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "names",
    [
        ["condlora", "lora", "condlora"],
        *slow(
            ["lora", "rslora", "tied_lora", "condlora_random", "condlora_random"],
            ["condlora_x", "lotr", "half_lora", "half_lora", "melora", "condlora_x"],
            ["lora_drop", "lora_drop_value", "lora_drop"],
            ["lora", "lora"],
            ["condlora_blocks", "condlora", "condlora_blocks"],
            ["condlora_other_layer", "condlora_other_layer"],
            ["cond_pissa", "condlora", "cond_pissa"],
        ),
    ],
    ids="+".join,
)
def test_losses_gradients_and_weights_are_those_of_single_runs(tiny_bert, names, dtype, relative):
    runs = {
        together: [training(tiny_bert, name, i, dtype) for i, name in enumerate(names)]
        for together in (False, True)
    }
    losses = {together: steps(own, 50, together) for together, own in runs.items()}
    torch.testing.assert_close(losses[True], losses[False], rtol=relative, atol=0)
    batches = [batch(i) for i in range(len(names))]
    joint.joint_gradients(runs[True], batches)
    for single, member, own in zip(runs[False], runs[True], batches, strict=True):
        stepping.gradients(single, own)
        for name, parameter in single.trainable.items():
            theirs = member.trainable[name]
            assert (theirs - parameter).norm() <= relative * parameter.norm()
            assert (theirs.grad - parameter.grad).norm() <= relative * parameter.grad.norm()


def test_numbers_as_labels_give_the_loss_of_a_regression(tiny_bert):
    runs = [
        [training(tiny_bert, "lora", i, torch.float64, num_labels=1) for i in range(2)]
        for _ in range(2)
    ]
    losses = [
        steps(own, 3, together, outputs=1) for own, together in zip(runs, (0, 1), strict=True)
    ]
    torch.testing.assert_close(*losses, rtol=1e-9, atol=0)


@pytest.mark.slow
def test_with_dropout_ten_members_train_like_ten_single_runs(tiny_bert):
    """A paired t-test over ten seeds at 5 % detects a difference of one standard deviation with a power of 0.8.

    Members without dropout show that it detects one.
    """

    def late_losses(together, dropout):
        torch.manual_seed(0)
        runs = [training(tiny_bert, "lora", i, torch.float32, dropout) for i in range(10)]
        torch.manual_seed(1 + together)
        for run in runs:
            run.optimizer.param_groups[0]["lr"] = 2e-2
        return steps(runs, 24, together, cycle=1)[12:].mean(dim=0)

    singles = late_losses(False, 0.5)
    assert scipy.stats.ttest_rel(singles, late_losses(True, 0.5)).pvalue > 0.05
    assert scipy.stats.ttest_rel(singles, late_losses(True, 0.0)).pvalue < 0.05


def test_packed_batches_of_a_fleet_give_what_padded_ones_do(tiny_bert):
    names = ["lora", "condlora", "lora"]
    padded, packed = (
        [training(tiny_bert, name, i, torch.float64) for i, name in enumerate(names)] for _ in "12"
    )
    batches = [batch(i) for i in range(3)]
    expected = joint.joint_gradients(padded, batches)
    for run, own in zip(packed, batches, strict=True):
        pack(run.model)
        own["lengths"] = own["attention_mask"].sum(1).tolist()
    found = joint.joint_gradients(packed, batches)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-6, atol=0)
    for run, other in zip(packed, padded, strict=True):
        for name, parameter in run.trainable.items():
            torch.testing.assert_close(
                parameter.grad, other.trainable[name].grad, rtol=1e-9, atol=1e-12
            )


def test_a_joint_pass_leaves_the_models_as_they_were(tiny_bert):
    runs = [training(tiny_bert, name, 0, torch.float32) for name in ("lora", "condlora")]
    before = [run.model.eval()(**batch(0)).logits for run in runs]
    joint.joint_gradients(runs, [batch(0), batch(1)])
    after = [run.model.eval()(**batch(0)).logits for run in runs]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with (
        pytest.raises(RuntimeError, match="broken"),
        joint.together([r.model for r in runs], joint.Leaves()),
    ):
        raise RuntimeError("broken")
    assert torch.equal(runs[0].model.eval()(**batch(0)).logits, before[0])


def stepper(seed, settings, steps):
    """A training of 3 + 2 parameters at two learning rates, one parameter without gradient, after `steps` steps."""
    torch.manual_seed(seed)
    model = torch.nn.ParameterList([torch.randn(n, 3) for n in range(1, 6)])
    groups = [{"params": model[:3]}, {"params": model[3:], "lr": 0.3}]
    run = Training(model, torch.optim.AdamW(groups, **settings), None, ACCELERATOR, 1.0)
    for _ in range(steps):
        for parameter in model[1:]:
            parameter.grad = torch.randn_like(parameter)
        run.optimizer.step()
        run.progress.step += 1
    return run


def test_the_steps_of_several_runs_as_one_are_those_of_their_own_optimizers_to_the_bit():
    """Of runs that differ in rates, decays, norms and numbers of steps taken; one norm clips nothing."""
    made = [(0, {"lr": 0.1, "weight_decay": 0.2}, 1), (1, {"lr": 0.02}, 7), (2, {"lr": 0.5}, 2)]
    alone, together = ([stepper(*own) for own in made] for _ in "12")
    for run, own, norm in zip(alone, together, [0.5, 1e-3, 100.0], strict=True):
        run.max_grad_norm = own.max_grad_norm = norm
    for _ in range(3):
        for run, own in zip(alone, together, strict=True):
            for ours, theirs in zip(list(run.model)[1:], list(own.model)[1:], strict=True):
                ours.grad = torch.randn_like(ours)
                theirs.grad = ours.grad.clone()
        with count_calls(torch.optim.AdamW, "step") as calls:
            stepping.optimize([Member(run, {}) for run in together])
        assert not calls
        for run in alone:
            stepping.optimize([Member(run, {})])
        for run in (*alone, *together):
            run.progress.step += 1
    for run, own in zip(alone, together, strict=True):
        assert all(map(torch.equal, run.model, own.model))
        states = [list(r.optimizer.state_dict()["state"].values()) for r in (run, own)]
        for ours, theirs in zip(*states, strict=True):
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("change", ["scaler", "no moments"])
def test_where_one_run_has_a_scaler_or_no_moments_all_take_steps_of_their_own(change):
    runs = [stepper(0, {"lr": 0.1}, 1), stepper(1, {"lr": 0.1}, int(change == "scaler"))]
    if change == "scaler":
        runs[1].accelerator = SimpleNamespace(**vars(ACCELERATOR) | {"scaler": object()})
    for parameter in runs[1].model:
        parameter.grad = torch.randn_like(parameter)
    with count_calls(torch.optim.AdamW, "step") as calls:
        stepping.optimize([Member(run, {}) for run in runs])
    assert len(calls) == 2


@contextlib.contextmanager
def count_calls(owner, name):
    """A list that gets an entry for each call of a method."""
    calls, original = [], getattr(owner, name)

    def counted(self, *arguments):
        calls.append(name)
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counted)
        yield calls


class Operations(TorchDispatchMode):
    """Counts the calls of torch's operators in its context, each of which launches work on a GPU."""

    count = 0

    def __torch_dispatch__(self, operator, types, arguments=(), settings=None):
        self.count += 1
        return operator(*arguments, **(settings or {}))


@pytest.mark.parametrize("name", ["lora", "condlora"])
def test_a_run_more_adds_operations_for_its_batch_and_loss_alone(tiny_bert, name):
    """And none for each of its tensors, with which a GPU would spend its time."""
    found = {}
    for size in (2, 6):
        runs = [training(tiny_bert, name, i, torch.float32) for i in range(size)]
        steps(runs, 1, together=True)  # the first makes the moments
        for run in runs:
            run.optimizer.zero_grad()
        members = [Member(run, batch(i)) for i, run in enumerate(runs)]
        with Operations() as counted:
            joint.joint_gradients(runs, [member.batch for member in members])
            stepping.optimize(members)
        found[size] = counted.count
    assert found[6] - found[2] < 4 * 35


def test_values_that_are_not_finite_stay_in_their_own_run(tiny_bert):
    runs = [training(tiny_bert, "lora", i, torch.float64) for i in range(3)]
    expected = steps([training(tiny_bert, "lora", i, torch.float64) for i in range(3)], 1, False)
    with torch.no_grad():
        next(iter(runs[1].trainable.values())).fill_(math.nan)
    (losses,) = steps(runs, 1, True)
    assert losses[1].isnan()
    torch.testing.assert_close(losses[[0, 2]], expected[0, [0, 2]], rtol=1e-9, atol=0)


# Which runs go together


def test_only_runs_of_low_rank_updates_and_one_shape_go_together(tiny_bert):
    def kind(config, **settings):
        model = get_peft_model(tiny_bert(**settings), config)
        model.base_weights = []
        return compatibility.structure(model)

    words = {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
    plain = kind(LoraConfig(**words))
    assert plain is not None
    assert kind(LoraConfig(**words, use_rslora=True)) == plain
    assert kind(CondLoraConfig(**words)) == plain
    for other in (
        kind(LoraConfig(**words, r=4)),
        kind(LoraConfig(**words, lora_dropout=0.1)),
        kind(LoraConfig(**(words | {"target_modules": ["query"]}))),
        kind(LoraConfig(**words), num_labels=2),
    ):
        assert other not in (plain, None)
    for alone in (
        LoraConfig(**words, use_dora=True),
        LoraConfig(**words, bias="all"),
        LoraConfig(**words, lora_bias=True),
        CondLoraConfig(**words, use_dora=True),
        CondLoraConfig(**words, method="dylora"),
        CondLoraConfig(**words, method="cond_adalora"),
        VeraConfig(**words),
        PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2),
    ):
        assert kind(alone) is None


def test_runs_on_one_backbone_hold_it_once_and_others_do_not_join(tiny_bert):
    first, second = (training(tiny_bert, "lora", i, torch.float32).model for i in range(2))
    assert compatibility.share_frozen(first, second)
    W = "base_model.model.bert.encoder.layer.1.attention.self.query.base_layer.weight"
    assert second.get_parameter(W) is first.get_parameter(W)
    third = training(tiny_bert, "lora", 2, torch.float32).model
    with torch.no_grad():
        third.get_parameter(W).add_(1)
    assert not compatibility.share_frozen(first, third)
    assert third.get_parameter(W) is not first.get_parameter(W)


# Whole runs


@pytest.mark.parametrize("padding", ["packed", *slow("longest")])
def test_a_fleet_leaves_what_its_runs_leave_alone(tiny_cells, tmp_path, passes, padding):
    words = ("task=rte", *NO_DROPOUT, f"runtime.padding={padding}")
    grid = (*words, "adapter=lora,condlora", "seed=0,1", "protocol.learning_rate=1e-2")
    cells = tiny_cells(*grid)[::3]  # LoRA with one seed, CondLoRA with the other
    outcomes = finetune.run_together(list(cells))
    assert passes == [2] * 6
    singles = tiny_cells(*grid, f"runs={tmp_path}/alone")[::3]
    for cfg, single, record in zip(cells, singles, outcomes, strict=True):
        alone = finetune.run(single)
        assert_equal_but_for_rounding(cfg, single, 1e-5)
        assert record == read_record(run_folder(cfg))
        assert (record["fleet"], alone["fleet"]) == (2, 1)
        for key in ("recipe_hash", "streams", "data", "backbone", "parameters", "steps", "best"):
            assert record[key] == alone[key]
        assert record["test"] == alone["test"]


@pytest.mark.slow
def test_each_run_of_a_fleet_is_timed_alone_which_changes_no_companions_bits(
    tiny_cells, tmp_path, monkeypatch
):
    """The first ends before the other, whose dropout goes on as if nothing had been between."""
    found = []
    for timed in (True, False):
        if not timed:
            monkeypatch.setattr(finetune, "speed_alone", lambda *_: 7.0)
        words = ("task=rte", f"runs={tmp_path}/{timed}")
        cells = [
            *tiny_cells(*words, "seed=0", "protocol.max_steps=3"),
            *tiny_cells(*words, "seed=1", "protocol.max_steps=6"),
        ]
        records = finetune.run_together(cells)
        rates = {record["train_examples_per_second"] for record in records}
        assert (rates == {7.0}) is not timed
        found.append(weights(cells[1]))
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


@pytest.mark.parametrize("name", ["lora", "condlora"])
def test_timing_a_run_alone_leaves_it_and_the_generators_as_they_were(tiny_bert, monkeypatch, name):
    run = training(tiny_bert, name, 0, torch.float32, dropout=0.1)
    steps([run], 2, together=False)
    before, settings = run.tensors(), copy.deepcopy(run.settings())
    progress = copy.deepcopy(run.progress)
    norms = []

    def watched(training, original=timing.clip_and_step):
        original(training)
        norms.append(sum(float(p.detach().norm()) for p in training.trainable.values()))

    monkeypatch.setattr(timing, "clip_and_step", watched)
    assert timing.speed_alone(run, (batch(i) for i in itertools.count())) > 0
    assert len(set(norms)) == timing.WARM_UP_STEPS + timing.TIMED_STEPS  # each step trains
    after = run.tensors()
    assert before.keys() == after.keys() and {"random.cpu", "optimizer.0.exp_avg"} <= before.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert run.settings() == settings
    assert run.progress == progress
    assert all(parameter.grad is None for parameter in run.trainable.values())


def test_a_fleet_of_one_is_the_single_run(tiny_cells, tmp_path, passes):
    (cfg,) = tiny_cells("task=rte")
    (other,) = tiny_cells("task=rte", f"runs={tmp_path}/other")
    finetune.run_together([cfg])
    finetune.run(other)
    assert passes == []
    assert all(torch.equal(t, weights(other)[name]) for name, t in weights(cfg).items())


def test_a_run_that_fails_or_is_done_leaves_and_the_others_go_on(tiny_cells, tmp_path, passes):
    words = ("task=rte", *NO_DROPOUT)
    (good,) = tiny_cells(*words, "seed=0")
    (wild,) = tiny_cells(
        *words, "seed=1", "protocol.learning_rate=1e30", "protocol.max_grad_norm=1e30"
    )
    (short,) = tiny_cells(*words, "seed=2", "protocol.max_steps=4")
    record, error, done = finetune.run_together([good, wild, short])
    assert isinstance(error, DivergedError)
    assert read_record(run_folder(wild))["status"] == "failed"
    assert (record["steps"], done["steps"]) == (6, 4)
    assert passes == [3, 3, 3, 2]
    (alone,) = tiny_cells(*words, "seed=0", f"runs={tmp_path}/alone")
    finetune.run(alone)
    assert_equal_but_for_rounding(good, alone, 1e-5)


@pytest.mark.parametrize(
    ("place", "name", "nth"),
    [
        (setup.Batches, "next", 4),
        (stepping, "_after_optimizer", 4),
        pytest.param(finetune, "validate", 2, marks=pytest.mark.slow),
        pytest.param(checkpoints.Checkpoints, "save", 2, marks=pytest.mark.slow),
    ],
)
def test_an_error_in_one_run_is_recorded_and_ends_no_other(
    tiny_cells, monkeypatch, place, name, nth
):
    """Calls alternate between the two runs, so that every even one is of the second."""
    calls, original = [], getattr(place, name)

    def breaks(*arguments):
        calls.append(name)
        if len(calls) == nth:
            raise RuntimeError("broken")
        return original(*arguments)

    monkeypatch.setattr(place, name, breaks)
    cells = tiny_cells("task=rte", "seed=0,1", "runtime.checkpoint_steps=2")
    record, error = finetune.run_together(list(cells))
    assert record["status"] == "done"
    assert isinstance(error, RuntimeError)
    failed = read_record(run_folder(cells[1]))
    assert (failed["status"], failed["reason"]) == ("failed", "RuntimeError: broken")


@pytest.mark.slow
def test_a_run_that_does_not_fit_in_is_trained_alone_beside_the_others(tiny_cells, passes):
    cells = tiny_cells("task=rte", "adapter=lora,condlora,full")
    assert [r["status"] for r in finetune.run_together(list(cells))] == ["done"] * 3
    assert passes == [2] * 6


def test_a_run_of_another_launcher_is_left_to_it(tiny_cells):
    first, second = tiny_cells("task=rte", "seed=0,1")
    with Claim(run_folder(first)):
        taken, record = finetune.run_together([first, second])
    assert isinstance(taken, RunTaken)
    assert record["status"] == "done"


@pytest.mark.slow
def test_short_memory_splits_the_fleet(tiny_cells, passes, monkeypatch, capsys):
    def short(trainings, batches, original=stepping.joint_gradients):
        if len(trainings) > 2:
            raise torch.OutOfMemoryError
        return original(trainings, batches)

    monkeypatch.setattr(stepping, "joint_gradients", short)
    cells = tiny_cells("task=rte", "seed=0,1,2,3", "protocol.max_steps=3")
    assert [r["status"] for r in finetune.run_together(list(cells))] == ["done"] * 4
    assert passes == [2, 2] * 3
    assert capsys.readouterr().out.count("training at most 2 runs jointly") == 1


def test_memory_that_is_short_in_a_step_fails_its_run_and_tries_nothing_again(
    tiny_cells, passes, monkeypatch
):
    """A part of the step may have been done. The first step is each run's own, as is its failure."""

    def short(self, closure=None, original=torch.optim.AdamW.step):
        if self.param_groups[0]["lr"] > 0.1:
            raise torch.OutOfMemoryError
        return original(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", short)
    words = ("task=rte", "protocol.warmup_ratio=0", "protocol.max_steps=3")
    (good,) = tiny_cells(*words, "seed=0")
    (bad,) = tiny_cells(*words, "seed=1", "protocol.learning_rate=0.5")
    (alone,) = tiny_cells(*words, "seed=2", "protocol.learning_rate=0.5")
    record, error = finetune.run_together([good, bad])
    assert record["status"] == "done"
    assert isinstance(error, DeviceError) and "optimizer's step does not fit" in str(error)
    assert passes == [2]
    with pytest.raises(DeviceError, match="set runtime.fleet to fewer runs"):
        finetune.run(alone)


FLEET = ("task=rte", "adapter=lora,condlora", "seed=0,1", "runtime.checkpoint_steps=2")


def stopped_at(tiny_cells, tmp_path, instant):
    stopped = list(tiny_cells(*FLEET, f"runs={tmp_path}/stopped"))
    with pytest.raises(Stop), fault(stop, instant, [(finetune.Run, "finish_step")]):
        finetune.run_together(stopped)
    return stopped


@pytest.mark.slow
def test_a_stopped_fleet_goes_on_to_the_same_bits(tiny_cells, tmp_path):
    wholes = list(tiny_cells(*FLEET, f"runs={tmp_path}/whole"))
    finetune.run_together(wholes)
    stopped = stopped_at(tiny_cells, tmp_path, 13)  # in the first run's fourth step
    records = finetune.run_together(stopped)
    assert [record["resumed_at_steps"] for record in records] == [[2]] * 4
    for cfg, whole in zip(stopped, wholes, strict=True):
        assert all(torch.equal(t, weights(whole)[name]) for name, t in weights(cfg).items())


@pytest.mark.slow
def test_a_fleet_stopped_between_two_checkpoints_goes_on_out_of_step(tiny_cells, tmp_path):
    stopped = stopped_at(tiny_cells, tmp_path, 14)  # the first run has its checkpoint of step 4
    records = finetune.run_together(stopped)
    assert [record["resumed_at_steps"] for record in records] == [[4], [2], [2], [2]]
    assert [record["steps"] for record in records] == [6] * 4


def test_a_signal_ends_all_runs_with_checkpoints(tiny_cells):
    cells = list(tiny_cells("task=rte", "seed=0,1"))
    send = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    with pytest.raises(Interrupted), fault(send, 5, [(finetune.Run, "finish_step")]):
        finetune.run_together(cells)
    assert [read_record(run_folder(c))["status"] for c in cells] == ["interrupted"] * 2
    assert [r["resumed_at_steps"] for r in finetune.run_together(cells)] == [[3], [3]]


# The grid


def test_companions_differ_in_adapter_rate_and_seed_alone(tiny_cells):
    grid = ("task=rte,mrpc", "adapter=lora,condlora", "seed=0,1")
    cells = tiny_cells(*grid)
    overrides = [*SHRUNK, *grid, f"runs={cells[0].runs}"]
    found = companions(cells[0], overrides, 9)
    assert [(c.task.name, c.adapter.name, c.seed) for c in found] == [
        ("rte", "lora", 1), ("rte", "condlora", 0), ("rte", "condlora", 1)
    ]  # fmt: skip
    assert companions(cells[0], overrides, 2) == found[:2]
    assert companions(cells[0], overrides, 0) == []
    finetune.run(found[0])
    with Claim(run_folder(found[1])):
        assert companions(cells[0], overrides, 9) == found[2:]
    other = companions(cells[0], [*overrides, "protocol.batch_size=8,32"], 9)
    assert {c.protocol.batch_size for c in other} == {32}


def test_a_run_that_is_done_is_read_once_in_a_launch(finished_cells, monkeypatch):
    """Otherwise a grid of n runs would read its records n times."""
    grid = ("task=rte", "seed=0,1")
    first, second = finished_cells(*grid)
    read = []

    def watched(cell, original=grid_cells.state_of, **settings):
        read.append(cell.seed)
        return original(cell, **settings)

    overrides = [*SHRUNK, *grid, f"runs={first.runs}"]
    shutil.rmtree(run_folder(second))
    monkeypatch.setattr(grid_cells, "state_of", watched)
    for _ in range(3):
        assert companions(second, overrides, 9) == []
    assert read.count(0) == 1


@pytest.mark.slow
def test_command_trains_a_grid_as_fleets_and_leaves_no_run_out(tmp_path):
    words = [*SHRUNK, "task=rte,stsb", "adapter=lora,condlora", "seed=0,1", "runtime.fleet=3"]
    command = [sys.executable, "scripts/train.py", *words, f"runs={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True)
    records = [read_record(path.parent) for path in tmp_path.rglob("record.json")]
    assert sorted(record["fleet"] for record in records) == [1, 1, 3, 3, 3, 3, 3, 3]
    assert {record["status"] for record in records} == {"done"}
