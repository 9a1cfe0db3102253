"""Where files are: the checkout, its Hydra configs, and the cache of downloads."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"


def cache_folder() -> Path:
    """Where downloads are kept: `$CONDLORA_CACHE`, or "condlora" in the platform's cache folder of the user."""
    chosen = os.environ.get("CONDLORA_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        parent = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local")
    elif sys.platform == "darwin":
        parent = Path.home() / "Library/Caches"
    else:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return parent / "condlora"
