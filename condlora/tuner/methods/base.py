"""What a method of sharing or generating A and B says of itself; the layer does everything else.

A method is a frozen dataclass, its fields its options. It names the tensors that A and B are made from, each
either one for the whole sharing group or one for every layer, each either trained (a parameter, saved) or
derived (made of W or of a seed when the adapter is put on a model, and again when it is loaded; never saved).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from condlora.errors import AdapterError


def kaiming(tensor: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw a matrix in place as LoRA draws A."""
    return nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)


@dataclass(frozen=True)
class Trained:
    """A tensor that is trained and saved; always a matrix. `start` fills it in place."""

    shape: tuple[int, int]
    start: Callable[[torch.Tensor], torch.Tensor] = nn.init.zeros_
    is_shared: bool = False


@dataclass(frozen=True)
class Derived:
    """A frozen tensor that is made again wherever the adapter is loaded; `make` may draw from the generator given."""

    make: Callable[[torch.Generator], torch.Tensor]
    is_shared: bool = False


class Method:
    """How A (r, in) and B (out, r) of a layer come about; the update is `scaling * B A`, as LoRA's.

    title, arxiv and formula are for the model card. `reads_next_layer`: the layer is given the weight of the
    next layer of its group instead of its own (after the last comes the first). `is_nested`: in training, A
    and B are cut to a rank drawn at every forward pass of the model, so that the adapter can be cut later.
    `b_side`: the trained tensors that make B, to which LoRA+ gives a higher learning rate.
    `is_pruned`: it has a `Lambda` whose entries are pruned while it trains, and a penalty, as AdaLoRA.
    """

    title: ClassVar[str]
    arxiv: ClassVar[str]
    formula: str
    needs_square: ClassVar[bool] = False
    reads_next_layer: ClassVar[bool] = False
    is_nested: ClassVar[bool] = False
    is_pruned: ClassVar[bool] = False
    b_side: ClassVar[tuple[str, ...]] = ("B", "b", "v")
    seed: int | None = None

    @property
    def can_train_jointly(self) -> bool:
        """Whether training is a fixed B A and the task's loss alone, so that several runs can share one pass."""
        return not (self.is_nested or self.is_pruned)

    def tensors(self, W: torch.Tensor, r: int) -> dict[str, Trained | Derived]:
        """The tensors by name; W (out, in) is the layer's frozen weight. Making them is left for later."""
        raise NotImplementedError

    def factors(self, W: torch.Tensor, **tensors: torch.Tensor):
        """A (r, in) and B (out, r) from W, in its own dtype, and the tensors, all of one dtype."""
        raise NotImplementedError

    def product(
        self, W: torch.Tensor, x: torch.Tensor, **tensors: torch.Tensor
    ) -> torch.Tensor | None:
        """B (A x) for x (..., in) without making A and B, for methods that can; None for those that cannot.

        The layer asks for it where x has fewer rows than A and B have ranks, since it then takes less work.
        """
        return None

    def penalty(self, W: torch.Tensor, **tensors: torch.Tensor) -> torch.Tensor:
        """What a pruned method adds to the loss, as a mean over layers; arguments as of `factors`."""
        raise NotImplementedError

    def max_rank(self, shape: tuple[int, int]) -> int:
        """The highest rank for a weight of this shape (out, in)."""
        return min(shape)

    def shares(self, W: torch.Tensor, r: int) -> bool:
        """Whether the layers of a group have a tensor in common."""
        return any(tensor.is_shared for tensor in self.tensors(W, r).values())

    def generator(self, place: str) -> torch.Generator:
        """The random stream of one derived tensor, from the method's seed and the tensor's place in the model."""
        digest = hashlib.sha256(f"{self.seed}/{place}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class Seeded(Method):
    """A method with derived tensors that are random.

    seed: None draws one from torch's generator, so that runs of different seeds differ; the config keeps it.
    """

    seed: int | None = None

    def __post_init__(self):
        if self.seed is None:
            object.__setattr__(self, "seed", int(torch.randint(2**31, (), device="cpu")))
        if not isinstance(self.seed, int):
            raise AdapterError(f"seed is {self.seed!r}: give a whole number, or leave it out.")
