"""How much one linear map of W0 explains of LoRA's A and B: sentences and table."""

import pandas as pd

from analysis.maths.linear_map import GAUSSIAN, OTHER_LAYER, RANDOM, SHARED, TRAINED, LinearMap
from analysis.present import typeset
from analysis.present.typeset import Section
from analysis.stats import formatting
from analysis.stats.matrix_parts import linear_map_above_gaussian, linear_map_explains_most
from analysis.stats.rules import Thresholds, combine
from analysis.stats.significance import summarise

SOURCES = {
    TRAINED: "trained, own W₀",
    OTHER_LAYER: "trained, another layer's W₀",
    RANDOM: "trained, random W₀",
    SHARED: "trained, no W₀",
    GAUSSIAN: "Gaussian A, B, own W₀",
}
FORMS = {"A_code": "A = θW₀′", "A_consistent": "A = θW₀", "B": "B = W₀θ′"}


def statement(result: LinearMap, thresholds: Thresholds) -> list[str]:
    """The verdicts of the rules and the numbers behind them, in sentences."""
    above = linear_map_above_gaussian(result.values, thresholds)
    if not above and len(result.values):
        return ["Without W₀ only one common A and one common B for all layers were fitted."]
    if not above:
        return ["No trained adapter has two layers or more, so no linear map of W₀ was fitted."]
    most = linear_map_explains_most(result.values, thresholds)
    shares = "; ".join(
        f"{part.name} {_share(part.estimate)} ({_share(part.null)} for Gaussian A, B): {part.verdict}"
        for part in above
    )
    sentences = [
        "One linear map of W₀, fitted on the other layers, explains more of a left-out layer's A and B than of Gaussian "
        f"A and B: {combine(above)[0]}. It explains most of them (more than {thresholds.most:g}): {combine(most)[0]}. "
        "Both by the rules of claims.yaml. Share explained, and the verdict of the first rule: "
        f"{shares}. The hypothesis of one map for all layers is a share of 1."
    ]
    v = result.values
    for form, name in FORMS.items():
        of = v[v.form == form].groupby(["module", "source"], sort=False).left_out.mean().dropna()
        chance = [value for (_, of_form), value in result.chance.items() if of_form == form]
        parts = [
            f"{label} {_range(of.xs(source, level='source'))}"
            for source, label in SOURCES.items()
            if source in of.index.get_level_values("source")
        ]
        if parts:
            sentences.append(
                f"{name}, share of the left-out layer's span: {'; '.join(parts)}; by chance {_range(chance)}."
            )
    return sentences


def table(result: LinearMap) -> typeset.Table:
    """Share explained, fitted and left out, by module kind and form, over all tasks."""
    rows, v = [], result.values
    for (module, form), chance in result.chance.items():
        for source, label in SOURCES.items():
            of = v[(v.module == module) & (v.form == form) & (v.source == source)]
            if not len(of):
                continue  # without W0
            found = [
                summarise(of[column].to_numpy()) for column in ("fitted", "left_out", "energy")
            ]
            cells = [formatting.mean_sd(x, 4) for x in found]
            rows.append([module, FORMS[form], label, *cells, formatting.number(chance, 4)])
    return typeset.Table(
        name="linear_map",
        title="How much of LoRA's A and B one linear map of W₀ explains",
        header=[
            "modules",
            "form",
            "source",
            "fitted layers",
            "left-out layer",
            "its energy",
            "chance",
        ],
        rows=rows,
        data=v,
        notes=[
            "Share of the span of A or B (φ with i = j = r), mean over layers, ± sd (n) over runs of all "
            "tasks and seeds or over draws. Fitted: by one map fitted on all layers, which is high in part "
            "for any matrices. Left-out layer: by the map fitted on the others; 1 is the hypothesis, chance "
            "is r / d. No W₀: the same A and B for all layers, M = 1, which needs no W₀ at all. Energy: the share of the squared norm of the left-out layer's A or B in that span.",
            "LoRA's A is its random start, which no layers share, plus what training added; the start is not "
            "stored. B starts at zero: it is what training added, and the cleaner test.",
        ],
        text_columns=3,
    )


def section(result: LinearMap, thresholds: Thresholds) -> Section:
    """The verdicts and the table."""
    shown = [table(result)] if len(result.values) else []
    return Section(
        "Does one linear map of W₀ give A and B?", statement(result, thresholds), shown, []
    )


def _range(values: pd.Series | list[float]) -> str:
    low, high = _share(min(values)), _share(max(values))
    return low if low == high else f"{low} to {high}"


def _share(value: float) -> str:
    return formatting.number(value, 3)
