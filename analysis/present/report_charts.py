"""The interactive figures of the report: Figure 1's maps, the frontier and the learning curves, as Vega-Lite specifications.

Vega-Lite states a figure and its choices as data: choices are the browser's own fields, so that they work with the keyboard,
and the page needs no JavaScript of ours for them. vl-convert-python carries Vega's JavaScript, which goes into the page,
and draws a specification without a browser, which the tests use. The same runs give the same text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import vl_convert

from analysis.maths.conversion_similarity import CONTROL, TRAINED, ConversionSimilarity
from analysis.present.conversion_similarity import SOURCE_LABEL, paper_panel
from analysis.present.figures import METHOD_STYLE, OTHER_STYLES, round_up
from analysis.stats.formatting import mean_sd
from analysis.stats.significance import summarise
from analysis.study.names import FAMILIES, MATRIX_LABEL, TASKS, family, label
from analysis.study.run_files import curve
from analysis.study.scores import POINTS
from condlora.grid.cells import Cell

Spec = dict[str, Any]
VERSION = "6.4"  # of Vega-Lite, one of those that vl-convert-python carries
MOST_STEPS = 60  # points of a learning curve that the page holds
NEAR = 20  # points below the best method that the frontier shows at first

# In the page's own colour, so that dark mode and print need no second figure.
CONFIG = {
    "background": "transparent",
    "view": {"stroke": None},
    "axis": {"labelColor": "currentColor", "titleColor": "currentColor", "domainColor": "#888", "tickColor": "#888", "gridColor": "#8884"},
    "legend": {"labelColor": "currentColor", "titleColor": "currentColor"},
    "text": {"color": "currentColor"},
    "title": {"color": "currentColor", "anchor": "start", "fontSize": 12, "fontWeight": "normal"},
}  # fmt: skip

LEGEND = {"orient": "bottom", "columns": 2, "columnPadding": 40, "labelLimit": 260}


@dataclass(frozen=True)
class Chart:
    """An interactive figure: one view or two side by side; source: the file with its numbers, where there is no JavaScript."""

    name: str
    title: str
    text: str
    views: list[Spec]
    source: str


def javascript() -> str:
    """Vega, Vega-Lite and vega-embed for the page, about 0.9 MB."""
    return vl_convert.javascript_bundle(vl_version=VERSION).replace("</script", "<\\/script")


def charts(
    conversion: ConversionSimilarity, frontier: pd.DataFrame | None, cells: Sequence[Cell]
) -> list[Chart]:
    """Those for which there is something to show."""
    found = [figure1(conversion), curves(cells)]
    if frontier is not None and len(frontier) > 2:
        found.insert(1, frontier_chart(frontier))
    return [chart for chart in found if chart]


def figure1(result: ConversionSimilarity) -> Chart | None:
    """Two maps with choices of task, modules, matrix, source and scale; at first trained matrices and the control."""
    panel = paper_panel(result)
    if panel is None:
        return None
    off = ~np.eye(len(result.layers), dtype=bool)
    values, largest = [], 0.0
    for (module, matrix, source, task), maps in result.maps.items():
        mean = maps.mean(axis=0)
        largest = np.fmax(largest, np.nanmax(mean[off]))
        sd = maps.std(axis=0, ddof=1) if len(maps) > 1 else np.full_like(mean, np.nan)
        means = summarise(maps[:, off].mean(axis=1))
        values.append(
            {"module": module, "matrix": matrix, "source": source, "task": task, "n": len(maps)}
            | {"phi": _rounded(mean), "sd": _rounded(sd), "mean": mean_sd(means, 4)}
        )
    limit = round_up(largest)
    views = [_map(result, values, panel, source, limit) for source in (TRAINED, CONTROL)]
    text = (
        "φ between the conversion matrices of two layers, mean over seeds or draws. Each map has its own choices. Point at a cell to see "
        "its value. The paper's scale is 0 to 1. The diagonal is 1 by definition and drawn in grey."
    )
    return Chart("explore-figure1", "Figure 1, interactive", text, views, "figures/figure1_<modules>.csv")  # fmt: skip


def _rounded(matrix: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else float(f"{v:.3g}") for v in matrix.ravel()]


def _map(
    result: ConversionSimilarity, values: list[Spec], panel: tuple[str, str], source: str, limit: float
) -> Spec:  # fmt: skip
    tasks = list(dict.fromkeys(v["task"] for v in values if v["source"] == TRAINED))
    sources = list(dict.fromkeys(v["source"] for v in values))
    matrices = list(dict.fromkeys(v["matrix"] for v in values))
    layers, L = [str(layer) for layer in result.layers], len(result.layers)
    cell = {
        "x": {"field": "to", "type": "ordinal", "title": "layer", "sort": layers, "axis": {"labelAngle": 0}},
        "y": {"field": "from", "type": "ordinal", "title": "layer", "sort": layers},
    }  # fmt: skip
    return _spec(
        params=[
            _choice("task", panel[0], {t: TASKS.get(t, t) for t in tasks}),
            _choice("modules", panel[1], {m: m for m in result.modules}),
            _choice("matrix", "A", {m: f"W₀→{MATRIX_LABEL[m]}" for m in matrices}),
            _choice("source", source, {s: SOURCE_LABEL.get(s, s) for s in sources}),
            _choice("scale", "data", {"data": f"0 to {limit:g} (data)", "paper": "0 to 1 (paper)"}, "radio"),
        ],
        data={"values": values},
        height=320,
        transform=[
            {"filter": "datum.module === modules && datum.matrix === matrix && datum.source === source && (datum.task === task || datum.task === '')"},
            {"calculate": f"sequence({L * L})", "as": "place"},
            {"flatten": ["phi", "sd", "place"]},
            {"calculate": f"{layers}[floor(datum.place / {L})]", "as": "from"},
            {"calculate": f"{layers}[datum.place % {L}]", "as": "to"},
            {"calculate": "datum.from === datum.to", "as": "diagonal"},
        ],
        layer=[
            {
                "mark": "rect",
                "encoding": cell | {
                    "color": {
                        "condition": {"test": "datum.diagonal", "value": "#999"},
                        "field": "phi", "type": "quantitative", "title": "φ",
                        "scale": {"scheme": "cividis", "domainMin": 0, "domainMax": {"expr": f"scale === 'paper' ? 1 : {limit}"}, "clamp": True},
                    },
                    "tooltip": [
                        {"field": "from", "title": "layer"}, {"field": "to", "title": "and layer"},
                        {"field": "phi", "title": "φ"}, {"field": "sd"}, {"field": "n", "title": "seeds or draws"},
                    ],
                },
            },
            {
                "transform": [{"filter": "datum.place === 0"}, {"calculate": "'mean φ ' + datum.mean", "as": "text"}],
                "mark": {"type": "text", "align": "left", "x": 0, "y": -8},
                "encoding": {"text": {"field": "text"}},
            },
        ],
    )  # fmt: skip


def frontier_chart(found: pd.DataFrame) -> Chart:
    """Score against parameters, time or memory; families can be switched off and methods searched."""
    columns = ["method", "parameters", "score", "sd", "n", "low", "high", "minus_lora", "minus_condlora", "time", "memory_mib", "on_frontier"]  # fmt: skip
    values = _records(found[columns].assign(method=found.method.map(label), family=found.method.map(family)))  # fmt: skip
    families = [name for name in FAMILIES if any(v["family"] == name for v in values)]
    least = np.log10(found.parameters[found.parameters > 0].min())
    axes = {"parameters": "trainable parameters (without the head)", "time": "training time relative to LoRA", "memory_mib": "peak memory, MiB"}  # fmt: skip
    axes = {name: text for name, text in axes.items() if found[name].notna().any()}
    lowest, best = float(found.low.fillna(found.score).min()), float(found.score.max())
    x = {
        "field": "x", "type": "quantitative", "scale": {"zero": False}, "title": None,
        "axis": {"labelExpr": "against === 'parameters' ? format(pow(10, datum.value), '.2~s') : datum.label", "tickCount": 6, "labelOverlap": "greedy", "labelSeparation": 8},
    }  # fmt: skip
    y_scale = {"zero": False, "domainMin": {"expr": f"near ? {max(best - NEAR, lowest):.3f} : {lowest:.3f}"}, "domainMax": best + 1}  # fmt: skip
    y = {"field": "score", "type": "quantitative", "title": "score, points", "scale": y_scale}
    faded = {"condition": {"test": "indexof(lower(datum.method), lower(search)) >= 0", "value": 1}, "value": 0.12}  # fmt: skip
    tooltip = [{"field": name, "title": title, "format": form} for name, title, form in (
        ("score", "score", ".2f"), ("sd", "sd", ".2f"), ("n", "seeds", "d"), ("low", "interval from", ".2f"), ("high", "to", ".2f"),
        ("minus_lora", "minus LoRA", ".2f"), ("minus_condlora", "minus CondLoRA", ".2f"), ("parameters", "parameters", ",.0f"),
        ("time", "time relative to LoRA", ".2f"), ("memory_mib", "peak memory, MiB", ",.0f"))]  # fmt: skip
    colour = {"field": "family", "type": "nominal", "title": None, "scale": _family_colours(families), "legend": LEGEND}  # fmt: skip
    spec = _spec(
        params=[
            _choice("against", "parameters", axes),
            {"name": "search", "value": "", "bind": {"input": "search", "name": "find a method", "placeholder": "part of its name"}},
            {"name": "near", "value": True, "bind": {"input": "checkbox", "name": f"within {NEAR} points of the best"}},
            *({"name": f"family{n}", "value": True, "bind": {"input": "checkbox", "name": name}} for n, name in enumerate(families)),
        ],
        title={"text": {"expr": f"'score against ' + {axes}[against]"}},  # an axis cannot have a title that changes
        data={"values": values},
        height=380,
        transform=[
            {"filter": f"[{', '.join(f'family{n}' for n in range(len(families)))}][indexof({families}, datum.family)]"},
            {"filter": "isValid(datum[against])"},
            {"calculate": f"against !== 'parameters' ? datum[against] : datum.parameters > 0 ? log(datum.parameters) / LN10 : {least - 0.5:.3f}", "as": "x"},
        ],
        layer=[
            {"transform": [{"filter": "datum.on_frontier && against === 'parameters'"}], "mark": {"type": "line", "interpolate": "step-after", "color": "#888", "strokeWidth": 1, "clip": True}, "encoding": {"x": x, "y": y}},
            {"mark": {"type": "rule", "clip": True}, "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}, "color": colour, "opacity": faded}},
            {"mark": {"type": "point", "filled": True, "size": 70, "clip": True}, "encoding": {"x": x, "y": y, "color": colour, "opacity": faded, "tooltip": [{"field": "method"}, *tooltip]}},
            {"transform": [{"filter": "search !== '' && indexof(lower(datum.method), lower(search)) >= 0 || datum.on_frontier && search === ''"}],
             "mark": {"type": "text", "align": "left", "dx": 7, "dy": -6, "clip": True}, "encoding": {"x": x, "y": y, "text": {"field": "method"}}},
        ],
    )  # fmt: skip
    named = ", ".join(label(m) for m in found.method[found.on_frontier])
    text = f"On the frontier (no method with as few parameters has as high a mean score): {named}. This is not a ranking: see the intervals. Point at a mark to see the method and its numbers."
    return Chart("explore-frontier", "Score against cost", text, [spec], "tables/frontier.csv")


def curves(cells: Sequence[Cell]) -> Chart | None:
    """Every run's learning curve: score on validation, or training loss, over steps."""
    tables = [_curve(cell, table) for cell in cells if (table := curve(cell)) is not None]
    if not tables:
        return None
    found = pd.concat(tables)
    tasks = list(dict.fromkeys(found.task))
    families = [name for name in FAMILIES if name in set(found.family)]
    shown = {"score": "score on validation, points", "loss": "training loss"}
    faded = {"condition": {"test": "indexof(lower(datum.method), lower(search)) >= 0", "value": 1}, "value": 0.08}  # fmt: skip
    spec = _spec(
        params=[
            _choice("task", tasks[0], {t: TASKS.get(t, t) for t in tasks}),
            _choice("show", "score", shown),
            {"name": "search", "value": "", "bind": {"input": "search", "name": "find a method", "placeholder": "part of its name"}},
        ],
        title={"text": {"expr": f"{shown}[show] + ', over steps'"}},
        data={"values": found.drop(columns="family").to_csv(index=False, float_format="%.4g", lineterminator="\n"),
              "format": {"type": "csv", "parse": {"step": "number", "score": "number", "loss": "number", "seed": "string"}}},
        height=320,
        transform=[
            {"filter": "datum.task === task && isValid(datum[show])"},
            {"calculate": "datum[show]", "as": "y"},
            {"calculate": f"{ {m: family(m) for m in sorted(set(found.adapter))} }[datum.adapter]", "as": "family"},
            {"calculate": "datum.method + ', seed ' + datum.seed", "as": "run"},
        ],
        mark={"type": "line", "point": {"size": 22}, "strokeWidth": 1.4},
        encoding={
            "x": {"field": "step", "type": "quantitative", "title": "optimizer step"},
            "y": {"field": "y", "type": "quantitative", "scale": {"zero": False}, "title": None},
            "detail": {"field": "run"},
            "color": {"field": "family", "type": "nominal", "title": None, "scale": _family_colours(families), "legend": LEGEND},
            "opacity": faded,
            "tooltip": [{"field": "run"}, {"field": "step"}, {"field": "score", "format": ".2f"}, {"field": "loss", "format": ".4f"}],
        },
    )  # fmt: skip
    text = f"All {len(tables)} finished runs, one line each; the score is the task's headline metric on held-out training data."
    return Chart("explore-curves", "Learning curves", text, [spec], "the runs' curve.csv")


def _curve(cell: Cell, table: pd.DataFrame) -> pd.DataFrame:
    """task, adapter, method, seed, step, score in points, loss, family; at most MOST_STEPS evaluations of the run."""
    table = table.iloc[np.unique(np.linspace(0, len(table) - 1, MOST_STEPS).round().astype(int))]
    headline = cell.record["headline"]
    score = POINTS * table[headline] if headline in table else np.nan
    return pd.DataFrame(
        {"task": cell.task, "adapter": cell.adapter, "method": label(cell.adapter), "seed": cell.seed,
         "step": table.step, "score": score, "loss": table.train_loss, "family": family(cell.adapter)}
    )  # fmt: skip


def _family_colours(families: Sequence[str]) -> dict[str, list[str]]:
    """The paper's two as in every figure, the other families in the rest of the palette."""
    own = {style["label"]: style["color"] for style in METHOD_STYLE.values()}
    rest = [name for name in FAMILIES if name not in own]
    colours = own | {name: colour for name, (colour, _) in zip(rest, OTHER_STYLES, strict=True)}
    # Black would vanish in dark mode.
    return {"domain": list(families), "range": [colours[f].replace("#000000", "#888888") for f in families]}  # fmt: skip


def _choice(name: str, value: str, options: dict[str, str], field: str = "select") -> Spec:
    bind = {"input": field, "options": list(options), "labels": list(options.values()), "name": name}  # fmt: skip
    return {"name": name, "value": value, "bind": bind}


def _spec(**parts: Any) -> Spec:
    schema = "https://vega.github.io/schema/vega-lite/v6.json"
    return {"$schema": schema, "config": CONFIG, "width": "container", "autosize": {"type": "fit", "contains": "padding"}} | parts  # fmt: skip


def _records(frame: pd.DataFrame) -> list[Spec]:
    """The rows as JSON objects, rounded, with null for what is undefined."""
    rows = frame.to_dict("records")
    return [
        {
            k: (None if np.isnan(v) else float(f"{v:.6g}")) if isinstance(v, float) else v
            for k, v in row.items()
        }
        for row in rows
    ]
