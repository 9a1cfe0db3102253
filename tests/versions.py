"""Test the PEFT method with the oldest and the newest dependencies that pyproject.toml allows: `make test-versions`.

torch is tested as installed, because another version takes hundreds of megabytes. The other packages are installed into a
temporary folder that Python searches first, and the fast tests of condlora/tuner run with them.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib

from tests.tasks import ROOT


def main() -> int:
    with (ROOT / "pyproject.toml").open("rb") as file:
        stated = tomllib.load(file)["project"]["dependencies"]
    newest = [requirement for requirement in stated if not requirement.startswith("torch")]
    oldest = [re.sub(r">=([\d.]+),<.*", r"==\1", requirement) for requirement in newest]
    failed = [ends for ends in (oldest, newest) if not passes(ends)]
    for ends in failed:
        print("failed with", *ends, file=sys.stderr)
    return len(failed)


def passes(requirements: list[str]) -> bool:
    """Whether the fast tests of condlora/tuner pass with these packages."""
    with tempfile.TemporaryDirectory() as folder:
        print(*requirements, flush=True)
        python = [sys.executable, "-m"]
        install = [*python, "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*install, "--target", folder, *requirements], check=True)
        env = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"}
        tests = [*python, "pytest", "-n", "2", "-m", "not (slow or gpu)", "tests/tuner"]
        return subprocess.run(tests, env=env, cwd=ROOT).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
