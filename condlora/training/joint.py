"""Gradients of several runs from one forward and one backward pass over their common frozen backbone.

The rows of all batches go through the first run's model, whose frozen layers are equal in all runs. At each layer that
the runs train, every run's own layer takes its rows: low-rank updates and heads are computed as batched products.
Which runs can share a pass is decided in `condlora.training.compatibility`; their optimizers can share a step too
(`condlora.training.optimizer`). Evaluation is not joint, as its batches are limited by the device alone.

A run computes the same numbers as alone except for rounding, and for dropout, which is drawn from one stream for all
runs. So the bits of a run depend on the runs it is trained with. Runs that are killed together resume to the bits that
they would have had, unless the kill fell between the checkpoints of two of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.utils import ModulesToSaveWrapper

from condlora.training.state import Training
from condlora.tuner.layer import Linear as CondLoraLinear
from condlora.tuner.methods.base import Method

ADAPTER = "default"
LowRank = LoraLinear | CondLoraLinear


def joint_gradients(trainings: Sequence[Training], batches: Sequence[dict]) -> list[torch.Tensor]:
    """Add the gradients of each run's mean loss in one pass; returns the losses, detached float32 scalars.

    The runs must be compatible and their batches of one size.
    """
    models = []
    for training in trainings:
        training.model.train()
        models.append(training.unwrapped)
    inputs = joined(batches, models[0].config.pad_token_id)
    leaves = Leaves()
    with together(models, leaves):
        logits = trainings[0].model(**inputs).logits
    losses = [
        loss_of(own, batch["labels"])
        for own, batch in zip(logits.chunk(len(batches)), batches, strict=True)
    ]
    scaled = [
        training.scaler.scale(loss) if training.scaler else loss
        for training, loss in zip(trainings, losses, strict=True)
    ]
    torch.stack(scaled).sum().backward()
    leaves.hand_back()
    return [loss.detach().float() for loss in losses]


def joined(batches: Sequence[dict], pad: int) -> dict:
    """The inputs of all batches as one batch without labels, each (n, L) padded on the right to the longest L.

    Packed batches (`condlora.models.packing`) also give their number as `members`, so that the tokens of each run stay
    apart.
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
    """The loss of transformers' classifiers: mean squared error for float labels (n,), else cross-entropy."""
    if labels.is_floating_point():
        return F.mse_loss(logits.squeeze(-1), labels)
    return F.cross_entropy(logits, labels)


class Leaves:
    """Stacks (runs, ...) of the runs' tensors; the joint pass computes gradients of these leaves.

    Gradients of the runs' own tensors would cost a copy for each, and a sum for each layer that shares a tensor.
    """

    def __init__(self):
        self.found: dict[tuple[int, ...], tuple[list[torch.Tensor], torch.Tensor]] = {}

    def stack(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """The stack of these tensors; the same leaf at each call."""
        key = tuple(map(id, tensors))
        if key not in self.found:
            stacked = torch.stack([tensor.detach() for tensor in tensors])
            stacked.requires_grad_(any(tensor.requires_grad for tensor in tensors))
            self.found[key] = tensors, stacked
        return self.found[key][1]

    def hand_back(self) -> None:
        """Add its part of the gradients to each run's own tensors."""
        for tensors, stacked in self.found.values():
            if stacked.grad is None:
                continue
            for own, grad in zip(tensors, stacked.grad, strict=True):
                if own.requires_grad:
                    own.grad = grad if own.grad is None else own.grad + grad


@contextmanager
def together(models: list[PeftModel], leaves: Leaves) -> Iterator[None]:
    """In this context the first model takes the rows of all models, in equal shares, and applies to each row the trained
    layers of the row's own model."""
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
    """Apply every model's own head to its rows; each product in a head is one batched product over the models."""
    own = [wrapper.modules_to_save[ADAPTER] for wrapper in wrappers]
    names = [name for name, _ in own[0].named_parameters()]
    stacked = {name: leaves.stack([head.get_parameter(name) for head in own]) for name in names}

    def head(tensors: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(own[0], tensors, (rows, *args), kwargs)

    rows = x.unflatten(0, (len(own), -1))
    return torch.vmap(head, randomness="different")(stacked, rows).flatten(0, 1)


def low_rank(layers: list[LowRank], leaves: Leaves, x: torch.Tensor) -> torch.Tensor:
    """Apply the frozen layer to all rows and every model's own update to its rows, as one batched product."""
    result = layers[0].base_layer(x)
    A, B = factors(layers, leaves)
    x = layers[0].lora_dropout[ADAPTER](x.to(A.dtype))
    rows = x.reshape(len(layers), -1, x.shape[-1])
    added = torch.bmm(torch.bmm(rows, A.mT), B.mT)
    return (result + added.view_as(result)).to(result.dtype)


def factors(layers: list[LowRank], leaves: Leaves) -> tuple[torch.Tensor, torch.Tensor]:
    """A (models, r, in) and scaling times B (models, out, r) of one layer in every model.

    Adjacent models with the same method generate theirs in one product.
    """
    all_A, all_B = [], []
    for (method, scaling), group in groupby(layers, key=_generator):
        own = list(group)
        if method is None:
            A = leaves.stack([layer.lora_A[ADAPTER].weight for layer in own])
            B = leaves.stack([layer.lora_B[ADAPTER].weight for layer in own])
        else:
            A, B = generated_together(own, leaves)
        all_A.append(A)
        all_B.append(scaling * B)
    return torch.cat(all_A), torch.cat(all_B)


def _generator(layer: LowRank) -> tuple[Method | None, float]:
    """The method that generates the layer's A and B, without its seed (None where they are trained), and the scaling."""
    scaling = layer.scaling[ADAPTER]
    if isinstance(layer, LoraLinear):
        return None, scaling
    method = layer.method[ADAPTER]
    return (method if method.seed is None else replace(method, seed=0)), scaling


def generated_together(
    layers: list[CondLoraLinear], leaves: Leaves
) -> tuple[torch.Tensor, torch.Tensor]:
    """A (models, r, in) and B (models, out, r) of one layer, generated by one method from the common W."""
    names = layers[0].tensors[ADAPTER]
    dtype = layers[0].theta(ADAPTER)[0].dtype
    stacked = {
        name: leaves.stack([layer.tensors[ADAPTER][name][ADAPTER] for layer in layers]).to(dtype)
        for name in names
    }
    W, method = layers[0].read_weight(ADAPTER), layers[0].method[ADAPTER]
    return torch.vmap(lambda tensors: method.factors(W, **tensors))(stacked)
