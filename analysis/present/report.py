"""The report of a profile: every table, figure and claim, compared with the paper, on one page.

Writes tables/, figures/, claims.json, report.html (self-contained) and report.md into results/<profile>/. The same runs
give the same bytes: the only dates are those of the runs and of the rules.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from analysis.maths.magnitude_direction import of_changed_weights
from analysis.maths.span_similarity import SpanSimilarity
from analysis.maths.together import analyses, together
from analysis.present import (
    adapter_similarity,
    amplification,
    claims,
    conversion_controls,
    conversion_similarity,
    efficiency,
    equivalence,
    explained_share,
    freedom,
    frontier,
    glue_scores,
    hyperparameters,
    ledger,
    linear_map,
    lora_subspace,
    magnitude_direction,
    parity,
    pooled,
    positions,
    provenance,
    rank,
    report_charts,
    report_overview,
    report_reference,
    span_similarity,
    typeset,
    which_weights,
)
from analysis.present.limits import in_short, limits
from analysis.present.report_plots import interval
from analysis.present.typeset import Section
from analysis.stats.claims import KINDS, Claim, collect, counts, evaluate, in_order
from analysis.stats.evidence import Findings
from analysis.stats.frontier import frontier as frontier_of
from analysis.stats.ledger import Evidence
from analysis.stats.rank_runs import RankStudy, by_rank
from analysis.stats.rules import (
    FAILS,
    HOLDS,
    NOT_RESOLVED,
    NOT_RUN,
    NOT_TESTED,
    Thresholds,
    load_rules,
)
from analysis.stats.span_tests import span_tests
from analysis.study.paper import published
from analysis.study.parity import Grids
from analysis.study.rank_selection import has_rank
from analysis.study.records import missing_adapters
from analysis.study.reference import load_reference
from analysis.study.selection import Study
from analysis.study.stacks import Stack, load_stacks, with_adapters
from condlora.errors import NoFinishedRuns
from condlora.grid.cells import Cell

TEMPLATES = Path(__file__).parent / "templates"
BADGES = {
    HOLDS: "✓ agrees",
    FAILS: "✗ does not agree",
    NOT_RESOLVED: "? not resolved",
    NOT_TESTED: "– not tested",
    NOT_RUN: "– not run",
}


def build(
    study: Study,
    margin_points: float | None = None,
    reference: Path | None = None,
    grids: Grids | None = None,
    versions: Sequence[Cell] = (),
) -> Path:
    """Runs all analyses of a study, writes everything, returns the path of report.html.

    margin_points: the margin of equality where it is not that of claims.yaml; reference: the folder of the report that
    this one is compared with, see `analysis.study.reference`; grids: all grids of the experiment that the profile is one
    of, whose outcome then comes first; versions: runs of the same recipes made elsewhere, see `analysis.study.versions`.
    """
    thresholds, stated = load_rules(margin_points)
    stacks = load_stacks(with_adapters(study.done))
    matrices = together(analyses(stacks, study.settings))
    findings = collect(study, matrices, thresholds)
    evidence, ranks = _evidence(study, stacks, findings, matrices)
    found = evaluate(findings, thresholds, stated)
    claims.write(found, study.folder / "claims.json")
    figures = study.folder / "figures"
    tests = equivalence.table(findings.differences, thresholds)
    all_claims = [claims.table(found), claims.table_of_parts(found)]
    sections = [
        glue_scores.section(findings.scores, tests, thresholds.margin_points, figures),
        pooled.section(study.done, list(versions), thresholds),
        conversion_similarity.section(findings.conversion, figures),
        conversion_controls.section(matrices["controls"], thresholds, figures),
        linear_map.section(findings.linear_map, thresholds),
        explained_share.section(matrices["shares"], thresholds.confidence, figures),
        _of_spans(study, matrices["spans"]),
        adapter_similarity.section(findings.adapters),
        efficiency.section(findings.costs),
        frontier.section(study.done, thresholds.confidence, figures),
        freedom.section(study, thresholds.confidence),
        which_weights.section(study.done),
        *_of_matrices(study, matrices, evidence, ranks),
        ledger.section(evidence, thresholds),
        Section("What needs adapters", [missing_adapters(study.done)], [], []),
        hyperparameters.section(study.done),
        provenance.section(study),
    ]
    sections = [s for s in sections if any(s.text) or s.shown]
    lead = parity.section(grids, figures) if grids else None
    comparison = None
    if reference:
        known = load_reference(reference, study.profile)
        comparison = report_reference.compare(findings.scores, found, known, thresholds.confidence)
    for item in [
        *all_claims,
        *(comparison.tables if comparison else []),
        *(x for s in [lead, *sections] if s for x in (*s.shown, *s.details)),
    ]:
        if isinstance(item, typeset.Table):
            typeset.write(item, study.folder / "tables")
    page = {
        "profile": study.profile,
        "cells": study.cells,
        "unfinished": [cell for cell in study.cells if cell.state != "done"],
        "facts": provenance.facts(study),
        "ran": report_overview.what_ran(study),
        "short_limits": in_short(study.done),
        "panels": report_overview.panels(findings, found, thresholds.margin_points),
        "badges": BADGES,
        "plots": {claim.key: _plot(claim) for claim in found},
        "charts": report_charts.charts(
            findings.conversion, _frontier(study, thresholds), study.done
        ),
        "vega": Markup(report_charts.javascript()),
        "claims": in_order(found),
        "parts": all_claims[1],
        "confidence": f"{100 * thresholds.confidence:g}",
        "counts": counts(found),
        "kinds": KINDS,
        "fixed": published("claims")["fixed"],
        "limits": [
            *study.left_out,
            *(grids.notes if grids else ()),
            *limits(study.done, thresholds.alpha),
        ],
        "comparison": comparison,
        "lead": lead,
        "sections": sections,
        "paper": published("table2"),
    }
    for name in ("report.html", "report.md"):
        (study.folder / name).write_text(_render(name, page), encoding="utf-8")
    return study.folder / "report.html"


def _plot(claim: Claim) -> Markup:
    """The interval plot of a claim."""
    low, high = claim.interval
    alt = f"Estimate and interval: {claim.shown}"
    return interval(claim.estimate, low, high, null=claim.null, limit=claim.limit, alt=alt)


def _frontier(study: Study, thresholds: Thresholds) -> pd.DataFrame | None:
    try:
        return frontier_of(study.done, thresholds.confidence)[0]
    except NoFinishedRuns:
        return None


def _of_spans(study: Study, found: SpanSimilarity) -> Section:
    tests = span_tests(found, study.settings.baseline_seed)
    return span_similarity.section(found, tests, study.folder / "figures")


def _evidence(
    study: Study, stacks: list[Stack], findings: Findings, matrices: dict[str, Any]
) -> tuple[Evidence, RankStudy | None]:
    """What the claims of other papers rest on, and everything over ranks; without matrices the scores alone."""
    has_ranks = any(map(has_rank, study.done))
    ranks = by_rank(study.done, stacks, study.settings) if has_ranks else None
    directions = [matrices["directions"], of_changed_weights(with_adapters(study.done))]
    directions = [one for one in directions if len(one)]
    found = Evidence(
        findings.scores,
        findings.gains,
        ranks.runs if ranks else None,
        subspaces=matrices.get("subspaces"),
        amplification=matrices.get("amplification"),
        directions=pd.concat(directions, ignore_index=True) if directions else None,
    )
    return found, ranks


def _of_matrices(
    study: Study, matrices: dict[str, Any], evidence: Evidence, ranks: RankStudy | None
) -> list[Section]:
    """What there is to say only where a method's update is one B A a layer; without matrices the scores over ranks."""
    figures = study.folder / "figures"
    over_ranks = [rank.section(ranks, figures)] if ranks else []
    directions = []
    if evidence.directions is not None:
        directions = [magnitude_direction.section(evidence.directions)]
    if "positions" not in matrices:
        return [*directions, *over_ranks]
    return [
        lora_subspace.section(evidence.subspaces, figures),
        amplification.section(evidence.amplification, figures),
        *directions,
        *over_ranks,
        positions.section(matrices["positions"], figures),
    ]


def _json(value: Any) -> Markup:
    """JSON that may stand in a script element."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))  # fmt: skip


def _render(name: str, page: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["slug"] = lambda title: title.lower().replace(" ", "-").replace("'", "")
    environment.filters["json"] = _json
    environment.filters["md"] = typeset.markdown_text
    environment.filters["md_table"] = typeset.markdown
    environment.tests["table"] = lambda item: isinstance(item, typeset.Table)
    return environment.get_template(f"{name}.j2").render(page)
