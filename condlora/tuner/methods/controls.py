"""Controls of CondLoRA, which its paper does not have: the maps are shared as in CondLoRA, but applied to something else than W.

The control without any condition, a single A and B for all layers, is `share_lora.ShareLora` with shared="AB".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from condlora.tuner.methods.base import Derived, Pair, Seeded, Tensors, Trained, kaiming
from condlora.tuner.methods.condlora import Conditional, CondLora, make_factors, theta_shapes


def gaussian_twin(W: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A Gaussian matrix of W's shape and Frobenius norm, in float64."""
    twin = torch.randn(W.shape, generator=generator, dtype=torch.float64)
    return torch.mul(twin, W.double().norm().cpu() / twin.norm())


def spectrum_twin(W: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A matrix with W's singular values whose singular vectors are uniformly random, in float64."""
    values = torch.linalg.svdvals(W.double().cpu())
    left, right = (haar(side, len(values), generator) for side in W.shape)
    return torch.matmul(left * values, right.T)


def haar(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """(rows, columns) with orthonormal columns, uniform among all such matrices, in float64."""
    Q, R = torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))
    return torch.mul(Q, R.diagonal().sign())  # QR alone prefers some signs (Mezzadri 2007)


@dataclass(frozen=True)
class _Conditioned(Seeded, Conditional):
    """CondLoRA on a derived matrix in place of W; it takes as much memory as W."""

    arxiv = CondLora.arxiv

    condition: ClassVar[str]  # what is in W's place, in words

    @property
    def formula(self) -> str:
        return super().formula.replace("W", "C") + f", with C, {self.condition}, in W's place"

    @staticmethod
    def twin(W: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The matrix in place of W, of its shape."""
        raise NotImplementedError

    def tensors(self, W: torch.Tensor, r: int) -> Tensors:
        return self.maps(W, r) | {"condition": Derived(lambda rng: self.twin(W, rng))}

    def factors(
        self,
        W: torch.Tensor,
        theta_A: torch.Tensor,
        theta_B: torch.Tensor,
        condition: torch.Tensor,
    ) -> Pair:
        return make_factors(condition, theta_A, theta_B, self.form)


@dataclass(frozen=True)
class RandomCondition(_Conditioned):
    title = "CondLoRA on a random matrix of W's scale (a control)"
    condition = "a Gaussian matrix of W's norm"

    @staticmethod
    def twin(W: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return gaussian_twin(W, generator)


@dataclass(frozen=True)
class SpectrumCondition(_Conditioned):
    title = "CondLoRA on a random matrix of W's singular values (a control)"
    condition = "a random matrix of W's singular values"

    @staticmethod
    def twin(W: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return spectrum_twin(W, generator)


@dataclass(frozen=True)
class OtherLayer(CondLora):
    title = "CondLoRA on the next layer's W (a control)"
    reads_next_layer = True

    @property
    def formula(self) -> str:
        return super().formula + ", with the W of the next layer"


@dataclass(frozen=True)
class FrozenA(Seeded, CondLora):
    """theta_A is not trained. It is derived from the seed, so that it is not saved."""

    title = "CondLoRA with a frozen theta_A (a control)"

    @property
    def formula(self) -> str:
        return super().formula + ", with theta_A frozen at its random start"

    def tensors(self, W: torch.Tensor, r: int) -> Tensors:
        out_features, in_features = W.shape
        shape, _ = theta_shapes(out_features, in_features, r, self.form)
        theta_A = Derived(lambda rng: kaiming(torch.empty(shape), rng), is_shared=True)
        return super().tensors(W, r) | {"theta_A": theta_A}


@dataclass(frozen=True)
class FrozenB(Seeded, CondLora):
    """theta_B is not trained: it is random, derived from the seed and not saved. theta_A starts at zero in its place."""

    title = "CondLoRA with a frozen theta_B (a control)"

    @property
    def formula(self) -> str:
        return super().formula + ", with theta_B frozen at a random start"

    def tensors(self, W: torch.Tensor, r: int) -> Tensors:
        out_features, in_features = W.shape
        shape_A, shape_B = theta_shapes(out_features, in_features, r, self.form)
        theta_B = Derived(lambda rng: kaiming(torch.empty(shape_B), rng), is_shared=True)
        return {"theta_A": Trained(shape_A, is_shared=True), "theta_B": theta_B}
