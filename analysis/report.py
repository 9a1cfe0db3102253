"""The report of a profile: every table, figure and claim beside the paper, on one page.

Runs all analyses on the profile's finished runs and writes tables/, figures/, claims.json,
report.html (self-contained) and report.md into results/<profile>/. The same runs give the same
bytes: no date but the runs' own.
"""

from pathlib import Path
from typing import Any

import jinja2
from omegaconf import DictConfig

from analysis import (
    adapter_similarity,
    amplification,
    claims,
    conversion_controls,
    conversion_similarity,
    efficiency,
    equivalence,
    frontier,
    glue_scores,
    linear_map,
    lora_subspace,
    positions,
    rank,
)
from analysis.conversion_similarity import SOURCE_LABEL
from analysis.present import typeset
from analysis.present.typeset import Picture, Section
from analysis.stats.rules import VERDICTS, load_rules
from analysis.stats.significance import one_example_points
from analysis.study import provenance
from analysis.study.comparability import differences
from analysis.study.evidence import Findings
from analysis.study.provenance import listed
from analysis.study.selection import (
    TASKS,
    Stack,
    Study,
    is_paper_backbone,
    load_stacks,
    open_study,
    published,
)
from condlora.commands.cli import command
from condlora.grid.cells import Cell

TEMPLATES = Path(__file__).parent / "present" / "templates"
PUBLISHED_PROTOCOLS = {"authors", "paper", "lora_setting"}


def build(study: Study, margin_points: float | None = None) -> Path:
    """Runs all analyses of a study, writes everything, returns the path of report.html.

    margin_points: the margin of equality where it is not that of claims.yaml.
    """
    numbers, stated = load_rules(margin_points)
    stacks = load_stacks(study.done)
    findings = claims.collect(study, stacks, numbers)
    found = claims.evaluate(findings, numbers, stated)
    claims.write(found, study.folder / "claims.json")
    figures, settings = study.folder / "figures", study.settings
    tests = equivalence.table(findings.differences, numbers)
    all_claims = [claims.table(found), claims.table_of_parts(found)]
    sections = [
        glue_scores.section(findings.scores, tests, numbers.margin_points, figures),
        _conversion(study, findings),
        conversion_controls.section(conversion_controls.controls(stacks, settings), figures),
        linear_map.section(findings.linear_map, figures),
        _adapters(findings),
        efficiency.section(findings.costs),
        frontier.section(study.done, numbers.confidence, figures),
        *(_of_matrices(study, stacks) if stacks else []),
        provenance.section(study),
    ]
    sections = [s for s in sections if s.text or s.shown]
    for item in [*all_claims, *(x for s in sections for x in (*s.shown, *s.details))]:
        if isinstance(item, typeset.Table):
            typeset.write(item, study.folder / "tables")
    page = {
        "profile": study.profile,
        "cells": study.cells,
        "unfinished": [cell for cell in study.cells if cell.state != "done"],
        "facts": provenance.facts(study),
        "claims": claims.in_order(found),
        "parts": all_claims[1],
        "confidence": f"{100 * numbers.confidence:g}",
        "counts": {v: sum(claim.verdict == v for claim in found) for v in VERDICTS},
        "limits": [*study.left_out, *limits(study.done, numbers.alpha)],
        "sections": sections,
        "paper": published("table2"),
    }
    for name in ("report.html", "report.md"):
        (study.folder / name).write_text(_render(name, page), encoding="utf-8")
    return study.folder / "report.html"


def _of_matrices(study: Study, stacks: list[Stack]) -> list[Section]:
    """What there is to say only where a method's update is one B A a layer."""
    figures, settings = study.folder / "figures", study.settings
    return [
        lora_subspace.section(lora_subspace.compare(stacks, settings), figures),
        amplification.section(amplification.amplify(stacks, settings), figures),
        rank.section(rank.by_rank(study.done, stacks, settings), figures),
        positions.section(positions.locate(stacks, settings), figures),
    ]


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


def limits(done: list[Cell], alpha: float) -> list[str]:
    """What cannot be compared with the paper, and why."""
    records = [cell.record for cell in done]
    lines = []
    if not all(map(is_paper_backbone, records)):
        names = listed(
            f"{r['backbone']['name']} ({r['backbone']['layers']} layers of width "
            f"{r['backbone']['hidden_size']})"
            for r in records
        )
        lines.append(
            f"The backbone is {names}; the paper's is RoBERTa-base (12 layers of width 768). "
            "Scores, φ and speeds here are other quantities than the paper's: their differences "
            "from its numbers measure the backbone, and only the direction of a claim carries over."
        )
    own = listed(cell.task for cell in done if cell.task not in TASKS)
    if own:
        lines.append(f"The paper has no such task: {own}.")
    glue = [cell.record for cell in done if cell.task in TASKS]
    if not all(record["data"]["official_counts"] for record in glue):
        sources = listed(record["data"]["source"] for record in glue)
        lines.append(
            f"The data ({sources}) are not GLUE as published, so no score here is a GLUE score; "
            "a task is named after the GLUE task it stands in for."
        )
    protocols = {record["recipe"]["protocol"]["name"] for record in records}
    if not protocols <= PUBLISHED_PROTOCOLS:
        steps = [record["steps"] for record in records]
        lines.append(
            f"The protocol ({listed(protocols)}) is not the authors': runs of {_range(steps)} steps. "
            "Where two methods differ here, training longer or another learning rate may move the difference."
        )
    lines += [
        f"Runs that are compared or averaged here differ in {kind}: {text}."
        for kind, text in differences(done).items()
    ]
    seeds = len({cell.seed for cell in done})
    lines += [
        f"The paper does not state its number of seeds or its spread; here there are {seeds}. "
        "Seeds repeat the training and not the pre-training: all runs share one W₀, and no verdict "
        "speaks for another.",
        f"Each claim is tested at level {alpha:g}; p values are adjusted within a claim where its rule "
        "says so, and not over claims: of many claims that are false, some are found to hold by chance.",
        "An interval over seeds says how far other seeds would lie on the same test examples, one over "
        "test examples how far other examples would with the same seeds. Neither says both. "
        + _resolution(done),
        "The paper's pairwise t-test does not say what is paired; here it is seeds. A large p does "
        "not show that the methods are equal, so equality has a test of its own.",
        "Figure 1's values are drawn and not printed in the paper: its claims can be tested, its "
        "heat maps cannot be compared number by number.",
        "Table 3's task is not stated in the paper, nor is the task on which Table 4's speed was "
        f"measured; that speed is of {published('table4')['device']}.",
    ]
    return lines


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _resolution(done: list[Cell]) -> str:
    """What one test example is worth where that is most."""
    worth = {
        cell.task: one_example_points(
            cell.record["headline"], cell.record["data"]["counts"]["test"]
        )
        for cell in done
    }
    known = {task: points for task, points in worth.items() if points == points}
    if not known:
        return ""
    task = max(known, key=known.get)
    return f"One test example of {TASKS.get(task, task)} is worth {known[task]:.2f} points."


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


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    print(f"Report: {build(open_study(cfg), cfg.margin_points)}")


if __name__ == "__main__":
    main()
