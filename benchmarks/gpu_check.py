"""The check of `scripts/gpu_check.py`: each part in a process of its own with a time limit, then the tables.

A part that fails or is ended by its limit leaves the others as they are.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from condlora.errors import ConfigError, DeviceError, UserError
from condlora.paths import CONFIGS, ROOT
from condlora.runs.environment import has_cuda

if TYPE_CHECKING:
    import pandas as pd
    from omegaconf import DictConfig

TESTS = "tests"  # the part that runs tests/gpu
ON_CPU = "device=cpu"
# What the parts import, by the name in the package index where it is another.
NEEDED = {
    "accelerate": None, "annotated_types": "annotated-types", "antlr4": "antlr4-python3-runtime==4.9.3", "datasets": None, "dill": None,
    "evaluate": None, "hydra": "hydra-core", "multiprocess": None, "numpy": None, "omegaconf": None, "pandas": None, "peft": None,
    "pyarrow": None, "pydantic": None, "pydantic_core": "pydantic-core", "pytest": None, "scipy": None, "sklearn": "scikit-learn",
    "requests": None, "tokenizers": None, "torch": None, "tqdm": None, "transformers": None, "typing_inspection": "typing-inspection",
    "xxhash": None,
}  # fmt: skip


class CheckFailed(UserError):
    """A part of the check failed, or was ended by its time limit."""

    exit_status = 1


@dataclass(frozen=True)
class Outcome:
    """How a part ended. result: done, failed or stopped."""

    part: str
    result: str
    seconds: float
    detail: str = ""


def require_machine(overrides: list[str]) -> None:
    """Refuse a machine without a GPU, or without the packages that the check imports; neither is imported here.

    Raises:
        DeviceError, ConfigError
    """
    if ON_CPU not in overrides and not has_cuda():
        raise DeviceError(
            "no CUDA device is available: run this on a machine with a GPU, or try it with device=cpu size=toy."
        )
    missing = [name or module for module, name in NEEDED.items() if not importlib.util.find_spec(module)]  # fmt: skip
    if missing:
        raise ConfigError(
            f"These packages are not installed: {' '.join(missing)}. Run make install, or see 'On a GPU' in docs/speed.md."
        )


def check(cfg: DictConfig) -> None:
    """Run the parts, print and write the tables.

    Raises:
        CheckFailed: when all parts have ended and one of them failed or was stopped.
    """
    import pandas as pd  # seconds

    folder = Path(cfg.results) / "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        outcomes = list(run_parts(cfg, Path(place)))
        tables = [pd.read_csv(path) for path in sorted(Path(place).glob("*.csv"))]
    parts = pd.DataFrame(map(asdict, outcomes))
    rows = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    name = file_name(rows["device"].iloc[0] if len(rows) else cfg.device, cfg.size)
    parts.to_csv(folder / f"{name}_parts.csv", index=False)
    print(parts.to_string(index=False), flush=True)
    if len(rows):
        rows.to_csv(folder / f"{name}.csv", index=False)
        report(cfg, rows, folder / f"{name}_hours.csv")
    print(f"Tables: {folder / name}*.csv")
    bad = [outcome for outcome in outcomes if outcome.result != "done"]
    if bad:
        said = "; ".join(f"{o.part} {o.result} ({o.detail})" for o in bad)
        raise CheckFailed(f"{len(bad)} of {len(outcomes)} parts did not pass: {said}.")


def file_name(device: str, size: str) -> str:
    """A device's name as that of a file: "nvidia-h200", "nvidia-h200-toy"."""
    plain = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return plain if size == "full" else f"{plain}-{size}"


def run_parts(cfg: DictConfig, place: Path) -> Iterator[Outcome]:
    """Run each part that has a time limit; none runs longer than what is left of `cfg.seconds`."""
    ends = time.monotonic() + cfg.seconds
    settings = place / "settings.yaml"
    settings.write_text(part_settings(cfg))
    for part, limit in cfg.parts.items():
        if limit == 0:
            continue
        limit = min(limit, ends - time.monotonic())
        if limit < 1:
            yield Outcome(part, "stopped", 0.0, f"the {cfg.seconds} s of the check were over")
            continue
        print(f"{part}: at most {limit:.0f} s", flush=True)
        rows = place / f"{part}.csv"
        command = [sys.executable, "-m", "benchmarks.gpu_parts", part, str(settings), str(rows)]
        if part == TESTS:
            rows = place / "tests.xml"
            command = test_command(cfg.device, rows)
        outcome = run_part(part, command, limit)
        yield counted(outcome, rows) if part == TESTS else outcome


def part_settings(cfg: DictConfig) -> str:
    """The settings of the timed parts, as YAML."""
    from omegaconf import OmegaConf

    shipped = OmegaConf.load(CONFIGS / "benchmark.yaml").training
    wanted = OmegaConf.merge(shipped, cfg.training[cfg.size], {"device": cfg.device})
    return OmegaConf.to_yaml(wanted)


def test_command(device: str, report: Path) -> list[str]:
    """The tests of tests/gpu on a device. On a CPU their bodies are the same, at the same size."""
    marked = "gpu" if device == "cuda" else "not gpu"
    return [
        sys.executable, "-m", "pytest", "-p", "no:xdist", "-m", marked, "-rs", f"--junitxml={report}", "tests/gpu",
    ]  # fmt: skip


def run_part(part: str, command: list[str], limit: float) -> Outcome:
    """Run a command from the checkout, ended with all its processes after `limit` seconds."""
    started = time.monotonic()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True)
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = round(time.monotonic() - started, 1)
    if status is None:
        return Outcome(part, "stopped", seconds, f"after its {limit:.0f} s")
    return Outcome(part, "failed" if status else "done", seconds, f"exit status {status}")


def counted(outcome: Outcome, report: Path) -> Outcome:
    """The outcome of the tests with their numbers, from pytest's report; without a report as it is."""
    if not report.is_file():
        return outcome
    suite = ET.parse(report).getroot().find("testsuite")
    total, skipped, *bad = (int(suite.get(name)) for name in ("tests", "skipped", "failures", "errors"))  # fmt: skip
    detail = f"{total - skipped - sum(bad)} passed, {sum(bad)} failed, {skipped} skipped"
    result = "failed" if total == skipped else outcome.result  # a check that ran nothing
    return Outcome(outcome.part, result, outcome.seconds, detail)


def report(cfg: DictConfig, rows: pd.DataFrame, hours_file: Path) -> None:
    """Print the throughput, the matrix rate, the goals and the projected hours."""
    from benchmarks.rates import projected_hours

    shown = ["model", "task", "method", "variant", "examples_per_second", "of_matrix_rate", "peak_memory_mib", "first_step_seconds"]  # fmt: skip
    print(rows[shown].to_string(index=False))
    first = rows.iloc[0]
    print(f"{first['device']}: one large matrix product, {first['precision']}: {first['matrix_rate'] / 1e12:.3g} TFLOP/s")  # fmt: skip
    for column, goal in cfg.goals.items():
        best = rows.iloc[rows[column].argmax()]
        names = " ".join(best[["model", "task", "method", "variant"]])
        print(f"{column}: best {best[column]:g} ({names}), goal {goal:g}")
    print(
        "not measured: packed attention by flex or varlen kernels, which the project does not have"
    )
    hours = projected_hours(rows, [cfg.profile])
    if len(hours):
        print(f"hours of training of profile={cfg.profile}, all runs at the variant's rate, fleets being full")  # fmt: skip
        print(hours.to_string(index=False))
        hours.to_csv(hours_file, index=False)
