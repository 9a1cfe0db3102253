"""How costs grow: of a grid with its number of runs, and of a training step with the model and the batch.

Measured by `python scripts/benchmark.py 'measures=[scaling]'`: time is CPU time, on one thread, so that other processes disturb it less.
The exponent of a series is the slope of its logarithms: cost = constant * x ** exponent.
"""

from __future__ import annotations

import copy
import math
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot
from matplotlib.ticker import NullFormatter
from omegaconf import DictConfig, OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode

from analysis.study.scores import scores
from benchmarks.steps import Timed, member, take_step
from benchmarks.workload import backbone_of, cell, data_of
from condlora.grid.cells import companions, compose_cells, plan_cells, planned, state_of
from condlora.grid.listing import table
from condlora.grid.preflight import preflight
from condlora.runs.recipe import recipe, recipe_hash
from condlora.runs.record import read_record, run_folder, write_record
from condlora.training.compatibility import find_kinds
from condlora.training.device import choose_attention, make_accelerator
from condlora.training.run import run

TOGETHER = 16  # runs that a GPU trains jointly


def scaling(cfg: DictConfig) -> pd.DataFrame:
    """One row for each point of each series, with the exponent of the series and that of its last two points.

    seconds: of CPU time, the least of several. per_x: seconds divided by x. memory_mib: of the tensors of a step at its peak, without
    the frozen weights; none for a grid.
    """
    torch.set_num_threads(1)
    rows = [*grid_rows(cfg.scaling), *step_rows(cfg)]
    found = pd.DataFrame(rows)
    parts = [with_exponents(part) for _, part in found.groupby(["series", "name"], sort=False)]
    return pd.concat(parts)


def with_exponents(series: pd.DataFrame) -> pd.DataFrame:
    """One series with the exponents of its time and its memory."""
    found = {"per_x": series["seconds"] / series["x"]}
    for cost in ("seconds", "memory_mib"):
        found[f"{cost}_exponent"] = exponent(series["x"], series[cost])
    found["seconds_exponent_at_the_end"] = exponent(series["x"][-2:], series["seconds"][-2:])
    return series.assign(**found)


def exponent(x: pd.Series, cost: pd.Series) -> float:
    """The slope of log(cost) over log(x) by least squares; NaN for fewer than two points."""
    if len(x) < 2 or cost.isna().any():
        return math.nan
    return round(float(np.polyfit(np.log(x), np.log(cost), 1)[0]), 3)


def draw(found: pd.DataFrame, folder: Path) -> list[Path]:
    """Time over x of each series, on logarithmic axes, with its exponent; the paths of the figure."""
    path = folder / "scaling.png"
    names = list(found["series"].unique())
    figure, axes = pyplot.subplots(2, -(-len(names) // 2), figsize=(10, 6), layout="constrained")
    for axis, series in zip(axes.flat, names, strict=False):
        for name, part in found[found["series"] == series].groupby("name", sort=False):
            label = f"{name}: {part['seconds_exponent'].iloc[0]:.2f}"
            axis.loglog(part["x"], part["seconds"], marker="o", label=label)
            axis.set_xticks(part["x"], map(str, part["x"]))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set(xlabel=series, ylabel="CPU seconds")
        axis.legend(title="exponent", fontsize="x-small")
    for axis in axes.flat[len(names) :]:
        axis.remove()
    figure.savefig(path, dpi=150, metadata={"Software": None})
    pyplot.close(figure)
    return [path]


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    found = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


# A grid


def grid_rows(wanted: DictConfig) -> Iterator[dict]:
    """What a grid of finished runs of a tiny model costs beyond its training, by its number of runs."""
    with tempfile.TemporaryDirectory() as place:
        words = (*wanted.grid, f"runs={place}/runs")
        (first,) = compose_cells((*words, "seed=0"))
        run(copy.deepcopy(first))
        for size in wanted.runs:
            grid = (*words, f"seed={','.join(map(str, range(size)))}")
            copy_runs(first, grid)
            for name, work in of_grid(grid).items():
                yield {"series": "runs", "name": name, "x": size, "seconds": cpu_seconds(work, 1)}
        for size in wanted.runs:  # and of a grid whose runs end one after the other
            grid = (*words, f"runs={place}/{size}", f"seed={','.join(map(str, range(size)))}")
            yield {
                "series": "runs", "name": "companions", "x": size,
                "seconds": cpu_seconds(lambda grid=grid: launched(grid, run_folder(first)), 1),
            }  # fmt: skip


def of_grid(grid: tuple[str, ...]) -> dict[str, Callable[[], object]]:
    """What is done with a grid by `make list`, at the start of a launch, and for a table of scores."""

    def cells(verify: bool) -> list:
        return [state_of(each, verify=verify) for each in plan_cells(grid)]

    return {
        "checks before a launch": lambda: preflight(list(grid)),
        "configs of a launch": lambda: compose_cells.__wrapped__(grid),
        "list": lambda: table(cells(verify=False)),
        "checksums and scores": lambda: scores(cells(verify=True)),
    }


def copy_runs(first: DictConfig, grid: tuple[str, ...]) -> None:
    """Copies of a finished run under each seed of a grid, with records of their own."""
    source = run_folder(first)
    record = read_record(source)
    for cfg in compose_cells(grid):
        folder = run_folder(cfg)
        if not folder.exists():
            shutil.copytree(source, folder)
            own = {"seed": cfg.seed, "recipe": recipe(cfg), "recipe_hash": recipe_hash(recipe(cfg))}
            write_record(folder, record | own)


def launched(grid: tuple[str, ...], finished: Path) -> None:
    """Find companions as a launch does whose runs end in their order, in groups of 16; nothing is trained."""
    cells = compose_cells(grid)
    record = read_record(finished)
    for start in range(0, len(cells), TOGETHER):
        found = companions(cells[start], list(grid), TOGETHER - 1)
        for cfg in (cells[start], *found):
            own = planned(cfg)
            own.folder.mkdir(parents=True, exist_ok=True)
            for name in ("adapter", *record["files"]):
                place = own.folder / name
                if not place.exists():
                    place.parent.mkdir(exist_ok=True)
                    place.symlink_to(finished / name)
            write_record(own.folder, record | {"seed": own.seed, "recipe_hash": own.recipe_hash})


# A step


def step_rows(cfg: DictConfig) -> Iterator[dict]:
    """A step of each method at a small shape of which one dimension changes at a time."""
    shipped, wanted = cfg.training, cfg.scaling
    for method in shipped.methods:
        for series, values in wanted.steps.items():
            for value in values:
                point = OmegaConf.merge(wanted.base, {series: value})
                members = members_at(shipped, point, method)
                take_step(members)  # makes the optimizers' moments
                with Live() as live:
                    take_step(members)
                yield {
                    "series": series, "name": method, "x": value,
                    "seconds": cpu_seconds(lambda members=members: take_step(members), wanted.repeats),
                    "memory_mib": live.peak / 2**20,
                }  # fmt: skip


def members_at(shipped: DictConfig, point: DictConfig, method: str) -> list[Timed]:
    """Runs of one method, packed, on a BERT of this shape."""
    shape = {
        "model_type": "bert", "vocab_size": 1000, "hidden_size": point.width, "num_hidden_layers": point.layers,
        "num_attention_heads": point.width // 16, "intermediate_size": 4 * point.width, "max_position_embeddings": 512,
    }  # fmt: skip
    wanted = OmegaConf.create(OmegaConf.to_container(shipped))
    wanted.merge_with({"shapes": {"tiny": shape}, "device": "cpu", "precision": "no"})
    cfg = cell(wanted, "tiny", f"tokens_{point.tokens}", method, "packed")
    cfg.protocol.batch_size = point.batch
    cfg.adapter.config.r = point.rank
    accelerator, backbone = make_accelerator(cfg), backbone_of(cfg)
    choose_attention(cfg, backbone, accelerator)
    data = data_of(cfg, backbone, np.full(point.batch, point.tokens))
    members = [member(cfg, backbone, data, accelerator, seed) for seed in range(point.fleet)]
    find_kinds(members)
    return members


class Live(TorchDispatchMode):
    """Bytes of the tensors that are made in its context and still live; peak: the most at once."""

    def __init__(self):
        super().__init__()
        self.held = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, operator, types, arguments=(), settings=None):
        found = operator(*arguments, **(settings or {}))
        own = {t.untyped_storage()._cdata for t in torch.utils._pytree.tree_leaves((arguments, settings)) if isinstance(t, torch.Tensor)}  # fmt: skip
        for tensor in torch.utils._pytree.tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.seen | own:
                    self._count(storage)
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.seen.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.held -= size
