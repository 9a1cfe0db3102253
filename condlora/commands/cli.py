"""What all commands share: a Hydra application whose users' errors are a sentence and an exit status.

2: nothing was started or the one thing asked for failed; 1: a grid ran, but not all of it.

`HYDRA_FULL_ERROR=1` or `--debug` shows the traceback instead.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
import warnings
from collections.abc import Callable

import hydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from condlora.errors import UserError
from condlora.paths import CONFIGS

MULTIRUN = ("--multirun", "-m")  # Hydra's words for a grid, which commas are without them

Check = Callable[[list[str]], None]


def command(config: str, before: Check | None = None, after: Check | None = None):
    """Decorate `main(cfg)` as the command configured by `configs/<config>.yaml` and the groups beside it.

    `before` is called with the command line's overrides before Hydra starts, to refuse what cannot run;
    `after` when all jobs have ended, to say what they came to.
    """
    path = CONFIGS / config

    def decorate(function: Callable[[DictConfig], object]) -> Callable[[], None]:
        raised: list[UserError] = []

        def job(cfg: DictConfig) -> None:
            try:
                function(cfg)
            except (
                UserError
            ) as error:  # past Hydra, which would print the overrides and a traceback
                raised.append(error)

        @functools.wraps(function)
        def main() -> None:
            debug = "--debug" in sys.argv or bool(os.environ.get("HYDRA_FULL_ERROR"))
            sys.argv = [word for word in sys.argv if word != "--debug"]
            # Hydra hands exceptions on instead of printing them.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            _silence_library_notices()
            overrides = [word for word in sys.argv[1:] if word not in MULTIRUN]
            asks_hydra = any(word.startswith("-") for word in overrides)  # --help, --cfg job, ...
            try:
                if before is not None and not asks_hydra:
                    before(overrides)
                hydra.main(version_base="1.3", config_path=str(path.parent), config_name=path.name)(
                    job
                )()
                if raised:
                    raise raised[0]
                if after is not None and not asks_hydra:
                    after(overrides)
            except KeyboardInterrupt as error:
                print(
                    "interrupted: the same command goes on here, finished runs are kept.",
                    file=sys.stderr,
                )
                sys.exit(getattr(error, "exit_status", 130))
            except Exception as error:
                message = explain(error)
                if message is None or debug:
                    raise
                print(f"error: {message}", file=sys.stderr)
                sys.exit(getattr(error, "exit_status", UserError.exit_status))

        return main

    return decorate


def _silence_library_notices() -> None:
    """Hide warnings between libraries, which no user can mend, here and in a launcher's workers."""
    warnings.simplefilter("ignore", FutureWarning)
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    # joblib renews a worker that has grown by 300 MB, as one does that has seen several tasks.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs")


def explain(error: BaseException) -> str | None:
    """The message for an error that a user can cause, or None for a defect of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"There is no {group} {name!r}: choose one of {', '.join(sorted(error.options))}."
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
        place = error.filename or "there"
        return (
            f"No permission to write {place}: choose another folder with runs=... or results=...."
        )
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE):
        return f"The disk failed ({error.strerror}): look after it and run the same command again; finished runs are kept."
    return None
