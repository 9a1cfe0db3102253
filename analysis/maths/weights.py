"""The frozen weights of a backbone, or of the base model of adapters, without any run."""

from __future__ import annotations

import torch
from omegaconf import DictConfig
from transformers.pytorch_utils import Conv1D

from analysis.maths.decomposition import Decomposed, decompose
from analysis.maths.subspace import NotInvertible
from analysis.study.stacks import Stack
from condlora.errors import UserError
from condlora.models.backbones import load_backbone
from condlora.tuner.sharing import layer_index

Layers = dict[str, list[int]]


def load_weights(cfg: DictConfig) -> tuple[str, Layers, dict[str, Decomposed]]:
    """The backbone's name, and by module kind the layer numbers, from 1, and the decomposed W0 of all layers.

    cfg: the `backbone` group; its `modules` names the kinds. Half precision is read as it is and decomposed in
    float64.

    Raises:
        UserError: a kind has no module, weights of several shapes, or a weight without an inverse.
        BackboneError, NetworkError: see `load_backbone`.
    """
    backbone = load_backbone(cfg, num_labels=2)
    name = backbone.description["name"]
    layers: Layers = {}
    weights = {}
    for kind, last in cfg.modules.items():
        by_layer = {
            layer_index(path): module.weight.T if isinstance(module, Conv1D) else module.weight
            for path, module in backbone.model.named_modules()
            if path.rsplit(".", 1)[-1] == last and hasattr(module, "weight")
        }
        if not by_layer:
            raise UserError(f"{name} has no module named {last!r}: set backbone.modules.{kind}.")
        if None in by_layer:
            raise UserError(
                f"{last!r} of {name} is in no numbered layer: set backbone.modules.{kind}."
            )
        if len({weight.shape for weight in by_layer.values()}) > 1:
            raise UserError(
                f"The {kind} weights of {name} have several shapes: set backbone.modules to modules of one shape."
            )
        layers[kind] = [layer + 1 for layer in sorted(by_layer)]
        weights[kind] = torch.stack([by_layer[layer - 1].detach() for layer in layers[kind]])
    return name, layers, _decomposed(name, layers, weights)


def weights_of(stacks: list[Stack], name: str) -> tuple[Layers, dict[str, Decomposed]]:
    """The same of the modules that stacks of adapters have; `name` is the base model's in errors."""
    layers = {stack.module: stack.layers for stack in stacks}
    return layers, _decomposed(name, layers, {stack.module: stack.W for stack in stacks})


def _decomposed(
    name: str, layers: Layers, weights: dict[str, torch.Tensor]
) -> dict[str, Decomposed]:
    found = {}
    for kind, W in weights.items():
        try:
            found[kind] = decompose(W, layers[kind])
        except NotInvertible as error:
            raise UserError(
                f"{name}, {kind} modules: {error}; they have no conversion matrices."
            ) from None
    return found
