"""The report: what it says, what it escapes, and that the same runs give the same bytes."""

import html
import json
import re
from dataclasses import replace

import pytest

from analysis.present import limits as present_limits
from analysis.present import provenance
from analysis.present import report as present_report
from analysis.stats.rules import FAILS, HOLDS, NOT_RESOLVED, VERDICTS
from analysis.study.paper import published

MARGIN = 2.5  # points; not the file's own


@pytest.fixture(scope="module")
def partial(study, spoil):
    """Three tasks of the grid, with one failed, one stale and one missing cell."""
    cells = study.cells[:12]
    cells[1] = spoil(cells[1], "failed", "loss <script>alert('x')</script> & | not finite")
    cells[5] = spoil(cells[5], "stale", "made by another recipe")
    cells[9] = replace(spoil(cells[9], "missing"), record=None)
    return replace(study, cells=cells, left_out=("QNLI has no runs here: too long.",))


@pytest.fixture(scope="module")
def page(partial):
    return present_report.build(partial, MARGIN).read_text(encoding="utf-8")


def test_page_holds_every_part_and_nothing_from_outside(page, partial):
    titles = re.findall("<h3>([^<]*)</h3>", page)
    for part in ("Table 2", "Figure 1:", "Figure 1&#39;s controls", "one linear map", "Table 3"):
        assert any(part in title for title in titles), part
    for part in ("Table 4", "two ranks", "amplify", "rank matter", "methods differ", "Runs"):
        assert any(part in title for title in titles), part
    pictures = re.findall(r"data:image/png;base64,", page)
    assert len(pictures) == len(re.findall("<figure>", page)) >= 8
    text = re.sub(r"<script type=.module.>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(src|href)=["'](?!data:|#)|@import|url\(""", text)
    targets = set(re.findall(r'id="([^"]*)"', page))
    assert set(re.findall(r'href="#([^"]*)"', text)) <= targets
    assert len(page) < 3e6
    assert 'name="viewport"' in page
    assert all(len(alt) > 40 for alt in re.findall(r'alt="([^"]*)"', page))
    assert "does not pass through W₀⁻¹" in page


def test_the_margin_that_was_asked_for_is_said(page):
    assert "(margin: 2.5, in points)" in page and "within the margin of 2.5" in page


def test_reasons_are_escaped(page, partial):
    assert "<script>" not in page and "alert('x')" not in page and "&lt;script&gt;" in page
    markdown = (partial.folder / "report.md").read_text(encoding="utf-8")
    assert "<script>" not in markdown and r"\| not finite" in markdown


def test_what_is_not_averaged_is_named(page):
    assert "9 of 12 runs finished" in page
    assert "mnli, lora, seed 1: failed: loss" in page
    assert "sst2, lora, seed 1: stale: made by another recipe" in page
    assert "mrpc, lora, seed 1: missing" in page
    assert "QNLI has no runs here: too long." in page


def test_what_checkpoints_cost_is_said(page, partial):
    assert "at most 1.5 MiB; 1.00 % of the time spent training; 0 of 9 runs were" in page


def test_what_differs_between_runs_is_said(page, partial):
    assert "averaged here differ" not in page
    cells = list(partial.cells)
    record = cells[0].record
    environment = record["environment"] | {"versions": {"torch": "2.11.0", "peft": "0.21.2"}}
    cells[0] = replace(cells[0], record=record | {"environment": environment})
    lines = present_limits.limits([c for c in cells if c.state == "done"], 0.05)
    said = "Runs that are compared or averaged here differ in versions: torch is 2.13.0 in 8 runs and 2.11.0 in 1 run."
    assert said in lines


def test_what_does_not_hold_is_said_first(page):
    verdicts = re.findall(r'class="verdict">([^<]*)\.<', page)
    order = [verdict.capitalize() for verdict in VERDICTS]
    own = sum(claim["kind"] == "paper" for claim in published("claims")["claims"].values())
    assert verdicts[:own] == sorted(verdicts[:own], key=order.index)
    assert f"Verdicts on the paper's {own} claims" in page.replace("&#39;", "'")


def test_the_dates_of_rules_and_runs_are_shown(page):
    fixed = published("claims")["fixed"]
    for date in (fixed["first_version"], fixed["this_version"]):
        assert date in page
    assert "2025-01-01" in page  # when a run was finished


def test_every_claim_shows_what_it_rests_on(page, partial):
    found = json.loads((partial.folder / "claims.json").read_text(encoding="utf-8"))
    assert {claim["verdict"] for claim in found} >= {HOLDS, FAILS, NOT_RESOLVED}
    assert len(found) == page.count('class="verdict"') == page.count('class="rule"')
    text = html.unescape(page)
    for claim in found:
        for part in ("statement", "quantity", "test", "holds_if", "fails_if", "evidence"):
            assert claim[part] in text, claim["key"]
        if claim["n"]:
            assert f"n = {claim['n']} {claim['unit']}" in text
        if claim["verdict"] in (NOT_RESOLVED, "not tested", "not run"):
            assert claim["settle"] and claim["settle"] in text, claim["key"]
    assert page.count("What would decide it:") == sum(bool(claim["settle"]) for claim in found)


def test_every_link_of_the_markdown_leads_somewhere(page, partial):
    text = (partial.folder / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert len(links) > 6
    assert not [link for link in links if not (partial.folder / link).is_file()]
    assert "does not hold" in text


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes(page, partial, tmp_path):
    again = replace(partial, folder=tmp_path / "again")
    present_report.build(again, MARGIN)
    files = [path for path in sorted(partial.folder.rglob("*")) if path.is_file()]
    assert len(files) > 30
    for path in files:
        other = again.folder / path.relative_to(partial.folder)
        assert path.read_bytes() == other.read_bytes(), path.name


def test_facts_name_values_that_differ_between_runs(study):
    first = study.cells[0]
    changed = first.record["environment"] | {"commit": "fedcba", "dirty": True}
    protocol = {"protocol": {"learning_rate": 0.005}}
    record = first.record | {"environment": changed}
    record["recipe"] = record["recipe"] | protocol
    facts = dict(
        provenance.facts(replace(study, cells=[replace(first, record=record), *study.cells[1:]]))
    )
    assert facts["Commit"] == "abcdef012345 / fedcba (with uncommitted changes)"
    assert "learning_rate 0.002 / 0.005" in facts["Protocol"]
    assert facts["Truncated examples"] == "RTE 3"
    assert facts["Seeds"] == "2: 0, 1"


def test_limits_follow_backbone_data_and_seeds(study, cell):
    here = " ".join(present_limits.limits(study.done, 0.05))
    assert "The backbone is minilm" in here and "not GLUE as published" in here
    papers = cell("rte", "lora", 0)
    data = papers.record["data"] | {"official_counts": True}
    backbone = papers.record["backbone"] | {"name": "roberta-base"}
    papers = replace(papers, record=papers.record | {"data": data, "backbone": backbone})
    there = " ".join(present_limits.limits([papers], 0.05))
    assert "The backbone is" not in there and "not GLUE" not in there
