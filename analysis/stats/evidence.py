"""What each claim of results/paper/claims.yaml is tested on: from findings to the parts of a claim.

One computation a key of that file; each returns the claim's parts with their verdicts and a note.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.maths import adapter_similarity, linear_map
from analysis.maths.adapter_similarity import AdapterSimilarity
from analysis.maths.conversion_similarity import CONTROL, GAUSSIAN, TRAINED, ConversionSimilarity
from analysis.maths.linear_map import LinearMap
from analysis.stats.formatting import number
from analysis.stats.rules import (
    FAILS,
    HOLDS,
    INCONCLUSIVE,
    NOT_RUN,
    Part,
    Thresholds,
    above_limit,
    above_null,
    exact,
    not_lower,
    verdict,
)
from analysis.stats.significance import Interval, summarise
from analysis.study import scores
from analysis.study.costs import speed_ratios
from analysis.study.names import MATRIX_LABEL, REFERENCE, TASKS, label
from analysis.study.paper import published
from analysis.study.scores import AVERAGE

Evidence = tuple[list[Part], str]


@dataclass(frozen=True)
class Findings:
    """Everything the claims and the report rest on."""

    scores: pd.DataFrame
    differences: pd.DataFrame
    costs: pd.DataFrame
    conversion: ConversionSimilarity
    adapters: AdapterSimilarity
    linear_map: LinearMap


def conversion(source: str, column: str = "off_diagonal", *, by_task: bool = False) -> Callable:
    """Likeness of conversion matrices against draws of `source`; `column` of the values' table."""

    def compute(findings: Findings, thresholds: Thresholds) -> Evidence:
        values, samples = findings.conversion.values, {}
        for module, matrix in _kinds(findings):
            of = values[(values.module == module) & (values.matrix == matrix)]
            draws = of.loc[of.source == source, column].to_numpy()
            trained = of[of.source == TRAINED]
            if np.isnan(draws).all():
                continue  # fewer than four layers: a half holds no pair
            for task in TASKS if by_task else [None]:
                name = " ".join(filter(None, [module, matrix, TASKS.get(task)]))
                chosen = trained if task is None else trained[trained.task == task]
                samples[name] = (chosen[column].to_numpy(), draws)
        return above_null(samples, thresholds), ""

    return compute


def conversion_each_pair(findings: Findings, thresholds: Thresholds) -> Evidence:
    """phi of every pair of layers against the same pair in Gaussian draws."""
    maps, layers, samples = findings.conversion.maps, findings.conversion.layers, {}
    for module, matrix in _kinds(findings):
        trained = np.concatenate(
            [phi for key, phi in maps.items() if key[:3] == (module, matrix, TRAINED)]
        )
        draws = maps[module, matrix, GAUSSIAN, ""]
        for first, second in zip(*np.triu_indices(len(layers), k=1), strict=True):
            name = f"{module} {matrix} layers {layers[first]}–{layers[second]}"
            samples[name] = (trained[:, first, second], draws[:, first, second])
    return above_null(samples, thresholds), ""


def _kinds(findings: Findings) -> list[tuple[str, str]]:
    return [(module, matrix) for module in findings.conversion.modules for matrix in ("A", "B")]


def linear_map_above_gaussian(findings: Findings, thresholds: Thresholds) -> Evidence:
    values, samples = findings.linear_map.values, {}
    for name, trained in _left_out(findings).items():
        of_kind = values[(values.module == trained.module.iloc[0])]
        of_kind = of_kind[of_kind.form == trained.form.iloc[0]]
        draws = of_kind.left_out[of_kind.source == linear_map.GAUSSIAN]
        samples[name] = (trained.left_out.to_numpy(), draws.to_numpy())
    return above_null(samples, thresholds), ""


def linear_map_explains_most(findings: Findings, thresholds: Thresholds) -> Evidence:
    samples = {name: runs.left_out.to_numpy() for name, runs in _left_out(findings).items()}
    return above_limit(samples, thresholds.most, thresholds), ""


def _left_out(findings: Findings) -> dict[str, pd.DataFrame]:
    """The trained runs' rows for A and for B of each kind of module; A in the released code's form."""
    values, found = findings.linear_map.values, {}
    trained = values[values.source == linear_map.TRAINED]
    for (module, form), runs in trained.groupby(["module", "form"], sort=False):
        # The forms stand in this order: where the code's has a value, the other reading is left.
        found.setdefault(f"{module} {form[0]}", runs)
    return found


def equal_each_task(findings: Findings, thresholds: Thresholds) -> Evidence:
    return [_equal(findings, thresholds, task) for task in TASKS], _no_signal(findings)


def equal_on_average(findings: Findings, thresholds: Thresholds) -> Evidence:
    part, paper = _equal(findings, thresholds, AVERAGE), published("table2")["mean_of_row"]
    if part.verdict == NOT_RUN:
        return [part], "No seed finished all eight tasks with both methods"
    note = f"Paper: {number(paper['condlora'] - paper['lora'], 3)}, by the means of its rows"
    return [part], "; ".join(filter(None, [note, _no_signal(findings)]))


def _equal(findings: Findings, thresholds: Thresholds, task: str) -> Part:
    row = _difference(findings, task)
    if row is None:
        return Part(TASKS.get(task, "average"), NOT_RUN)
    decided = verdict(row.p_equivalence_holm, row.p_outside_holm, thresholds.alpha, row.n)
    is_open = decided == INCONCLUSIVE and not pd.isna(row.seeds_needed)
    return Part(
        TASKS.get(task, "average"),
        decided,
        row.mean,
        Interval(row.t_low, row.t_high),
        row.n,
        null=0.0,
        limit=thresholds.margin_points,
        p_holds=row.p_equivalence_holm,
        p_fails=row.p_outside_holm,
        needs=int(row.seeds_needed) if is_open else None,
    )


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
        decided = FAILS if is_found else HOLDS if is_not else INCONCLUSIVE
        interval = Interval(row.t_low, row.t_high)
        parts.append(Part(name, decided, row.mean, interval, row.n, null=0.0, p_fails=adjusted))
    return parts, ""


def _difference(findings: Findings, task: str) -> Any:
    """The row of CondLoRA's difference on one task; None where there is no pair of runs."""
    found = findings.differences
    chosen = found[(found.adapter == "condlora") & (found.task == task)]
    return next(chosen.itertuples(), None)


def _no_signal(findings: Findings) -> str:
    """Names the tasks where closeness says little, as LoRA itself learned nothing."""
    runs, named = findings.scores, []
    for task, name in TASKS.items():
        score = summarise(scores.over_seeds(runs, REFERENCE, task, "score_points"))
        majority = runs.majority_points[runs.task == task].max()
        chance = 0.0 if np.isnan(majority) else majority  # a correlation is 0 at chance
        if score.n and score.mean <= chance:
            named.append(name)
    return f"LoRA is not above the commonest class in {', '.join(named)}" if named else ""


def printed_averages(findings: Findings, thresholds: Thresholds) -> Evidence:
    paper = published("table2")
    limit, parts = thresholds.printed_rounding, []
    for adapter, printed in paper["printed_average"].items():
        gap = printed - paper["mean_of_row"][adapter]
        # A printed 84.22 for 84.225 is right to the last digit, whatever binary makes of it.
        parts.append(exact(label(adapter), abs(gap) <= limit + thresholds.equal_phi, gap, 1, limit))
    rows = (
        f"{label(a)}: printed {printed:.2f}, mean {paper['mean_of_row'][a]:.3f}"
        for a, printed in paper["printed_average"].items()
    )
    return parts, "; ".join(rows)


def adapters_above_random(findings: Findings, thresholds: Thresholds) -> Evidence:
    result, samples = findings.adapters, {}
    for module in result.counts:
        for matrix in ("A", "B", "delta_W"):
            values = result.per_layer(module, matrix).mean(axis=1, skipna=False).to_numpy()
            b = result.baseline
            draws = b.phi[(b.module == module) & (b.matrix == matrix)].to_numpy()
            samples[f"{module} {MATRIX_LABEL[matrix]}"] = (values, draws)
    return above_null(samples, thresholds), ""


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
    "conversion_above_gaussian": conversion(GAUSSIAN),
    "conversion_above_gaussian_each_task": conversion(GAUSSIAN, by_task=True),
    "conversion_above_gaussian_each_pair": conversion_each_pair,
    "deep_above_shallow": conversion(GAUSSIAN, "deep_minus_shallow"),
    "conversion_above_control": conversion(CONTROL),
    "conversion_above_control_each_task": conversion(CONTROL, by_task=True),
    "deep_above_shallow_control": conversion(CONTROL, "deep_minus_shallow"),
    "linear_map_above_gaussian": linear_map_above_gaussian,
    "linear_map_explains_most": linear_map_explains_most,
    "equal_each_task": equal_each_task,
    "equal_on_average": equal_on_average,
    "no_difference_found": no_difference_found,
    "printed_averages": printed_averages,
    "adapters_above_random": adapters_above_random,
    "left_space_of_product": left_space_of_product,
    "printed_rows_of_table3": printed_rows_of_table3,
    "parameters_one_over_layers": parameters_one_over_layers,
    "speed_not_lower": speed_not_lower,
    "merged_speed_equal": merged_speed_equal,
}
