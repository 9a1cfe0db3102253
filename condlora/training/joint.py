"""Several runs trained as one fleet: one pass over the frozen backbone makes the gradients of all of them.

Each run is the plain loop of `condlora.training.run`, which hands out a batch by `yield` and goes on when it is given the
batch's loss, a step having been taken. `drive` collects the batches of all runs, and where runs fit together their
gradients come from one forward and one backward pass: the rows of all batches go through the first run's model, whose
frozen layers are equal in all, and at each layer that a run trains every run's own takes its rows, low-rank updates
and heads as batched products. Their optimizers' steps are one as well (`condlora.training.optimizer`). Everything else
(schedule, evaluation, choice of the best, stopping, checkpoints, record) is each run's own and knows nothing of the
others, so a run may end, fail or join at any step. Evaluation is not joint, as a run alone may have batches as large
as the device likes.

What a run computes is the same but for rounding, and for dropout, whose draws come from one stream for the fleet. So
the bits of a run depend on its companions; a fleet that is killed goes on to the bits it would have had, unless the
kill fell between the checkpoints of two of its runs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.utils import ModulesToSaveWrapper

from condlora.errors import DeviceError, Interrupted
from condlora.training.bars import say
from condlora.training.checkpoints import Training
from condlora.training.optimizer import can_step_together, step_together
from condlora.tuner.layer import Linear as CondLoraLinear
from condlora.tuner.methods.base import Method
from condlora.tuner.methods.cond_adalora import CondAdaLora

ADAPTER = "default"
LowRank = LoraLinear | CondLoraLinear


@dataclass(frozen=True)
class Request:
    """A batch, padded and on the device, on which a run wants its optimizer's step, gradients clipped to that norm."""

    training: Training
    batch: dict[str, torch.Tensor]
    accelerator: Accelerator
    max_grad_norm: float


Gradients = Callable[[Request], torch.Tensor]


def drive(runs: Sequence[Generator[Request, torch.Tensor, Any]], gradients: Gradients) -> list[Any]:
    """Advance all runs to their end; what each returned, or the exception it ended with, in their order.

    gradients: for a batch that is alone; the loss comes back.

    Raises:
        Interrupted: a run was; all the others have been given the time to write their checkpoints.
    """
    outcomes: dict[int, Any] = {}
    waiting: dict[int, Request] = {}

    def advance(index: int, resume: Callable[[], Request]) -> None:
        try:
            waiting[index] = resume()
        except StopIteration as end:
            outcomes[index] = end.value
        except (Exception, Interrupted) as error:
            outcomes[index] = error

    for index, run in enumerate(runs):
        advance(index, partial(next, run))
    fleet = Fleet(gradients)
    while waiting:
        asked, waiting = waiting, {}
        for index, answer in fleet.answers(asked):
            way = runs[index].throw if isinstance(answer, Exception) else runs[index].send
            advance(index, partial(way, answer))
    ended = [outcomes[index] for index in range(len(runs))]
    for outcome in ended:
        if isinstance(outcome, Interrupted):
            raise outcome
    return ended


class Fleet:
    """Which of the runs that wait go through the backbone together. `most`: fewer once memory was short."""

    def __init__(self, gradients: Gradients):
        self.gradients = gradients
        self.most: int | None = None
        self.groups: dict[int, Hashable] = {}
        self.first: dict[Hashable, list[PeftModel]] = {}  # of each kind, a model for each backbone

    def answers(self, asked: dict[int, Request]) -> Iterator[tuple[int, torch.Tensor | Exception]]:
        """The loss for each request, or the error that kept it or the step from being taken."""
        groups: dict[Hashable, list[int]] = {}
        for index, request in asked.items():
            groups.setdefault(self._group(index, request), []).append(index)
        for group in groups.values():
            yield from self._answer(group, asked)

    def _group(self, index: int, request: Request) -> Hashable:
        if index not in self.groups:
            model = request.accelerator.unwrap_model(request.training.model)
            self.groups[index] = self._place(model) or ("alone", index)
        return self.groups[index], len(request.batch["labels"])

    def _place(self, model: PeftModel) -> Hashable | None:
        own = kind(model)
        if own is None:
            return None
        known = self.first.setdefault(own, [])
        for number, other in enumerate(known):
            if share_frozen(other, model):
                return own, number
        known.append(model)
        return own, len(known) - 1

    def _answer(self, group: list[int], asked: dict[int, Request]):
        size = min(len(group), self.most or len(group))
        for start in range(0, len(group), size):
            part = group[start : start + size]
            requests = [asked[index] for index in part]
            try:
                losses = self._gradients(requests)
            except Exception as error:
                outcomes = [error] * len(part)
            else:
                if losses is None:
                    self.most = len(part) // 2
                    say(f"out of memory: at most {self.most} runs are trained together from now on")
                    yield from self._answer(group[start:], asked)
                    return
                errors = take_step(requests)
                outcomes = [error or loss for error, loss in zip(errors, losses, strict=True)]
            yield from zip(part, outcomes, strict=True)

    def _gradients(self, requests: list[Request]) -> list[torch.Tensor] | None:
        """Add the gradients of all; the losses, or None where memory is short for so many together."""
        if len(requests) == 1:
            return [self.gradients(requests[0])]
        try:
            return joint_gradients(requests)
        except torch.OutOfMemoryError:
            pass  # what it holds of the failed pass goes with it, before the next is tried
        for request in requests:
            request.training.optimizer.zero_grad()
        return None


def take_step(requests: list[Request]) -> list[Exception | None]:
    """Clip the gradients and take the optimizer's step of each run, of several as one where all can.

    Comes back what kept a run's step from being taken, or None. A step cannot be tried again, as a part of it may be done.
    """
    if len(requests) == 1 or not all(can_step_together(r.training) for r in requests):
        return [_error_in(_take_own_step, request) for request in requests]
    return len(requests) * [_error_in(_take_joint_step, requests)]


def _take_own_step(request: Request) -> None:
    trainable = request.training.trainable.values()
    request.accelerator.clip_grad_norm_(trainable, request.max_grad_norm)
    request.training.optimizer.step()


def _take_joint_step(requests: list[Request]) -> None:
    step_together([r.training for r in requests], [r.max_grad_norm for r in requests])


def _error_in(step: Callable[[Any], None], argument: Any) -> Exception | None:
    try:
        step(argument)
    except torch.OutOfMemoryError:
        return DeviceError(
            "The optimizer's step does not fit into the device's memory: set runtime.fleet to fewer runs, or choose an "
            "adapter that trains fewer parameters."
        )
    except Exception as error:
        return error
    return None


def share_frozen(model: PeftModel, other: PeftModel) -> bool:
    """Let the other model hold the backbone's parameters of the first, if they are equal; whether they are."""
    mine, theirs = dict(of_backbone(model)), dict(of_backbone(other))
    if not all(torch.equal(parameter, mine[name]) for name, parameter in theirs.items()):
        return False
    for name in theirs:
        owner, _, own = name.rpartition(".")
        setattr(other.get_submodule(owner), own, mine[name])
    return True


def of_backbone(model: PeftModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The parameters that are neither an adapter's nor of a head, by name."""
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if not {"modules_to_save", "original_module"}.intersection(parts) and not any(
            part.startswith(("lora_", "condlora_")) for part in parts
        ):
            yield name, parameter


def kind(model: PeftModel) -> Hashable | None:
    """What models must have in common to be trained together; None for one that can only be alone.

    Those can that train low-rank updates of linear layers, a dropout before them or none, and a head without buffers, and
    nothing else.
    """
    config = model.peft_config[ADAPTER]
    if config.is_prompt_learning or getattr(model, "base_weights", []):
        return None
    layers = []
    for path, module in model.named_modules():
        if isinstance(module, LowRank):
            if not is_plain(module):
                return None
            dropout = getattr(module.lora_dropout[ADAPTER], "p", 0.0)
            layers.append((path, module.r[ADAPTER], dropout))
        elif isinstance(module, ModulesToSaveWrapper):
            if any(True for _ in module.buffers()):  # which those of one run would stand in for
                return None
            layers.append((path, "head"))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if not all(any(name.startswith(f"{path}.") for path, *_ in layers) for name in trained):
        return None
    return (type(model.get_base_model()), model.config.num_labels, tuple(layers))


def is_plain(layer: LowRank) -> bool:
    """Whether the layer adds scaling B A to its frozen weight, and no more."""
    if type(layer) is LoraLinear:
        return not layer.lora_variant and not layer.lora_bias[ADAPTER]
    return (
        type(layer) is CondLoraLinear
        and not layer.use_dora[ADAPTER]
        and not layer.method[ADAPTER].is_nested
        and not isinstance(layer.method[ADAPTER], CondAdaLora)  # it adds to the loss
    )


def joint_gradients(requests: list[Request]) -> list[torch.Tensor]:
    """Add the gradients of each request's mean loss in one pass; returns the losses, detached, float32.

    The requests are of one `kind` and have batches of one size.
    """
    models = []
    for request in requests:
        request.training.model.train()
        models.append(request.accelerator.unwrap_model(request.training.model))
    inputs = joined([request.batch for request in requests], models[0].config.pad_token_id)
    leaves = Leaves()
    with together(models, leaves):
        logits = requests[0].training.model(**inputs).logits
    losses = [
        loss_of(own, request.batch["labels"])
        for own, request in zip(logits.chunk(len(requests)), requests, strict=True)
    ]
    scaled = [
        request.accelerator.scaler.scale(loss) if request.accelerator.scaler else loss
        for request, loss in zip(requests, losses, strict=True)
    ]
    torch.stack(scaled).sum().backward()
    leaves.hand_back()
    return [loss.detach().float() for loss in losses]


def joined(batches: list[dict], pad: int) -> dict:
    """The inputs of all batches as one, each (n, L) padded on the right to the longest; without labels.

    With packed batches (`condlora.models.packing`) comes how many they are, as each run's tokens are kept apart.
    """
    length = max(batch["input_ids"].shape[1] for batch in batches)

    def padded(name: str, values: torch.Tensor) -> torch.Tensor:
        missing = length - values.shape[1]
        return F.pad(values, (0, missing), value=pad if name == "input_ids" else 0)

    packed = {}
    if "lengths" in batches[0]:
        packed = {
            "lengths": [n for batch in batches for n in batch["lengths"]],
            "members": len(batches),
        }
    names = [name for name in batches[0] if name not in ("labels", "lengths")]
    return packed | {
        name: torch.cat([padded(name, batch[name]) for batch in batches]) for name in names
    }


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What transformers' classifiers compute: mean squared error for one output and numbers, else cross-entropy."""
    if labels.is_floating_point():
        return F.mse_loss(logits.squeeze(-1), labels)
    return F.cross_entropy(logits, labels)


class Leaves:
    """Tensors of several runs as one, (runs, ...), which the joint pass has gradients of in their place.

    Else each run's own tensors would have them, by a copy or, where layers share a tensor, a sum for each.
    """

    def __init__(self):
        self.found: dict[tuple[int, ...], tuple[list[torch.Tensor], torch.Tensor]] = {}

    def stack(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """The same each time it is asked for."""
        key = tuple(map(id, tensors))
        if key not in self.found:
            stacked = torch.stack([tensor.detach() for tensor in tensors])
            stacked.requires_grad_(any(tensor.requires_grad for tensor in tensors))
            self.found[key] = tensors, stacked
        return self.found[key][1]

    def hand_back(self) -> None:
        """Add to each run's tensors their part of the gradients."""
        for tensors, stacked in self.found.values():
            if stacked.grad is None:
                continue
            for own, grad in zip(tensors, stacked.grad, strict=True):
                if own.requires_grad:
                    own.grad = grad if own.grad is None else own.grad + grad


@contextmanager
def together(models: list[PeftModel], leaves: Leaves) -> Iterator[None]:
    """Within it the first model takes the rows of all, in equal shares, and each row goes through its model's layers."""
    names = [
        path
        for path, module in models[0].named_modules()
        if isinstance(module, LowRank | ModulesToSaveWrapper)
    ]
    first = [models[0].get_submodule(name) for name in names]
    for name, module in zip(names, first, strict=True):
        own = [model.get_submodule(name) for model in models]
        module.forward = partial(low_rank if isinstance(module, LowRank) else heads, own, leaves)
    try:
        yield
    finally:
        for module in first:
            del module.forward


def heads(
    wrappers: list[ModulesToSaveWrapper], leaves: Leaves, x: torch.Tensor, *args, **kwargs
) -> torch.Tensor:
    """Every model's own head on its rows, each of a head's products being one batched product of all."""
    own = [wrapper.modules_to_save[ADAPTER] for wrapper in wrappers]
    names = [name for name, _ in own[0].named_parameters()]
    stacked = {name: leaves.stack([head.get_parameter(name) for head in own]) for name in names}

    def head(tensors: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(own[0], tensors, (rows, *args), kwargs)

    rows = x.unflatten(0, (len(own), -1))
    return torch.vmap(head, randomness="different")(stacked, rows).flatten(0, 1)


def low_rank(layers: list[LowRank], leaves: Leaves, x: torch.Tensor) -> torch.Tensor:
    """The frozen layer on all rows, and every model's own update on its rows as one batched product."""
    result = layers[0].base_layer(x)
    A, B = factors(layers, leaves)
    x = layers[0].lora_dropout[ADAPTER](x.to(A.dtype))
    rows = x.reshape(len(layers), -1, x.shape[-1])
    added = torch.bmm(torch.bmm(rows, A.mT), B.mT)
    return (result + added.view_as(result)).to(result.dtype)


def factors(layers: list[LowRank], leaves: Leaves) -> tuple[torch.Tensor, torch.Tensor]:
    """A (models, r, in) and scaling times B (models, out, r) of one layer in every model.

    Those of neighbours that make them by the same method are made in one product.
    """
    all_A, all_B = [], []
    for (method, scaling), group in groupby(layers, key=_making):
        own = list(group)
        if method is None:
            A = leaves.stack([layer.lora_A[ADAPTER].weight for layer in own])
            B = leaves.stack([layer.lora_B[ADAPTER].weight for layer in own])
        else:
            A, B = made_together(own, leaves)
        all_A.append(A)
        all_B.append(scaling * B)
    return torch.cat(all_A), torch.cat(all_B)


def _making(layer: LowRank) -> tuple[Method | None, float]:
    """What makes the layer's A and B, whatever the seed (None where they are trained themselves), and the scaling."""
    scaling = layer.scaling[ADAPTER]
    if isinstance(layer, LoraLinear):
        return None, scaling
    method = layer.method[ADAPTER]
    return (method if method.seed is None else replace(method, seed=0)), scaling


def made_together(
    layers: list[CondLoraLinear], leaves: Leaves
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of one layer in several models by one method, from one W."""
    names = layers[0].tensors[ADAPTER]
    dtype = layers[0].theta(ADAPTER)[0].dtype
    stacked = {
        name: leaves.stack([layer.tensors[ADAPTER][name][ADAPTER] for layer in layers]).to(dtype)
        for name in names
    }
    W, method = layers[0].read_weight(ADAPTER), layers[0].method[ADAPTER]
    return torch.vmap(lambda tensors: method.factors(W, **tensors))(stacked)
