"""The paper's hypothesis tested directly: does one linear map of W0 give A, or B, of every layer?

CondLoRA assumes maps theta, shared by all layers, with A_l = theta_A W_l' (form `code`) or
theta_A W_l (`consistent`), and B_l = W_l theta_B' (both). Of a LoRA's own A_l and B_l only the spans
are determined: (B G)(G^-1 A) is the same update for any invertible G. So the question is whether one
matrix T puts the span of M_l T on the span of X_l in every layer, with M_l = W_l or W_l', and
X_l = A_l' or B_l, whose orthonormal basis is Q_l. Fitted is the T that maximises

    sum_l ||Q_l' M_l T||^2   subject to   T' (sum_l M_l' M_l) T = I,   each M_l scaled to norm one:

the share of what the map yields, over all layers, that lies in the spans to be explained. The
constraint excludes the trivial T = 0. It is the least-squares problem sum_l ||Q_l G_l - M_l T||^2 with
every G_l free, at its best G_l = Q_l' M_l T, and its solution is known: the leading generalised
eigenvectors. No W0 is inverted here, so small singular values carry no weight of their own.

T has r x d entries against r directions of d in each layer: with few layers it fits anything in part.
What counts are layers left out: T is fitted on the others (every sixth layer is left out at a time,
so one of six layers, two of twelve), and the share explained is phi between the spans of M_l T and X_l
(i = j = r), 1 under the hypothesis and r / d by chance.
"""

from pathlib import Path

import pandas as pd

from analysis.maths.linear_map import GAUSSIAN, OTHER_LAYER, RANDOM, SHARED, TRAINED, LinearMap
from analysis.present import typeset
from analysis.present.typeset import Section
from analysis.stats import formatting
from analysis.stats.rank_tests import linear_map_tests
from analysis.stats.significance import summarise

SOURCES = {
    TRAINED: "trained, own W₀",
    OTHER_LAYER: "trained, another layer's W₀",
    RANDOM: "trained, random W₀",
    SHARED: "trained, no W₀",
    GAUSSIAN: "Gaussian A, B, own W₀",
}
FORMS = {"A_code": "A = θW₀′", "A_consistent": "A = θW₀", "B": "B = W₀θ′"}
LEVEL = 0.05


def statement(result: LinearMap) -> list[str]:
    """The answer in sentences, with the numbers that it rests on."""
    tests = linear_map_tests(result.values)
    tests = tests[tests.p_above.notna()]
    if not len(tests):
        return ["No trained adapter of two layers or more, so no linear map of W₀ was fitted."]
    above = tests[tests.holm_above < LEVEL]
    if not len(above):
        opening = (
            "One linear map of W₀, fitted on other layers, explains nothing of a layer's A or B: "
            "nowhere more than of Gaussian A and B."
        )
        if tests.smallest_p.min() * len(tests) >= LEVEL:
            opening = (
                "Whether one linear map of W₀ explains more of A and B than of Gaussian ones cannot be "
                "told: with so few runs no difference could pass the test."
            )
    elif len(above) == len(tests) and above["mean"].min() > 0.5:
        opening = (
            "One linear map of W₀ explains most of A and B of layers that it was not fitted on."
        )
    else:
        listed = [
            f"{t.module} {FORMS[t.form]} ({_share(t.mean)} against {_share(t.null)})"
            for t in above.itertuples()
        ]
        opening = (
            f"In {len(above)} of {len(tests)} comparisons one linear map of W₀ explains more of a layer "
            f"that it was not fitted on than of Gaussian A and B: {'; '.join(listed)}. All of it would be 1."
        )
    sentences = [f"{opening} (Rank tests of all runs against draws, Holm's correction, 5 %.)"]
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
        data=v.merge(
            linear_map_tests(v).drop(columns=["n", "mean", "null"]),
            on=["module", "form"],
            how="left",
        ),
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


def section(result: LinearMap, folder: Path) -> Section:
    """The answer and its table; there is no figure, so `folder` stays as it is."""
    shown = [table(result)] if len(result.values) else []
    return Section("Does one linear map of W₀ give A and B?", statement(result), shown, [])


def _range(values: pd.Series | list[float]) -> str:
    low, high = _share(min(values)), _share(max(values))
    return low if low == high else f"{low} to {high}"


def _share(value: float) -> str:
    return formatting.number(value, 3)
