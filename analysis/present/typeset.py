"""What the report is made of: tables as csv, md and tex, pictures and sections.

Thresholds become text here and nowhere else.
"""

import base64
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

# Enough digits for any use, few enough that the last bits of a sum do not change the file.
CSV_FORMAT = "%.9g"
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "±": r"$\pm$", "−": r"$-$", "–": "--", "×": r"$\times$", "Δ": r"$\Delta$", "φ": r"$\phi$", "ρ": r"$\rho$",
    "⁻¹": r"$^{-1}$", "⁻ᵀ": r"$^{-T}$", "₀": r"$_0$", "→": r"$\to$", "′": r"$'$", "θ": r"$\theta$", "‖": r"$\Vert$",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table as it is read (`header`, `rows`, `notes`) and its numbers in full (`data`).

    The first `text_columns` columns hold words and are set left, the others numbers, set right.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    data: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    text_columns: int = 1


@dataclass(frozen=True)
class Picture:
    """A figure as the page shows it."""

    path: Path
    alt: str
    caption: str

    @property
    def data_uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()


@dataclass(frozen=True)
class Section:
    """One part of the report; `details` are tables and figures a reader opens when needed."""

    title: str
    text: list[str]
    shown: list[Table | Picture]
    details: list[Table | Picture]


def write(table: Table, folder: Path) -> list[Path]:
    """Writes `<folder>/<name>.csv` (the numbers), `.md` and `.tex` (as read); returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{table.name}.{suffix}" for suffix in ("csv", "md", "tex")]
    table.data.to_csv(paths[0], index=False, float_format=CSV_FORMAT, lineterminator="\n")
    paths[1].write_text(f"# {table.title}\n\n{markdown(table)}", encoding="utf-8")
    paths[2].write_text(tex(table), encoding="utf-8")
    return paths


def markdown(table: Table) -> str:
    """The table and its notes in GitHub's Markdown, without the title."""
    lines = [[markdown_text(cell) for cell in line] for line in (table.header, *table.rows)]
    numbers = len(table.header) - table.text_columns
    lines.insert(1, ["---"] * table.text_columns + ["---:"] * numbers)
    text = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return text + "".join(f"\n{markdown_text(note)}\n" for note in table.notes)


def markdown_text(text: str) -> str:
    """`text` on one line, with what Markdown or HTML would take as markup escaped."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    for mark in "\\|*_`[]":
        text = text.replace(mark, f"\\{mark}")
    return text


def tex(table: Table) -> str:
    """A `tabular` for LaTeX with the booktabs package; title and notes are comments above it."""
    head = "".join(f"% {' '.join(line.split())}\n" for line in [table.title, *table.notes])
    body = [" & ".join(map(_tex_text, row)) + r" \\" for row in [table.header, *table.rows]]
    columns = "l" * table.text_columns + "r" * (len(table.header) - table.text_columns)
    return (
        f"{head}\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body[0]}\n\\midrule\n"
        + "\n".join(body[1:])
        + "\n\\bottomrule\n\\end{tabular}\n"
    )


def _tex_text(text: str) -> str:
    text = text.replace("⁻¹", "\0").replace("⁻ᵀ", "\1")
    set_one_by_one = "".join(_TEX.get(c, c) for c in text)
    return set_one_by_one.replace("\0", _TEX["⁻¹"]).replace("\1", _TEX["⁻ᵀ"])
