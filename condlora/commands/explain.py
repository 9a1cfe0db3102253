"""The sentence for an error that a user can cause."""

from __future__ import annotations

import errno

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from condlora.errors import UserError
from condlora.runs.recipe import unknown_reference


def explain(error: BaseException) -> str | None:
    """The message for an error that a user can cause, or None for a defect of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"There is no {group} {name!r}: choose one of {', '.join(sorted(error.options))}."
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
        place = error.filename or "the disk"
        return f"No permission to read or write {place}: change its permissions, or choose another file or folder."
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE):
        return f"The disk failed ({error.strerror}): check it and run the same command again; finished runs are kept."
    return None


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
