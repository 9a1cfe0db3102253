"""Where files are: the checkout, the Hydra configs, and the cache of downloads."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of a checkout; of an installed wheel, site-packages

# setup.py puts the configs there in a wheel.
_INSTALLED_CONFIGS = Path(__file__).resolve().parent / "configs"
IS_CHECKOUT = not _INSTALLED_CONFIGS.is_dir()
CONFIGS = ROOT / "configs" if IS_CHECKOUT else _INSTALLED_CONFIGS


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
