"""Each claim of the paper, tested on the finished runs: a rule in words, a verdict, the evidence.

A verdict speaks of the runs at hand, on their backbone and data. With few seeds the rules compare
means; they are no significance tests. Beside the paper's claims stand controls and checks of ours.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from analysis import adapter_similarity, conversion_similarity, efficiency, glue_scores
from analysis.adapter_similarity import AdapterSimilarity
from analysis.conversion_similarity import CONTROL, GAUSSIAN, TRAINED, ConversionSimilarity
from analysis.figures import label
from analysis.selection import (
    MATRIX_LABEL,
    REFERENCE,
    TASKS,
    Study,
    load_stacks,
    open_study,
    published,
)
from analysis.significance import exceeds, summarise
from analysis.typeset import number, spread
from condlora.cli import command

HOLDS, FAILS, NOT_RUN = "holds", "does not hold", "not run"
PAPER, CONTROL_OF_OURS, CHECK = "the paper", "a control of ours", "a check"
MARGIN_POINTS = 1.0
# phi in float64 agrees with itself to about 1e-13; the paper prints two decimals.
EQUAL_PHI = 1e-6


@dataclass(frozen=True)
class Claim:
    """One claim: what is claimed, by whom and where, the rule, and what the runs say."""

    key: str
    statement: str
    origin: str
    place: str
    rule: str
    verdict: str
    evidence: str
    n: int


@dataclass(frozen=True)
class Findings:
    """Everything the claims and the report rest on."""

    scores: pd.DataFrame
    costs: pd.DataFrame
    conversion: ConversionSimilarity
    adapters: AdapterSimilarity


def collect(study: Study) -> Findings:
    """Runs every analysis on a study's finished cells; reads each run's matrices once."""
    stacks = load_stacks(study.done)
    return Findings(
        scores=glue_scores.scores(study.done),
        costs=efficiency.costs(study.done),
        conversion=conversion_similarity.figure1(stacks, study.settings),
        adapters=adapter_similarity.compare(stacks, study.settings),
    )


def evaluate(findings: Findings) -> list[Claim]:
    """All claims, in the paper's order of subjects."""
    modules = findings.conversion.modules or [published("figure1")["module"]]
    kinds = list(findings.adapters.counts) or [published("table3")["module"]]
    return [
        *(conversion_above_gaussian(findings, module) for module in modules),
        *(conversion_above_control(findings, module) for module in modules),
        *(deep_above_shallow(findings, module) for module in modules),
        average_within_margin(findings),
        tasks_within_margin(findings),
        *(adapters_above_random(findings, module) for module in kinds),
        left_space_of_product(findings),
        parameters_one_over_layers(findings),
        speed_not_lower(findings),
        printed_averages(),
        printed_rows_of_table3(),
    ]


def conversion_above_gaussian(findings: Findings, module: str) -> Claim:
    return _conversion_above(
        findings,
        module,
        GAUSSIAN,
        key=f"conversion_above_gaussian_{module}",
        statement=f"Conversion matrices of A and of B are more alike across layers than random "
        f"Gaussian matrices ({module} modules)",
        origin=PAPER,
    )


def conversion_above_control(findings: Findings, module: str) -> Claim:
    return _conversion_above(
        findings,
        module,
        CONTROL,
        key=f"conversion_above_control_{module}",
        statement="Conversion matrices of trained A and B are more alike across layers than those "
        f"of Gaussian A and B passed through the same W₀⁻¹ ({module} modules)",
        origin=CONTROL_OF_OURS,
    )


def _conversion_above(
    findings: Findings, module: str, source: str, *, key: str, statement: str, origin: str
) -> Claim:
    result, evidence, above = findings.conversion, [], []
    n = 0
    for matrix in ("A", "B") if module in result.modules else ():
        trained = result.summary("off_diagonal", module, matrix, TRAINED)
        baseline = result.summary("off_diagonal", module, matrix, source)
        n = trained.n
        above.append(exceeds(trained.mean, baseline))
        evidence.append(
            f"{matrix}: {number(trained.mean, 4)} against {spread(baseline, 4, with_n=False)}"
        )
    return Claim(
        key=key,
        statement=statement,
        origin=origin,
        place="Figure 1",
        rule="For A and for B, the mean of phi over pairs of different layers, over all LoRA runs, "
        "exceeds the mean over baseline draws by more than two standard deviations of a draw.",
        verdict=_verdict(above),
        evidence="; ".join(evidence) or "No finished LoRA run with a square weight",
        n=n,
    )


def deep_above_shallow(findings: Findings, module: str) -> Claim:
    result, evidence, above = findings.conversion, [], []
    n = 0
    for matrix in ("A", "B") if module in result.modules else ():
        trained = result.summary("deep_minus_shallow", module, matrix, TRAINED)
        if np.isnan(trained.mean):
            continue  # fewer than four layers: a half holds no pair
        n = trained.n
        baseline = result.summary("deep_minus_shallow", module, matrix, GAUSSIAN)
        control = result.summary("deep_minus_shallow", module, matrix, CONTROL)
        above.append(exceeds(trained.mean, baseline))
        evidence.append(
            f"{matrix}: deep less shallow {number(trained.mean, 4)}, Gaussian "
            f"{spread(baseline, 4, with_n=False)}, Gaussian through W₀⁻¹ "
            f"{spread(control, 4, with_n=False)}"
        )
    return Claim(
        key=f"deep_above_shallow_{module}",
        statement=f"Conversion matrices of deep layers are more alike than those of shallow layers "
        f"({module} modules)",
        origin=PAPER,
        place="Figure 1",
        rule="For A and for B, mean phi within the deeper half of the layers less that within the "
        "shallower half exceeds the same difference in Gaussian draws by more than two standard "
        "deviations. How high 'extremely high' is, the paper does not print.",
        verdict=_verdict(above),
        evidence="; ".join(evidence) or "No finished LoRA run with a square weight and 4 layers",
        n=n,
    )


def average_within_margin(findings: Findings) -> Claim:
    gaps = _gaps(findings)
    found = summarise(gaps.points[gaps.task == glue_scores.AVERAGE])
    paper = published("table2")["mean_of_row"]
    evidence = (
        f"CondLoRA less LoRA, same seed: {spread(found, 2, with_n=False)} points; "
        f"paper {number(paper['condlora'] - paper['lora'], 3)} by the means of its rows"
        if found.n
        else "No seed finished all eight tasks with both methods"
    )
    return Claim(
        key="average_within_margin",
        statement="CondLoRA's mean score over the eight tasks is within 1 point of LoRA's",
        origin=PAPER,
        place="Table 2",
        rule="The mean over seeds of the paired difference lies within 1 point either way. This "
        "compares means; with few seeds it does not show that the methods are equal.",
        verdict=_verdict([abs(found.mean) <= MARGIN_POINTS] if found.n else []),
        evidence=evidence + _no_signal(findings),
        n=found.n,
    )


def tasks_within_margin(findings: Findings) -> Claim:
    gaps = _gaps(findings)
    found = {task: summarise(gaps.points[gaps.task == task]) for task in TASKS}
    run = {task: gap for task, gap in found.items() if gap.n}
    outside = [task for task, gap in run.items() if abs(gap.mean) > MARGIN_POINTS]
    missing = [TASKS[task] for task in TASKS if task not in run]
    verdict = FAILS if outside else HOLDS if not missing else NOT_RUN
    parts = [f"{len(run) - len(outside)} of {len(run)} tasks within 1 point"]
    if outside:
        listed = ", ".join(f"{TASKS[t]} {spread(run[t], 1)}" for t in outside)
        parts.append(f"outside: {listed}")
    if missing:
        parts.append(f"no pair of runs: {', '.join(missing)}")
    return Claim(
        key="tasks_within_margin",
        statement="CondLoRA's score is within 1 point of LoRA's in every task",
        origin=PAPER,
        place="Table 2",
        rule="The mean over seeds of the paired difference lies within 1 point either way, task by "
        "task, in all eight. This compares means; it is neither the paper's t-test nor a test of "
        "equality.",
        verdict=verdict,
        evidence="; ".join(parts) + _no_signal(findings),
        n=sum(gap.n for gap in run.values()),
    )


def _gaps(findings: Findings) -> pd.DataFrame:
    gaps = glue_scores.differences(findings.scores)
    return gaps[gaps.adapter == "condlora"]


def _no_signal(findings: Findings) -> str:
    """Names the tasks where closeness says little, as LoRA itself learned nothing."""
    runs, named = findings.scores, []
    for task, name in TASKS.items():
        score = glue_scores.of(runs, REFERENCE, task, "score_points")
        majority = runs.majority_points[runs.task == task].max()
        chance = 0.0 if np.isnan(majority) else majority  # a correlation is 0 at chance
        if score.n and score.mean <= chance:
            named.append(name)
    return f"; LoRA is not above the commonest class in {', '.join(named)}" if named else ""


def adapters_above_random(findings: Findings, module: str) -> Claim:
    result, evidence, above = findings.adapters, [], []
    n = 0
    for matrix in ("A", "B", "delta_W") if module in result.counts else ():
        phi = result.of(module, matrix).to_numpy()
        n = len(phi)
        random = result.random(module, matrix)
        above.append(exceeds(float(phi.mean()), random))
        evidence.append(
            f"{MATRIX_LABEL[matrix]}: {number(phi.mean(), 4)} against "
            f"{spread(random, 4, with_n=False)}"
        )
    return Claim(
        key=f"adapters_above_random_{module}",
        statement="LoRA's and CondLoRA's A, B and ΔW of the same layer are more alike than random "
        f"({module} modules)",
        origin=PAPER,
        place="Table 3",
        rule="For A, B and ΔW, the mean of phi over layers and pairs of runs exceeds the mean over "
        "Gaussian draws by more than two standard deviations of a draw.",
        verdict=_verdict(above),
        evidence="; ".join(evidence) or "No task and seed with both methods finished",
        n=n,
    )


def left_space_of_product(findings: Findings) -> Claim:
    result = findings.adapters
    whole = bool(result.counts) and all(i == j == r for i, j, r in result.counts.values())
    evidence, verdict = "No pair of runs with i = j = r", NOT_RUN
    if whole:
        gap = adapter_similarity.largest_difference(result, "B", "delta_W")
        verdict = _verdict([None if np.isnan(gap) else gap <= EQUAL_PHI])
        evidence = f"Largest difference over all runs, modules and layers {gap:.1e}"
    return Claim(
        key="left_space_of_product",
        statement="φ of ΔW equals φ of B when i = j = r, as ΔW = B A has B's column space",
        origin=CHECK,
        place="Table 3",
        rule=f"The rows B and ΔW differ nowhere by more than {EQUAL_PHI:g}.",
        verdict=verdict,
        evidence=evidence,
        n=result.values[["task", "seed"]].drop_duplicates().shape[0],
    )


def parameters_one_over_layers(findings: Findings) -> Claim:
    runs = findings.costs
    wide = runs.pivot(index=["task", "seed"], columns="adapter", values="adapter_parameters")
    paired = wide.dropna() if {REFERENCE, "condlora"} <= set(wide) else wide.iloc[:0]
    evidence, verdict = "No task and seed with both methods finished", NOT_RUN
    if len(paired):
        paper = published("table4")
        counts = paper["trainable_parameters"]
        layers = runs.groupby(["task", "seed"]).layers.first()[paired.index]
        verdict = _verdict((paired["condlora"] * layers == paired[REFERENCE]).tolist())
        first = paired.iloc[0].astype(int)
        evidence = (
            f"{label('condlora')} {first['condlora']:,}, {label(REFERENCE)} {first[REFERENCE]:,}, "
            f"{layers.iloc[0]} layers; paper {counts['condlora']:,} and {counts[REFERENCE]:,}, "
            f"{paper['layers']} layers"
        )
    return Claim(
        key="parameters_one_over_layers",
        statement="CondLoRA trains exactly 1/L of LoRA's parameters, L being the number of layers",
        origin=PAPER,
        place="Table 4",
        rule="L times CondLoRA's count equals LoRA's in every pair of runs, the classification "
        "head not counted.",
        verdict=verdict,
        evidence=evidence,
        n=len(paired),
    )


def speed_not_lower(findings: Findings) -> Claim:
    ratios = efficiency.ratios(findings.costs, "train_examples_per_second")
    found = summarise(ratios.ratio[ratios.adapter == "condlora"])
    paper = published("table4")["train_examples_per_second"]
    return Claim(
        key="speed_not_lower",
        statement="CondLoRA trains at least as many examples a second as LoRA",
        origin=PAPER,
        place="Table 4",
        rule="The mean ratio of CondLoRA's to LoRA's speed, same task and seed, is at least 1. "
        "Runs on a shared machine differ by some per cent by themselves.",
        verdict=_verdict([found.mean >= 1] if found.n else []),
        evidence=f"Ratio {spread(found, 3, with_n=False)}; "
        f"paper {number(paper['condlora'] / paper[REFERENCE], 3)}"
        if found.n
        else "No task and seed with both methods finished",
        n=found.n,
    )


def printed_averages() -> Claim:
    paper = published("table2")
    printed, mean = paper["printed_average"], paper["mean_of_row"]
    return Claim(
        key="printed_averages",
        statement="The averages the paper prints are the means of the rows it prints",
        origin=CHECK,
        place="Table 2",
        rule="Each printed average is the mean of its printed row to the two decimals printed.",
        verdict=_verdict([abs(printed[a] - mean[a]) <= 0.005 for a in printed]),
        evidence="; ".join(
            f"{label(a)}: printed {printed[a]:.2f}, mean {mean[a]:.3f}" for a in printed
        ),
        n=0,  # no run is involved
    )


def printed_rows_of_table3() -> Claim:
    phi = published("table3")["phi"]
    differ = [
        layer
        for layer, (b, product) in enumerate(zip(phi["B"], phi["delta_W"], strict=True), start=1)
        if b != product
    ]
    layers = ", ".join(map(str, differ))
    return Claim(
        key="printed_rows_of_table3",
        statement="The rows B and ΔW the paper prints are equal, as i = j = r requires",
        origin=CHECK,
        place="Table 3",
        rule="The printed numbers are equal in every layer.",
        verdict=_verdict([not differ]),
        evidence=f"They differ in layers {layers}" if differ else "Equal in every layer",
        n=0,  # no run is involved
    )


def _verdict(conditions: list[bool | None]) -> str:
    """One condition that fails decides; none at all, or one undefined, decides nothing."""
    if any(condition is False for condition in conditions):
        return FAILS
    return HOLDS if conditions and None not in conditions else NOT_RUN


def write(claims: list[Claim], path: Path) -> Path:
    """Writes the claims as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(claim) for claim in claims], indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    claims = evaluate(collect(study))
    for claim in claims:
        print(f"{claim.verdict:>13}  {claim.statement}")
    print(f"Claims: {write(claims, study.folder / 'claims.json')}")


if __name__ == "__main__":
    main()
