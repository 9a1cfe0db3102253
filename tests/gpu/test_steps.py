"""Steps of runs in float64: fleets against single runs, packed against padded batches, and batches that do not fit."""

import contextlib

import pytest
import torch

from condlora.models.packing import pack
from condlora.training import joint
from condlora.training import step as stepping
from tests.members import Member, batch, steps, training

NAMES = ["condlora", "lora", "condlora", "lora"]
LARGE = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "intermediate_size": 1024,
}  # some hundred MB a batch


def made(tiny_bert, device, **settings):
    return [
        training(tiny_bert, name, seed, torch.float64, device=device, **settings)
        for seed, name in enumerate(NAMES)
    ]


def assert_equal_gradients(run, other):
    for name, parameter in run.trainable.items():
        torch.testing.assert_close(
            parameter.grad, other.trainable[name].grad, rtol=1e-9, atol=1e-12
        )


def test_a_fleet_takes_the_steps_of_its_runs_alone(tiny_bert, device):
    alone, together = (made(tiny_bert, device) for _ in "12")
    losses = [steps(alone, 10, False), steps(together, 10, True)]
    torch.testing.assert_close(*losses, rtol=1e-9, atol=0)
    for run, other in zip(alone, together, strict=True):
        for name, parameter in run.trainable.items():
            assert parameter.device.type == device.type
            theirs = other.trainable[name]
            assert (theirs - parameter).norm() <= 1e-9 * parameter.norm()


def test_packed_batches_give_what_padded_ones_do(tiny_bert, device):
    padded, packed = (made(tiny_bert, device) for _ in "12")
    batches = [batch(seed, device=device) for seed in range(4)]
    expected = joint.joint_gradients(padded, batches)
    for run, own in zip(packed, batches, strict=True):
        pack(run.model)
        own["lengths"] = own["attention_mask"].sum(1).tolist()
    found = joint.joint_gradients(packed, batches)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-6, atol=0)
    for run, other in zip(packed, padded, strict=True):
        assert_equal_gradients(run, other)


# Memory


def large_batches(device):
    """On a GPU as large as the memory that is measured needs them."""
    size, length = (16, 32) if device.type == "cuda" else (4, 8)
    found = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(1, 50, (size, length), generator=generator).to(device)
        labels = torch.randint(3, (size,), generator=generator).to(device)
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return found


@contextlib.contextmanager
def memory_between(few, many):
    """In this context the GPU's memory for this process is between what these two functions need."""
    peaks = []
    for work in (few, many):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        work()
        peaks.append(torch.cuda.max_memory_reserved())
    assert peaks[0] < 0.9 * peaks[1], peaks
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(sum(peaks) / 2 / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.fixture
def short_of_memory(device, monkeypatch):
    """A function (few, many, place, name, fits) -> a context that is short of memory: really so on a GPU, and on a CPU by
    an error in every call of the function `name` whose arguments do not fit."""

    def short(few, many, place, name, fits):
        if device.type == "cuda":
            return memory_between(few, many)
        original = getattr(place, name)

        def limited(*arguments):
            if not fits(*arguments):
                raise torch.OutOfMemoryError
            return original(*arguments)

        monkeypatch.setattr(place, name, limited)
        return contextlib.nullcontext()

    return short


def clear(runs):
    for run in runs:
        run.optimizer.zero_grad()


def settings_on(device):
    return LARGE if device.type == "cuda" else {}


def test_a_fleet_that_does_not_fit_is_split_to_the_same_gradients(
    tiny_bert, device, short_of_memory
):
    runs, others = (made(tiny_bert, device, **settings_on(device)) for _ in "12")
    batches = large_batches(device)
    expected = joint.joint_gradients(others, batches)

    def joint_pass(count):
        joint.joint_gradients(runs[:count], batches[:count])
        clear(runs)

    memory = short_of_memory(
        lambda: joint_pass(2), lambda: joint_pass(4), stepping, "joint_gradients", lambda runs, _: len(runs) <= 2
    )  # fmt: skip
    members = [Member(run, own) for run, own in zip(runs, batches, strict=True)]
    with memory:
        found = dict((id(m), loss) for m, loss in stepping.step(members))
    assert {run.most_together for run in runs} <= {1, 2}
    losses = torch.stack([found[id(member)] for member in members])
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-6, atol=0)


def test_a_batch_that_does_not_fit_is_split_to_the_same_gradients(
    tiny_bert, device, short_of_memory
):
    run, other = (
        training(tiny_bert, "condlora", 0, torch.float64, device=device, **settings_on(device))
        for _ in "12"
    )
    own = large_batches(device)[0]
    expected = stepping.gradients(other, own)

    def part_pass(parts):
        run.progress.parts_per_batch = parts
        stepping.gradients(run, own)
        clear([run])

    memory = short_of_memory(
        lambda: part_pass(2), lambda: part_pass(1), stepping, "add_gradients", lambda run, _: run.progress.parts_per_batch >= 2
    )  # fmt: skip
    run.progress.parts_per_batch = 1
    with memory:
        run.progress.parts_per_batch = 1
        found = stepping.gradients(run, own)
    assert run.progress.parts_per_batch >= 2
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert_equal_gradients(run, other)
