"""The versions of other libraries that condlora was written for; imports nothing but the standard library.

Checked on import: a library that is too old fails in words of its own, far from the cause, or not at all.
"""

from __future__ import annotations

import re
import warnings
from importlib.metadata import PackageNotFoundError, version

# As in pyproject.toml: from the first version on and below the second.
SUPPORTED = {
    "torch": ("2.11", "2.14"),
    "transformers": ("5.17", "6"),
    "peft": ("0.21", "0.22"),
    "huggingface_hub": ("2", "3"),
}


def require_versions() -> None:
    """Refuse a library that is missing or too old; warn of one that is newer than any this was tested with.

    Raises:
        ImportError: in one sentence, with the command that mends it.
    """
    for name, (least, below) in SUPPORTED.items():
        mend = f"pip install '{name}>={least},<{below}'"
        try:
            found = version(name)
        except PackageNotFoundError:
            raise ImportError(f"condlora needs {name}, which is not installed: {mend}") from None
        if _numbers(found) < _numbers(least):
            raise ImportError(
                f"condlora needs {name} {least} or newer, and {found} is installed: {mend}"
            )
        if _numbers(found) >= _numbers(below):
            warnings.warn(
                f"condlora is not tested with {name} {found}; if something fails: {mend}",
                stacklevel=3,
            )


def _numbers(text: str) -> tuple[int, ...]:
    """(2, 13, 0) of "2.13.0+cpu"."""
    return tuple(int(part) for part in re.match(r"\d+(?:\.\d+)*", text)[0].split("."))
