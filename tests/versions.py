"""Test the PEFT method with the oldest and the newest dependencies that pyproject.toml allows: `make test-versions`.

Each end is installed into an empty environment that falls back on this one for everything else. torch is therefore tested as
installed: another version takes hundreds of megabytes. The pinned versions are those of all other tests.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path

from tests.tasks import ROOT

ENDS = ("oldest", "newest")
NAMES = ("torch", "transformers", "peft", "safetensors", "huggingface_hub")
# What depends most on PEFT and transformers; seconds, where all fast tests of tests/tuner take minutes.
CORE = [
    f"tests/tuner/test_{name}.py"
    for name in ("peft_contract", "layer", "checkpoint", "merge", "adapters")
]


def main() -> int:
    """Run the fast tests of tests/tuner at both ends; the number of ends at which they failed."""
    failed = []
    for end in ENDS:
        with tempfile.TemporaryDirectory() as folder:
            python = environment(Path(folder), end)
            print(end, installed(python), flush=True)
            if end == "newest" and installed(python) == installed(Path(sys.executable)):
                print("the same as in this environment, which make test tests")
            elif run_tests(python, ["-n", "2", "tests/tuner"]).returncode:
                failed.append(end)
    print(*(f"failed with the {end} versions" for end in failed), sep="\n", file=sys.stderr)
    return len(failed)


def requirements(end: str) -> list[str]:
    """The stated dependencies but torch, at their lower bounds or as ranges."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        stated = tomllib.load(file)["project"]["dependencies"]
    others = [requirement for requirement in stated if not requirement.startswith("torch")]
    return [re.sub(r">=([\d.]+),<.*", r"==\1", r) for r in others] if end == "oldest" else others


def environment(folder: Path, end: str) -> Path:
    """The Python of a new environment with the versions of one end and what they need.

    Raises:
        RuntimeError: pip found no versions that fit together; with its message.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-compile"]
    command = [*install, "--upgrade", *requirements(end)]
    # Where it succeeds, pip still warns of conflicts with packages of this environment that the tests do not import.
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    return python


def installed(python: Path) -> str:
    """The versions that a Python finds, as in requirements.txt."""
    code = f"from importlib.metadata import version\nprint(*(f'{{n}}=={{version(n)}}' for n in {NAMES}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()  # fmt: skip


def run_tests(python: Path, arguments: list[str], **settings) -> subprocess.CompletedProcess:
    """Run pytest on the fast tests; settings as of subprocess.run."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "pytest", "-m", "not (slow or gpu)", *arguments]
    return subprocess.run(command, env=env, cwd=ROOT, **settings)


if __name__ == "__main__":
    sys.exit(main())
