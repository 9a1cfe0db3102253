"""The sentence for an error that a user can cause."""

from __future__ import annotations

import difflib
import errno
import os
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from condlora.errors import UserError, first_line
from condlora.runs.recipe import unknown_reference

LISTED = 30  # names that a sentence lists


def explain(error: BaseException) -> str | None:
    """The message for an error that a user can cause, or None for a defect of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"There is no {group} {name!r}: {_choice(group, name, sorted(error.options))}."
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, InterpolationKeyError):
        return unknown_reference(error.full_key or "A setting", error)
    if isinstance(error, MissingMandatoryValue | InterpolationToMissingValueError):
        first = str(error).splitlines()[0]
        name = first.rsplit(": ")[-1] if "interpolation" in first else error.full_key
        return f"{name} is not set: add {name}=... to the command."
    if isinstance(error, ConfigKeyError | ConfigAttributeError) or "Could not override" in str(
        error
    ):
        return f"Unknown setting ({str(error).splitlines()[0].rstrip('.')}): the settings are in configs/."
    if isinstance(error, HydraException | OmegaConfBaseException):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return "The configuration is wrong: " + " ".join(lines)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "The disk is full: free some space and run the same command again; finished runs are kept."
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return _denied(error)
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE):
        return f"The disk failed ({error.strerror}): check it and run the same command again; finished runs are kept."
    return None


def _denied(error: OSError) -> str:
    """What is not permitted where: to open a folder, to read or to write."""
    advice = "change its permissions, or choose another file or folder"
    if error.filename is None:
        return f"No permission to read or write ({first_line(error)}): {advice}."
    place = Path(os.fsdecode(error.filename))
    if error.errno == errno.EROFS:
        return (
            f"No permission to write {place}, which is on a read-only disk: choose another folder."
        )
    for folder in reversed(place.absolute().parents):
        if not _may(folder, os.X_OK):
            return f"No permission to open the folder {folder}: {advice}."
    if not _may(place, os.F_OK):
        return f"No permission to write {place}: change the permissions of its folder, or choose another folder."
    if place.is_dir():
        verb = "write" if _may(place, os.R_OK | os.X_OK) else "read"
        return f"No permission to {verb} the folder {place}: {advice}."
    verb = "write" if _may(place, os.R_OK) and not _may(place, os.W_OK) else "read"
    return f"No permission to {verb} {place}: {advice}."


def _may(place: Path, mode: int) -> bool:
    """Whether this process, by its effective user, may do that; for root everything is permitted."""
    return os.access(place, mode, effective_ids=os.access in os.supports_effective_ids)


def _choice(group: str, name: str, options: list[str]) -> str:
    """What to choose in place of a name that does not exist: all options, or of many those that look like it."""
    if len(options) <= LISTED:
        return f"choose one of {', '.join(options)}"
    close = difflib.get_close_matches(name, options, n=5)
    similar = f"similar names are {', '.join(close)}; " if close else ""
    return f"{similar}the {len(options)} names are the files of configs/{group}"


def _unreadable(error: OverrideParseException) -> str:
    """What to do about a word of the command line that does not fit the grammar of overrides."""
    word = error.override
    name, equals, value = word.partition("=")
    if not equals:
        return (
            f"Cannot read the word {word!r}: a setting is written name=value, and a value with blanks needs quotes, as "
            "in 'runs=\"my runs\"'."
        )
    if not set(value) & set("[]{}\"'"):
        quoted = f"'{name}=\"{value}\"'"
        return f"Cannot read the setting {word}: quote it as {quoted}."
    reason = str(error).splitlines()[1:2] or [str(error)]
    return f"Cannot read the setting {word} ({reason[0].strip()}): check its brackets and quotes."
