"""The stored predictions of finished runs on their test sets."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from analysis.study.run_files import predictions_on_test
from condlora.errors import UserError
from condlora.grid.cells import Cell


@dataclass(frozen=True)
class Examples:
    """One task's test set: references (n,) and the predictions (n,) of each (adapter, seed)."""

    metric: str
    references: np.ndarray
    predictions: dict[tuple[str, int], np.ndarray]


def load_examples(cells: Iterable[Cell]) -> dict[str, Examples]:
    """The stored test predictions of finished runs, task -> Examples.

    Raises UserError where the runs of one task were tested on other examples, which nothing pairs.
    """
    found: dict[str, Examples] = {}
    for cell in cells:
        table = predictions_on_test(cell)
        of_task = found.setdefault(
            cell.task, Examples(cell.record["headline"], table.label.to_numpy(), {})
        )
        if not np.array_equal(of_task.references, table.label.to_numpy()):
            raise UserError(
                f"{cell.folder} was tested on other examples than the runs of '{cell.task}' before "
                "it: do those runs again with the same data."
            )
        of_task.predictions[cell.adapter, cell.seed] = table.prediction.to_numpy()
    return found
