"""The folders of condlora are floors: a module imports from its own floor's folder or from floors below. Read from the source."""

import ast

import pytest

from tests.tasks import ROOT

# From the bottom; what stands on one floor does not import its neighbours, but for the grid's, which the search uses.
FLOORS = (
    {"errors", "versions", "files", "paths", "labels", "settings"},
    {"runs", "tuner"},
    {"glue"},
    {"models"},
    {"training"},
    {"grid"},
    {"cluster", "search"},
    {"commands"},
)
FOR_THE_ANALYSIS = {
    "condlora.commands.cli",  # the frame of every command
    "condlora.errors", "condlora.files", "condlora.paths",
    "condlora.grid.cells", "condlora.grid.listing",
    "condlora.models.adapters", "condlora.models.backbones",
    "condlora.runs.record", "condlora.runs.recipe",
    "condlora.tuner",
}  # fmt: skip
HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate", "pandas", "numpy"}


def imported(path, top_only=False):
    """The absolute names of the modules that a file imports, also within functions unless `top_only`."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            if node.module == "condlora":
                yield from (f"condlora.{alias.name}" for alias in node.names)
            else:
                yield node.module


def room(name):
    """The folder or module directly in condlora that a dotted name is in; None for the package's own names."""
    parts = name.split(".")
    known = set().union(*FLOORS)
    return parts[1] if parts[0] == "condlora" and len(parts) > 1 and parts[1] in known else None


def floor(name):
    return next(number for number, names in enumerate(FLOORS) if name in names)


def test_every_folder_has_a_floor():
    found = {path.stem for path in (ROOT / "condlora").iterdir() if path.suffix in ("", ".py")}
    on_no_floor = {"__init__", "__pycache__", "registration", "configs", "py"}
    assert found - on_no_floor <= set().union(*FLOORS)


def test_imports_of_condlora_go_down():
    upward = set()
    for path in sorted((ROOT / "condlora").rglob("*.py")):
        place = path.relative_to(ROOT / "condlora")
        own = place.parts[0].removesuffix(".py")
        if own in ("__init__", "registration"):
            continue
        for name in imported(path):
            assert name.split(".")[0] not in ("analysis", "benchmarks", "matplotlib"), place
            other = room(name)
            if other is None or other == own:
                continue
            if floor(other) > floor(own) or {own, other} == {"runs", "tuner"}:
                upward.add((str(place), other))
    assert not upward


@pytest.mark.parametrize("folder", ["grid", "runs", "commands"])
def test_what_answers_at_once_imports_nothing_heavy_at_its_top(folder):
    for path in (ROOT / "condlora" / folder).glob("*.py"):
        names = {name.split(".")[0] for name in imported(path, top_only=True)}
        assert not names & HEAVY, path


def test_the_analysis_takes_from_condlora_what_reads_runs():
    for path in (ROOT / "analysis").rglob("*.py"):
        for name in imported(path):
            if name.split(".")[0] == "condlora":
                assert name.startswith(tuple(FOR_THE_ANALYSIS)), (path, name)
