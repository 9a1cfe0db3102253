"""Who is doing a run, so that launchers that share a runs folder do no run twice and lose none.

    runs/<profile>/.claims/rte-lora-seed-0.json    the owner: host, process, and a token of this claim
    runs/<profile>/.claims/lock                    held for the moment in which claims are read and written

An owner touches its claim every HEARTBEAT seconds. It counts as dead, and its run as free, when its process is gone
from this machine, or when the claim has not been touched for SILENCE seconds, by the clock of the disk they share.
The kernel gives the lock back when its holder dies. It needs a file system with flock; NFS has it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from condlora.errors import RunFolderError, RunTaken
from condlora.files import write_atomically

HEARTBEAT = 5.0  # seconds
SILENCE = 60.0


def claim_file(folder: Path) -> Path:
    """Where the claim on a run folder is kept."""
    profile, (task, adapter, seed) = folder.parents[2], folder.parts[-3:]
    return profile / ".claims" / f"{task}-{adapter}-{seed}.json"


class Claim:
    """The claim on a run folder, held within a `with`; a heartbeat in a thread keeps it.

    Raises:
        RunTaken: on entering, another living process has it.
        RunFolderError: the file system has no locks.
    """

    def __init__(self, folder: Path):
        self.folder, self.file = folder, claim_file(folder)
        self.token = uuid.uuid4().hex
        self.over = threading.Event()

    def __enter__(self) -> Claim:
        with _lock(self.file.parent) as now:
            owner = _living_owner(self.file, now)
            if owner is not None:
                raise RunTaken(
                    f"{self.folder} is being run by {owner['host']}, process {owner['pid']}"
                )
            text = json.dumps(_this_process() | {"token": self.token})
            write_atomically(self.file, lambda path: path.write_text(text))
        self.thread = threading.Thread(target=self._beat, daemon=True)
        self.thread.start()
        return self

    def _beat(self) -> None:
        while not self.over.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # one that is missed is made up by the next
                if self.is_ours():
                    os.utime(self.file)

    def is_ours(self) -> bool:
        """False once another has taken it over, as this process was silent for too long."""
        return _read(self.file).get("token") == self.token

    def check(self) -> None:
        """Raise RunTaken if it is no longer ours: then this process must write nothing more."""
        if not self.is_ours():
            raise RunTaken(f"{self.folder} was taken over while this process stood still")

    def __exit__(self, *_) -> None:
        self.over.set()
        self.thread.join()
        with contextlib.suppress(OSError), _lock(self.file.parent):
            if self.is_ours():
                self.file.unlink()


def living_owner(folder: Path) -> str | None:
    """Host and process that are doing a run now, as text; None if nobody is."""
    file = claim_file(folder)
    if not file.exists():
        return None
    with _lock(file.parent) as now:
        owner = _living_owner(file, now)
    return None if owner is None else f"{owner['host']}, process {owner['pid']}"


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[float]:
    """Hold the folder's lock; yields the time by the disk's own clock, in seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise RunFolderError(
                f"{folder} is on a file system without locks ({error.strerror}): choose another with runs=..."
            ) from error
        os.utime(handle.fileno())
        yield os.fstat(handle.fileno()).st_mtime


def _read(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _living_owner(file: Path, now: float) -> dict | None:
    owner = _read(file)
    if not owner or now - file.stat().st_mtime > SILENCE:
        return None
    here = _this_process()
    if owner["place"] == here["place"] and _started(owner["pid"]) != owner["started"]:
        return None  # its process is gone from this machine, or its number is another's by now
    return owner


def _this_process() -> dict:
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "place": _place(),
        "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _place() -> str | None:
    """What process numbers refer to: this boot of this machine and its namespace; None where Linux does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = text.rpartition(")")[2].split()  # the name before it may hold spaces
    return None if state == "Z" else rest[18]
