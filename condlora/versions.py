"""The versions of other libraries that condlora supports; imports nothing but the standard library.

Checked when condlora is imported, because a library that is too old fails later with an unrelated message, or not at all.
"""

from __future__ import annotations

import re
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

# The ranges of pyproject.toml: from the first version, below the second.
SUPPORTED = {
    "torch": ("2.11", "2.14"),
    "transformers": ("5.17", "5.24"),
    "peft": ("0.21.2", "0.22"),
    "huggingface_hub": ("1.5", "3"),
}


def require_versions() -> None:
    """Check the installed libraries: refuse one that is missing or too old, warn of one that is not tested.

    Raises:
        ImportError: in one sentence, with the command that installs the supported version.
    """
    found = {name: _installed(name) for name in SUPPORTED}
    for name, (least, _) in SUPPORTED.items():
        if _numbers(found[name]) < _numbers(least):
            raise ImportError(
                f"condlora needs {name} {least} or newer, but {found[name]} is installed: {_install(name)}"
            )
    wanted = _peft_required_by_transformers()
    pair_fails = wanted is not None and _numbers(found["peft"]) < _numbers(wanted)
    if pair_fails:
        _warn(
            f"transformers {found['transformers']} needs peft {wanted} or newer for its own adapter methods "
            f"(add_adapter and others), but peft {found['peft']} is installed: {_install('transformers')}"
        )
    for name, (_, below) in SUPPORTED.items():
        if _numbers(found[name]) >= _numbers(below) and not (pair_fails and name == "transformers"):
            _warn(
                f"condlora is not tested with {name} {found[name]}; if it fails: {_install(name)}"
            )


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        raise ImportError(
            f"condlora needs {name}, which is not installed: {_install(name)}"
        ) from None


def _install(name: str) -> str:
    least, below = SUPPORTED[name]
    return f"pip install '{name}>={least},<{below}'"


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)  # the line that imports condlora


def _peft_required_by_transformers() -> str | None:
    """The oldest peft that the installed transformers accepts, read from its table without importing it."""
    spec = find_spec("transformers")
    folders = (spec and spec.submodule_search_locations) or ()
    for folder in folders:
        table = Path(folder, "dependency_versions_table.py")
        if table.is_file() and (match := re.search(r'"peft>=([\d.]+)', table.read_text("utf-8"))):
            return match[1]
    return None


def _numbers(text: str) -> tuple[int, ...]:
    """(2, 13, 0) for "2.13.0+cpu"."""
    return tuple(int(part) for part in re.match(r"\d+(?:\.\d+)*", text)[0].split("."))
