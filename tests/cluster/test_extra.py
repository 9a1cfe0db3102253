"""The extra for Ray fits the pinned packages; pip resolves the extra and installs nothing."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement

from tests.tasks import ROOT

pytestmark = pytest.mark.cluster


def test_the_extra_for_ray_changes_no_pinned_package(tmp_path):
    report = tmp_path / "report.json"
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", str(report)]
    done = subprocess.run(
        [*pip, "-e", ".[ray]"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert "ResolutionImpossible" not in done.stderr, done.stderr
    if done.returncode:
        pytest.skip(f"pip reaches no index here: {done.stderr.strip().splitlines()[-1]}")
    items = json.loads(report.read_text())["install"]
    added = {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in items}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = [Requirement(line.partition("#")[0]) for line in lines if line and line[0] not in "#-"]
    changed = [
        r.name for r in pinned if added.get(r.name.lower(), version(r.name)) not in r.specifier
    ]
    assert pinned and not changed
