"""The results of another report that a report is compared with: by default the committed ones of the same profile."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.study.paper import PAPER
from condlora.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

COMMITTED = PAPER.parent / "reference"


@dataclass(frozen=True)
class Reference:
    """What a report is compared with.

    name: what a sentence calls it; scores: a row a run, as of `scores.scores`; verdicts: claim -> verdict.
    """

    name: str
    scores: pd.DataFrame
    verdicts: dict[str, str]


def find_reference(results: Path, profile: str, against: str | None) -> Path | None:
    """The folder to compare with: that of the profile `against`, yours before the committed one, or else the
    committed results of the profile itself, which may not exist.

    Raises:
        UserError: `against` has no results in either folder.
    """
    if against is None:
        folder = COMMITTED / profile
        return folder if _is_report(folder) and folder != (results / profile).absolute() else None
    for folder in (results / against, COMMITTED / against):
        if _is_report(folder):
            return folder
    raise UserError(
        f"No results of the profile '{against}' in {results} or {COMMITTED}: make its report first, or set against=null."
    )


def load_reference(folder: Path, profile: str) -> Reference:
    """Reads the scores and verdicts of the report in a folder."""
    import pandas as pd  # here, as a wrong setting is reported without it

    claims = json.loads((folder / "claims.json").read_text(encoding="utf-8"))
    own = "committed results" if folder.is_relative_to(COMMITTED) else "results"
    name = f"the {own} of the profile {folder.name}"
    if folder.name == profile:
        name = "the committed results of this profile"
    scores = pd.read_csv(folder / "tables" / "table2.csv")
    return Reference(name, scores, {claim["key"]: claim["verdict"] for claim in claims})


def _is_report(folder: Path) -> bool:
    return (folder / "claims.json").is_file() and (folder / "tables" / "table2.csv").is_file()
