"""Writing files and folders in one step, so that a kill or a full disk leaves the old state or the new."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


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
