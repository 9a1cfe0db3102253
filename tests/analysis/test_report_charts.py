"""The report's figures: every choice of an interactive one changes it, and the small plots put dots where the values are."""

import copy
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import vl_convert

from analysis.maths.conversion_similarity import CONTROL, GAUSSIAN, TRAINED, ConversionSimilarity
from analysis.present import report_charts
from analysis.present.report_plots import Row, dot_rows, heat_maps, interval
from analysis.study.names import FAMILIES, family
from tests.tasks import ROOT


@pytest.fixture(scope="module")
def conversion():
    """Three layers, two module kinds, two tasks; every map differs from every other."""
    rng = np.random.default_rng(0)
    maps = {}
    for module in ("query", "value"):
        for matrix in ("A", "B"):
            for source, tasks in ((TRAINED, ("mnli", "rte")), (GAUSSIAN, ("",)), (CONTROL, ("",))):
                for task in tasks:
                    maps[module, matrix, source, task] = 0.1 * rng.random((2, 3, 3))
    columns = ["module", "matrix", "source", "task"]
    return ConversionSimilarity(
        maps, pd.DataFrame(maps.keys(), columns=columns), {"value": [1, 2, 3]}, []
    )


@pytest.fixture(scope="module")
def methods():
    rows = [
        ("lora", 1000, 80.0, 1.0, True), ("condlora", 100, 70.0, 1.2, True), ("vera", 300, 50.0, 0.7, False),
        ("head", 0, 40.0, 0.5, True), ("ia3", 200, 65.0, np.nan, False),
    ]  # fmt: skip
    found = pd.DataFrame(rows, columns=["method", "parameters", "score", "time", "on_frontier"])
    for name, value in {"sd": 1.0, "n": 3, "memory_mib": found.parameters / 7}.items():
        found[name] = value
    found["low"], found["high"] = found.score - 1, found.score + 1
    found["minus_lora"] = found["minus_condlora"] = np.nan
    return found


@pytest.fixture(scope="module")
def finished(cell, tmp_path_factory):
    """Four runs with curves on disk."""
    folder, cells = tmp_path_factory.mktemp("runs"), []
    for task in ("mnli", "rte"):
        for method in ("lora", "condlora"):
            own = cell(task, method, 0)
            place = folder / task / method
            place.mkdir(parents=True)
            (place / "curve.csv").write_text(
                f"step,train_loss,accuracy\n10,0.7,\n20,0.6,0.{len(task + method)}\n30,0.5,0.8\n"
            )
            object.__setattr__(own, "folder", place)
            cells.append(own)
    return cells


@pytest.fixture(scope="module")
def charts(conversion, methods, finished):
    return {chart.name: chart for chart in report_charts.charts(conversion, methods, finished)}


def draw(spec):
    return vl_convert.vegalite_to_svg(spec, vl_version=report_charts.VERSION)


def others(param):
    """The values that a choice can take other than its first."""
    bind = param["bind"]
    if bind["input"] in ("select", "radio"):
        return [option for option in bind["options"] if option != param["value"]]
    return [False] if bind["input"] == "checkbox" else ["cond"]


@pytest.mark.parametrize("name", ["explore-figure1", "explore-frontier", "explore-curves"])
def test_every_choice_changes_the_figure(charts, name):
    (spec, *_) = charts[name].views
    before = draw(spec)
    assert len(spec["params"]) >= 3
    for place, param in enumerate(spec["params"]):
        for value in others(param):
            changed = copy.deepcopy(spec)
            changed["params"][place]["value"] = value
            assert draw(changed) != before, (param["name"], value)


def test_the_map_shows_the_mean_of_its_panel(charts, conversion):
    (left, right) = charts["explore-figure1"].views
    record = next(v for v in left["data"]["values"] if (v["module"], v["matrix"], v["source"], v["task"]) == ("value", "A", TRAINED, "mnli"))  # fmt: skip
    expected = conversion.maps["value", "A", TRAINED, "mnli"].mean(axis=0)
    assert np.reshape(record["phi"], (3, 3)) == pytest.approx(expected, rel=5e-3)
    assert {p["name"]: p["value"] for p in left["params"]} == {
        "task": "mnli", "modules": "value", "matrix": "A", "source": TRAINED, "scale": "data"
    }  # fmt: skip
    assert right["params"][3]["value"] == CONTROL
    drawn = draw(left)
    assert record["mean"] in drawn and drawn.count("φ:") >= 9  # the labels of its cells


def test_curves_hold_every_run_and_its_evaluations(charts):
    (spec,) = charts["explore-curves"].views
    rows = spec["data"]["values"].splitlines()
    assert len(rows) == 1 + 4 * 3 and rows[0] == "task,adapter,method,seed,step,score,loss"
    assert "mnli,lora,LoRA,0,20,80,0.6" in rows


def test_a_chart_without_values_is_left_out(cell):
    empty = ConversionSimilarity({}, pd.DataFrame(columns=["task", "module", "source"]), {}, [])
    assert report_charts.charts(empty, None, [cell("rte", "lora", 0)]) == []


def test_specifications_are_plain_json(charts):
    for chart in charts.values():
        json.dumps(chart.views, allow_nan=False)


def test_every_method_has_a_family():
    found = {p.stem: family(p.stem) for p in (ROOT / "configs/adapter").glob("*.yaml")}
    assert set(found.values()) == set(FAMILIES)
    assert found["lora"] == family("lora_r4") == "LoRA" and found["condlora_random"] != "CondLoRA"
    assert found["share_lora_ab"] == found["vera"] == "shared or generated A and B"
    assert found["dora"] == found["qlora"] == "variants of LoRA" and found["ia3"] == "other adapters"  # fmt: skip


def numbers(pattern, svg):
    return [float(x) for x in re.findall(pattern, svg)]


def test_dots_stand_in_the_order_of_their_values_and_long_intervals_are_cut():
    rows = [Row("a", [1.0], [2.0], -100, 100), Row("<b>", [], [3.0])]
    svg = dot_rows(rows, alt='two "rows"', digits=1, null=0.0, margin=0.5)
    first, second = numbers(r'circle class="here" cx="([\d.]+)"', svg)
    (paper,) = numbers(r'class="paper" d="M([\d.]+)', svg)
    (null,) = numbers(r'class="null" x1="([\d.]+)"', svg)
    assert null < paper + 4.5 < first < second <= 300
    assert first - null == pytest.approx(2 * (paper + 4.5 - null), abs=0.3)
    (left,), (right,) = (numbers(rf'class="interval"[^/]*{x}="([\d.]+)"', svg) for x in ("x1", "x2"))  # fmt: skip
    assert 84 <= left < right <= 300
    assert "&lt;b&gt;" in svg and 'aria-label="two &quot;rows&quot;"' in svg


def test_an_interval_shows_null_and_limit_and_nothing_where_there_is_no_estimate():
    svg = interval(1.0, 0.5, 1.5, null=0.0, limit=2.0, alt="")
    places = [numbers(rf'{name}"[^>]*?(?:x1|cx)="([\d.]+)"', svg)[0] for name in ('class="null', 'class="here', 'class="limit')]  # fmt: skip
    assert places == sorted(places)
    assert interval(math.nan, math.nan, math.nan, null=0.0, limit=1.0, alt="") == ""


def test_a_heat_map_leaves_its_diagonal_grey():
    svg = heat_maps([[("t", np.array([[1.0, 0.1], [0.2, 1.0]]))]], limit=0.2, alt="")
    assert svg.count('class="diagonal"') == 2 and len(set(re.findall(r'fill="(#\w+)"', svg))) == 2
