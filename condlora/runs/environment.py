"""Where and with what a run was made: captured once per process, stored with every record."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from condlora.paths import IS_CHECKOUT, ROOT

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "transformers", "peft", "datasets", "evaluate", "accelerate", "hydra-core", "numpy", "scipy", "scikit-learn")  # fmt: skip


@functools.lru_cache
def environment() -> dict:
    """Versions, processor, code and commit.

    `source_sha256` identifies the code that ran. `commit` and `dirty` (whether code or configs differ from the commit, but
    for searched rates) are information for a reader and decide nothing.
    """
    commit = _git("rev-parse", "HEAD")
    # results/ is written from the runs, so its changes do not change a run; of configs/rates/, which a search writes, all
    # that a run reads is its rate, and that stands in its recipe.
    changed = _git("status", "--porcelain", "--", ".", ":!results", ":!configs/rates")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "versions": {package: _version(package) for package in PACKAGES},
        "commit": commit,
        "dirty": None if commit is None else bool(changed),
        "source_sha256": source_sha256(Path(__file__).resolve().parents[1]),
    }


def source_sha256(package: Path) -> str:
    """SHA-256 of the statements in a package's Python files, without comments and layout.

    It says whether two processes ran the same code, also from a checkout with uncommitted changes or without git.
    Docstrings are statements. The configs are not in it: a run's recipe holds their resolved values. Hidden files, such as
    the lock of an editor, are no modules.
    """
    digest = hashlib.sha256()
    for path in sorted(package.rglob("[!.]*.py")):
        content = path.read_bytes()
        try:
            statements = ast.dump(ast.parse(content)).encode()
        except (SyntaxError, ValueError):  # a file that nothing imports
            statements = content
        digest.update(
            f"{path.relative_to(package)} {hashlib.sha256(statements).hexdigest()}\n".encode()
        )
    return digest.hexdigest()


def device_name(device: torch.device) -> str:
    """Name of the device as a reader would give it."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return f"{device.type} ({_processor()})"


def has_cuda() -> bool:
    """Whether torch finds a GPU; torch, which takes seconds to import, is asked only where a driver is present."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    drivers = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd", "/proc/driver/nvidia")
    if sys.platform == "linux" and not any(Path(driver).exists() for driver in drivers):
        return False
    import torch

    return torch.cuda.is_available()


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices itself; where it does not, float32 is faster."""
    if device.type == "cuda":
        import torch

        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool({"avx512_bf16", "amx_bf16"} & set(_cpuinfo("flags").split()))


def _git(*arguments: str) -> str | None:
    if not IS_CHECKOUT:  # an installed package may lie inside a repository of its user
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    """The first value of a key in /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


class PeakMemory:
    """Peak memory of one run in MiB: of the device on CUDA, else of this process where Linux tells it."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)
            self.known = True
        except OSError:
            self.known = False  # an earlier run's peak would be reported as this one's

    def mib(self) -> float | None:
        """The peak since construction, or None where it cannot be known."""
        if self.device.type == "cuda":
            import torch

            return torch.cuda.max_memory_allocated(self.device) / 2**20
        if not self.known:
            return None
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
        return None
