"""Fake worlds: grids of cells with records and matrices, so that every number can be set by hand."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import analysis.present.figures  # noqa: F401  it sets the style
from analysis.study.examples import Examples
from analysis.study.names import TASKS
from analysis.study.selection import Settings, Study
from condlora.grid.cells import Cell

LAYERS, WIDTH, RANK = 6, 32, 4


@dataclass
class FakeFactors:
    W: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    layers: list[int]


@pytest.fixture(scope="session", autouse=True)
def plain_fonts():
    """Figures are written without cutting fonts to the used glyphs, a fifth of the time; test_figures.py has it done."""
    plt.rcParams["pdf.fonttype"] = 3


def make_record(task: str, adapter: str, seed: int, score: float, **changes) -> dict:
    headline = {"cola": "matthews_correlation", "stsb": "pearson"}.get(task, "accuracy")
    test = {headline: score}
    if task == "mnli":
        test |= {"accuracy_matched": score - 0.01, "accuracy_mismatched": score + 0.01}
    per_layer = 2 * 2 * RANK * WIDTH
    adapter_parameters = per_layer * (LAYERS if adapter == "lora" else 1)
    head = 100 if headline == "accuracy" else 50
    record = {
        "status": "done",
        "recipe_hash": f"{task}-{adapter}-0123456789",
        "recipe": {
            "task": {"name": task, "headline": headline},
            "adapter": {"config": {"r": RANK, "lora_alpha": RANK, "form": "code"}},
            "protocol": {
                "name": "embedded",
                "learning_rate": 0.002,
                "adapter": {"lora_dropout": 0.0},
            },
        },
        "data": {
            "source": "synthetic",
            "counts": {"train": 2000, "validation": 200, "test": 1000},
            "split_sha256": {split: 64 * "0" for split in ("train", "validation", "test")},
            "truncated": {"train": 3 * (task == "rte"), "validation": 0, "test": 0},
            "official_counts": False,
            "majority_score": 0.5 if headline == "accuracy" else None,
        },
        "backbone": {
            "name": "minilm",
            "source": "package",
            "revision": None,
            "weights_sha256": "0123456789abcdef" * 4,
            "layers": LAYERS,
            "hidden_size": WIDTH,
        },
        "parameters": {
            "trainable": adapter_parameters + head,
            "adapter": adapter_parameters,
            "head": head,
            "backbone": 10_000,
        },
        "headline": headline,
        "validation": {headline: score},
        "test": test,
        "best": {"step": 150, "epoch": 2},
        "steps": 200,
        "stopped_early": False,
        "train_seconds": 10.0,
        "train_examples_per_second": 100.0,
        "evaluation_seconds": 1.0,
        "total_seconds": 12.0,
        "peak_memory_mib": 800.0,
        "checkpoint_seconds": 0.1,
        "checkpoint_bytes": 3 * 2**19,
        "resumed_at_steps": [],
        "environment": {
            "python": "3.12.1",
            "platform": "Linux",
            "processor": "a processor",
            "threads": 2,
            "precision": "no",
            "device": "cpu",
            "versions": {"torch": "2.13.0", "peft": "0.21.2"},
            "commit": "abcdef0123456789",
            "dirty": False,
        },
        "started_at": f"2025-01-0{seed + 1}T00:00:00+00:00",
        "finished_at": f"2025-01-0{seed + 1}T00:00:00+00:00",
    }
    return record | changes


def make_cell(task: str, adapter: str, seed: int, score: float = 0.8, **changes) -> Cell:
    folder = Path(f"runs/fake/{task}/{adapter}/seed-{seed}")
    record = make_record(task, adapter, seed, score, **changes)
    return Cell("fake", task, adapter, seed, folder, "done", None, record)


def unfinished(cell: Cell, state: str, reason: str | None = None) -> Cell:
    return replace(cell, state=state, reason=reason)


@pytest.fixture(scope="session")
def cell():
    """make_cell(task, adapter, seed, score, **changes to the record)."""
    return make_cell


@pytest.fixture(scope="session")
def spoil():
    """unfinished(cell, state, reason): the same cell in another state, its record kept."""
    return unfinished


def make_grid() -> list[Cell]:
    return [
        make_cell(task, adapter, seed, 0.8 + 0.01 * seed - 0.005 * (adapter == "condlora"))
        for task in TASKS
        for adapter in ("lora", "condlora")
        for seed in (0, 1)
    ]


@pytest.fixture
def grid() -> list[Cell]:
    """Eight tasks, two methods, two seeds; CondLoRA half a point below LoRA everywhere."""
    return make_grid()


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings(i=None, j=None, baseline_seed=0, baseline_draws=40)


@pytest.fixture(scope="session")
def weights() -> torch.Tensor:
    """Well-conditioned W0 (L, d, d)."""
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(LAYERS, WIDTH, WIDTH, generator=generator)
    return torch.eye(WIDTH) + 0.3 * noise / WIDTH**0.5


@pytest.fixture(scope="session")
def load(weights):
    """What load_factors would give: independent Gaussian A and B for each folder and module."""

    def load_factors(folder: Path) -> dict[str, FakeFactors]:
        numbers = sum(map(ord, str(folder)))
        found = {}
        for offset, module in enumerate(("query", "value")):
            generator = torch.Generator().manual_seed(2 * numbers + offset)
            A = torch.randn(LAYERS, RANK, WIDTH, generator=generator)
            B = torch.randn(LAYERS, WIDTH, RANK, generator=generator)
            found[module] = FakeFactors(weights, A, B, list(range(LAYERS)))
        return found

    return load_factors


def planted_examples(cells: list[Cell]) -> dict[str, Examples]:
    """Test predictions that give about the recorded scores; examples are hard or easy for all runs."""
    found = {}
    for cell in cells:
        if cell.state != "done":
            continue
        n, headline = cell.record["data"]["counts"]["test"], cell.record["headline"]
        score, rng = cell.record["test"][headline], np.random.default_rng(cell.seed)
        difficulty = np.random.default_rng(99).random(n) + 0.1 * rng.random(n)
        if headline == "pearson":
            references = np.random.default_rng(98).standard_normal(n)
            noise = math.sqrt(1 - score**2) * (difficulty - difficulty.mean()) / difficulty.std()
            predictions = score * references + noise
        else:
            right = score if headline == "accuracy" else (1 + score) / 2
            references = np.arange(n) % 2
            wrong = np.argsort(difficulty)[round(n * right) :]
            predictions = references.copy()
            predictions[wrong] = 1 - predictions[wrong]
        of_task = found.setdefault(cell.task, Examples(headline, references, {}))
        of_task.predictions[cell.adapter, cell.seed] = predictions
    return found


def at_plateau(cells: list[Cell]) -> dict[str, float]:
    """What reference_gains would give for runs in which LoRA no longer improves."""
    return dict.fromkeys((cell.task for cell in cells), 0.0)


@pytest.fixture(scope="session")
def examples():
    """planted_examples(cells): what load_examples would give for runs that wrote no files."""
    return planted_examples


@pytest.fixture(scope="module")  # no longer than that: it patches
def study(settings, load, tmp_path_factory) -> Iterator[Study]:
    """The grid as a study whose matrices `load` makes up, for value modules of four layers alone."""

    def value_modules(folder: Path) -> dict[str, FakeFactors]:
        whole = load(folder)["value"]
        return {"value": FakeFactors(whole.W[:4], whole.A[:4], whole.B[:4], list(range(4)))}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("condlora.models.adapters.load_factors", value_modules)
        patch.setattr("analysis.stats.claims.load_examples", planted_examples)
        patch.setattr("analysis.stats.claims.reference_gains", at_plateau)
        yield Study("fake", make_grid(), tmp_path_factory.mktemp("results") / "fake", settings)
