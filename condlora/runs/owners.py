"""Whether the process that owns a claim is alive.

On this machine the kernel tells. Of a process on another machine only the heartbeat is seen: the claim's time of change,
in which clocks may differ by minutes. So it is watched: an owner is dead when its claim has not changed for SILENCE
seconds by the clock of the process that watches. Times of two clocks are compared at the first look alone, to guess
before there was time to watch.
"""

from __future__ import annotations

import enum
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from condlora.runs.shared_disk import SharedDisk

HEARTBEAT = 5.0  # seconds between two changes of a claim by its owner
SILENCE = 90.0  # seconds; NFS may hide a change for 60


class Life(enum.Enum):
    ALIVE = "alive"
    DEAD = "dead"
    DOUBTFUL = (
        "doubtful"  # the claim looks old, or from the future, and was not watched for long enough
    )


@dataclass
class _Seen:
    text: str
    changed: int
    since: float  # by this machine's clock
    has_changed: bool = False


@dataclass(frozen=True)
class Owner:
    """Who owns a claim. token: of this claim, empty while it is being written; name: host and process, for messages."""

    life: Life
    token: str
    name: str


class Watch:
    """What this process has seen of claims so far."""

    def __init__(self, disk: SharedDisk):
        self.disk = disk
        self.seen: dict[Path, _Seen] = {}

    def owner(self, file: Path) -> Owner | None:
        """The owner that a claim names, by all that was seen of it until now; None if there is no claim."""
        found = self.disk.read(file)
        if found is None:
            self.seen.pop(file, None)
            return None
        text, changed = found
        who = parsed(text)
        name = f"{who['host']}, process {who['pid']}" if who else "another process"
        return Owner(self._life(file, who, text, changed), who.get("token", ""), name)

    def _life(self, file: Path, who: dict, text: str, changed: int) -> Life:
        now = self.disk.monotonic()
        seen = self.seen.get(file)
        if seen is None or seen.text != text:
            seen = self.seen[file] = _Seen(text, changed, now)
        elif seen.changed != changed:
            seen.changed, seen.since, seen.has_changed = changed, now, True
        if who and is_gone(who):
            return Life.DEAD
        if now - seen.since > SILENCE:
            return Life.DEAD
        if seen.has_changed:
            return Life.ALIVE
        age = (self.disk.now(file.parent) - changed) / 1e9
        return Life.DOUBTFUL if abs(age) > SILENCE else Life.ALIVE

    def settled_owner(self, file: Path) -> Owner | None:
        """The same, after watching for as long as there is doubt: at most SILENCE seconds."""
        while (found := self.owner(file)) is not None and found.life is Life.DOUBTFUL:
            for other in self.disk.files(file.parent):  # begin to watch them all now
                if other.suffix == ".json":
                    self.owner(other)
            self.disk.sleep(1)
        return found


def parsed(text: str) -> dict:
    """What a claim says; empty where its owner has not written it yet."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and {"host", "pid", "token"} <= found.keys() else {}


def this_process(token: str) -> str:
    """What a claim of this process says."""
    return json.dumps(
        {
            "host": platform.node(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "place": _place(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "token": token,
        }
    )


def is_gone(who: dict) -> bool:
    """Whether a process was on this machine and is no more, or its number is another's by now."""
    if who.get("place") is None or who["place"] != _place():
        return False
    started = _started(who["pid"])
    if started is None and _is_hidden(who["pid"]):
        return False
    return started != who.get("started")


def _is_hidden(pid: int) -> bool:
    """Whether there is a process with this number that /proc does not show, as it may hide those of other users."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False  # one of ours is shown: what is not, has ended


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
