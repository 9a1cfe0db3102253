"""Run PEFT's own tests with rows for CondLoRA, and print the outcomes by suite and method.

    python -m tests.peft_suite                       all suites in SUITES
    python -m tests.peft_suite --record              the same, and write the numbers to results/reference/peft_suite
    python -m tests.peft_suite test_config.py -k x   some, with pytest's arguments

Needs the package index: it fetches PEFT's source distribution of the installed version, and diffusers, which PEFT's tests
import, into a temporary folder. Exit status 1 if a test of CondLoRA failed that is not in INHERENT.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from condlora.runs.environment import environment
from tests.peft_suite.models import fill_cache
from tests.tasks import ROOT

RECORD = ROOT / "results/reference/peft_suite/outcomes.csv"
SUITES = (
    "test_custom_models.py", "test_config.py", "test_decoder_models.py", "test_encoder_decoder_models.py",
    "test_feature_extraction_models.py", "test_seq_classifier.py", "test_token_classification_qa.py",
)  # fmt: skip
TABLES = ("TEST_CASES", "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES", "ALL_CONFIGS", "ALL_CONFIG_CLASSES", "TOKEN_CLS_CONFIGS", "QA_CONFIGS")  # fmt: skip
# Tests of CondLoRA that fail by its definition: pattern of the test's name, reason.
INHERENT = {
    r"_layer_indexing\[": "layers share maps, so fewer layers do not mean fewer parameters; PEFT skips VeRA and VB-LoRA here",
    r"Conv1D 1 (Cond|Do)": "W of one output: A = theta_A W is a multiple of W, and so is the update, which the ReLU behind it hides",
}  # fmt: skip
# The hub is never asked: every model that the tests name is in the cache.
OFFLINE = "\n\n@contextmanager\ndef hub_online_once(model_id):\n    yield\n"


def main(arguments: list[str]) -> int:
    chosen = [name for name in arguments if name.endswith(".py")]
    rest = [name for name in arguments if name not in (*chosen, "--record")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tests = fetch(folder)
        for suite in SUITES:
            add_rows(tests / suite)
        with (tests / "testing_utils.py").open("a") as file:
            file.write(OFFLINE)
        fill_cache(folder / "hub")
        outcomes = run(folder, [str(tests / suite) for suite in chosen or SUITES], rest)
    if outcomes.empty:
        print("No test was run.", file=sys.stderr)
        return 2
    counts, failed = judge(outcomes)
    print(counts.to_string())
    for row in failed.itertuples():
        print(f"\n{row.suite} {row.test}: {row.outcome}\n    {row.reason}")
    if "--record" in arguments:
        record(counts)
    return int((failed.outcome == "failed").any())


def fetch(folder: Path) -> Path:
    """PEFT's tests of the installed version, as a folder."""
    release = f"peft-{version('peft')}"
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    source = [*pip, "download", "--no-deps", "--no-binary", "peft", "--no-build-isolation", "-d", str(folder)]  # fmt: skip
    subprocess.run([*source, release.replace("-", "==")], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "more"), "diffusers"], check=True)  # fmt: skip
    with tarfile.open(folder / f"{release}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    tests = folder / release / "tests"
    (
        tests / "__init__.py"
    ).touch()  # its modules import each other; and not as `tests`, the name of this package
    return tests.rename(folder / "peft_tests")


def add_rows(suite: Path) -> None:
    """Write a line behind each table of a test module that replaces it by the one with CondLoRA's rows."""
    text = suite.read_text()
    lines = text.splitlines()
    for node in reversed(ast.parse(text).body):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) in TABLES:
            table = node.targets[0].id
            lines.insert(node.end_lineno, f"{table} = __import__('tests.peft_suite.rows', fromlist=['rows']).with_condlora({table})")  # fmt: skip
    suite.write_text("\n".join(lines) + "\n")


def run(folder: Path, suites: list[str], arguments: list[str]) -> pd.DataFrame:
    """The outcome of every test: suite, test, method, outcome, reason."""
    file = folder / "outcomes.jsonl"
    paths = [str(ROOT), str(folder / "more")]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "CONDLORA_OUTCOMES": str(file),
    }
    pytest = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "tests.peft_suite.plugin", "-c", os.devnull]  # fmt: skip
    subprocess.run([*pytest, f"--rootdir={folder}", *suites, *arguments], env=env, cwd=folder)
    return pd.read_json(file, lines=True) if file.exists() else pd.DataFrame()


def judge(outcomes: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Numbers of tests by suite and method, a column for each outcome; and the failures of CondLoRA."""
    is_ours = (outcomes.method == "CondLora") & (outcomes.outcome == "failed")
    is_inherent = outcomes.test.map(lambda name: any(re.search(p, name) for p in INHERENT))
    outcomes = outcomes.assign(outcome=outcomes.outcome.mask(is_ours & is_inherent, "inherent"))
    counts = outcomes.groupby(["suite", "method", "outcome"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=["passed", "failed", "inherent", "skipped"], fill_value=0)
    return counts, outcomes[is_ours]


def record(counts: pd.DataFrame) -> None:
    """Write the numbers with the versions and the commit that they belong to."""
    made_by = environment()
    names = {"commit": made_by["commit"], "dirty": made_by["dirty"], "python": made_by["python"]}
    versions = {name: made_by["versions"][name] for name in ("peft", "transformers", "torch")}
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    counts.assign(**names, **versions).to_csv(RECORD)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
