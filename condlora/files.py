"""Writing files and folders in one step, so that a kill or a full disk leaves the old state or the new."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

SCRATCH = ".writing-"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file or folder next to `path`, then put it in place in one step.

    On return it is on the disk and not in memory alone. A folder that was there is gone for the instant between
    two renames: what must outlast a kill in that instant is also in a checkpoint.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=SCRATCH))
    try:
        fresh = scratch / path.name
        write(fresh)
        for file in [fresh] if fresh.is_file() else fresh.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.is_dir():
            os.replace(path, scratch / "previous")
        os.replace(fresh, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_scratch(folder: Path) -> None:
    """Remove what a kill in the middle of a write left in a folder; nobody else may be writing there."""
    for path in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(path, ignore_errors=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def json_sha256(value: dict) -> str:
    """SHA-256 of a dict in canonical JSON: sorted keys, no blanks."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def content_sha256(path: Path) -> str:
    """SHA-256 of a file, or of the relative names and the contents of a folder's files; recomputed after a change.

    Hidden files of a folder do not count: file managers, downloads and version control write them.
    """
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    if path.is_dir():
        files = [f for f in files if not any(n.startswith(".") for n in f.relative_to(path).parts)]
    return _content_sha256(path, tuple((f, f.stat().st_mtime_ns, f.stat().st_size) for f in files))


@functools.lru_cache(maxsize=256)
def _content_sha256(path: Path, files: tuple) -> str:
    if len(files) == 1 and files[0][0] == path:
        return sha256(path)
    listed = [f"{file.relative_to(path)} {sha256(file)}" for file, *_ in files]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()
