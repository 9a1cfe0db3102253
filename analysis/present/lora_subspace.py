"""Shared directions (Hu et al., section 7.2) as tables, figures and a section; computed in `analysis.maths.lora_subspace`."""

from pathlib import Path

import pandas as pd

from analysis.maths.lora_subspace import RANKS, SEEDS, TASKS, Comparison, LoraSubspace
from analysis.present import lora_subspace_figures
from analysis.present.typeset import Picture, Section, Table
from analysis.stats import formatting
from analysis.stats.significance import summarise
from analysis.study.names import MATRIX_LABEL, label

COMPARED = (RANKS, SEEDS, TASKS)


def table(result: LoraSubspace) -> Table:
    """phi at three places of each map, over runs and layers, and for random subspaces."""
    rows, data = [], []
    for c in [x for what in COMPARED for x in result.between(what)]:
        low, high = c.counts
        few = min(4, low)
        name = [_what(c), c.module, MATRIX_LABEL[c.matrix], label(c.method)]
        cells = []
        for i, j in ((1, 1), (few, few), (low, high)):
            means = c.at(i, j).mean(axis=1)
            random = c.random_at(i, j)
            cells += [formatting.mean_sd(summarise(means), 4), formatting.number(random, 4)]
            data += [
                [c.compared, c.module, c.matrix, c.method, i, j, *pair, layer, value, random]
                for pair, by_layer in zip(c.pairs, c.at(i, j).tolist(), strict=True)
                for layer, value in zip(c.layers, by_layer, strict=True)
            ]
        rows.append([*name, *cells])
    columns = ["compared", "module", "matrix", "method", "i", "j", "task", "seed_x", "seed_y"]
    return Table(
        name="lora_subspace",
        title="Shared directions: φ between two ranks, two seeds and two tasks",
        header=[
            "compared",
            "modules",
            "matrix",
            "method",
            "φ(1, 1)",
            "random",
            "φ(4, 4)",
            "random",
            "φ of all",
            "random",
        ],
        rows=rows,
        data=pd.DataFrame(data, columns=[*columns, "layer", "phi", "random"]),
        notes=[
            "Mean over layers of the same layer's matrices; mean ± sd over pairs of runs (n), which "
            "share runs where a task has more than two seeds. Right singular vectors of A, left ones "
            "of ΔW; φ(4, 4) is of all where the rank is lower. Random: nothing learned, mean over layers and "
            "draws; for LoRA Gaussian A and B, for CondLoRA what Gaussian maps make from the same W. "
            "The csv has every pair and layer.",
            *result.notes,
        ],
        text_columns=4,
    )


def _what(c: Comparison) -> str:
    low, high = c.counts
    return f"r = {low} and r = {high}" if c.compared == RANKS else f"two {c.compared}, r = {low}"


def table_by_layer(result: LoraSubspace) -> Table:
    """phi of the leading directions and of all of them, a column for each layer."""
    rows, data = [], []
    for c in [x for what in COMPARED for x in result.between(what)]:
        for i, j in ((1, 1), c.counts):
            found = {layer: summarise(c.at(i, j)[:, n]) for n, layer in enumerate(c.layers)}
            random = formatting.number(c.random_at(i, j), 3)
            name = [_what(c), c.module, MATRIX_LABEL[c.matrix], label(c.method), f"φ({i}, {j})"]
            cells = [
                formatting.mean_sd(found[layer], 3, with_n=False) if layer in found else ""
                for layer in result.layers
            ]
            rows.append([*name, str(len(c.pairs)), *cells, random])
            data += [
                [c.compared, c.module, c.matrix, c.method, i, j, layer, x.mean, x.sd, x.n]
                for layer, x in found.items()
            ]
    columns = ["compared", "module", "matrix", "method", "i", "j", "layer", "mean", "sd", "n"]
    header = ["compared", "modules", "matrix", "method", "φ(i, j)", "n"]
    return Table(
        name="lora_subspace_by_layer",
        title="Shared directions, layer by layer",
        header=[*header, *map(str, result.layers), "random"],
        rows=rows,
        data=pd.DataFrame(data, columns=columns),
        notes=["Columns are layers; mean ± sd over n pairs of runs."],
        text_columns=5,
    )


def draw(result: LoraSubspace, folder: Path) -> dict[str, Path]:
    """Heat maps over all (i, j), between ranks, seeds and tasks; name -> png."""
    names = {f"lora_subspace_{compared}": result.between(compared) for compared in COMPARED}
    return {
        name: lora_subspace_figures.draw(found, folder / name)
        for name, found in names.items()
        if found
    }


def section(result: LoraSubspace, folder: Path) -> Section:
    """Figures 3 and 4 of the LoRA paper for our runs; figures go to `folder`."""
    title = (
        "The LoRA paper's question: do two ranks, two seeds or two tasks learn the same directions?"
    )
    if not result.comparisons:
        return Section(title, result.notes, [], [])
    pictures = [
        Picture(path, alt=_alt(result, name), caption=_CAPTIONS[name])
        for name, path in draw(result, folder).items()
    ]
    text = [*_statements(result), *result.notes]
    return Section(title, text, [*pictures, table(result)], [table_by_layer(result)])


_RANDOM = (
    "To the right of each the same without learning: Gaussian A and B for LoRA, and for CondLoRA the "
    "A and B that Gaussian maps give from the same W₀."
)
_CAPTIONS = {
    "lora_subspace_ranks": "φ between the leading i right singular vectors of A at the lower rank "
    "and the leading j at the higher, mean over layers, tasks and seeds (Hu et al., figure 3). "
    + _RANDOM,
    "lora_subspace_tasks": "φ between the leading i singular vectors of a run on one task and the leading j of one on "
    "another, of the same seed number, mean over layers and pairs. The runs of two tasks have different starts. "
    + _RANDOM,
    "lora_subspace_seeds": "φ between the leading i singular vectors of one seed and the leading j of "
    "another, mean over layers, tasks and pairs of seeds (Hu et al., figure 4, which has A alone). "
    + _RANDOM,
}


def _alt(result: LoraSubspace, name: str) -> str:
    means = (
        f"{label(c.method)} {c.module} {MATRIX_LABEL[c.matrix]}: "
        f"{formatting.number(c.at(1, 1).mean(), 3)} and {formatting.number(c.at(*c.counts).mean(), 3)}"
        for c in result.between(name.removeprefix("lora_subspace_"))
    )
    return f"Heat maps of φ over all i and j. φ(1, 1) and φ of all: {'; '.join(means)}."


def _statements(result: LoraSubspace) -> list[str]:
    """What the leading direction does, in words: one sentence each for ranks, seeds and tasks."""
    lines = []
    for compared in COMPARED:
        found = result.between(compared)
        if not found:
            continue
        means = (
            f"{label(c.method)}'s {MATRIX_LABEL[c.matrix]}, {c.module}: "
            f"{formatting.number(c.at(1, 1).mean(), 3)} "
            f"(nothing learned: {formatting.number(c.random_at(1, 1), 3)})"
            for c in found
        )
        lines.append(f"φ(1, 1) of the leading direction, {_what(found[0])}. {'; '.join(means)}.")
    return lines
