"""The oldest and newest libraries work; one that is missing or too old is refused at import; an untested one or pair is named."""

import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

from condlora import versions
from tests.tasks import ROOT
from tests.versions import CORE, ENDS, environment, installed, run_tests


def test_ranges_equal_those_of_the_package():
    with (ROOT / "pyproject.toml").open("rb") as file:
        stated = tomllib.load(file)["project"]["dependencies"]
    for name, (least, below) in versions.SUPPORTED.items():
        assert f"{name}>={least},<{below}" in stated


def test_pinned_versions_are_supported_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        versions.require_versions()


def test_importing_condlora_refuses_an_old_library_before_it_imports_torch(tmp_path):
    folder = tmp_path / "peft-0.18.1.dist-info"  # which Python finds before the installed one
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.18.1\n")
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""}
    command = [sys.executable, "-c", "import condlora"]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 1
    least, below = versions.SUPPORTED["peft"]
    assert ended.stderr.splitlines()[-1] == (
        f"ImportError: condlora needs peft {least} or newer, but 0.18.1 is installed: "
        f"pip install 'peft>={least},<{below}'"
    )


@pytest.fixture
def install(monkeypatch):
    """A function (**versions) that makes require_versions find these versions installed."""

    def pretend(**others):
        found = {name: least for name, (least, _) in versions.SUPPORTED.items()} | others
        monkeypatch.setattr(versions, "version", found.get)

    return pretend


@pytest.mark.parametrize("name", list(versions.SUPPORTED))
def test_each_old_library_is_refused(install, name):
    install(**{name: "0.0.1"})
    with pytest.raises(
        ImportError, match=rf"condlora needs {name} \S+ or newer, but 0.0.1 is inst"
    ):
        versions.require_versions()


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(versions.SUPPORTED, "no_such_library", ("1", "2"))
    with pytest.raises(
        ImportError, match=r"condlora needs no_such_library, which is not installed: pip install"
    ):
        versions.require_versions()


def test_a_newer_library_gives_a_warning(install):
    install(peft="0.99.0")
    with pytest.warns(
        UserWarning, match=r"condlora is not tested with peft 0\.99\.0; if it fails:"
    ):
        versions.require_versions()


def test_transformers_that_needs_a_newer_peft_is_named_with_it(install, monkeypatch):
    install(transformers="5.24.0", peft="0.21.2")
    monkeypatch.setattr(versions, "_peft_required_by_transformers", lambda: "0.22.0")
    with pytest.warns(UserWarning) as caught:
        versions.require_versions()
    least, below = versions.SUPPORTED["transformers"]
    assert [str(one.message) for one in caught] == [
        "transformers 5.24.0 needs peft 0.22.0 or newer for its own adapter methods (add_adapter and others), "
        f"but peft 0.21.2 is installed: pip install 'transformers>={least},<{below}'"
    ]


def test_the_peft_that_transformers_needs_is_read_from_its_own_table():
    from transformers.dependency_versions_table import deps

    assert deps["peft"] == f"peft>={versions._peft_required_by_transformers()}"


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_the_core_tests_pass_at_both_ends_of_the_ranges(end, tmp_path):
    """`make test-versions` runs all fast tests of the tuner."""
    peft = f"peft=={versions.SUPPORTED['peft'][0]}"
    reach = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--retries", "1"]
    if subprocess.run([*reach, "-d", tmp_path, peft], capture_output=True).returncode:
        pytest.skip(f"the package index cannot be reached: pip could not download {peft}")
    python = environment(tmp_path / "environment", end)
    if end == "newest" and installed(python) == installed(Path(sys.executable)):
        pytest.skip("the newest versions are those of this environment, in which these tests run")
    ended = run_tests(python, ["-p", "no:xdist", *CORE], capture_output=True, text=True)
    assert ended.returncode == 0, f"{installed(python)}\n{ended.stdout[-4000:]}"
