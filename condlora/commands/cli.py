"""What all commands share: a Hydra application whose users' errors are a sentence and an exit status.

2: nothing was started or the one thing asked for failed; 1: a grid ran, but not all of it.

`HYDRA_FULL_ERROR=1` or `--debug` shows the traceback instead.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import time
import warnings
from collections.abc import Callable

from condlora.commands import usage
from condlora.errors import UserError
from condlora.paths import CONFIGS

MULTIRUN = ("--multirun", "-m")  # Hydra's words for a grid, which commas are without them

Check = Callable[[list[str]], None]


def command(
    config: str,
    before: Check | None = None,
    after: Check | None = None,
    *,
    with_grid: bool = False,
    composes: bool = True,
):
    """Decorate `main(cfg)` as the command configured by `configs/<config>.yaml` and the groups next to it.

    `before` is called with the command line's overrides before Hydra starts, to refuse what cannot run;
    `after` when all jobs have ended, to say what they came to.

    with_grid: `main(cfg, overrides)` gets the overrides of the whole grid as well, whatever process its job runs in.
    composes: False for a `main(overrides)` that composes what it needs.
    """

    def decorate(function: Callable[..., object]) -> Callable[[], None]:
        @functools.wraps(function)
        def main() -> None:
            words = sys.argv[1:]
            if {"--help", "-h"} & set(words):
                return _print(usage.help_text(sys.modules[function.__module__].__doc__, config))
            if "--groups" in words:
                return _print(usage.groups_text())
            debug = "--debug" in words or bool(os.environ.get("HYDRA_FULL_ERROR"))
            words = [_with_time(word) for word in words if word != "--debug"]
            sys.argv[1:] = words
            # Hydra hands exceptions on instead of printing them.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            _silence_library_notices()
            overrides = [word for word in words if word not in MULTIRUN]
            asks_hydra = any(word.startswith("-") for word in overrides)  # --cfg job, ...
            try:
                if not composes and not asks_hydra:
                    function(overrides)
                else:
                    checks = (None, None) if asks_hydra else (before, after)
                    _run(function, config, overrides, *checks, with_grid=with_grid)
                sys.stdout.flush()
            except BrokenPipeError:
                _stop_printing()
            except KeyboardInterrupt as error:
                print(
                    "interrupted: run the same command to resume; finished runs are kept.",
                    file=sys.stderr,
                )
                sys.exit(getattr(error, "exit_status", 130))
            except Exception as error:
                message = _message(error)
                if message is None or debug:
                    raise
                print(f"error: {message}", file=sys.stderr)
                sys.exit(getattr(error, "exit_status", UserError.exit_status))
            finally:
                if not debug:
                    del os.environ["HYDRA_FULL_ERROR"]

        return main

    return decorate


def _message(error: Exception) -> str | None:
    """What is printed for an error, None for a defect of ours; a user's error needs no library to be explained."""
    if isinstance(error, UserError):
        return str(error)
    from condlora.commands.explain import explain

    return explain(error)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _stop_printing()


def _stop_printing() -> None:
    """The reader of the output, such as `head`, has what it wants: the rest goes nowhere, and quietly."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(
    function: Callable[..., object],
    config: str,
    overrides: list[str],
    before: Check | None,
    after: Check | None,
    *,
    with_grid: bool,
) -> None:
    """Call `function` once for each job of the command line: Hydra does, or this process for a grid without a launcher."""
    if before is not None:
        before(overrides)
    import hydra

    from condlora.commands.settings import check_command
    from condlora.grid.launch import do_each, is_done_here
    from condlora.grid.workers import call_in_worker

    raised: list[UserError] = []
    grid = (overrides,) if with_grid else ()

    def job(cfg) -> None:
        try:
            check_command(config, cfg)
            call_in_worker(function, cfg, *grid)
        except UserError as error:  # past Hydra, which would print the overrides and a traceback
            raised.append(error)

    path = CONFIGS / config
    if with_grid and is_done_here(tuple(overrides)):
        do_each(tuple(overrides), job)
    else:
        hydra.main(version_base="1.3", config_path=str(path.parent), config_name=path.name)(job)()
    if raised:
        raise raised[0]
    if after is not None:
        after(overrides)


def _with_time(word: str) -> str:
    """A word with the time put in for Hydra's `${now:...}`, which would differ from job to job and between processes."""
    return re.sub(r"\$\{now:([^}]*)\}", lambda form: time.strftime(form[1]), word)


def _silence_library_notices() -> None:
    """Hide warnings between libraries, which no user can act on, here and in a launcher's workers."""
    warnings.simplefilter("ignore", FutureWarning)
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    # joblib renews a worker that has grown by 300 MB, as one does that has seen several tasks.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs")
