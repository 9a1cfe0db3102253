"""LoRA adapters from anywhere as a study: PEFT folders or hub ids, with or without their base model.

An adapter takes the place of a finished run: it becomes a cell, whose task is the adapter's name, and `Reader` gives
its W, A and B as `condlora.models.adapters.load_factors` gives those of a run. So every matrix analysis takes both.
Only safetensors are read: neither a model is built, nor a pickled file opened.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from analysis.study.selection import Settings, Study
from condlora.errors import AdapterError
from condlora.grid.cells import Cell

if TYPE_CHECKING:
    import torch

    from analysis.study.base_weights import BaseWeights
    from condlora.tuner import Factors

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    f"s.save_file(torch.load('{PICKLED}', weights_only=True), '{WEIGHTS}')\""
)

Pair = tuple["torch.Tensor", "torch.Tensor"]


def open_adapters(cfg: DictConfig) -> Study:
    """The adapters that `adapters=` names, as a study whose cells are adapters.

    Raises:
        AdapterError: a folder holds no LoRA adapter that can be read.
        NetworkError: an adapter or the base is on the hub and cannot be downloaded.
    """
    from analysis.study.base_weights import BaseWeights, local_folder

    folders = [local_folder(str(name), [CONFIG, WEIGHTS], "the adapter") for name in cfg.adapters]
    labels = _labels(folders, [str(name) for name in cfg.adapters])
    cells = [_cell(label, folder) for label, folder in zip(labels, folders, strict=True)]
    base = BaseWeights(str(cfg.base)) if cfg.base is not None else None
    name = labels[0].replace("/", "_") if len(labels) == 1 else "adapters"
    # conversion_power has settings of its own and no baseline.
    draws = (cfg.get("baseline_seed", 0), cfg.get("baseline_draws", 1))
    settings = Settings(cfg.get("i"), cfg.get("j"), *draws)
    return Study("adapters", cells, Path(cfg.results) / name, settings, load=Reader(base))


def _labels(folders: list[Path], names: list[str]) -> list[str]:
    """The shortest end of each path that names one adapter alone; of hub ids the id."""
    if len(set(folders)) < len(folders):
        raise AdapterError("adapters= names one adapter twice: leave one out.")
    paths = [
        folder.resolve().parts if Path(name).exists() else tuple(name.split("/"))
        for folder, name in zip(folders, names, strict=True)
    ]
    for length in range(1, max(map(len, paths)) + 1):
        ends = ["/".join(path[-length:]) for path in paths]
        if len(set(ends)) == len(ends):
            return ends
    return names


def _cell(label: str, folder: Path) -> Cell:
    """The adapter as a finished cell; its record has what the analyses read of a record."""
    config = read_config(folder)
    own = {key: config.get(key) for key in ("r", "lora_alpha", "use_rslora")}
    record = {"recipe": {"adapter": {"config": own}}}
    return Cell("adapters", label, "lora", 0, folder, "done", None, record)


def read_config(folder: Path) -> dict:
    """adapter_config.json of a LoRA adapter. Raises AdapterError for any other."""
    if folder.is_file():
        raise AdapterError(
            f"{folder} is a file, and adapters= takes folders of PEFT adapters: write a checkpoint of loralib as one "
            "with condlora-import."
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, sizes = config.get("peft_type"), (config.get("r"), config.get("lora_alpha"))
    except FileNotFoundError:
        raise AdapterError(
            f"{folder} holds no {CONFIG}: name the folder of a PEFT adapter."
        ) from None
    except (ValueError, AttributeError, OSError) as error:
        raise AdapterError(
            f"{folder / CONFIG} cannot be read ({type(error).__name__}): save the adapter again."
        ) from error
    if kind != "LORA":
        how = "write it as LoRA with condlora-export" if kind == "CONDLORA" else "name another"
        raise AdapterError(f"{folder} is an adapter of type {kind} and not LORA: {how}.")
    for name in ("rank_pattern", "alpha_pattern"):
        if config.get(name):
            raise AdapterError(
                f"{folder / CONFIG} sets {name}: only adapters with one rank and one alpha can be analysed."
            )
    if not all(isinstance(size, int | float) and size > 0 for size in sizes):
        raise AdapterError(f"{folder / CONFIG} needs r and lora_alpha above 0: save it again.")
    return config


def read_pairs(folder: Path) -> dict[str, Pair]:
    """A (r, in) and B (out, r) of every module of a LoRA adapter, by the module's path in the base model.

    Raises AdapterError for a folder without safetensors, or with tensors that are no pair of a layer.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / PICKLED).is_file():
            raise AdapterError(
                f"{folder} holds pickled weights, which can run code when they are read: convert them there with {CONVERT}"
            )
        raise AdapterError(f"{folder} holds no {WEIGHTS}: save the adapter again.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is damaged: copy or download it again.") from error
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match and tensor.ndim == 2:
            found.setdefault(match[1], {})[match[2]] = tensor
    for name, pair in found.items():
        if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            raise AdapterError(
                f"{path} has no A and B of one rank for {name}: the file is damaged or no LoRA adapter."
            )
        if not all(tensor.isfinite().all() for tensor in pair.values()):
            raise AdapterError(f"{path} has values in {name} that are not finite: train it again.")
    if not found:
        raise AdapterError(f"{path} holds no A and B of a linear layer: name a LoRA adapter.")
    return {name: (pair["A"], pair["B"]) for name, pair in found.items()}


class Reader:
    """Reads one adapter's folder as factors by module kind; W is None where there is no base model."""

    def __init__(self, base: BaseWeights | None):
        self.base = base

    def __call__(self, folder: Path) -> dict[str, Factors]:
        import torch

        from condlora.tuner import Factors
        from condlora.tuner.sharing import layer_index

        config, pairs = read_config(folder), read_pairs(folder)
        kinds: dict[str, dict[int, str]] = {}
        for path in pairs:
            if (layer := layer_index(path)) is not None:
                kinds.setdefault(_without_layer(path), {})[layer] = path
        if not kinds:
            raise AdapterError(f"{folder} adapts no module of a numbered layer: name another.")
        found = {}
        for kind, name in _short_names(list(kinds)).items():
            layers = sorted(kinds[kind])
            paths = [kinds[kind][layer] for layer in layers]
            if len({(A.shape, B.shape) for A, B in (pairs[path] for path in paths)}) > 1:
                raise AdapterError(
                    f"The {name} modules of {folder} have several shapes or ranks, and layers of one shape are compared: "
                    "name another adapter."
                )
            A, B = (torch.stack([pairs[path][n] for path in paths]) for n in (0, 1))
            W = None
            if self.base is not None:
                shape, is_transposed = (B.shape[1], A.shape[2]), config.get("fan_in_fan_out")
                W = torch.stack(
                    [self.base.weight(path, shape, bool(is_transposed)) for path in paths]
                )
            found[name] = Factors(W, A, B, layers, config["lora_alpha"] / len(A[0]))
        return found


def _without_layer(path: str) -> str:
    parts = path.split(".")
    number = next(n for n, part in enumerate(parts) if part.isdigit())
    return ".".join([*parts[:number], *parts[number + 1 :]])


def _short_names(kinds: list[str]) -> dict[str, str]:
    """kind -> the shortest end of its path that no other kind has: "query", or "output.dense"."""
    parts = {kind: kind.split(".") for kind in kinds}
    names = {}
    for kind, own in parts.items():
        for length in range(1, len(own) + 1):
            ends = Counter(tuple(other[-length:]) for other in parts.values())
            if ends[tuple(own[-length:])] == 1 or length == len(own):
                names[kind] = ".".join(own[-length:])
                break
    return names
