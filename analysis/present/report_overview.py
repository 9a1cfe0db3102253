"""The first screen of the report: what ran, what cannot be compared, and a panel for each of the paper's four results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from analysis.maths.conversion_similarity import CONTROL, GAUSSIAN, TRAINED
from analysis.present.conversion_similarity import paper_panel
from analysis.present.figures import round_up
from analysis.present.report_plots import Row, dot_rows, heat_maps
from analysis.stats.claims import Claim
from analysis.stats.evidence import Findings
from analysis.stats.formatting import UNDEFINED, interval, number
from analysis.stats.rules import FAILS, HOLDS, NOT_RESOLVED, NOT_RUN, NOT_TESTED
from analysis.study.names import MATRIX_LABEL, TASKS, label
from analysis.study.paper import published
from analysis.study.scores import AVERAGE
from analysis.study.selection import Study

SHORT = {  # a claim of the paper in a few words
    "conversion_above_gaussian_mnli": "trained layers more similar than random matrices",
    "deep_above_shallow_mnli": "deep layers more similar than shallow ones",
    "equal_each_task": "equal scores on each task",
    "equal_on_average": "equal mean score",
    "no_difference_found": "no difference found by paired t-tests, which with few seeds hardly ever find one",
    "adapters_above_random_value": "A, B and ΔW more similar than random matrices",
    "parameters_one_over_layers": "1/L of LoRA's parameters",
    "speed_not_lower": "training as fast as LoRA",
    "merged_speed_equal": "equal speed after merging",
}
IN_A_SENTENCE = {  # verdict -> how a panel's sentence says it
    HOLDS: "Agrees",
    FAILS: "Does not agree",
    NOT_RESOLVED: "Not resolved",
    NOT_TESTED: "Not tested",
    NOT_RUN: "Not run",
}


@dataclass(frozen=True)
class Overview:
    """One of the four panels. verdict: that of all its claims together; sentence: what agrees; numbers: the values."""

    place: str
    question: str
    verdict: str
    sentence: str
    numbers: str
    plot: Markup
    below: str


def what_ran(study: Study) -> str:
    """One line: methods, backbone, data, seeds, runs and device."""
    done = study.done
    records = [cell.record for cell in done]
    methods = list(dict.fromkeys(label(cell.adapter) for cell in done))
    named = " and ".join(methods) if len(methods) <= 2 else f"{len(methods)} methods"
    backbones = dict.fromkeys(
        f"{b['name']} ({b['layers']} layers of width {b['hidden_size']})"
        for b in (record["backbone"] for record in records)
    )
    tasks, seeds = {cell.task for cell in done}, {cell.seed for cell in done}
    return " · ".join(
        [
            named,
            ", ".join(backbones),
            f"{len(tasks)} task{'s' * (len(tasks) > 1)} ({', '.join(dict.fromkeys(r['data']['source'] for r in records))} data)",
            f"{len(seeds)} seed{'s' * (len(seeds) > 1)}",
            f"{len(done)} of {len(study.cells)} runs finished",
            ", ".join(dict.fromkeys(r["environment"]["device"] for r in records)),
        ]
    )


def panels(findings: Findings, claims: Sequence[Claim], margin_points: float) -> list[Overview]:
    """The panels of Table 2, Figure 1, Table 3 and Table 4."""
    return [
        _panel(claims, "Table 2", "Does CondLoRA score as LoRA does?", *_table2(findings, margin_points)),
        _panel(claims, "Figure 1", "Are LoRA's conversion matrices similar between layers?", *_figure1(findings)),
        _panel(claims, "Table 3", "Do both methods learn similar matrices?", *_table3(findings)),
        _panel(claims, "Table 4", "Is CondLoRA smaller and as fast?", *_table4(claims)),
    ]  # fmt: skip


def _panel(claims: Sequence[Claim], place: str, question: str, numbers: str, plot: Markup, below: str) -> Overview:  # fmt: skip
    own = [claim for claim in claims if claim.kind == "paper" and claim.place == place]
    found = [claim.verdict for claim in own]
    together = next((v for v in (FAILS, NOT_RESOLVED, NOT_TESTED, NOT_RUN) if v in found), HOLDS)
    parts = []
    for verdict, words in IN_A_SENTENCE.items():
        claims_with = [claim for claim in own if claim.verdict == verdict]
        if claims_with:
            names = ", ".join(SHORT.get(claim.key, claim.statement) for claim in claims_with)
            reasons = {
                part.reason: None for claim in claims_with for part in claim.parts if part.reason
            }
            why = f" ({', '.join(reasons)})" if reasons else ""
            parts.append(f"{words}{why}: {names}.")
    if place == "Figure 1" and _is(claims, "conversion_above_control", FAILS):
        parts.append(
            "However, Gaussian A and B passed through the same W₀⁻¹ are equally similar, although nothing was learned."
        )
    return Overview(place, question, together, " ".join(parts), numbers, plot, below)


def _is(claims: Sequence[Claim], key: str, verdict: str) -> bool:
    return any(claim.key == key and claim.verdict == verdict for claim in claims)


def _table2(findings: Findings, margin: float) -> tuple[str, Markup, str]:
    paper, found = published("table2"), findings.differences
    found = found[found.adapter == "condlora"].set_index("task")
    mean = paper["mean_of_row"]["condlora"] - paper["mean_of_row"]["lora"]
    rows = []
    for task, name in [*TASKS.items(), (AVERAGE, "mean")]:
        printed = mean
        if task != AVERAGE:
            printed = paper["scores"]["condlora"][task] - paper["scores"]["lora"][task]
        here = found.loc[task] if task in found.index else None
        ours = () if here is None else (here["mean"],)
        ends = (math.nan, math.nan) if here is None else (here.t_low, here.t_high)
        rows.append(Row(name, (printed,), ours, *ends))
    numbers = f"CondLoRA − LoRA, mean of the tasks: {number(mean, 2)} points in the paper"
    if AVERAGE in found.index:
        own = found.loc[AVERAGE]
        numbers += f", {number(own['mean'], 1)} {interval(own.t_low, own.t_high, 1)} here."
    else:
        numbers += "; here not all eight tasks were run."
    alt = "CondLoRA − LoRA in points for each task, in the paper and here."
    plot = dot_rows(rows, alt=alt, digits=0, null=0.0, margin=margin)
    below = f"CondLoRA − LoRA in points with intervals; the band is the margin, ± {margin:g}"
    return numbers, plot, below


def _figure1(findings: Findings) -> tuple[str, Markup, str]:
    result = findings.conversion
    panel = paper_panel(result)
    if panel is None:
        return "No conversion matrices.", Markup(""), ""
    task, module = panel
    columns = [(TRAINED, task, "trained"), (GAUSSIAN, "", "Gaussian"), (CONTROL, "", "Gaussian, W₀⁻¹")]  # fmt: skip
    runs = len(result.maps[module, "A", TRAINED, task])
    rows, means, largest = [], [], 0.0
    for matrix in ("A", "B"):
        shown = [result.maps[module, matrix, source, name][:runs].mean(axis=0) for source, name, _ in columns]  # fmt: skip
        rows.append([(f"{matrix}, {title}", m) for (*_, title), m in zip(columns, shown, strict=True)])  # fmt: skip
        off = ~np.eye(len(result.layers), dtype=bool)
        largest = max(largest, *(float(np.nanmax(m[off])) for m in shown))
        means.append([
            result.values[
                (result.values[["module", "matrix", "source", "task"]] == [module, matrix, source, name]).all(axis=1)
            ].off_diagonal.mean()
            for source, name, _ in columns
        ])  # fmt: skip
    limit = round_up(largest)
    named = (f"{title} {number(a, 3)} and {number(b, 3)}" for (*_, title), a, b in zip(columns, *means, strict=True))  # fmt: skip
    numbers = f"Mean φ of W₀→A and W₀→B: {'; '.join(named)}. The paper prints no values."
    below = f"{TASKS.get(task, task)}, {module} modules, layer by layer; colour scale from 0 to {limit:g}"
    alt = f"Maps of φ between layers for W₀→A and W₀→B. {numbers}"
    return numbers, heat_maps(rows, limit=limit, alt=alt), below


def _table3(findings: Findings) -> tuple[str, Markup, str]:
    paper, result = published("table3"), findings.adapters
    module = paper["module"]
    expected = max(paper["i"], paper["j"]) / paper["d"]
    rows, here = [], []
    for matrix, values in paper["phi"].items():
        ours: list[float] = []
        if (module, matrix) in result.expected:
            by_layer = result.per_layer(module, matrix).mean()
            ours = (by_layer / result.expected[module, matrix]).tolist()
            here.append(f"{MATRIX_LABEL[matrix]} {number(float(np.mean(ours)), 1)}")
        rows.append(Row(MATRIX_LABEL[matrix], [v / expected for v in values], ours))
    printed = ", ".join(f"{row.name} {number(float(np.mean(row.paper)), 1)}" for row in rows)
    numbers = f"Ratio to the value of random subspaces, mean over layers: {printed} in the paper"
    numbers += f"; {', '.join(here)} here." if here else "; no pair of runs here."
    alt = f"φ between LoRA's and CondLoRA's matrices, one mark for each layer. {numbers}"
    spaced = [part for row in rows for part in (Row(f"{row.name}, paper", row.paper), Row("here", (), row.here))]  # fmt: skip
    plot = dot_rows(spaced, alt=alt, digits=0, null=1.0)
    below = f"φ relative to random subspaces (dotted line: 1), {module} modules; one mark for each layer"
    return numbers, plot, below


def _table4(claims: Sequence[Claim]) -> tuple[str, Markup, str]:
    paper = published("table4")
    counts, speed = paper["trainable_parameters"], paper["train_examples_per_second"]
    printed = {
        "parameters_one_over_layers": counts["lora"] / counts["condlora"] / paper["layers"],
        "speed_not_lower": speed["condlora"] / speed["lora"],
        "merged_speed_equal": 1.0,
    }
    names = ("parameters", "training", "merged")
    by_key = {claim.key: claim for claim in claims}
    rows, here = [], []
    for (key, value), name in zip(printed.items(), names, strict=True):
        claim = by_key[key]
        rows.append(Row(name, (value,), (claim.estimate,), *claim.interval))
        ends = interval(*claim.interval, 2)
        here.append(f"{number(claim.estimate, 3)}{'' if ends == UNDEFINED else f' {ends}'} here")
    text = (
        f"LoRA's parameters / (L × CondLoRA's): {number(rows[0].paper[0], 3)} in the paper, {here[0]}. "
        f"Training speed / LoRA's: {number(rows[1].paper[0], 3)} in the paper, {here[1]}. "
        f"Merged speed / LoRA's: equal in the paper (no number printed), {here[2]}."
    )
    plot = dot_rows(rows, alt=f"Ratios of CondLoRA and LoRA. {text}", digits=2, null=1.0)
    below = "parameters: LoRA's / (L × CondLoRA's); speeds: relative to LoRA; 1 means equal"
    return text, plot, below
