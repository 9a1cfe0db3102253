"""Controls of CondLoRA, which its paper lacks: the maps are shared as in CondLoRA, what they are given is not W.

The one without any condition, a single A and B for all layers, is `share_lora.ShareLora` with shared="AB".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from condlora.tuner.methods.base import Derived, Seeded, kaiming
from condlora.tuner.methods.condlora import CondLora, make_factors, theta_shapes


def gaussian_twin(W: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A Gaussian matrix of W's shape and Frobenius norm, in float64."""
    twin = torch.randn(W.shape, generator=generator, dtype=torch.float64)
    return twin * (W.double().norm().cpu() / twin.norm())


def spectrum_twin(W: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A matrix with W's singular values whose singular vectors are uniformly random, in float64."""
    values = torch.linalg.svdvals(W.double().cpu())
    left, right = (haar(side, len(values), generator) for side in W.shape)
    return left * values @ right.T


def haar(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """(rows, columns) with orthonormal columns, uniform among all such matrices, in float64."""
    Q, R = torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))
    return Q * R.diagonal().sign()  # QR alone prefers some signs (Mezzadri 2007)


@dataclass(frozen=True)
class _Conditioned(Seeded, CondLora):
    """CondLoRA on a derived matrix in W's place; it takes as much memory as W."""

    def tensors(self, W, r):
        return super().tensors(W, r) | {"condition": Derived(lambda rng: self.twin(W, rng))}

    def factors(self, W, theta_A, theta_B, condition):
        return make_factors(condition, theta_A, theta_B, self.form)


@dataclass(frozen=True)
class RandomCondition(_Conditioned):
    title = "CondLoRA on a random matrix of W's scale (a control)"
    twin = staticmethod(gaussian_twin)


@dataclass(frozen=True)
class SpectrumCondition(_Conditioned):
    title = "CondLoRA on a random matrix of W's singular values (a control)"
    twin = staticmethod(spectrum_twin)


@dataclass(frozen=True)
class OtherLayer(CondLora):
    title = "CondLoRA on the next layer's W (a control)"
    reads_next_layer = True


@dataclass(frozen=True)
class FrozenA(Seeded, CondLora):
    """theta_A stays as drawn: derived from the seed, so that it is not saved."""

    title = "CondLoRA with a frozen theta_A (a control)"

    def tensors(self, W, r):
        shape, _ = theta_shapes(*W.shape, r, self.form)
        theta_A = Derived(lambda rng: kaiming(torch.empty(shape), rng), is_shared=True)
        return super().tensors(W, r) | {"theta_A": theta_A}
