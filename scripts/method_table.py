"""The tables of docs/methods.md: one row for each adapter, from its file in configs/adapter and its class.

A row has the update, what is trained, the parameters on RoBERTa-base, the published count, the paper and the profiles that
train it. The update and the trained tensors of the tuner's methods come from `condlora.tuner.methods`; other files state them
as `formula` and `free`. The paper is the citation in the comment at the head of the file.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from types import SimpleNamespace

import hydra
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from transformers import RobertaConfig, RobertaForSequenceClassification

from analysis.study.names import FAMILIES, family, label
from condlora.grid.cells import compose_cells
from condlora.models.baselines import attach
from condlora.training.setup import count_parameters
from condlora.tuner import CondLoraConfig
from condlora.tuner.config import method_of
from condlora.tuner.methods.base import Tensors, Trained

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
HEADER = ["Method", "`adapter=`", "Weight", "Trained", "Parameters", "Published", "Source", "Runs"]
CITATION = re.compile(r"([A-Z][^();]*? \d{4}), (arXiv|openreview) ([\w.]+)")
LINKS = {"arXiv": "https://arxiv.org/abs/", "openreview": "https://openreview.net/forum?id="}
WIDTH = 768


def names() -> list[str]:
    """All adapters with one name; files for grids (over ranks, blocks or origins) make several of one of these."""
    files = {
        path.stem: path.read_text(encoding="utf-8") for path in (CONFIGS / "adapter").glob("*.yaml")
    }
    return sorted(name for name, text in files.items() if f"\nname: {name}\n" in text)


def cells(adapters: list[str]) -> list[DictConfig]:
    """The `adapter` group of each, composed for RoBERTa-base with the authors' protocol."""
    words = ("backbone=roberta-base", "task=rte", f"adapter={','.join(adapters)}")
    return [cfg.adapter for cfg in compose_cells(words)]


def parameters(adapters: list[DictConfig]) -> dict[str, int]:
    """The trained parameters of each on RoBERTa-base, the head not counted; on no device, as no value matters."""
    shape = RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1)
    with torch.device("meta"):
        empty = RobertaForSequenceClassification(shape).requires_grad_(False)
    return {adapter.name: _count(adapter, empty) for adapter in adapters}


def _count(adapter: DictConfig, empty: RobertaForSequenceClassification) -> int:
    adapter = copy.deepcopy(adapter)
    OmegaConf.set_struct(adapter, False)
    for start in ("init_lora_weights", "eva_config", "corda_config", "loftq_config"):
        adapter.config.pop(start, None)  # they read values, and change no shape
    adapter.pop("quantise", None)
    reads_values = adapter.name in ("boft", "unilora")
    with torch.device("cpu" if reads_values else "meta"):
        base = copy.deepcopy(empty)
        if reads_values:
            base.to_empty(device="cpu")
        config = hydra.utils.instantiate(
            adapter.config, modules_to_save=["classifier"], _convert_="all"
        )
        model = attach(base, config, adapter, None)
    return count_parameters(model, SimpleNamespace(model=base))["adapter"]


def tables() -> list[str]:
    """The lines of all tables, one for each family of methods."""
    adapters = {adapter.name: adapter for adapter in cells(names())}
    counts, runs = parameters(list(adapters.values())), profiles()
    lines = []
    for title in FAMILIES:
        rows = [
            row(adapter, counts[name], runs.get(name, []))
            for name, adapter in adapters.items()
            if family(name) == title
        ]
        rule = ["---"] * 4 + ["---:"] + ["---"] * 3
        lines += ["", f"### {title[0].upper()}{title[1:]}", ""]
        lines += ["| " + " | ".join(line) + " |" for line in (HEADER, rule, *rows)]
    return [*lines, ""]


def row(adapter: DictConfig, count: int, runs: list[str]) -> list[str]:
    """The cells of one row, see HEADER."""
    if adapter.config["_target_"] == "condlora.CondLoraConfig":
        config = hydra.utils.instantiate(adapter.config, _convert_="all")
        weight, trained = of_tuner(config)
    else:
        weight, trained = adapter.formula, adapter.free
    if adapter.get("note"):
        trained += f"; {adapter.note}"
    return [
        label(adapter.name),
        f"`{adapter.name}`",
        weight.replace("|", "\\|"),
        trained,
        f"{count:,}",
        adapter.get("printed", "–"),
        source(adapter.name),
        ", ".join(runs) or "–",
    ]


def of_tuner(config: CondLoraConfig) -> tuple[str, str]:
    """How a method of the tuner makes A and B, and its trained and frozen tensors for a 768 x 768 weight."""
    method = method_of(config)
    tensors = method.tensors(torch.empty(WIDTH, WIDTH, device="meta"), config.r)
    weight = method.formula
    if config.layers_per_map == 1:
        weight = weight.replace("shared by all layers", "of each layer's own")
    if config.use_rslora:
        weight += "; s = alpha / √r"
    if config.use_dora:
        weight += "; with DoRA's magnitude m of each row"
    return weight, _trained(tensors, config)


def _trained(tensors: Tensors, config: CondLoraConfig) -> str:
    kinds: dict[str, list[str]] = {"all": [], "shared": [], "own": [], "frozen": []}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Trained):
            kinds["frozen"].append(name)
        elif tensor.is_common:
            kinds["all"].append(_sized(name, tensor))
        elif tensor.is_shared and config.layers_per_map != 1:
            kinds["shared"].append(_sized(name, tensor))
        else:
            kinds["own"].append(_sized(name, tensor))
    if config.use_dora:
        kinds["own"].append(f"m ({WIDTH})")
    said = {
        "all": "one for all modules: ",
        "shared": "shared by all layers: ",
        "own": "of each layer: ",
        "frozen": "frozen: ",
    }
    return "; ".join(said[kind] + ", ".join(found) for kind, found in kinds.items() if found)


def _sized(name: str, tensor: Trained) -> str:
    return f"{name} ({' x '.join(map(str, tensor.shape))})"


def source(name: str) -> str:
    """The papers that the comment at the head of the file cites."""
    text = (CONFIGS / "adapter" / f"{name}.yaml").read_text(encoding="utf-8")
    comment = re.sub(r"\s*\n# ?", " ", text.partition("\nname:")[0])
    found = CITATION.findall(comment.partition("defaults:")[0])
    return (
        "; ".join(f"{authors}, [{key}]({LINKS[site]}{key})" for authors, site, key in found) or "–"
    )


def profiles() -> dict[str, list[str]]:
    """The profiles that name each adapter; all of them name LoRA or CondLoRA."""
    found: dict[str, list[str]] = {}
    for path in sorted((CONFIGS / "profile").glob("*.yaml")):
        params = yaml.safe_load(path.read_text(encoding="utf-8"))
        for key in ("hydra", "sweeper", "params"):
            params = params.get(key) or {}
        for name in str(params.get("adapter") or "").replace(" ", "").split(","):
            found.setdefault(name, []).append(path.stem)
    return found | {name: ["all"] for name in ("lora", "condlora")}
