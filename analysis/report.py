"""The report of a profile: every table, figure and claim beside the paper, on one page.

Runs all analyses on the profile's finished runs and writes tables/, figures/, claims.json,
report.html (self-contained) and report.md into results/<profile>/. The same runs give the same
bytes: no date but the runs' own.
"""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from omegaconf import DictConfig

from analysis import (
    adapter_similarity,
    claims,
    conversion_similarity,
    efficiency,
    glue_scores,
    typeset,
)
from analysis.claims import Findings
from analysis.conversion_similarity import SOURCE_LABEL
from analysis.figures import label
from analysis.selection import (
    TASKS,
    Study,
    is_paper_backbone,
    open_study,
    published,
    task_order,
)
from condlora.cli import command
from condlora.grid import Cell

TEMPLATES = Path(__file__).parent / "templates"
VERDICTS = [claims.FAILS, claims.HOLDS, claims.NOT_RUN]  # what does not hold is said first

PUBLISHED_PROTOCOLS = {"authors", "paper", "lora_setting"}


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
    shown: list[typeset.Table | Picture]
    details: list[typeset.Table | Picture]


def build(study: Study) -> Path:
    """Runs all analyses of a study, writes everything, returns the path of report.html."""
    findings = claims.collect(study)
    found = claims.evaluate(findings)
    claims.write(found, study.folder / "claims.json")
    sections = [
        _scores(study, findings),
        _conversion(study, findings),
        _adapters(findings),
        _efficiency(findings),
        _runs(study),
    ]
    for section in sections:
        for item in (*section.shown, *section.details):
            if isinstance(item, typeset.Table):
                typeset.write(item, study.folder / "tables")
    page = {
        "profile": study.profile,
        "cells": study.cells,
        "unfinished": [cell for cell in study.cells if cell.state != "done"],
        "facts": facts(study),
        "claims": sorted(found, key=lambda claim: VERDICTS.index(claim.verdict)),
        "counts": {v: sum(claim.verdict == v for claim in found) for v in VERDICTS},
        "limits": limits(study.done),
        "sections": sections,
        "paper": published("table2"),
    }
    for name in ("report.html", "report.md"):
        (study.folder / name).write_text(_render(name, page), encoding="utf-8")
    return study.folder / "report.html"


def _render(name: str, page: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = typeset.markdown_text
    environment.filters["md_table"] = typeset.markdown
    environment.tests["table"] = lambda item: isinstance(item, typeset.Table)
    return environment.get_template(f"{name}.j2").render(page)


def facts(study: Study) -> list[tuple[str, str]]:
    """What ran, on what: name and value; several values are listed where runs differ."""
    done, settings = study.done, study.settings
    records = [cell.record for cell in done]

    def each(*path: str) -> str:
        return _listed(_at(record, path) for record in records)

    backbones = (
        f"{b['name']}: {b['layers']} layers of width {b['hidden_size']}, from {b['source']}, "
        f"revision {b['revision'] or typeset.UNDEFINED}, weights {b['weights_sha256'][:12]}"
        for b in (record["backbone"] for record in records)
    )
    adapters = (f"{label(c.adapter)}: {_adapter(c.record['recipe']['adapter'])}" for c in done)
    seeds = sorted({cell.seed for cell in done})
    versions = (
        ", ".join(f"{name} {version}" for name, version in sorted(e["versions"].items()))
        for e in (record["environment"] for record in records)
    )
    commits = (
        f"{(e['commit'] or typeset.UNDEFINED)[:12]}{' (with uncommitted changes)' * bool(e['dirty'])}"
        for e in (record["environment"] for record in records)
    )
    return [
        ("Backbone", _listed(backbones)),
        ("Methods", _listed(adapters)),
        ("Tasks", ", ".join(_names(done))),
        ("Data", each("data", "source")),
        ("Seeds", f"{len(seeds)}: {', '.join(map(str, seeds))}"),
        ("Protocol", _protocol(records)),
        (
            "Similarity φ",
            f"i = {settings.i or 'r'}, j = {settings.j or 'r'}; baselines: "
            f"{settings.baseline_draws} draws, seed {settings.baseline_seed}",
        ),
        ("Truncated examples", _truncated(done)),
        ("Device", each("environment", "device")),
        ("Mixed precision", each("environment", "precision")),
        (
            "Processor",
            f"{each('environment', 'processor')}; threads a run: {each('environment', 'threads')}",
        ),
        ("Platform", f"Python {each('environment', 'python')}, {each('environment', 'platform')}"),
        ("Versions", _listed(versions)),
        ("Commit", _listed(commits)),
        ("Runs finished", f"{min(_finish_times(records))} to {max(_finish_times(records))}"),
    ]


def limits(done: list[Cell]) -> list[str]:
    """What cannot be compared with the paper, and why."""
    records = [cell.record for cell in done]
    lines = []
    if not all(map(is_paper_backbone, records)):
        names = _listed(
            f"{r['backbone']['name']} ({r['backbone']['layers']} layers of width "
            f"{r['backbone']['hidden_size']})"
            for r in records
        )
        lines.append(
            f"The backbone is {names}; the paper's is RoBERTa-base (12 layers of width 768). "
            "Scores, φ and speeds here are other quantities than the paper's: their differences "
            "from its numbers measure the backbone, and only the direction of a claim carries over."
        )
    if not all(record["data"]["official_counts"] for record in records):
        sources = _listed(record["data"]["source"] for record in records)
        lines.append(
            f"The data ({sources}) are not GLUE as published, so no score here is a GLUE score; "
            "a task is named after the GLUE task it stands in for."
        )
    protocols = {record["recipe"]["protocol"]["name"] for record in records}
    if not protocols <= PUBLISHED_PROTOCOLS:
        steps = [record["steps"] for record in records]
        lines.append(
            f"The protocol ({_listed(protocols)}) is not the authors': runs of {min(steps)} to {max(steps)} steps. "
            "Where two methods differ here, training longer or another learning rate may move the difference."
        )
    seeds = len({cell.seed for cell in done})
    lines += [
        f"The paper does not state its number of seeds or its spread; here there are {seeds}. With "
        "so few, a mean within a margin is a description and no proof of equality."
        if seeds < 5
        else f"The paper does not state its number of seeds or its spread; here there are {seeds}.",
        "The paper's pairwise t-test does not say what is paired and is not repeated; a large p "
        "would not show that the methods are equal.",
        "Figure 1's values are drawn and not printed in the paper: its claims can be tested, its "
        "heat maps cannot be compared number by number.",
        "Table 3's task is not stated in the paper, nor is the task on which Table 4's speed was "
        f"measured; that speed is of {published('table4')['device']}.",
        "Equal speed in inference is not measured here.",
    ]
    return lines


def _scores(study: Study, findings: Findings) -> Section:
    runs = findings.scores
    path = glue_scores.draw_differences(runs, study.folder / "figures")
    pictures = []
    if path:
        gaps = glue_scores.differences(runs)
        means = [
            f"{name} {typeset.number(gaps.points[gaps.task == task].mean(), 1)}"
            for task, name in TASKS.items()
            if task in set(gaps.task)
        ]
        alt = "Score less LoRA's by task, one dot per seed; means in points: " + ", ".join(means)
        caption = "Score less LoRA's of the same seed; one dot per seed."
        pictures = [Picture(path, alt, caption)]
    return Section(
        "Table 2: does CondLoRA score as LoRA does?", [], [glue_scores.table2(runs), *pictures], []
    )


def _conversion(study: Study, findings: Findings) -> Section:
    result = findings.conversion
    paths = conversion_similarity.draw(result, study.folder / "figures")
    panel, wanted = conversion_similarity.paper_panel(result), published("figure1")
    text = [
        "The paper's random baseline does not pass through W₀⁻¹: it compares Gaussian matrices "
        "themselves. Conversion matrices are W₀⁻¹ times something, and W₀⁻¹ alone stretches "
        "whatever it meets along the smallest singular directions of W₀; where those are alike "
        "between layers, the products are alike with nothing learned. The third kind of panel "
        "shows this control: Gaussian A and B of the same shapes through the same W₀⁻¹.",
    ]
    if panel and panel != (wanted["task"], wanted["module"]):
        text.append(
            "The paper's panel is MNLI, value modules; it was not run here. The first figure shows "
            f"{TASKS.get(panel[0], panel[0])}, {panel[1]} modules."
        )
    pictures = {name: _heat_maps(result, name, path) for name, path in paths.items()}
    shown = [pictures.pop("figure1")] if pictures else []
    if result.modules:
        shown.append(conversion_similarity.table(result))
    details = [*pictures.values()]
    if result.modules:
        details.append(conversion_similarity.table_by_task(result))
    return Section(
        "Figure 1: are conversion matrices alike across layers?",
        [*text, *result.notes],
        shown,
        details,
    )


def _heat_maps(
    result: conversion_similarity.ConversionSimilarity, name: str, path: Path
) -> Picture:
    panel = conversion_similarity.paper_panel(result)
    module = panel[1] if name == "figure1" else name.removeprefix("figure1_")
    what = f"{TASKS.get(panel[0], panel[0])}" if name == "figure1" else "all tasks"
    means = [
        f"{SOURCE_LABEL[source]}, {matrix}: "
        f"{typeset.number(result.summary('off_diagonal', module, matrix, source).mean, 3)}"
        for matrix in ("A", "B")
        for source in SOURCE_LABEL
    ]
    return Picture(
        path,
        alt=f"Heat maps of φ between the layers' conversion matrices, {what}, {module} modules. "
        f"Means off the diagonal over all tasks: {'; '.join(means)}.",
        caption=f"φ between conversion matrices, {what}, {module} modules. Maps are means over "
        "seeds, or over as many draws; under each, the mean off the diagonal ± sd (n) over all "
        "seeds or draws.",
    )


def _adapters(findings: Findings) -> Section:
    result = findings.adapters
    text = [] if result.counts else ["No task and seed has both methods finished."]
    shown = [adapter_similarity.table3(result)] if result.counts else []
    details = [adapter_similarity.table_by_task(result)] if result.counts else []
    return Section("Table 3: are LoRA's and CondLoRA's matrices alike?", text, shown, details)


def _efficiency(findings: Findings) -> Section:
    return Section(
        "Table 4: is CondLoRA smaller and faster?",
        [],
        [efficiency.table4(findings.costs)],
        [efficiency.table_by_task(findings.costs)],
    )


def _runs(study: Study) -> Section:
    return Section("Runs and data", [], [data_table(study.done)], [runs_table(study.cells)])


def data_table(done: list[Cell]) -> typeset.Table:
    """Where each task's examples come from, how many, and how many were cut."""
    rows = []
    for task in sorted({cell.task for cell in done}, key=task_order):
        data = [cell.record["data"] for cell in done if cell.task == task]
        splits = [
            _listed(f"{d['counts'][split]:,}" for d in data)
            for split in ("train", "validation", "test")
        ]
        cut = _listed(
            " / ".join(f"{d['truncated'][s]:,}" for s in ("train", "validation", "test"))
            for d in data
        )
        official = _listed("yes" if d["official_counts"] else "no" for d in data)
        rows.append([TASKS.get(task, task), _listed(d["source"] for d in data), *splits, cut])
        rows[-1].append(official)
    header = ["task", "source", "train", "validation", "test"]
    header += ["truncated (train / validation / test)", "GLUE's own counts"]
    return typeset.Table(
        name="data",
        title="Data",
        header=header,
        rows=rows,
        data=pd.DataFrame(rows, columns=header),
        notes=["Truncated: examples longer than the maximum length, cut to it."],
        text_columns=2,
    )


def runs_table(cells: list[Cell]) -> typeset.Table:
    """Every cell of the grid with its state; finished ones with what identifies them."""
    rows = []
    for cell in cells:
        record = cell.record if cell.state == "done" else None
        name = [TASKS.get(cell.task, cell.task), label(cell.adapter), str(cell.seed), cell.state]
        if record is None:
            rows.append([*name, *[typeset.UNDEFINED] * 6, cell.reason or typeset.UNDEFINED])
            continue
        environment, best = record["environment"], record["best"]
        rows.append(
            [
                *name,
                record["recipe_hash"][:12],
                (environment["commit"] or typeset.UNDEFINED)[:12]
                + "+" * bool(environment["dirty"]),
                f"{record['recipe']['protocol']['learning_rate']:g}",
                f"{record['steps']:,}{', stopped early' * record['stopped_early']}",
                f"{best['step']:,}",
                str(record["finished_at"]),
                typeset.UNDEFINED,
            ]
        )
    header = ["task", "method", "seed", "state", "recipe", "commit", "learning rate", "steps"]
    header += ["best step", "finished", "reason"]
    return typeset.Table(
        name="runs",
        title="Every run of the grid",
        header=header,
        rows=rows,
        data=pd.DataFrame(rows, columns=header),
        notes=["Recipe: first digits of the recipe's hash. A + after a commit: with changes."],
        text_columns=len(header),
    )


def _adapter(recipe: dict[str, Any]) -> str:
    config = recipe["config"]
    form = f", form {config['form']}" if "form" in config else ""
    return f"r {config['r']}, alpha {config['lora_alpha']}{form}"


def _protocol(records: list[dict[str, Any]]) -> str:
    """Every setting of the protocol, with the values of all runs where they differ."""
    found: dict[str, list[Any]] = {}
    for record in records:
        protocol = record["recipe"]["protocol"]
        for name, value in protocol.items():
            nested = value.items() if isinstance(value, dict) else [(None, value)]
            for inner, setting in nested:
                found.setdefault(f"{name}.{inner}" if inner else name, []).append(setting)
    return "; ".join(f"{name} {_listed(values)}" for name, values in found.items())


def _truncated(done: list[Cell]) -> str:
    cut = {c.task: sum(c.record["data"]["truncated"].values()) for c in done}
    named = [f"{TASKS.get(task, task)} {count:,}" for task, count in cut.items() if count]
    return ", ".join(named) or "none"


def _names(done: list[Cell]) -> list[str]:
    return list(dict.fromkeys(TASKS.get(cell.task, cell.task) for cell in done))


def _finish_times(records: list[dict[str, Any]]) -> list[str]:
    return [str(record["finished_at"]) for record in records]


def _at(record: dict[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        record = record[name]
    return record


def _listed(values: Any) -> str:
    """The distinct values as text, sorted where there are several."""
    distinct = list(dict.fromkeys(str(value) for value in values))
    return distinct[0] if len(distinct) == 1 else " / ".join(sorted(distinct))


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    print(f"Report: {build(open_study(cfg))}")


if __name__ == "__main__":
    main()
