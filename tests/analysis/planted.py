"""Planted stacks of any rank: what `load_stacks` would give, made by hand."""

from dataclasses import replace

import torch

from analysis.study.stacks import Stack
from condlora.grid.cells import Cell
from tests.analysis.conftest import make_cell

LAYERS, WIDTH = 3, 24


def ranked_cell(task: str, adapter: str, seed: int, r: int, score: float = 0.8) -> Cell:
    """A finished run of rank r and alpha 8."""
    cell = make_cell(task, adapter, seed, score)
    config = {"r": r, "lora_alpha": 8, "form": "code"}
    adapter_parameters = 4 * r * WIDTH * (LAYERS if adapter.startswith("lora") else 1)
    record = cell.record | {
        "recipe": cell.record["recipe"] | {"adapter": {"config": config}},
        "parameters": cell.record["parameters"] | {"adapter": adapter_parameters},
    }
    return replace(cell, record=record)


def gaussian(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(seed: int = 7) -> torch.Tensor:
    """W0 (L, d, d), well-conditioned and not symmetric."""
    return torch.eye(WIDTH, dtype=torch.float64) + 0.3 * gaussian(
        LAYERS, WIDTH, WIDTH, seed=seed
    ) / (WIDTH**0.5)


def stack(adapter: str, r: int, cells: list[Cell], seed: int = 0, module: str = "value") -> Stack:
    """Independent Gaussian A and B of every run, for LoRA and CondLoRA alike."""
    runs = len(cells)
    return Stack(
        adapter,
        module,
        list(range(1, LAYERS + 1)),
        weights(),
        gaussian(runs, LAYERS, r, WIDTH, seed=100 + seed),
        gaussian(runs, LAYERS, WIDTH, r, seed=200 + seed),
        cells,
    )
