"""The evidence for each claim of results/paper/claims.yaml: from findings to the parts of a claim.

There is one computation per key of that file; it returns the parts of the claim with their verdicts, and a note.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.maths import adapter_similarity
from analysis.maths.adapter_similarity import AdapterSimilarity
from analysis.maths.conversion_similarity import CONTROL, GAUSSIAN, ConversionSimilarity
from analysis.maths.linear_map import LinearMap
from analysis.stats import matrix_parts
from analysis.stats.formatting import number
from analysis.stats.rules import (
    FAILS,
    HOLDS,
    NOT_RESOLVED,
    NOT_RUN,
    Part,
    Thresholds,
    above_null,
    exact,
    not_lower,
    not_tested,
    verdict,
)
from analysis.stats.significance import Interval, summarise
from analysis.study import scores
from analysis.study.costs import speed_ratios
from analysis.study.names import MATRIX_LABEL, REFERENCE, TASKS, label
from analysis.study.paper import published
from analysis.study.plateau import plateau_rule
from analysis.study.scores import AVERAGE

Evidence = tuple[list[Part], str]


@dataclass(frozen=True)
class Findings:
    """The results that the claims and the report rest on; gains: task -> see `plateau.reference_gains`."""

    scores: pd.DataFrame
    differences: pd.DataFrame
    costs: pd.DataFrame
    conversion: ConversionSimilarity
    adapters: AdapterSimilarity
    linear_map: LinearMap
    gains: dict[str, float]


def conversion(source: str, column: str = "off_diagonal", **chosen) -> Callable:
    """The computation of a claim about conversion matrices; see `matrix_parts.conversion_parts`."""

    def compute(findings: Findings, thresholds: Thresholds) -> Evidence:
        values = findings.conversion.values
        return matrix_parts.conversion_parts(values, source, thresholds, column, **chosen), ""

    return compute


def conversion_each_pair(findings: Findings, thresholds: Thresholds) -> Evidence:
    return matrix_parts.conversion_parts_of_pairs(findings.conversion, thresholds), ""


def linear_map_above_gaussian(findings: Findings, thresholds: Thresholds) -> Evidence:
    return matrix_parts.linear_map_above_gaussian(findings.linear_map.values, thresholds), ""


def linear_map_explains_most(findings: Findings, thresholds: Thresholds) -> Evidence:
    return matrix_parts.linear_map_explains_most(findings.linear_map.values, thresholds), ""


def equal_each_task(findings: Findings, thresholds: Thresholds) -> Evidence:
    parts = [_equal(findings, thresholds, task, [task]) for task in TASKS]
    return parts, _notes(findings, list(TASKS))


def equal_on_average(findings: Findings, thresholds: Thresholds) -> Evidence:
    part = _equal(findings, thresholds, AVERAGE, list(TASKS))
    if part.verdict == NOT_RUN:
        return [part], "Both methods have no run with the same seed on one of the eight tasks"
    paper = published("table2")["mean_of_row"]
    note = f"Paper: {number(paper['condlora'] - paper['lora'], 3)}, from the means of its rows"
    return [part], "; ".join(filter(None, [note, _notes(findings, list(TASKS))]))


def _equal(findings: Findings, thresholds: Thresholds, name: str, tasks: list[str]) -> Part:
    row = _difference(findings, name)
    if row is None:
        return Part(TASKS.get(name, "mean"), NOT_RUN)
    part = Part(
        TASKS.get(name, "mean"),
        verdict(row.p_equivalence, row.p_outside_holm, thresholds.alpha, row.n),
        row.mean,
        Interval(row.t_low, row.t_high),
        row.n,
        null=0.0,
        limit=thresholds.margin_points,
        p_holds=row.p_equivalence,
        p_fails=row.p_outside_holm,
    )
    rule = plateau_rule()
    if all(findings.gains.get(t, np.nan) < rule["points_per_doubling"] for t in tasks):
        return part
    return not_tested(part, rule["otherwise"].removeprefix("not tested: "))


def no_difference_found(findings: Findings, thresholds: Thresholds) -> Evidence:
    """The paper's own test: it holds by a large p, so p_holds stays undefined."""
    parts = []
    for task, name in TASKS.items():
        row = _difference(findings, task)
        if row is None:
            parts.append(Part(name, NOT_RUN))
            continue
        p, adjusted = row.p_difference, row.p_difference_holm
        is_found, is_not = adjusted < thresholds.paper_alpha, p > thresholds.paper_alpha
        decided = FAILS if is_found else HOLDS if is_not else NOT_RESOLVED
        interval = Interval(row.t_low, row.t_high)
        parts.append(Part(name, decided, row.mean, interval, row.n, null=0.0, p_fails=adjusted))
    return parts, ""


def _difference(findings: Findings, task: str) -> Any:
    """The row of CondLoRA's difference on one task; None where there is no pair of runs."""
    found = findings.differences
    chosen = found[(found.adapter == "condlora") & (found.task == task)]
    return next(chosen.itertuples(), None)


def _notes(findings: Findings, tasks: list[str]) -> str:
    """The gains of LoRA's last doubling of steps, and the tasks where LoRA itself learned nothing."""
    known = {TASKS[task]: findings.gains[task] for task in tasks if task in findings.gains}
    gains = ", ".join(f"{name} {number(gain, 1)}" for name, gain in known.items())
    text = f"Points that LoRA gained in its last doubling of steps: {gains}" if gains else ""
    return "; ".join(filter(None, [text, _no_signal(findings)]))


def _no_signal(findings: Findings) -> str:
    """Names the tasks where LoRA learned nothing, so that equal scores say little."""
    runs, named = findings.scores, []
    for task, name in TASKS.items():
        score = summarise(scores.over_seeds(runs, REFERENCE, task, "score_points"))
        majority = runs.majority_points[runs.task == task].max()
        chance = 0.0 if np.isnan(majority) else majority  # a correlation is 0 at chance
        if score.n and score.mean <= chance:
            named.append(name)
    return f"LoRA does not exceed the majority class on {', '.join(named)}" if named else ""


def printed_averages(findings: Findings, thresholds: Thresholds) -> Evidence:
    paper = published("table2")
    limit, parts = thresholds.printed_rounding, []
    for adapter, printed in paper["printed_average"].items():
        gap = printed - paper["mean_of_row"][adapter]
        # A printed 84.22 for 84.225 is correct; the binary fractions differ in their last bits.
        parts.append(exact(label(adapter), abs(gap) <= limit + thresholds.equal_phi, gap, 1, limit))
    rows = (
        f"{label(a)}: printed {printed:.2f}, mean {paper['mean_of_row'][a]:.3f}"
        for a, printed in paper["printed_average"].items()
    )
    return parts, "; ".join(rows)


def adapters_above_random(modules: tuple[str, ...] | None = None) -> Callable:
    """phi between the two methods' matrices against Gaussian matrices; `modules`: all by default."""

    def compute(findings: Findings, thresholds: Thresholds) -> Evidence:
        result, samples = findings.adapters, {}
        for module in (m for m in result.counts if modules is None or m in modules):
            for matrix in ("A", "B", "delta_W"):
                values = result.per_layer(module, matrix).mean(axis=1, skipna=False).to_numpy()
                name = f"{module} {MATRIX_LABEL[matrix]}"
                samples[name] = (values, result.random_means(module, matrix))
        return above_null(samples, thresholds), ""

    return compute


def left_space_of_product(findings: Findings, thresholds: Thresholds) -> Evidence:
    result = findings.adapters
    n = len(result.values[["task", "seed"]].drop_duplicates())
    if not result.counts or any(not i == j == r for i, j, r in result.counts.values()):
        return [Part("", NOT_RUN)], "No pair of runs with i = j = r"
    gap = adapter_similarity.largest_difference(result, "B", "delta_W")
    is_equal = None if np.isnan(gap) else gap <= thresholds.equal_phi
    return [exact("", is_equal, gap, n, thresholds.equal_phi)], ""


def printed_rows_of_table3(findings: Findings, thresholds: Thresholds) -> Evidence:
    phi = published("table3")["phi"]
    gaps = np.abs(np.subtract(phi["B"], phi["delta_W"]))
    differ = [str(layer) for layer, gap in enumerate(gaps, start=1) if gap > thresholds.equal_phi]
    part = exact("", not differ, float(gaps.max()), len(gaps), 0.0)
    return [part], f"They differ in layers {', '.join(differ)}" if differ else ""


def parameters_one_over_layers(findings: Findings, thresholds: Thresholds) -> Evidence:
    runs = findings.costs
    wide = runs.pivot(index=["task", "seed"], columns="adapter", values="adapter_parameters")
    paired = wide.dropna() if {REFERENCE, "condlora"} <= set(wide) else wide.iloc[:0]
    if paired.empty:
        return [Part("", NOT_RUN)], "No task and seed with both methods finished"
    layers = runs.groupby(["task", "seed"]).layers.first()[paired.index]
    ratio = paired[REFERENCE] / (paired["condlora"] * layers)
    furthest = float(ratio[(ratio - 1).abs().idxmax()])
    is_exact = bool((paired["condlora"] * layers == paired[REFERENCE]).all())
    first, paper = paired.iloc[0].astype(int), published("table4")
    counts = paper["trainable_parameters"]
    note = (
        f"{label('condlora')} {first['condlora']:,}, {label(REFERENCE)} {first[REFERENCE]:,}, "
        f"{layers.iloc[0]} layers; paper {counts['condlora']:,} and {counts[REFERENCE]:,}, "
        f"{paper['layers']} layers"
    )
    return [exact("", is_exact, furthest, len(paired), 1.0)], note


def speed_not_lower(findings: Findings, thresholds: Thresholds) -> Evidence:
    ratios = speed_ratios(findings.costs, "train_examples_per_second")
    found = ratios.ratio[ratios.adapter == "condlora"].to_numpy(dtype=np.float64)
    paper = published("table4")["train_examples_per_second"]
    note = f"Paper: {number(paper['condlora'] / paper[REFERENCE], 3)}"
    return [not_lower("", found, thresholds)], note


def merged_speed_equal(findings: Findings, thresholds: Thresholds) -> Evidence:
    ratios = speed_ratios(findings.costs, "merged_speed_over_backbone")
    found = ratios.ratio[ratios.adapter == "condlora"].dropna().to_numpy(dtype=np.float64)
    return [not_lower("", found, thresholds)], ""


COMPUTATIONS: dict[str, Callable[[Findings, Thresholds], Evidence]] = {
    "conversion_above_gaussian_mnli": conversion(GAUSSIAN, modules=["value"], tasks=["mnli"]),
    "deep_above_shallow_mnli": conversion(
        GAUSSIAN, "deep_minus_shallow", modules=["value"], tasks=["mnli"]
    ),
    "equal_each_task": equal_each_task,
    "equal_on_average": equal_on_average,
    "no_difference_found": no_difference_found,
    "adapters_above_random_value": adapters_above_random(("value",)),
    "parameters_one_over_layers": parameters_one_over_layers,
    "speed_not_lower": speed_not_lower,
    "merged_speed_equal": merged_speed_equal,
    "conversion_above_gaussian": conversion(GAUSSIAN),
    "conversion_above_gaussian_each_task": conversion(GAUSSIAN, tasks=list(TASKS)),
    "conversion_above_gaussian_each_pair": conversion_each_pair,
    "deep_above_shallow": conversion(GAUSSIAN, "deep_minus_shallow"),
    "adapters_above_random": adapters_above_random(),
    "conversion_above_control": conversion(CONTROL),
    "conversion_above_control_each_task": conversion(CONTROL, tasks=list(TASKS)),
    "deep_above_shallow_control": conversion(CONTROL, "deep_minus_shallow"),
    "linear_map_above_gaussian": linear_map_above_gaussian,
    "linear_map_explains_most": linear_map_explains_most,
    "printed_averages": printed_averages,
    "left_space_of_product": left_space_of_product,
    "printed_rows_of_table3": printed_rows_of_table3,
}
