"""The numbers that the paper prints, from results/paper/."""

import copy
import functools
from pathlib import Path
from typing import Any

import yaml

PAPER = Path(__file__).resolve().parents[2] / "results" / "paper"


def published(name: str) -> dict[str, Any]:
    """The paper's numbers of one table or figure, from results/paper/<name>.yaml."""
    return copy.deepcopy(_read(PAPER / f"{name}.yaml"))


@functools.cache
def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def is_paper_backbone(record: dict[str, Any]) -> bool:
    """Whether a run used the paper's backbone, so that its numbers may be compared directly."""
    # A folder's name is its path; DistilRoBERTa's name has the same ending and is another model.
    return record["backbone"]["name"].lower().split("/")[-1].startswith("roberta-base")
