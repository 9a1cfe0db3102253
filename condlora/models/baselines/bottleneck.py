"""Bottleneck adapters: Houlsby et al. 2019 (arXiv 1902.00751), Pfeiffer et al. 2021 (arXiv 2005.00247), AdapterDrop (Rücklé
et al. 2021, arXiv 2010.11918).

PEFT has none. Each adapter is a child of the linear layer whose output h it changes to h + U relu(D h + c) + e. Its weights are
trained and saved like weights of the backbone (`own_weights`), so a model that such an adapter is loaded onto gets the empty
adapters first.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel

from condlora.errors import ConfigError
from condlora.models.baselines.mechanism import Batches, Mechanism
from condlora.tuner.sharing import layer_index

START = 0.01  # standard deviation of a truncated normal: like the papers' adapters it starts close to the identity


class Bottleneck(nn.Module):
    """h (..., width) -> h + up(relu(down(h))), with `size` features between."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=START, a=-2 * START, b=2 * START)
            nn.init.zeros_(layer.bias)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        changed: torch.Tensor = h + self.up(F.relu(self.down(h)))
        return changed


class Bottlenecks(Mechanism):
    """`bottleneck` of the adapter's file: `size`, `after` (regular expression on the paths of linear layers), `from_layer`."""

    can_be_merged = False
    is_one_product = False

    @classmethod
    def serves(cls, cfg: DictConfig, config: PeftConfig) -> bool:
        return bool(cfg.get("bottleneck"))

    def before_attach(self, base: PreTrainedModel, batches: Batches | None) -> None:
        self.apply(base, self.cfg)

    @staticmethod
    def apply(base: PreTrainedModel, cfg: DictConfig) -> None:
        """Give a model its adapters, in place.

        Raises:
            ConfigError: the model has no linear layer of such a path.
        """
        wanted = cfg.bottleneck
        found = [
            module
            for path, module in base.named_modules()
            if isinstance(module, nn.Linear)
            and re.search(wanted.after, path)
            and (layer_index(path) or 0) >= wanted.from_layer
        ]
        if not found:
            raise ConfigError(
                f"adapter={cfg.name}: no linear layer of this backbone matches {wanted.after!r}, which are the names of "
                "BERT and RoBERTa. Set adapter.bottleneck.after."
            )
        for module in found:
            module.bottleneck = Bottleneck(module.out_features, wanted.size).to(module.weight)
            module.register_forward_hook(_change)


def _change(module: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
    changed: torch.Tensor = module.bottleneck(output)
    return changed
