"""Faults on purpose: a run, or several launchers, killed or failed at a chosen instant, and what is left compared.

An instant is the moment before any of: the end of a training step, an evaluation, the making of a scratch folder, the writing of
a text, an fsync, a rename, the removal of a folder. A run passes the same instants in the same order each time, so
instant n of a run can be chosen, counted and met again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from condlora.commands.explain import explain
from condlora.runs.record import read_record
from condlora.training import run as finetune

KILLED = 137
NOBODY = 65534
# What differs between two equal runs: when, how long, how fast, how often interrupted.
VOLATILE = {
    "started_at", "finished_at", "train_seconds", "train_examples_per_second", "evaluation_seconds",
    "checkpoint_seconds", "total_seconds", "peak_memory_mib", "merged_speed_over_backbone",
    "checkpoint_bytes", "resumed_at_steps", "sha256", "files",
}  # fmt: skip


def kill() -> None:
    """As SIGKILL: no handler, no `finally`, no flushing."""
    os._exit(KILLED)


class Stop(BaseException):
    """Ends a run as a kill would, but leaves this process."""


def stop() -> None:
    raise Stop


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def broken_disk() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def read_only_disk() -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), "runs")


@contextlib.contextmanager
def small_files(size: int = 1000) -> Iterator[None]:
    """In this context a write beyond `size` bytes of a file fails in the kernel, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITES = ((tempfile, "mkdtemp"), (Path, "write_text"), (os, "fsync"), (os, "replace"))
INSTANTS = (*WRITES, (shutil, "rmtree"), (finetune.Run, "finish_step"), (finetune, "validate"))


@contextlib.contextmanager
def fault(act: Callable[[], None] | None, at: int, instants=INSTANTS) -> Iterator[list[str]]:
    """Within it, `act` happens at the instant numbered `at`, from 1; yields the names of the instants passed."""
    passed: list[str] = []
    originals = [(place, name, getattr(place, name)) for place, name in instants]

    def watched(name, original):
        def call(*args, **kwargs):
            passed.append(name)
            if act is not None and len(passed) == at:
                act()
            return original(*args, **kwargs)

        return call

    for place, name, original in originals:
        setattr(place, name, watched(name, original))
    try:
        yield passed
    finally:
        for place, name, original in originals:
            setattr(place, name, original)


def in_child(work: Callable[[], object]) -> int:
    """Do `work` in a forked process; its exit status, 1 for an exception."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def said_without_root(work: Callable[[], object]) -> str:
    """The message that a user without root's rights gets for the error that `work` ends with."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        said = "no error"
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            work()
        except BaseException as error:
            said = explain(error) or f"a traceback: {type(error).__name__}: {error}"
        finally:
            os.write(writes, said.encode())
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


def left_behind(folder: Path) -> dict:
    """All that must be the same after a run, however often it was killed: every file, and the record's results."""
    record = {k: v for k, v in read_record(folder).items() if k not in VOLATILE}
    # Git's word may change while tests run, as by a file that is saved; the hash of the code stays in.
    record["environment"] = {
        k: v for k, v in record["environment"].items() if k not in ("commit", "dirty")
    }
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("record.json", "config.yaml")
    }
    return {"record": record, "files": files}
