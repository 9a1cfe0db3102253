"""The run folder: what a run leaves behind, written atomically, read back with checks.

    config.yaml                       the resolved config, whole
    record.json                       one self-contained record, see `condlora.training.run.run`
    curve.csv                         a row per evaluation
    checkpoints/                      while it is not finished, see `condlora.training.checkpoints`
    predictions_validation.parquet    label and prediction of each example, in the split's order
    predictions_test.parquet
    adapter/                          what PEFT's save_pretrained writes
    adapter_at_<step>/                the same at other steps, where runtime.keep_adapters_at asks for it

A record is identified by its cell (profile, task, adapter, seed) and the hash of its recipe: everything
resolved that can change a result. Scores are fractions, times seconds, memory MiB.
"""

from __future__ import annotations

import datetime
import errno
import json
import re
import shutil
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from condlora.errors import ConfigError, Interrupted, RunFolderError, UnreadableRun, UserError
from condlora.files import json_sha256, remove_scratch, sha256, write_atomically

SCHEMA_VERSION = 2
STATUSES = ("running", "interrupted", "failed", "done")
CANNOT_READ = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
REQUIRED_FILES = (
    "config.yaml",
    "curve.csv",
    "predictions_validation.parquet",
    "predictions_test.parquet",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
)


def run_folder(cfg: DictConfig) -> Path:
    """Where the run of this config lives: the path is the identity of the cell, all else is in the record.

    Raises:
        ConfigError: a name in it is none for a folder, and might lead out of `runs`.
    """
    names = {group: str(cfg[group].name) for group in ("profile", "task", "adapter")}
    for group, name in names.items():
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(
                f"{group}.name={name!r} is no folder's name: use letters, digits, _, - and '.'."
            )
    return Path(cfg.runs, *names.values(), f"seed-{cfg.seed}")


def write_record(folder: Path, record: dict) -> dict:
    """Write record.json and return what it holds; NaN is refused, unknown values are null.

    A finished run's record holds the SHA-256 of every file its result rests on, and each record its own.
    """
    record = {key: value for key, value in record.items() if key not in ("files", "sha256")}
    if record["status"] == "done":
        there = [name for name in REQUIRED_FILES if (folder / name).is_file()]
        record["files"] = {name: sha256(folder / name) for name in there}
    record = json.loads(json.dumps(record, allow_nan=False))  # as it will be read
    record["sha256"] = _own_sha256(record)
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / "record.json", lambda path: path.write_text(text))
    return record


def _own_sha256(record: dict) -> str:
    """SHA-256 of a record without its own, in canonical JSON."""
    rest = {key: value for key, value in record.items() if key != "sha256"}
    return json_sha256(rest)


def read_record(folder: Path, *, verify: bool = True) -> dict:
    """The record of a run folder.

    verify: compare the files of a finished run with the checksums in its record. A result must not be used without it;
    to know the state of a run, the record is enough.

    Raises:
        RunFolderError: the record is missing, not JSON, of another schema, or was changed after it was written; or a
            file of a finished run is missing or, if `verify`, was changed.
        UnreadableRun: the files are there and cannot be read: no permission, or a disk that fails.
    """
    try:
        return _read_record(folder, verify)
    except OSError as error:
        if error.errno not in CANNOT_READ:
            raise
        raise UnreadableRun(
            f"{error.filename or folder} cannot be read ({error.strerror}): change its permissions or check the disk."
        ) from error


def _read_record(folder: Path, verify: bool) -> dict:
    path = folder / "record.json"
    advice = "run the same training command again to redo this run"
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunFolderError(f"{path} is missing: {advice}.") from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in CANNOT_READ:
            raise
        raise RunFolderError(f"{path} is damaged ({error}): {advice}.") from None
    check_record(record, str(path), advice)
    if record["status"] == "done":
        missing = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
        if missing:
            raise RunFolderError(f"{folder} lacks {', '.join(missing)}: {advice}.")
        for name in REQUIRED_FILES if verify else ():  # and no path that a record might name
            if sha256(folder / name) != record["files"].get(name):
                raise RunFolderError(
                    f"{folder / name} was changed or damaged after it was written: {advice}."
                )
    return record


def check_record(record: object, name: str, advice: str) -> None:
    """Compare a record with its own checksum.

    name: where it was read; advice: what to do where it is damaged.

    Raises:
        RunFolderError: it is of another schema, or was changed after it was written.
    """
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        raise RunFolderError(f"{name} is not a record of schema {SCHEMA_VERSION}: {advice}.")
    if record.get("status") not in STATUSES or "recipe_hash" not in record:
        raise RunFolderError(f"{name} lacks its status or recipe hash: {advice}.")
    if record.get("sha256") != _own_sha256(record):
        raise RunFolderError(f"{name} was changed after it was written: {advice}.")


def read_cell_record(folder: Path, *, verify: bool = True) -> dict:
    """The record of a run folder that lies where `run_folder` puts its run; see `read_record`.

    Raises:
        RunFolderError: see `read_record`; or the record is of another cell, as after `cp -r seed-0 seed-7`.
    """
    record = read_record(folder, verify=verify)
    profile, task, adapter, seed = folder.parts[-4:]
    place = {
        "profile": profile,
        "task": task,
        "adapter": adapter,
        "seed": seed.removeprefix("seed-"),
    }
    differs = [key for key, value in place.items() if str(record.get(key, value)) != value]
    if differs:
        named = ", ".join(f"{key} {record[key]}" for key in differs)
        raise RunFolderError(
            f"{folder / 'record.json'} is the record of another run ({named}): move this copy out of the runs folder."
        )
    return record


def new_record(cfg: DictConfig, plain: dict, *, streams: dict[str, int], environment: dict) -> dict:
    """The record of a run that begins; `plain` is its recipe."""
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "reason": None,
        "profile": cfg.profile.name,
        "task": cfg.task.name,
        "adapter": cfg.adapter.name,
        "seed": cfg.seed,
        "recipe_hash": json_sha256(plain),
        "recipe": plain,
        "runtime": OmegaConf.to_container(cfg.runtime, resolve=True),
        "streams": streams,
        "headline": cfg.task.headline,
        "effective_batch": cfg.protocol.batch_size,
        "environment": environment,
        "started_at": now(),
    }


def failure(error: BaseException) -> dict:
    """The record's fields of a run that failed or was interrupted; a defect of ours is named by its type."""
    if isinstance(error, Interrupted):
        return {"status": "interrupted", "reason": f"signal {error.args[0]}", "finished_at": now()}
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return {
        "status": "failed",
        "error": type(error).__name__,
        "reason": reason,
        "finished_at": now(),
    }


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def finished_record(folder: Path, digest: str) -> dict | None:
    """The record of this very cell and recipe if it is done and its files are as they were written.

    Raises:
        UnreadableRun: see `read_record`.
    """
    try:
        record = read_cell_record(folder)
    except UnreadableRun:
        raise
    except RunFolderError:
        return None
    return record if record["status"] == "done" and record["recipe_hash"] == digest else None


def tidy(folder: Path) -> None:
    """Remove the checkpoints and half-written files from the folder of a finished run."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    remove_scratch(folder)
