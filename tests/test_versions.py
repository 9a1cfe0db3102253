"""A library that is too old is refused in a sentence, before anything of it is imported."""

import subprocess
import sys
import tomllib

import pytest

from condlora import versions
from tests.tasks import ROOT


def test_the_ranges_are_those_of_the_package():
    with (ROOT / "pyproject.toml").open("rb") as file:
        stated = tomllib.load(file)["project"]["dependencies"]
    for name, (least, below) in versions.SUPPORTED.items():
        assert f"{name}>={least},<{below}" in stated


def installed(tmp_path, name, version):
    """Make Python find this version of a package first, as its metadata tell."""
    folder = tmp_path / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""}
    words = [sys.executable, "-c", "import condlora"]
    return subprocess.run(words, env=env, capture_output=True, text=True, cwd=tmp_path)


@pytest.mark.parametrize(("name", "version"), [("peft", "0.18.1"), ("transformers", "4.57.0")])
def test_an_old_library_is_refused(tmp_path, name, version):
    done = installed(tmp_path, name, version)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    least, below = versions.SUPPORTED[name]
    assert last == (
        f"ImportError: condlora needs {name} {least} or newer, and {version} is installed: "
        f"pip install '{name}>={least},<{below}'"
    )


def test_a_missing_library_is_said(monkeypatch):
    monkeypatch.setitem(versions.SUPPORTED, "no_such_library", ("1", "2"))
    with pytest.raises(
        ImportError, match=r"condlora needs no_such_library, which is not installed: pip install"
    ):
        versions.require_versions()


def test_a_newer_library_is_tried_with_a_warning(monkeypatch):
    monkeypatch.setitem(versions.SUPPORTED, "peft", ("0.1", "0.2"))
    with pytest.warns(UserWarning, match="condlora is not tested with peft 0"):
        versions.require_versions()
