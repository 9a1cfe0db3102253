"""Which folder of the analysis may import which, and what a command may import before it runs."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ANALYSIS = ROOT / "analysis"
FLOORS = ["study", "maths", "stats", "present"]  # each may import those before it
COMMANDS = {path.stem for path in ANALYSIS.glob("*.py")} - {"__init__"}
PURE = ["significance", "task_means", "formatting"]  # of stats: on arrays alone, for any folder
SLOW = ("torch", "transformers", "pandas", "scipy", "matplotlib")


def imported(tree):
    """Every module that is imported anywhere in a file, as "package.name" for `from package import name`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("floor", FLOORS)
def test_no_folder_imports_a_command_or_a_floor_above(floor):
    above = FLOORS[FLOORS.index(floor) + 1 :]
    for path in (ANALYSIS / floor).rglob("*.py"):
        for name in imported(parse(path)):
            parts = name.split(".")
            if parts[0] != "analysis":
                continue
            assert parts[1] not in COMMANDS, f"{path} imports the command {parts[1]}"
            is_pure = parts[1] == "stats" and parts[2] in PURE
            assert parts[1] not in above or is_pure, f"{path} imports {name}"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_is_short_and_loads_nothing_slow_before_it_runs(name):
    """`--help` and a wrong setting are answered before PyTorch is imported."""
    path = ANALYSIS / f"{name}.py"
    tree = parse(path)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 80
    for module in imported(
        ast.Module([n for n in tree.body if not isinstance(n, ast.FunctionDef)], [])
    ):
        assert not module.startswith(SLOW)
        assert module.split(".")[:2] in (
            ["analysis", "study"],
            *([["condlora", "commands"]]),
            ["omegaconf", "DictConfig"],
            ["pathlib", "Path"],
        )


def test_modules_are_of_one_purpose_and_so_of_limited_size():
    for path in ANALYSIS.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path
