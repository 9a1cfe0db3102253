"""The report: what it says, what it escapes, and that the same runs give the same bytes."""

import json
import re
from dataclasses import replace

import pytest

from analysis import report
from analysis.claims import FAILS, HOLDS


@pytest.fixture(scope="module")
def partial(study, spoil):
    """Three tasks of the grid, with one failed, one stale and one missing cell."""
    cells = study.cells[:12]
    cells[1] = spoil(cells[1], "failed", "loss <script>alert('x')</script> & | not finite")
    cells[5] = spoil(cells[5], "stale", "made by another recipe")
    cells[9] = replace(spoil(cells[9], "missing"), record=None)
    return replace(study, cells=cells)


@pytest.fixture(scope="module")
def page(partial):
    return report.build(partial).read_text(encoding="utf-8")


def test_page_holds_every_part_and_nothing_from_outside(page, partial):
    for part in ("Table 2", "Figure 1", "Table 3", "Table 4", "What cannot be compared"):
        assert part in page
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"""(src|href)=["'](?!data:)|@import|url\(""", page)
    assert 'name="viewport"' in page
    assert all(len(alt) > 40 for alt in re.findall(r'alt="([^"]*)"', page))
    assert "does not pass through W₀⁻¹" in page


def test_reasons_are_escaped(page, partial):
    assert "<script>" not in page and "&lt;script&gt;" in page
    markdown = (partial.folder / "report.md").read_text(encoding="utf-8")
    assert "<script>" not in markdown and r"\| not finite" in markdown


def test_what_is_not_averaged_is_named(page):
    assert "9 of 12 runs are finished" in page
    assert "mnli, lora, seed 1: failed: loss" in page
    assert "sst2, lora, seed 1: stale: made by another recipe" in page
    assert "mrpc, lora, seed 1: missing" in page


def test_what_does_not_hold_is_said_first(page):
    verdicts = re.findall(r'class="verdict">([^<]*)\.<', page)
    assert verdicts[0] == "Does not hold" and "Holds" in verdicts
    order = ["Does not hold", "Holds", "Not run"]
    assert verdicts == sorted(verdicts, key=order.index)


def test_claims_file_agrees_with_the_page(page, partial):
    found = json.loads((partial.folder / "claims.json").read_text(encoding="utf-8"))
    assert {claim["verdict"] for claim in found} >= {HOLDS, FAILS}
    assert all({"statement", "rule", "evidence", "n"} <= set(claim) for claim in found)
    assert len(found) == page.count('class="verdict"')


def test_every_link_of_the_markdown_leads_somewhere(page, partial):
    text = (partial.folder / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert len(links) > 6
    assert not [link for link in links if not (partial.folder / link).is_file()]
    assert "does not hold" in text


def test_the_same_runs_give_the_same_bytes(page, partial, tmp_path):
    again = replace(partial, folder=tmp_path / "again")
    report.build(again)
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
        report.facts(replace(study, cells=[replace(first, record=record), *study.cells[1:]]))
    )
    assert facts["Commit"] == "abcdef012345 / fedcba (with uncommitted changes)"
    assert "learning_rate 0.002 / 0.005" in facts["Protocol"]
    assert facts["Truncated examples"] == "RTE 3"
    assert facts["Seeds"] == "2: 0, 1"


def test_limits_follow_backbone_data_and_seeds(study, cell):
    here = " ".join(report.limits(study.done))
    assert "The backbone is minilm" in here and "not GLUE as published" in here
    papers = cell("rte", "lora", 0)
    data = papers.record["data"] | {"official_counts": True}
    backbone = papers.record["backbone"] | {"name": "roberta-base"}
    papers = replace(papers, record=papers.record | {"data": data, "backbone": backbone})
    there = " ".join(report.limits([papers]))
    assert "The backbone is" not in there and "not GLUE" not in there
