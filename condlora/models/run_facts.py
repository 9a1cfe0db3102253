"""What the model card of a finished run's adapter says of its training, read from the run's record."""

from __future__ import annotations

from pathlib import Path

from condlora.errors import RunFolderError
from condlora.runs.record import read_record
from condlora.tuner.io.card import Facts


def run_facts(folder: str | Path, *, license: str | None = None) -> Facts:
    """The facts of a finished run, from its record and those of the other seeds of the same recipe in the same folder.

    Raises:
        RunFolderError: the run is damaged or not finished.
    """
    folder = Path(folder)
    own = read_record(folder)
    if own["status"] != "done":
        raise RunFolderError(f"{folder} is {own['status']}: finish the run, then write its card.")
    scores: dict[str, dict[int, float]] = {}
    for path in [folder, *sorted(folder.parent.glob("seed-*"))]:
        try:
            record = read_record(path)
        except RunFolderError:
            continue
        if record["status"] == "done" and record["recipe_hash"] == own["recipe_hash"]:
            for metric, value in record["test"].items():
                scores.setdefault(metric, {}).setdefault(record["seed"], value)
    synthetic = " (synthetic data)" if own["data"]["source"] == "synthetic" else ""
    task = own["recipe"]["task"]["title"] + synthetic
    return Facts(task=task, scores=scores, seed=own["seed"], license=license)
