"""The comparison of a report with a reference: which folder it is, what agrees, and what the page says of it."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.present import report as present_report
from analysis.stats.agreement import OUTSIDE, UNKNOWN, WITHIN, compare_scores, difference_of_means
from analysis.study import reference
from condlora.errors import UserError


def frame(**scores):
    rows = [["cola", adapter, value] for adapter, values in scores.items() for value in values]
    return pd.DataFrame(rows, columns=["task", "adapter", "score_points"])


def test_interval_of_a_difference_is_the_two_sample_t_interval():
    x, y = np.array([1.0, 2.0, 4.0]), np.array([2.0, 5.0])
    expected = stats.ttest_ind(x, y).confidence_interval(0.9)
    assert difference_of_means(x, y, 0.9) == pytest.approx((expected.low, expected.high))
    assert math.isnan(difference_of_means(x[:1], y[:1], 0.9).low)


def test_a_score_is_within_seed_spread_where_seeds_explain_the_difference():
    here = frame(lora=[80.0, 81.0], condlora=[70.0, 70.2], vera=[60.0], dora=[61.0], head=[9.0])
    other = frame(lora=[80.5, 81.5], condlora=[75.0, 75.2], vera=[60.0], dora=[60.0])
    found = compare_scores(here, other, 0.95).set_index("adapter").verdict.to_dict()
    assert found == {"lora": WITHIN, "condlora": OUTSIDE, "vera": WITHIN, "dora": UNKNOWN}


def make_report(folder):
    (folder / "tables").mkdir(parents=True)
    (folder / "claims.json").write_text("[]")
    (folder / "tables/table2.csv").write_text("task,adapter,score_points\n")
    return folder


def test_the_reference_is_the_committed_report_of_the_profile_or_the_one_asked_for(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(reference, "COMMITTED", tmp_path / "reference")
    assert reference.find_reference(tmp_path, "embedded", None) is None
    own = make_report(tmp_path / "reference/embedded")
    assert reference.find_reference(tmp_path, "embedded", None) == own
    # a report does not compare with itself
    assert reference.find_reference(tmp_path / "reference", "embedded", None) is None
    committed = make_report(tmp_path / "reference/kinship")
    assert reference.find_reference(tmp_path, "embedded", "kinship") == committed
    made = make_report(tmp_path / "kinship")
    assert reference.find_reference(tmp_path, "embedded", "kinship") == made
    with pytest.raises(UserError, match="No results of the profile 'paper'"):
        reference.find_reference(tmp_path, "embedded", "paper")


def test_the_committed_references_are_read():
    folders = [path.parent for path in reference.COMMITTED.glob("*/claims.json")]
    assert len(folders) >= 2
    for folder in folders:
        found = reference.load_reference(folder, "another")
        assert len(found.scores) and len(found.verdicts) > 15


@pytest.mark.slow  # two whole reports
def test_a_report_says_whether_it_agrees_with_the_reference(study, tmp_path):
    cells = [cell for cell in study.cells if cell.task in ("cola", "rte")]
    first = replace(study, folder=tmp_path / "first", cells=cells)
    present_report.build(first)
    claims = json.loads((first.folder / "claims.json").read_text())
    claims[0]["verdict"] = "another"
    (first.folder / "claims.json").write_text(json.dumps(claims))
    table = pd.read_csv(first.folder / "tables/table2.csv")
    table.loc[(table.task == "rte") & (table.adapter == "lora"), "score_points"] -= 30
    table.to_csv(first.folder / "tables/table2.csv", index=False)
    page = present_report.build(replace(first, folder=tmp_path / "second"), None, first.folder)
    text = page.read_text(encoding="utf-8")
    assert "3 of 4 scores are within seed spread" in text
    assert f"{len(claims) - 1} of {len(claims)} verdicts are the same" in text
    found = pd.read_csv(tmp_path / "second/tables/reference_verdicts.csv")
    assert found[~found.same].claim.tolist() == [claims[0]["key"]]
