"""The cost of the analysis on random matrices of RoBERTa-base's size.

Measured by `python scripts/benchmark.py 'measures=[analysis,controls]'`.
"""

import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from analysis.maths import power, subspace
from analysis.maths.decomposition import decompose
from analysis.maths.together import analyses, together
from analysis.study.names import REFERENCE
from analysis.study.selection import Settings
from analysis.study.stacks import Stack
from condlora.grid.cells import Cell
from condlora.paths import CONFIGS

KINDS = ("query", "value")


def analysis(cfg: DictConfig) -> dict[str, float]:
    """CPU seconds on one thread: conversion matrices, six heat maps, LoRA against CondLoRA."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    d, r = cfg.hidden_size, cfg.rank

    def draw(*shape):
        return torch.randn(cfg.layers, *shape, generator=generator)

    problems = [(draw(d, d), draw(r, d), draw(d, r), draw(r, d), draw(d, r)) for _ in KINDS]
    seconds = []
    for _ in range(cfg.repeats):
        started = time.process_time()
        for W, A, B, other_A, other_B in problems:
            converted = subspace.conversion_matrices(W, A, B)
            subspace.conversion_maps(*converted, A, r, r)
            subspace.adapter_phi(A, B, other_A, other_B, r, r)
        seconds.append(time.process_time() - started)
    return {"cpu_seconds": statistics.median(seconds)}


def controls(cfg: DictConfig) -> dict[str, float]:
    """Wall seconds and peak memory of all matrix analyses with controls and power: one task, five seeds, both methods.

    They run two at a time on one core each, as for the report; the seconds of each are wall time too.
    """
    import condlora.tuner.methods.condlora  # noqa: F401 - the making of CondLoRA's factors; an import is no analysis

    torch.set_num_threads(2)
    stacks, settings = random_stacks(cfg), Settings(None, None, 0, 100)
    seconds = {}

    def timed(name: str, function: Callable[[], Any]) -> None:
        started = time.perf_counter()
        function()
        seconds[f"{name}_seconds"] = time.perf_counter() - started

    jobs = {"power": lambda: planted_worlds(stacks)} | analyses(stacks, settings)
    started = time.perf_counter()
    together({name: partial(timed, name, job) for name, job in jobs.items()})
    wall = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return seconds | {"wall_seconds": wall, "memory_mib": peak}


def planted_worlds(stacks: list[Stack]) -> None:
    """What `analysis/conversion_power.py` computes, on the same weights."""
    lora = [stack for stack in stacks if stack.adapter == REFERENCE]
    weights = {stack.module: decompose(stack.W) for stack in lora}
    cfg = OmegaConf.load(CONFIGS / "conversion_power.yaml")
    power.measure(weights, cfg, {stack.module: stack.layers for stack in lora})


def random_stacks(cfg: DictConfig) -> list[Stack]:
    """Gaussian W, A and B that stand in for five finished runs of each method."""
    generator = torch.Generator().manual_seed(0)
    d, r, L, seeds = cfg.hidden_size, cfg.rank, cfg.layers, range(5)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    config = {"r": r, "lora_alpha": r, "form": "code"}
    record = {"recipe": {"adapter": {"config": config}}}
    stacks = []
    for kind in KINDS:
        W = draw(L, d, d)
        for adapter in ("lora", "condlora"):
            cells = [
                Cell("random", "rte", adapter, seed, Path(), "done", None, record) for seed in seeds
            ]
            A, B = draw(len(seeds), L, r, d), draw(len(seeds), L, d, r)
            stacks.append(Stack(adapter, kind, list(range(1, L + 1)), W, A, B, cells))
    return stacks
