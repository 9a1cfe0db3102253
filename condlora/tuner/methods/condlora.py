"""CondLoRA (Kim et al. 2024, arXiv 2403.14946): A and B made from the layer's own W by maps that layers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from condlora.tuner.methods.base import Method, Pair, Tensors, Trained, kaiming

FORMULAS = {
    "code": "A = theta_A Wᵀ, B = W theta_Bᵀ",
    "literal": "A = theta_A Wᵀ, B = Wᵀ theta_Bᵀ",
    "consistent": "A = theta_A W, B = W theta_Bᵀ",
}


def make_factors(W: torch.Tensor, theta_A: torch.Tensor, theta_B: torch.Tensor, form: str) -> Pair:
    """A (r, in) and B (out, r) of one layer from its frozen weight W (out, in).

    theta_A and theta_B are (r, in) or (r, out), see `theta_shapes`. Source: equations 5 and 6 of the
    paper; "code" is what the authors' released layer computes.
    """
    W = W.to(_dtype_of_products(theta_A))
    A = theta_A @ W if form == "consistent" else theta_A @ W.T
    # B as the transpose of a product with theta_B in front: with gradients a third faster than W theta_B^T.
    B = (theta_B @ W if form == "literal" else theta_B @ W.T).T
    return A, B


def _dtype_of_products(theta: torch.Tensor) -> torch.dtype:
    """The dtype of autocast, if it is enabled: W is then rounded once, where autocast would round it for A and for B."""
    device = theta.device.type
    if theta.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return theta.dtype
    return torch.get_autocast_dtype(device)


def theta_shapes(
    out_features: int, in_features: int, r: int, form: str
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of theta_A and theta_B that `make_factors` takes for a weight of shape (out, in)."""
    shape_A = (r, out_features if form == "consistent" else in_features)
    shape_B = (r, out_features if form == "literal" else in_features)
    return shape_A, shape_B


@dataclass(frozen=True)
class Conditional(Method):
    """A method that makes A and B, or a part of them, from W by two shared maps, theta_A and theta_B."""

    form: Literal["code", "literal", "consistent"] = "code"

    b_side = ("theta_B",)

    @property
    def formula(self) -> str:
        return FORMULAS[self.form]

    @property
    def needs_square(self) -> bool:
        return self.form != "consistent"

    def maps(
        self,
        W: torch.Tensor,
        r: int,
        *,
        start_A: Callable[[torch.Tensor], torch.Tensor] = kaiming,
        start_B: Callable[[torch.Tensor], torch.Tensor] = nn.init.zeros_,
    ) -> Tensors:
        """theta_A and theta_B for a weight W."""
        out_features, in_features = W.shape
        shape_A, shape_B = theta_shapes(out_features, in_features, r, self.form)
        return {
            "theta_A": Trained(shape_A, start_A, is_shared=True),
            "theta_B": Trained(shape_B, start_B, is_shared=True),
        }


@dataclass(frozen=True)
class CondLora(Conditional):
    title = "CondLoRA"
    arxiv = "2403.14946"

    def tensors(self, W: torch.Tensor, r: int) -> Tensors:
        return self.maps(W, r)

    def factors(self, W: torch.Tensor, theta_A: torch.Tensor, theta_B: torch.Tensor) -> Pair:
        return make_factors(W, theta_A, theta_B, self.form)

    def product(self, W: torch.Tensor, x: torch.Tensor, **tensors: Any) -> torch.Tensor | None:
        theta_A, theta_B = tensors["theta_A"], tensors["theta_B"]
        W = W.to(_dtype_of_products(theta_A))
        x = F.linear(F.linear(x, W if self.form == "consistent" else W.T), theta_A)
        return F.linear(F.linear(x, theta_B.T), W.T if self.form == "literal" else W)
