"""Figure 1: how alike the conversion matrices W0->A and W0->B of a LoRA's layers are.

Takes the matrices of finished LoRA runs, gives heat maps of phi over pairs of layers and a table
of their means, beside two seeded baselines of the same shapes: Gaussian matrices in the place of
the conversion matrices (the paper's), and conversion matrices made of Gaussian A and B (ours).
The second one asks what W0^-1 does by itself; the paper's baseline does not pass through it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor

from analysis.maths import subspace
from analysis.present import typeset
from analysis.present.figures import Panel, heatmap_grid, round_up, save
from analysis.stats.significance import Summary, summarise
from analysis.study.selection import (
    MATRIX_LABEL,
    REFERENCE,
    TASKS,
    Settings,
    Stack,
    load_stacks,
    open_study,
    published,
)
from condlora.commands.cli import command

TRAINED, GAUSSIAN, CONTROL = "trained", "gaussian", "gaussian_through_inverse_W0"
SOURCE_LABEL = {
    TRAINED: "trained LoRA",
    GAUSSIAN: "Gaussian matrices",
    CONTROL: "Gaussian A, B, W₀⁻¹",
}


@dataclass(frozen=True)
class ConversionSimilarity:
    """What Figure 1 rests on.

    maps: (module, matrix, source, task) -> phi (runs or draws, L, L); the task of a baseline is "".
    values: one row per run or draw with the means of its map off the diagonal.
    """

    maps: dict[tuple[str, str, str, str], np.ndarray]
    values: pd.DataFrame
    layers: list[int]
    notes: list[str]

    def summary(self, column: str, module: str, matrix: str, source: str) -> Summary:
        """`column` of `values` over runs or draws; for trained runs over all tasks and seeds."""
        v = self.values
        chosen = (v.module == module) & (v.matrix == matrix) & (v.source == source)
        return summarise(v.loc[chosen, column].to_numpy())

    @property
    def modules(self) -> list[str]:
        return sorted(set(self.values.module)) if len(self.values) else []


def figure1(stacks: list[Stack], settings: Settings) -> ConversionSimilarity:
    """phi between the conversion matrices of all layer pairs, for every LoRA run and baseline."""
    maps: dict[tuple[str, str, str, str], np.ndarray] = {}
    rows, notes, layers = [], [], []
    for stack in (stack for stack in stacks if stack.adapter == REFERENCE):
        try:
            found = _stack_maps(stack, settings)
        except subspace.NotInvertible as error:
            notes.append(f"No conversion matrices for {stack.module} modules: {error}.")
            continue
        layers = stack.layers
        if stack.W.shape[-2] != stack.W.shape[-1]:
            notes.append(_rectangular(stack))
        for (matrix, source), phi in found.items():
            names = [(c.task, c.seed) for c in stack.cells]
            if source != TRAINED:
                names = [("", draw) for draw in range(len(phi))]
            for name, means in zip(names, subspace.means_of_pairs(phi).tolist(), strict=True):
                rows.append([stack.module, matrix, source, *name, *means])
            for task in dict.fromkeys(task for task, _ in names):
                of_task = [n for n, (name, _) in enumerate(names) if name == task]
                maps[stack.module, matrix, source, task] = phi[of_task].numpy()
    columns = ["module", "matrix", "source", "task", "seed_or_draw"]
    values = pd.DataFrame(rows, columns=[*columns, "off_diagonal", "deep", "shallow"])
    values["deep_minus_shallow"] = values.deep - values.shallow
    return ConversionSimilarity(maps, values, layers, notes)


def _stack_maps(stack: Stack, settings: Settings) -> dict[tuple[str, str], Tensor]:
    runs, L, r, d_in = stack.A.shape
    d_out = stack.B.shape[2]
    i, j = settings.counts(r)
    generator = settings.generator()
    gaussian_A = subspace.gaussian((settings.baseline_draws, L, r, d_in), generator)
    gaussian_B = subspace.gaussian((settings.baseline_draws, L, d_out, r), generator)
    # Trained and Gaussian factors pass through one factorisation of W0, and the paper's baseline
    # is the same Gaussian matrices before they do.
    A = torch.cat([stack.A.double(), gaussian_A])
    B = torch.cat([stack.B.double(), gaussian_B])
    conversion_A, conversion_B = subspace.conversion_matrices(stack.W, A, B, stack.layers)
    through = subspace.conversion_maps(conversion_A, conversion_B, A, i, j)
    # Conversion matrices of a rectangular W0 have the sides of the other factor.
    replaced = (gaussian_A.mT, gaussian_B) if d_in == d_out else (gaussian_B, gaussian_A.mT)
    plain = subspace.conversion_maps(*replaced, gaussian_A, i, j)
    maps = {}
    for matrix in through:
        maps[matrix, TRAINED] = through[matrix][:runs]
        maps[matrix, GAUSSIAN] = plain[matrix]
        maps[matrix, CONTROL] = through[matrix][runs:]
    return maps


def _rectangular(stack: Stack) -> str:
    d_out, d_in = stack.W.shape[-2:]
    partly = "B" if d_out > d_in else "A"
    return (
        f"W₀ of {stack.module} modules is {d_out} x {d_in} and has no inverse: their conversion "
        "matrices are least-squares solutions of smallest norm, of W₀X = B and, as the sides of "
        "equation 3 do not fit, of W₀′X = A′. The solution for "
        f"{partly} reproduces only a part of {partly}, the one that W₀ can reach. Compare these "
        "modules with their own baselines and with no square module."
    )


def table(result: ConversionSimilarity) -> typeset.Table:
    """The means under the panels, over all tasks and seeds, beside both baselines."""
    rows = []
    for module, matrix, source in _kinds(result):
        cells = [
            typeset.spread(result.summary(column, module, matrix, source), 4)
            for column in ("off_diagonal", "deep", "shallow")
        ]
        rows.append([module, MATRIX_LABEL[matrix], SOURCE_LABEL[source], *cells])
    return typeset.Table(
        name="figure1_means",
        title="Figure 1 in numbers: mean φ between conversion matrices of two different layers",
        header=["modules", "matrix", "source", "all pairs", "deep half", "shallow half"],
        rows=rows,
        data=result.values,
        notes=[
            "Mean ± sd (n): over runs of all tasks and seeds for trained matrices, over draws for "
            "the Gaussian ones. A half is half of the layers; pairs lie within it. Gaussian "
            "matrices: the paper's baseline, which does not pass through W₀⁻¹. Gaussian A, B, W₀⁻¹: "
            "the control, which does, with nothing learned. The paper does not print the values of its figure.",
            *result.notes,
        ],
        text_columns=3,
    )


def table_by_task(result: ConversionSimilarity) -> typeset.Table:
    """The trained matrices' means over all pairs of layers, a column for each task."""
    trained = result.values[result.values.source == TRAINED]
    tasks = list(trained.task.unique())
    rows = []
    for (module, matrix), group in trained.groupby(["module", "matrix"], sort=False):
        found = [summarise(group.off_diagonal[group.task == task]) for task in tasks]
        rows.append([module, MATRIX_LABEL[matrix], *(typeset.spread(x, 4) for x in found)])
    return typeset.Table(
        name="figure1_by_task",
        title="Figure 1 by task: mean φ between conversion matrices of trained LoRAs",
        header=["modules", "matrix", *(TASKS.get(task, task) for task in tasks)],
        rows=rows,
        data=trained,
        notes=["Over all pairs of two different layers; mean ± sd over seeds (n)."],
        text_columns=2,
    )


def _kinds(result: ConversionSimilarity) -> list[tuple[str, str, str]]:
    v = result.values[["module", "matrix", "source"]].drop_duplicates()
    return list(v.itertuples(index=False, name=None))


@dataclass(frozen=True)
class Column:
    """One column of panels: whose maps, and what stands above them."""

    source: str
    task: str
    title: str


def paper_panel(result: ConversionSimilarity) -> tuple[str, str] | None:
    """(task, modules) of the paper's figure, or the nearest that was run: its modules, then the first there are."""
    paper = published("figure1")
    runs = result.values[result.values.source == TRAINED]
    available = dict.fromkeys(zip(runs.task, runs.module, strict=True))

    def distance(panel: tuple[str, str]) -> tuple[bool, bool]:
        return panel[1] != paper["module"], panel[0] != paper["task"]

    return min(available, key=distance, default=None)


def draw(result: ConversionSimilarity, folder: Path) -> dict[str, Path]:
    """Draws the paper's figure and one overview of all tasks per module kind; name -> png."""
    panel = paper_panel(result)
    if panel is None:
        return {}
    baselines = [
        Column(GAUSSIAN, "", "Gaussian\n(the paper's baseline)"),
        Column(CONTROL, "", "Gaussian\nA and B through W₀⁻¹"),
    ]
    task, module = panel
    trained = Column(TRAINED, task, f"trained\n{TASKS.get(task, task)}, {module}")
    figures = {"figure1": (module, [trained, *baselines])}
    for module in result.modules:
        runs = result.values[(result.values.source == TRAINED) & (result.values.module == module)]
        columns = [Column(TRAINED, t, f"trained\n{TASKS.get(t, t)}") for t in runs.task.unique()]
        figures[f"figure1_{module}"] = (module, [*columns, *baselines])
    return {
        name: save(_panels(result, of, columns), folder / name, _drawn(result, of, columns))[0]
        for name, (of, columns) in figures.items()
    }


def _panels(result: ConversionSimilarity, module: str, columns: list[Column]) -> Figure:
    runs = _runs_drawn(result, module, columns)
    off_diagonal = ~np.eye(len(result.layers), dtype=bool)
    rows, largest = [], 0.0
    for matrix in ("A", "B"):
        rows.append([])
        for column in columns:
            found = result.maps[module, matrix, column.source, column.task]
            shown = found[:runs].mean(axis=0)
            means = subspace.means_of_pairs(torch.from_numpy(found))[:, 0]
            below = f"mean {typeset.spread(summarise(means.numpy()), 4)}"
            rows[-1].append(Panel(shown, f"W₀→{matrix}, {column.title}", below))
            largest = np.fmax(largest, np.nanmax(shown[off_diagonal]))
    return heatmap_grid(rows, limit=round_up(largest), layers=result.layers)


def _runs_drawn(result: ConversionSimilarity, module: str, columns: list[Column]) -> int:
    """How many maps a panel averages at most: as many draws of a baseline as there are seeds.

    Panels averaged over all draws would look smooth beside a few seeds for that reason alone.
    """
    return max(
        len(result.maps[module, "A", c.source, c.task]) for c in columns if c.source == TRAINED
    )


def _drawn(result: ConversionSimilarity, module: str, columns: list[Column]) -> pd.DataFrame:
    """What the panels show (`phi`), and mean, sd and n over all runs or draws."""
    x, y = np.meshgrid(result.layers, result.layers, indexing="ij")
    runs = _runs_drawn(result, module, columns)
    tables = []
    for matrix in ("A", "B"):
        for column in columns:
            maps = result.maps[module, matrix, column.source, column.task]
            sd = maps.std(axis=0, ddof=1) if len(maps) > 1 else np.full(x.shape, np.nan)
            names = {"module": module, "matrix": matrix, "source": column.source}
            numbers = {
                "layer_x": x,
                "layer_y": y,
                "phi": maps[:runs].mean(axis=0),
                "phi_mean": maps.mean(axis=0),
                "phi_sd": sd,
            }
            flat = {name: values.ravel() for name, values in numbers.items()}
            tables.append(pd.DataFrame(names | {"task": column.task} | flat | {"n": len(maps)}))
    return pd.concat(tables)


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    result = figure1(load_stacks(study.done), study.settings)
    for table_ in (table(result), table_by_task(result)):
        typeset.write(table_, study.folder / "tables")
    pictures = draw(result, study.folder / "figures")
    print(*(f"Figure 1: {path}" for path in pictures.values()), sep="\n")
    print(f"Its means: {study.folder / 'tables' / 'figure1_means.md'}")


if __name__ == "__main__":
    main()
