"""The worked examples of docs/contributing.md, in a copy of the repository: every file written, every command run."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.tasks import ROOT

PAGE = (ROOT / "docs/contributing.md").read_text(encoding="utf-8")
FILES = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    command
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for command in block.replace("\\\n", " ").splitlines()
    if command.startswith("python ")
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository with the examples' files in it, the method in the list of methods, and data for the task."""
    folder = tmp_path_factory.mktemp("copy")
    leave = shutil.ignore_patterns("__pycache__")
    for name in ("condlora", "analysis", "configs", "scripts", "results/paper"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave)
    for path, text in FILES:
        assert not (ROOT / path).exists()
        (folder / path).write_text(text, encoding="utf-8")
    methods = folder / "condlora/tuner/methods/__init__.py"
    text = methods.read_text(encoding="utf-8").replace(
        "METHODS: dict[str, type[Method]] = {",
        'from condlora.tuner.methods.gated_pair import GatedPair\n\nMETHODS: dict[str, type[Method]] = {\n    "gated_pair": GatedPair,',
    )
    methods.write_text(text, encoding="utf-8")
    rows = [f"Book {i},It was {('good', 'bad')[i % 2]}.,{('good', 'bad')[i % 2]}" for i in range(40)]  # fmt: skip
    for name in ("train.csv", "test.csv"):
        (folder / name).write_text("\n".join(["title,body,stars", *rows, ""]))
    return folder


def test_the_page_has_its_three_examples():
    assert len(FILES) == 5 and len(COMMANDS) == 3


@pytest.mark.slow
def test_every_command_of_the_examples_runs(copy):
    for command in COMMANDS:
        _, *words = shlex.split(command)
        if "train.py" in command:
            words += ["runtime.threads=1"]
        found = subprocess.run(
            [sys.executable, *words], cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True, text=True, timeout=300
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
    records = {p.parts[-4:-1] for p in (copy / "runs").rglob("record.json")}
    assert {("rte", "gated_pair", "seed-0"), ("reviews", "condlora", "seed-0")} <= records
    table = (copy / "results/adhoc/tables/durations.md").read_text(encoding="utf-8")
    assert "| rte | Gated pair |" in table and "| reviews | CondLoRA |" in table
