"""The spectrum of W0 and its smallest directions as tables and a sentence; see `analysis.maths.inverse_spectrum`."""

import numpy as np
import pandas as pd

from analysis.maths.conversion_similarity import CONTROL, TRAINED
from analysis.maths.inverse_spectrum import COUNTS, Spectra
from analysis.present import typeset
from analysis.stats import formatting
from analysis.stats.significance import summarise
from analysis.study.names import MATRIX_LABEL

LABEL = {TRAINED: "trained", CONTROL: "Gaussian"}


def statement(result: Spectra) -> str:
    """What W0's smallest directions hold and what their removal leaves, in a sentence; "" if nothing."""
    a = result.along
    if not len(a):
        return ""
    last = a.k.max()
    means = a.groupby(["source", "module", "matrix", "k"]).mean(numeric_only=True)

    def value(source: str, column: str, k: int) -> str:
        values = means.xs((source, k), level=("source", "k"))[column].dropna()
        low, high = (formatting.number(end, 3) for end in (values.min(), values.max()))
        return low if low == high else f"{low} to {high}"

    return (
        f"The {last} smallest singular directions of W₀ hold {value(TRAINED, 'energy', last)} of the "
        f"squared norm of trained conversion matrices, and {value(CONTROL, 'energy', last)} with Gaussian A and "
        f"B. Taking these directions out leaves a mean φ of {value(TRAINED, 'off_diagonal', last)} (trained) "
        f"and {value(CONTROL, 'off_diagonal', last)} (Gaussian A and B), where random subspaces have "
        f"{value(TRAINED, 'random', 0)}."
    )


def table_of_spectra(result: Spectra) -> typeset.Table:
    """Largest, median and smallest singular values and the condition number of every W0."""
    rows, data = [], []
    for (module, layer), group in result.sigma.groupby(["module", "layer"], sort=False):
        values = group.sigma.to_numpy()  # smallest first
        eighth = values[min(7, len(values) - 1)]
        numbers = [values[-1], np.median(values), eighth, values[0], values[-1] / values[0]]
        digits = (2, 3, 4, 5, 0)
        text = [formatting.number(x, n) for x, n in zip(numbers, digits, strict=True)]
        rows.append([module, str(layer), *text])
        data.append([module, layer, *numbers])
    names = ["largest", "median", "eighth_smallest", "smallest", "condition_number"]
    return typeset.Table(
        name="figure1_spectra",
        title="Singular values of W₀",
        header=["modules", "layer", *(name.replace("_", " ") for name in names)],
        rows=rows,
        data=pd.DataFrame(data, columns=["module", "layer", *names]),
        notes=["Condition number: the largest over the smallest."],
    )


def table_of_directions(result: Spectra) -> typeset.Table:
    """Similarity of W0's smallest directions between layers, and their share of conversion matrices."""
    rows = []
    for (module, matrix), group in result.directions.groupby(["module", "matrix"], sort=False):
        name = [module, MATRIX_LABEL[matrix]]
        for column, name_of_row in (
            ("off_diagonal", "φ between layers"),
            ("random", "random directions"),
        ):
            values = dict(zip(group.k, group[column], strict=True))
            cells = [formatting.number(values.get(k, np.nan), 4) for k in COUNTS]
            rows.append([*name, f"the directions: {name_of_row}", formatting.UNDEFINED, *cells])
        rows += [[*name, *row] for row in _rows_along(result, module, matrix)]
    return typeset.Table(
        name="figure1_smallest_directions",
        title="W₀'s smallest singular directions, and conversion matrices with and without them",
        header=["modules", "matrix", "quantity", "k = 0", *map(str, COUNTS)],
        rows=rows,
        data=result.along.merge(
            result.directions.drop(columns=["deep", "shallow"]),
            on=["module", "matrix", "k"],
            how="left",
            suffixes=("", "_of_directions"),
        ),
        notes=[
            "Columns: the number k of smallest singular directions of W₀. Energy: their share of the "
            "squared norm of a conversion matrix, mean over layers. Space: φ between the matrix's "
            "columns' space and them. Taken out: mean φ over pairs of layers once they are projected "
            "out. Mean over runs of all tasks and seeds, and over draws of Gaussian A and B; every "
            "value is in the csv.",
        ],
        text_columns=3,
    )


def _rows_along(result: Spectra, module: str, matrix: str) -> list[list[str]]:
    rows = []
    a = result.along[(result.along.module == module) & (result.along.matrix == matrix)]
    for column, name_of_row in (
        ("energy", "energy"),
        ("space", "space"),
        ("off_diagonal", "taken out"),
    ):
        for source, label in LABEL.items():
            cells = []
            for k in (0, *COUNTS):
                values = a.loc[(a.source == source) & (a.k == k), column]
                has_value = len(values) and not (k == 0 and column != "off_diagonal")
                mean = summarise(values.to_numpy()).mean if has_value else np.nan
                cells.append(formatting.number(mean, 4))
            rows.append([f"{label}: {name_of_row}", *cells])
    return rows
