"""Who is doing a run, so that launchers that share a runs folder do no run twice and lose none.

    runs/<profile>/.claims/rte-lora-seed-0.json                  the owner: host, process, and a token of this claim
    runs/<profile>/.claims/rte-lora-seed-0.json.<token>.ended    the claim with this token was given back or taken over

A claim is a file that only one process can create. Its owner touches it every HEARTBEAT seconds. A dead owner's claim
(`condlora.runs.owners`) is taken over by the process that creates the mark `ended` of its token, of which there can be
only one; so nobody takes over a claim that another took over a moment before. No file system locks are needed, and no
equal clocks.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from condlora.errors import RunTaken
from condlora.runs.owners import HEARTBEAT, Life, Owner, Watch, parsed, this_process
from condlora.runs.shared_disk import SharedDisk

DISK = SharedDisk()
WATCH = Watch(DISK)
POLL = 0.05  # seconds between two tries to have a claim alone


def claim_file(folder: Path) -> Path:
    """Where the claim on a run folder is kept."""
    profile, (task, adapter, seed) = folder.parents[2], folder.parts[-3:]
    return profile / ".claims" / f"{task}-{adapter}-{seed}.json"


class Claim:
    """The claim on a run folder, held within a `with`; a heartbeat in a thread keeps it.

    file: where the claim is kept, if `folder` is none of a run. watch: what was seen of claims, on which disk.

    Raises:
        RunTaken: on entering, another living process has it.
    """

    def __init__(self, folder: Path, *, file: Path | None = None, watch: Watch = WATCH):
        self.folder, self.file = folder, file or claim_file(folder)
        self.watch, self.disk = watch, watch.disk
        self.token = uuid.uuid4().hex
        self.over = threading.Event()

    def __enter__(self) -> Claim:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        text = this_process(self.token)
        if not self.disk.create(self.file, text):
            self._take_over(text)
        self.thread = threading.Thread(target=self._beat, daemon=True)
        self.thread.start()
        return self

    def _take_over(self, text: str) -> None:
        """Put this text in place of a dead owner's; raise RunTaken where the owner lives or another process was faster."""
        owner = self.watch.settled_owner(self.file)
        if owner is None:
            # Given back a moment ago, or so fresh that this machine does not see it yet.
            self.disk.sleep(POLL)
            if self.disk.create(self.file, text):
                return
            owner = Owner(Life.ALIVE, "", "another process")
        if owner.life is Life.DEAD and self._end(owner.token):
            if self._token() == owner.token:
                self.disk.replace(self.file, text)
                return
            # Another process took it over long ago, which this machine had not seen.
            self.disk.remove(_mark(self.file, owner.token))
        raise RunTaken(f"{self.folder} is being run by {owner.name}")

    def _end(self, token: str) -> bool:
        """Mark the claim with this token as ended; False if another process has done so or is about to."""
        mark = _mark(self.file, token)
        if self.disk.create(mark, this_process(self.token)):
            return True
        ending = self.watch.settled_owner(mark)
        was_killed = ending is not None and ending.life is Life.DEAD and self._token() == token
        if not was_killed:
            return False
        self.disk.remove(mark)
        return self.disk.create(mark, this_process(self.token))

    def _token(self) -> str | None:
        found = self.disk.read(self.file)
        return None if found is None else parsed(found[0]).get("token", "")

    def _beat(self) -> None:
        while not self.over.wait(HEARTBEAT):
            self.beat()

    def beat(self) -> None:
        """Show that this process is alive; what is missed is made up by the next."""
        with contextlib.suppress(OSError):
            if self.is_ours():
                self.disk.touch(self.file)

    def is_ours(self) -> bool:
        """False once another has taken it over, as this process was silent for too long."""
        try:
            return self._token() == self.token
        except OSError:
            return False

    def check(self) -> None:
        """Raise RunTaken if it is no longer ours: then this process must write nothing more."""
        if not self.is_ours():
            raise RunTaken(f"{self.folder} was taken over while this process stood still")

    def __exit__(self, *_) -> None:
        self.over.set()
        self.thread.join()
        with contextlib.suppress(OSError):
            mark = _mark(self.file, self.token)
            if self.is_ours() and self.disk.create(mark, this_process(self.token)):
                self.disk.remove(self.file)
                for other in self.disk.files(self.file.parent):
                    if other.name.startswith(f"{self.file.name}."):
                        self.disk.remove(other)


def _mark(file: Path, token: str) -> Path:
    """The file whose creation ends the claim with this token; a claim without one was never written whole."""
    return file.with_name(f"{file.name}.{token or 'unwritten'}.ended")


@contextlib.contextmanager
def alone(file: Path, *, watch: Watch = WATCH) -> Iterator[None]:
    """Wait until no other process is in this context with the same file, then stay alone in it."""
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(Claim(file, file=file, watch=watch))
            except RunTaken:
                watch.disk.sleep(POLL)
                continue
            yield
            return


def living_owner(folder: Path, *, file: Path | None = None, watch: Watch = WATCH) -> str | None:
    """Host and process that are doing a run now, as text; None if nobody is, as far as is known without waiting."""
    owner = watch.owner(file or claim_file(folder))
    return owner.name if owner is not None and owner.life is Life.ALIVE else None
