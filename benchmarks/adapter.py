"""The cost of CondLoRA relative to PEFT's LoRA: a training step, and the memory of the trained parameters.

Measured by `python scripts/benchmark.py 'measures=[step,memory]'`; models with random weights.
"""

import copy
import functools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, BertModel

from condlora import CondLoraConfig
from condlora.tuner.layer import CondLoraLayer

SHIPPED = ("lora", "lora_again", "code", "consistent")
NOT_CHOSEN = ("stacked", "from_output")


def step(cfg: DictConfig) -> dict[str, list[float]]:
    """CPU time of a training step divided by PEFT LoRA's, on one thread; the methods take turns.

    Each figure is a list of ratios. The first is the fastest step divided by LoRA's fastest, because load from other
    processes varies between turns by more than the methods differ; the others are the ratios of each turn.
    "lora_again" is a second LoRA: the distance of its ratio from 1 is the precision of this measurement.
    "code" and "consistent" are the forms as shipped, which compute A and B in each layer. Two alternatives that were
    not chosen are timed on the first batch shape: "stacked" computes A and B of all layers in one product from a copy
    of all W; "from_output" computes A x of the consistent form from the frozen layer's output, A x = theta_A (W x).
    """
    torch.set_num_threads(1)
    ratios = {}
    for shape in cfg.step.models:
        base = classifier(shape)
        contestants = {name: Contestant(name, base) for name in (*SHIPPED, *NOT_CHOSEN)}
        for n, (batch, length) in enumerate(cfg.step.batches):
            inputs = {
                "input_ids": torch.randint(0, 1000, (batch, length)),
                "labels": torch.randint(0, 2, (batch,)),
            }
            ways = SHIPPED if n else (*SHIPPED, *NOT_CHOSEN)
            turns = [
                {name: contestants[name].step(inputs) for name in ways}
                for _ in range(cfg.step.repeats + 1)
            ][1:]  # the first warms up
            fastest = {name: min(turn[name] for turn in turns) for name in ways}
            for name in ways[1:]:
                ratios[f"{shape.layers}x{shape.hidden_size}_{batch}x{length}_{name}"] = [
                    fastest[name] / fastest["lora"],
                    *(turn[name] / turn["lora"] for turn in turns),
                ]
    return ratios


def classifier(shape: DictConfig) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=1000,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden_size,
    )
    return BertForSequenceClassification(config)


class Contestant:
    """A classifier with one adapter before its first step. All contestants share the frozen tensors of `base`.

    With copies, the different memory layout alone changes the time of a step by a few per cent.
    """

    def __init__(self, way: str, base: BertForSequenceClassification):
        shared = {id(parameter): parameter for parameter in base.parameters()}
        method = CondLoraConfig if way not in ("lora", "lora_again") else LoraConfig
        form = {"form": "consistent"} if way in ("consistent", "from_output") else {}
        adapter = method(r=8, target_modules=["query", "value"], task_type="SEQ_CLS", **form)
        self.model = get_peft_model(copy.deepcopy(base, shared), adapter).train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-3)
        self.make = stack_factors(self.model) if way == "stacked" else lambda: None
        if way == "from_output":
            for layer in condlora_layers(self.model):
                layer.forward = functools.partial(forward_from_output, layer)

    def step(self, inputs: dict) -> float:
        started = time.process_time()
        self.make()
        self.model(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - started


def condlora_layers(model: torch.nn.Module) -> list[CondLoraLayer]:
    return [module for module in model.modules() if isinstance(module, CondLoraLayer)]


def stack_factors(model: torch.nn.Module) -> Callable[[], None]:
    """A function that computes A and B of all layers at once and gives each layer its pair."""
    groups: dict[str, list[CondLoraLayer]] = {}
    for layer in condlora_layers(model):
        groups.setdefault(layer.group["default"], []).append(layer)
    stacks = {name: torch.stack([one.frozen_weight() for one in of]) for name, of in groups.items()}

    def make() -> None:
        for name, layers in groups.items():
            theta_A, theta_B = layers[0].theta("default")
            A, B = theta_A @ stacks[name].mT, stacks[name] @ theta_B.T
            for one, factors in zip(layers, zip(A, B, strict=True), strict=True):
                one.materialise = lambda _, factors=factors: factors

    return make


def forward_from_output(layer: CondLoraLayer, x: torch.Tensor) -> torch.Tensor:
    theta_A, theta_B = layer.theta("default")
    result = layer.base_layer(x)
    Ax = F.linear(result, theta_A, -(theta_A @ layer.bias))
    return result + F.linear(Ax, layer.frozen_weight() @ theta_B.T) * layer.scaling["default"]


def memory(cfg: DictConfig) -> dict[str, float]:
    """Bytes of trained parameters and AdamW's state: CondLoRA's divided by LoRA's."""
    sizes = {}
    for method in (LoraConfig, CondLoraConfig):
        config = BertConfig(
            vocab_size=50, hidden_size=cfg.hidden_size, num_hidden_layers=cfg.layers
        )
        adapter = method(r=cfg.rank, target_modules=["query", "value"])
        model = get_peft_model(BertModel(config), adapter)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained)
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        held = [*trained, *(t for state in optimizer.state.values() for t in state.values())]
        sizes[method] = sum(t.numel() * t.element_size() for t in held if t.numel() > 1)
    return {"condlora_over_lora": sizes[CondLoraConfig] / sizes[LoraConfig]}
