"""The file operations that claims are made of, on a disk that several machines share.

The server of the disk decides who creates a file first, and a file is opened to be read, as opening asks the server
where `stat` may answer from this machine's cache for a minute (NFS). No operation needs locks, which some shared disks
lack, and which others grant on each machine for itself.
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
from pathlib import Path

from condlora.files import write_atomically


class SharedDisk:
    """The disk, and this machine's own clock."""

    def create(self, path: Path, text: str) -> bool:
        """Create a file with this text; False if it exists. Of several machines that try, one succeeds."""
        try:
            handle = path.open("x", encoding="utf-8")
        except FileExistsError:
            return False
        with handle:
            handle.write(text)
        return True

    def read(self, path: Path) -> tuple[str, int] | None:
        """The text of a file and when it was last changed, in nanoseconds; None if there is no such file."""
        try:
            with path.open(encoding="utf-8", errors="replace") as handle:
                return handle.read(), os.fstat(handle.fileno()).st_mtime_ns
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                return None
            raise

    def replace(self, path: Path, text: str) -> None:
        write_atomically(path, lambda fresh: fresh.write_text(text, encoding="utf-8"))

    def touch(self, path: Path) -> None:
        os.utime(path)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def files(self, folder: Path) -> list[Path]:
        return list(folder.iterdir())

    def now(self, folder: Path) -> int:
        """Nanoseconds by the disk's clock, as a new file shows it; by this machine's where nothing may be written."""
        try:
            with tempfile.TemporaryFile(dir=folder) as handle:
                os.utime(handle.fileno())
                return os.fstat(handle.fileno()).st_mtime_ns
        except OSError:
            return time.time_ns()

    def monotonic(self) -> float:
        """Seconds by this machine's clock, which nobody sets."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
