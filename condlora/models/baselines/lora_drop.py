"""LoRA-drop (Zhou et al. 2024, arXiv 2402.07721): layers whose LoRA has a large output keep a pair, the others share one.

The adapter is trained for a short time on a part of the training data, with a pair for each layer. The importance of a layer is
the sum of the squared norms of its output s B A x over that data. The layers that together reach a share of the sum over all
layers of a module kind keep a pair of their own. Then the run starts with new pairs.

Of the paper's text the abstract and a summary of the method could be read. The threshold (0.9)
is the paper's by that summary; the part of the data (10 %) was not checked against the paper. How long the first training takes was not found: here it is one pass over that part, at the run's learning rate
without a schedule. That layers of one module kind are compared with each other, and share with each other, is ours.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Any

import torch
from omegaconf import DictConfig
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from condlora.models.baselines.mechanism import Batches, Mechanism
from condlora.tuner.layer import CondLoraLayer
from condlora.tuner.sharing import sharing_group

Batch = dict[str, torch.Tensor]


class LoraDrop(Mechanism):
    """`importance` of the adapter's file: `share` of the training data, `batch_size`, `learning_rate`, `threshold`.

    It writes the layers that keep a pair into `unshared_modules` of the adapter's config, so a saved adapter loads without it. It works
    with every method of the tuner that shares tensors.
    """

    is_one_product = False

    @classmethod
    def serves(cls, cfg: DictConfig, config: PeftConfig) -> bool:
        return bool(cfg.get("importance"))

    def before_attach(self, base: PreTrainedModel, batches: Batches | None) -> None:
        if batches is None:  # there is no data, as when parameters are counted
            self.config.layers_per_map = 1
            return
        wanted = self.cfg.importance
        loader = batches(wanted.batch_size)
        count = math.ceil(wanted.share * len(loader))
        with torch.random.fork_rng():  # the run's own adapter is drawn as without this pass
            config = copy.deepcopy(self.config)  # PEFT changes it
            config.layers_per_map = 1
            model = get_peft_model(copy.deepcopy(base), config)
            model.to("cuda" if torch.cuda.is_available() else "cpu")
            train(model, islice(loader, count), wanted.learning_rate)
            outputs = squared_outputs(model, islice(loader, count))
        self.config.unshared_modules = sorted(important(outputs, wanted.threshold))


def train(model: PeftModel, batches: Iterable[Batch], learning_rate: float) -> None:
    """One step of AdamW for each batch, in place."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    model.train()
    for batch in batches:
        model(**_moved(batch, model)).loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def squared_outputs(model: PeftModel, batches: Iterable[Batch]) -> dict[str, float]:
    """The sum of ||s B A x||^2 over all tokens x that are no padding, by the path of the adapted layer."""
    layers = {
        path: layer
        for path, layer in model.get_base_model().named_modules()
        if isinstance(layer, CondLoraLayer)
    }
    model.eval()
    sums = dict.fromkeys(layers, 0.0)
    batch: Batch = {}

    def add(path: str, layer: CondLoraLayer, inputs: tuple[Any, ...], _: Any) -> None:
        A, B = layer.materialise()
        output = layer.scaling["default"] * (inputs[0] @ A.T @ B.T)
        squares = output.square().sum(dim=-1) * batch["attention_mask"]
        sums[path] += squares.double().sum().item()

    hooks = [layer.register_forward_hook(partial(add, path)) for path, layer in layers.items()]
    for batch in (_moved(found, model) for found in batches):
        model(**batch)
    for hook in hooks:
        hook.remove()
    return sums


def important(outputs: dict[str, float], threshold: float) -> set[str]:
    """The paths of the layers with the largest outputs, as few as reach `threshold` of the sum over their module kind."""
    kinds: dict[str, list[str]] = {}
    for path in sorted(outputs, key=outputs.__getitem__, reverse=True):
        kinds.setdefault(sharing_group(path), []).append(path)
    found = set()
    for paths in kinds.values():
        wanted = threshold * sum(outputs[path] for path in paths)
        reached = 0.0
        for path in paths:
            if reached >= wanted:
                break
            found.add(path)
            reached += outputs[path]
    return found


def _moved(batch: Batch, model: PeftModel) -> Batch:
    return {name: values.to(model.device) for name, values in batch.items()}
