"""A shared disk and the machines that see it, in simulated time: clocks differ, and changes are seen late."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from condlora.runs.shared_disk import SharedDisk


@dataclass(frozen=True)
class Version:
    """What a path held from a time on: no text means no file."""

    since: float
    text: str | None
    changed: int
    by: Machine | None = None


@dataclass
class Server:
    """The disk itself. Time passes while a machine sleeps; what was planned for that time happens then."""

    time: float = 1e6
    versions: dict[Path, list[Version]] = field(default_factory=dict)
    plans: list = field(default_factory=list)
    numbers: itertools.count = field(default_factory=itertools.count)

    def plan(self, at: float, event: Callable[[], None]) -> None:
        heapq.heappush(self.plans, (at, next(self.numbers), event))

    def pass_time(self, seconds: float) -> None:
        end = self.time + seconds
        while self.plans and self.plans[0][0] <= end:
            at, _, event = heapq.heappop(self.plans)
            self.time = max(self.time, at)
            event()
        self.time = max(self.time, end)

    def truth(self, path: Path) -> Version:
        return self.versions.get(path, [Version(0, None, 0)])[-1]


class Machine(SharedDisk):
    """skew: seconds that its clock, by which the disk stamps its changes, is ahead. delay: seconds for which it does not see
    the changes of others; the creation of a file that exists fails all the same, as the server decides it."""

    def __init__(self, server: Server, skew: float = 0, delay: float = 0):
        self.server, self.skew, self.delay = server, skew, delay

    def _write(self, path: Path, text: str | None) -> None:
        version = Version(self.server.time, text, self.now(path.parent), self)
        self.server.versions.setdefault(path, []).append(version)

    def _visible(self, path: Path) -> Version:
        return self._as_of(self.server.time - self.delay, path)

    def _as_of(self, until: float, path: Path) -> Version:
        seen = [v for v in self.server.versions.get(path, ()) if v.since <= until or v.by is self]
        return seen[-1] if seen else Version(0, None, 0)

    def create(self, path: Path, text: str) -> bool:
        if self.server.truth(path).text is not None:
            return False
        self._write(path, text)
        return True

    def read(self, path: Path) -> tuple[str, int] | None:
        seen = self._visible(path)
        return None if seen.text is None else (seen.text, seen.changed)

    def replace(self, path: Path, text: str) -> None:
        self._write(path, text)

    def touch(self, path: Path) -> None:
        self._write(path, self.server.truth(path).text)

    def remove(self, path: Path) -> None:
        self._write(path, None)

    def files(self, folder: Path) -> list[Path]:
        return [p for p in self.server.versions if p.parent == folder and self.read(p) is not None]

    def now(self, folder: Path) -> int:
        return int((self.server.time + self.skew) * 1e9)

    def monotonic(self) -> float:
        return self.server.time + 7 * self.skew  # of another beginning on each machine

    def sleep(self, seconds: float) -> None:
        self.server.pass_time(seconds)


class CachingMachine(Machine):
    """Sees no change of others for `delay` seconds and then all of them, as NFS answers from its cache for a time."""

    def _visible(self, path: Path) -> Version:
        return self._as_of(self.server.time - self.server.time % self.delay, path)
