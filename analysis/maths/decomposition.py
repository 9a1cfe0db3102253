"""The singular value decomposition of W0, computed once for all analyses of the same weights."""

from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from analysis.maths import subspace

_known = WeakTensorKeyDictionary()
_lock = Lock()  # analyses of the same weights may run at the same time


@dataclass(frozen=True)
class Decomposed:
    """W0 of L layers, M (L, d, p), as U diag(sigma) V'; U (L, d, m), sigma (L, m) descending, V (L, p, m) in float64."""

    M: Tensor
    U: Tensor
    sigma: Tensor
    V: Tensor

    @cached_property
    def left_frames(self) -> Tensor:
        """U in float32, for `turned`."""
        return self.U.float()

    @cached_property
    def right_frames(self) -> Tensor:
        """V in float32, for `turned`."""
        return self.V.float()

    @property
    def is_square(self) -> bool:
        return self.M.shape[-2] == self.M.shape[-1]

    def transposed(self) -> "Decomposed":
        """The same of W0'."""
        return Decomposed(self.M.mT, self.V, self.sigma, self.U)


def decompose(M: Tensor, layers: list[int] | None = None) -> Decomposed:
    """The singular value decompositions of M (L, d, p), any float type; kept as long as this tensor M is.

    layers: their numbers for errors, by default from 1. Raises subspace.NotInvertible for weights that are not finite or
    singular to working precision.
    """
    names = layers or list(range(1, len(M) + 1))
    broken = [n for n, W in zip(names, M, strict=True) if not W.isfinite().all()]
    if broken:
        raise subspace.NotInvertible(f"W0 of layer {broken[0]} is not finite")
    U, sigma, V = singular_vectors(M)
    limit = sigma[:, 0] * max(M.shape[-2:]) * torch.finfo(sigma.dtype).eps
    singular = [n for n, bad in zip(names, sigma[:, -1] <= limit, strict=True) if bad]
    if singular:
        raise subspace.NotInvertible(f"W0 of layer {singular[0]} is singular to working precision")
    return Decomposed(M, U, sigma, V)


def singular_vectors(M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, sigma and V of M (L, d, p), which may be singular; see `Decomposed`."""
    # M itself is not among the values: the dictionary would then hold M, and M would never be freed.
    with _lock:
        if M not in _known:
            U, sigma, Vh = torch.linalg.svd(M.double(), full_matrices=False)
            _known[M] = (U, sigma, Vh.mT)
        return _known[M]
