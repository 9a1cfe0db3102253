"""The interface of a method that shares or generates A and B; the layer does everything else.

A method is a frozen dataclass, and its fields are its options. It names the tensors that A and B are made from. A tensor
belongs to the whole sharing group, to one layer, or to all layers of the adapter. It is trained (a parameter, which is saved)
or derived: computed from W or from a seed when the adapter is attached or loaded, and never saved.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from condlora.errors import AdapterError

Pair = tuple[torch.Tensor, torch.Tensor]  # A (r, in) and B (out, r)


def kaiming(tensor: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw a matrix in place as LoRA draws A."""
    return nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)


@dataclass(frozen=True)
class Trained:
    """A matrix that is trained and saved. `start` fills it in place.

    is_shared: one for all layers of a sharing group. is_common: one for all layers of the adapter, whatever their group;
    layers in which it has another shape have one of their own.
    """

    shape: tuple[int, int]
    start: Callable[[torch.Tensor], torch.Tensor] = nn.init.zeros_
    is_shared: bool = False
    is_common: bool = False


@dataclass(frozen=True)
class Derived:
    """A frozen tensor that is computed again when the adapter is loaded; `make` may draw from the generator."""

    make: Callable[[torch.Generator], torch.Tensor]
    is_shared: bool = False


Tensors = dict[str, Trained | Derived]


@dataclass(frozen=True)
class Method:
    """How A (r, in) and B (out, r) of a layer are made; the update is `scaling * B A`, as in LoRA.

    title, arxiv: for the model card, as `formula`.
    reads_next_layer: the layer is given the weight of the next layer of its group; the last layer that of the first.
    is_nested: in training A and B are cut to a rank that is drawn at every forward pass of the model, so that the trained
        adapter can be cut to a lower rank.
    is_pruned: it has a tensor `Lambda` whose entries are pruned during training, and a penalty, as in AdaLoRA.
    b_side: the trained tensors that B is made from, to which LoRA+ gives a higher learning rate.
    """

    title: ClassVar[str]
    arxiv: ClassVar[str]
    reads_next_layer: ClassVar[bool] = False
    is_nested: ClassVar[bool] = False
    is_pruned: ClassVar[bool] = False
    b_side: ClassVar[tuple[str, ...]] = ("B", "b", "v")

    @property
    def formula(self) -> str:
        """How A and B are made, in one line."""
        raise NotImplementedError

    @property
    def needs_square(self) -> bool:
        """Whether it is defined for square weights only."""
        return False

    @property
    def seed(self) -> int | None:
        """The seed of derived tensors that are random, see `Seeded`."""
        return None

    @property
    def can_train_jointly(self) -> bool:
        """Whether the update is a fixed B A and the loss is the task's, so that several runs can share one forward pass."""
        return not (self.is_nested or self.is_pruned)

    def tensors(self, W: torch.Tensor, r: int) -> Tensors:
        """The tensors by name; W (out, in) is the layer's frozen weight. Nothing is computed yet.

        Raises:
            AdapterError: the method cannot have this rank.
        """
        raise NotImplementedError

    # Below, `Any` lets a method name its tensors as arguments; each is a torch.Tensor.

    def factors(self, W: torch.Tensor, *args: Any, **tensors: Any) -> Pair:
        """A (r, in) and B (out, r) from W, in its own dtype, and from the tensors, which all have one dtype."""
        raise NotImplementedError

    def product(self, W: torch.Tensor, x: torch.Tensor, **tensors: Any) -> torch.Tensor | None:
        """B (A x) for x (..., in) without making A and B; None for methods that need A and B.

        The layer calls it where x has fewer rows than the rank, since that takes less work.
        """
        return None

    def penalty(self, W: torch.Tensor, *args: Any, **tensors: Any) -> torch.Tensor:
        """The penalty of a pruned method for one layer; the loss gets the mean over layers. Arguments as of `factors`."""
        raise NotImplementedError

    def max_rank(self, shape: tuple[int, int]) -> int:
        """The highest rank for a weight of this shape (out, in)."""
        return min(shape)

    def shares(self, W: torch.Tensor, r: int) -> bool:
        """Whether the layers of a group have a tensor in common."""
        return any(tensor.is_shared for tensor in self.tensors(W, r).values())

    def generator(self, place: str) -> torch.Generator:
        """The random generator of one derived tensor, from the method's seed and the tensor's place in the model."""
        digest = hashlib.sha256(f"{self.seed}/{place}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class Seeded(Method):
    """A method with derived tensors that are random.

    seed: None draws one from torch's generator, so that runs with different seeds differ. The config keeps it.
    """

    seed: int | None = None  # in place of the property

    def __post_init__(self) -> None:
        if self.seed is None:
            object.__setattr__(self, "seed", int(torch.randint(2**31, (), device="cpu")))
        if not isinstance(self.seed, int):
            raise AdapterError(f"seed is {self.seed!r}: give a whole number, or leave it out.")
