"""The run folder: what a run leaves behind, written atomically, read back with checks.

    config.yaml                       the resolved config, whole
    record.json                       one self-contained record, see `condlora.finetune.run`
    curve.csv                         a row per evaluation
    predictions_validation.parquet    label and prediction of each example, in the split's order
    predictions_test.parquet
    adapter/                          what PEFT's save_pretrained writes

A record is identified by its cell (profile, task, adapter, seed) and the hash of its recipe: everything
resolved that can change a result. Scores are fractions, times seconds, memory MiB.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from condlora.errors import ConfigError, RunFolderError

SCHEMA_VERSION = 1
RECIPE_GROUPS = ("task", "backbone", "adapter", "protocol", "data")
REQUIRED_FILES = (
    "config.yaml",
    "curve.csv",
    "predictions_validation.parquet",
    "predictions_test.parquet",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
)


def run_folder(cfg: DictConfig) -> Path:
    """Where the run of this config lives: the path is the identity of the cell, all else is in the record."""
    return Path(cfg.runs) / cfg.profile.name / cfg.task.name / cfg.adapter.name / f"seed-{cfg.seed}"


def recipe(cfg: DictConfig) -> dict:
    """All resolved settings that can change the result of a cell, its seed aside.

    Left out: `runtime` (speed only) and the protocol's tables, of which the cell's own entries are
    resolved into the protocol's fields; so changing one entry makes only its cells stale.

    Raises:
        ConfigError: a table has no entry for this task or adapter, or a mandatory value is missing.
    """
    plain = {}
    for group in RECIPE_GROUPS:
        node = cfg[group]
        if group == "protocol":
            node = OmegaConf.masked_copy(node, [key for key in node if key != "tables"])
            node._set_parent(cfg)
        try:
            plain[group] = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
        except InterpolationKeyError as error:
            raise ConfigError(
                f"The protocol {cfg.protocol.name!r} has no {error.full_key.split('.')[-1]} for adapter "
                f"{cfg.adapter.name!r} on task {cfg.task.name!r}: set {error.full_key}=... or choose another protocol."
            ) from error
    return plain


def recipe_hash(plain: dict) -> str:
    """SHA-256 of a recipe in canonical JSON."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file or folder beside `path`, then put it in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=".writing-"))
    try:
        fresh = scratch / path.name
        write(fresh)
        for file in [fresh] if fresh.is_file() else fresh.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.is_dir():
            os.replace(path, scratch / "previous")
        os.replace(fresh, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_record(folder: Path, record: dict) -> None:
    """Write record.json; NaN is refused, unknown values are null."""
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / "record.json", lambda path: path.write_text(text))


def read_record(folder: Path) -> dict:
    """The record of a run folder.

    Raises:
        RunFolderError: it is missing, not JSON, of another schema, or a finished run lacks a file.
    """
    path = folder / "record.json"
    advice = "run the same training command again to redo this run"
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunFolderError(f"{path} is missing: {advice}.") from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} is damaged ({error}): {advice}.") from None
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        raise RunFolderError(f"{path} is not a record of schema {SCHEMA_VERSION}: {advice}.")
    if record.get("status") not in ("running", "done", "failed") or "recipe_hash" not in record:
        raise RunFolderError(f"{path} lacks its status or recipe hash: {advice}.")
    if record["status"] == "done":
        missing = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
        if missing:
            raise RunFolderError(f"{folder} lacks {', '.join(missing)}: {advice}.")
    return record
