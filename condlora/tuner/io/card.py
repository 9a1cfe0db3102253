"""The model card of a CondLoRA adapter, and uploading both to the hub.

`PeftModel.push_to_hub` uploads the adapter too, but then writes a README of its own, and `save_pretrained` rewrites the
card's tags. So the upload here writes the card last.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from huggingface_hub import CommitInfo, HfApi, ModelCard, ModelCardData
from peft import PeftModel
from peft.utils import get_peft_model_state_dict

from condlora.errors import AdapterError, NetworkError, first_line
from condlora.tuner.config import CondLoraConfig, method_of
from condlora.tuner.io.adapter_folder import AUTO_CLASSES
from condlora.tuner.io.lora_export import check_condlora, export_lora
from condlora.tuner.model import CondLoraModel

LORA_SUBFOLDER = "lora"


@dataclass(frozen=True)
class Facts:
    """What a model card says that is not in the model itself.

    task: what it was trained on, in a few words. scores: metric -> seed -> value on held-out data, as trained
    with this recipe. seed: the one of this very adapter. license: an identifier of the hub's, such as "mit".

    Raises:
        AdapterError: a metric has no score, or one that is no number.
    """

    task: str | None = None
    scores: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    seed: int | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        for metric, by_seed in self.scores.items():
            if not by_seed or not all(math.isfinite(value) for value in by_seed.values()):
                raise AdapterError(
                    f"The scores of {metric} are {dict(by_seed)}: give each seed a number."
                )


def model_card(
    model: PeftModel,
    repo_id: str,
    facts: Facts | None = None,
    *,
    adapter_name: str = "default",
    has_lora: bool = False,
) -> ModelCard:
    """The card of one adapter; `.save(folder / "README.md")` writes it, `str()` shows it.

    `repo_id` is where it will be loaded from, a hub id or a folder; `has_lora` says that the plain LoRA
    export lies in its subfolder "lora". Writes nothing and asks the hub nothing.

    Raises:
        AdapterError: the model has no such CondLoRA adapter.
    """
    check_condlora(model, adapter_name)
    facts = facts or Facts()
    config = _config(model, adapter_name)
    base = config.base_model_name_or_path or None
    data = ModelCardData(
        base_model=base,
        library_name="peft",
        license=facts.license,
        metrics=list(facts.scores) or None,
        tags=["condlora", *([f"base_model:adapter:{base}"] if base else [])],
    )
    parts = [
        f"# {method_of(config).title} adapter for {_inline(base or 'a model without a name')}",
        _what_it_is(config),
        _settings(model, adapter_name, facts),
        *_scores(facts),
        _how_to_load(model, repo_id, adapter_name, has_lora),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def push_to_hub(
    model: PeftModel,
    repo_id: str,
    facts: Facts | None = None,
    *,
    adapter_name: str = "default",
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> CommitInfo:
    """Upload one adapter with its card, and in the subfolder "lora" the plain LoRA adapter that equals it.

    For a finished run: `push_to_hub(model, "me/my-adapter", condlora.models.run_facts.run_facts(folder))`. `private`, `token` and
    `revision` are those of `huggingface_hub.HfApi`.

    Raises:
        AdapterError: the model has no such CondLoRA adapter, or it names a folder of this machine as its base.
        NetworkError: the hub cannot be reached or refuses.
    """
    check_condlora(model, adapter_name)
    base = model.peft_config[adapter_name].base_model_name_or_path
    if base and Path(base).is_dir():
        raise AdapterError(
            f"The adapter names the folder {base} as its base, which nobody else has: set "
            f"model.peft_config[{adapter_name!r}].base_model_name_or_path to the base's hub id."
        )
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch, selected_adapters=[adapter_name])
        # PEFT puts adapters of other names into folders of their own.
        folder = Path(scratch) if adapter_name == "default" else Path(scratch) / adapter_name
        export_lora(model, folder / LORA_SUBFOLDER, adapter_name)
        api = HfApi(token=token)
        try:
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            card = model_card(model, repo_id, facts, adapter_name=adapter_name, has_lora=True)
            card.save(folder / "README.md")
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message="Upload CondLoRA adapter",
                revision=revision,
            )
        except Exception as error:
            # The hub's errors and those of its HTTP client have no class in common.
            raise NetworkError(
                f"{repo_id} could not be pushed ({first_line(error)}): check the name, the network and `hf auth login`."
            ) from error


def _what_it_is(config: CondLoraConfig) -> str:
    method = method_of(config)
    link = f"[{method.title}](https://arxiv.org/abs/{method.arxiv})"
    if config.method == "condlora":
        return (
            f"{link} makes the matrices A and B of LoRA in every layer from "
            f"that layer's own frozen weight W, by maps that layers share: {method.formula}."
        )
    return f"{link} makes the matrices A and B of LoRA in every layer so: {method.formula}."


def _config(model: PeftModel, adapter_name: str) -> CondLoraConfig:
    config = model.peft_config[adapter_name]
    assert isinstance(config, CondLoraConfig)
    return config


def _settings(model: PeftModel, adapter_name: str, facts: Facts) -> str:
    config = _config(model, adapter_name)
    tensors = get_peft_model_state_dict(
        model, adapter_name=adapter_name, save_embedding_layers=False
    )
    maps = sum(t.numel() for key, t in tensors.items() if f".{CondLoraModel.prefix}" in key)
    names = {path.rpartition(".")[2] for path, _ in model.get_base_model().named_modules()}
    saved = names & set(
        config.modules_to_save or ()
    )  # PEFT adds names of heads that other models have
    others = sum(t.numel() for t in tensors.values()) - maps
    rows = {
        "task": facts.task,
        "method": None if config.method == "condlora" else config.method,
        "options": ", ".join(f"{name} = {value}" for name, value in config.options.items()) or None,
        "form": getattr(method_of(config), "form", None),
        "r": _with_pattern(config.r, config.rank_pattern),
        "alpha": _with_pattern(config.lora_alpha, config.alpha_pattern),
        "scaling": "alpha / √r" if config.use_rslora else "alpha / r",
        "magnitude": "DoRA's" if config.use_dora else None,
        "layers that share a pair": config.layers_per_map,
        "target modules": _listed(config.target_modules),
        "trained whole": _listed(saved),
        "biases": None if config.bias == "none" else config.bias,
        "trainable parameters": f"{maps + others:,}: {maps:,} in {'the maps' if config.method == 'condlora' else 'A and B'}, {others:,} in heads and biases",
        "seed": facts.seed,
    }
    table = [f"| {name} | {_inline(value)} |" for name, value in rows.items() if value is not None]
    return "\n".join(["| | |", "| --- | --- |", *table])


def _with_pattern(value: object, pattern: Mapping[str, object]) -> str:
    return str(value) + "".join(f", {key}: {other}" for key, other in pattern.items())


def _listed(names: str | Iterable[str] | None) -> str | None:
    return names if isinstance(names, str) else ", ".join(sorted(names or ())) or None


def _scores(facts: Facts) -> list[str]:
    if not facts.scores:
        return []
    rows = ["| metric | mean | sd | n | seeds |", "| --- | ---: | ---: | ---: | --- |"]
    for metric, by_seed in facts.scores.items():
        values = list(by_seed.values())
        sd = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "–"
        seeds = ", ".join(map(str, sorted(by_seed)))
        mean = statistics.mean(values)
        rows.append(f"| {_inline(metric)} | {mean:.4f} | {sd} | {len(values)} | {seeds} |")
    note = "Over the seeds of one recipe; sd is the sample standard deviation."
    return ["## Scores", note, "\n".join(rows)]


def _how_to_load(model: PeftModel, repo_id: str, adapter_name: str, has_lora: bool) -> str:
    config = _config(model, adapter_name)
    model_class = AUTO_CLASSES.get(config.task_type or "") or type(model.get_base_model())
    base = _literal(config.base_model_name_or_path or "BASE MODEL")
    if config.task_type in ("SEQ_CLS", "TOKEN_CLS"):
        base += f", num_labels={cast('Any', model.get_base_model()).config.num_labels}"
    if config.revision:
        base += f", revision={_literal(config.revision)}"
    lines = [
        "from peft import PeftModel",
        f"from transformers import {model_class.__name__}",
        "",
        f"base = {model_class.__name__}.from_pretrained({base})",
    ]
    load = f"model = PeftModel.from_pretrained(base, {_literal(repo_id)}"
    own = ["import condlora  # makes PEFT know the method", *lines, load + ")"]
    lora = [*lines, load + f", subfolder={_literal(LORA_SUBFOLDER)})"]
    without = (
        "Without condlora, as the plain LoRA adapter that it equals, also for engines that serve LoRA:\n\n"
        + _fenced(lora)
        if has_lora
        else "`condlora.tuner.io.lora_export.export_lora(model, folder)` writes it as a plain LoRA adapter, which "
        "stock PEFT and engines that serve LoRA load without condlora."
    )
    return f"## How to load\n\nWith condlora installed:\n\n{_fenced(own)}\n\n{without}"


def _fenced(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _literal(text: str) -> str:
    """A Python string literal that cannot end the fenced block it stands in."""
    return json.dumps(text).replace("`", "\\u0060")


def _inline(value: object) -> str:
    """Text for a line or table cell of Markdown: on one line, and read as text."""
    text = " ".join(str(value).split())
    return text.replace("<", "&lt;").replace("|", "\\|").replace("`", "\\`")
