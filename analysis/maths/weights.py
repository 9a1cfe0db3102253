"""The frozen weights of a backbone, without any run."""

from __future__ import annotations

import torch
from omegaconf import DictConfig
from transformers.pytorch_utils import Conv1D

from analysis.maths.planted import Decomposed, decompose
from analysis.maths.subspace import NotInvertible
from condlora.errors import UserError
from condlora.models.backbones import load_backbone
from condlora.tuner.model import layer_index


def load_weights(cfg: DictConfig) -> tuple[list[int], dict[str, Decomposed]]:
    """Layer numbers, from 1, and by module kind the decomposed W0 of all layers.

    cfg: the `backbone` group; its `modules` names the kinds. Half precision is read as it is and decomposed in
    float64.

    Raises:
        UserError: a kind has no module, weights of several shapes, or a weight without an inverse.
        BackboneError, NetworkError: see `load_backbone`.
    """
    model = load_backbone(cfg, num_labels=2).model
    found: dict[str, Decomposed] = {}
    layers: list[int] = []
    for kind, name in cfg.modules.items():
        by_layer = {
            layer_index(path): module.weight.T if isinstance(module, Conv1D) else module.weight
            for path, module in model.named_modules()
            if path.rsplit(".", 1)[-1] == name and hasattr(module, "weight")
        }
        if not by_layer:
            raise UserError(
                f"{cfg.name} has no module named {name!r}: set backbone.modules.{kind}."
            )
        if len({weight.shape for weight in by_layer.values()}) > 1:
            raise UserError(
                f"The {kind} weights of {cfg.name} have several shapes: set backbone.modules to modules of one shape."
            )
        layers = [layer + 1 for layer in sorted(by_layer)]
        stacked = torch.stack([by_layer[layer - 1].detach() for layer in layers])
        try:
            found[kind] = decompose(stacked, layers)
        except NotInvertible as error:
            raise UserError(
                f"{cfg.name}, {kind} modules: {error}; they have no conversion matrices."
            ) from None
    return layers, found
