"""Sentences and the table that compare trained conversion matrices with draws through the same W0^-1."""

import numpy as np
import pandas as pd

from analysis.maths.conversion_controls import FLAT, PAIRS
from analysis.maths.conversion_similarity import CONTROL, GAUSSIAN, TRAINED
from analysis.present import typeset
from analysis.stats import formatting
from analysis.stats.matrix_parts import conversion_parts
from analysis.stats.rules import FAILS, HOLDS, Thresholds, combine
from analysis.study.names import MATRIX_LABEL, TASKS

CHECK_IT = [
    "To check this in a minute on any encoder, without training: 1. take W₀ of the value modules of all "
    "layers; 2. draw one Gaussian A′ per layer; 3. solve W₀X = A′ in double precision; 4. compare "
    "the mean φ between the layers' X with that between their A′. The difference comes from W₀⁻¹. "
    "python analysis/conversion_controls.py prints a script that does this."
]
RECIPE = """\
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("FacebookAI/roberta-base")  # as published, with no adapter
modules = dict(model.named_modules())
W = [m.weight.double() for name, m in modules.items() if name.endswith("attention.self.value")]
generator = torch.Generator().manual_seed(0)
A = [torch.randn(len(w), 8, generator=generator, dtype=torch.double) for w in W]


def mean_phi(matrices):  # over all pairs of layers; left singular vectors, i = j = 8
    U = [torch.linalg.svd(X, full_matrices=False)[0] for X in matrices]
    pairs = [(U[n].T @ U[m]).square().sum() / 8 for n in range(len(U)) for m in range(n)]
    return (sum(pairs) / len(pairs)).item()


print("Gaussian matrices:", mean_phi(A))
print("the same through W0^-1:", mean_phi([torch.linalg.solve(w, a) for w, a in zip(W, A)]))
"""


def statement(values: pd.DataFrame, tests: pd.DataFrame, thresholds: Thresholds) -> list[str]:
    """The verdicts of the rules on all tasks together, and the numbers behind them, in sentences.

    values: of `Controls`; tests: of `rank_tests.conversion_tests`; the rule is that of the claims
    conversion_above_gaussian and conversion_above_control.
    """
    against_W0, against_gaussian = _rows(tests, TRAINED, CONTROL), _rows(tests, TRAINED, GAUSSIAN)
    if not len(against_W0):
        return ["There are no conversion matrices, so the source of their similarity is unknown."]
    found = {
        source: combine(conversion_parts(values, source, thresholds))[0]
        for source in (GAUSSIAN, CONTROL)
    }
    sentences = [
        f"More similar between layers than Gaussian matrices: {found[GAUSSIAN]}. More similar than Gaussian A and B "
        f"passed through the same W₀⁻¹: {found[CONTROL]}. (Runs of all tasks together, by the rule of claims.yaml.) "
        + _READING.get((found[GAUSSIAN], found[CONTROL]), ""),
        *_by_comparison(against_W0, against_gaussian, thresholds.alpha),
    ]
    for pairs in ("off_diagonal", "deep"):
        sentences += _in_numbers(against_W0, against_gaussian, pairs)
    return [*sentences, *_flat_spectrum(tests, thresholds.alpha)]


# (verdict against Gaussian matrices, verdict against the control) -> what follows.
_READING = {
    (HOLDS, FAILS): "Within the margin, W₀⁻¹ gives the same similarity to any A and B.",
    (HOLDS, HOLDS): "Training adds to the similarity that W₀⁻¹ gives to any A and B.",
    (FAILS, FAILS): "There is no similarity to explain.",
}


def _by_comparison(
    against_W0: pd.DataFrame, against_gaussian: pd.DataFrame, alpha: float
) -> list[str]:
    """How many comparisons by task and set of pairs differ; rank tests, Holm-adjusted."""
    above, below = (against_W0[against_W0[f"holm_{side}"] < alpha] for side in ("above", "below"))
    more = (against_gaussian.holm_above < alpha).sum()
    return [
        "By module kind, matrix and task, over all pairs of layers and over both halves (rank tests of runs against "
        f"draws, Holm-adjusted, {100 * alpha:g} %): above Gaussian matrices in {more} of {len(against_W0)} comparisons. "
        f"Above Gaussian A and B through W₀⁻¹: {_listed(above)}. Below them: {_listed(below)}."
    ]


def _in_numbers(against_W0: pd.DataFrame, against_gaussian: pd.DataFrame, pairs: str) -> list[str]:
    ours, theirs = (
        x[(x.pairs == pairs) & x["mean"].notna()] for x in (against_W0, against_gaussian)
    )
    if not len(ours):
        return []
    of_W0 = ours.null.to_numpy() - theirs.null.to_numpy()
    sentence = (
        f"Mean φ, {PAIRS[pairs]}: trained {_range(ours['mean'])}, Gaussian A and B through W₀⁻¹ "
        f"{_range(ours.null)}, Gaussian matrices {_range(theirs.null)}. So W₀⁻¹ alone adds "
        f"{_range(of_W0)} to Gaussian matrices, and training a further {_range(ours.difference)}"
    )
    if ours.high.notna().any():
        sentence += (
            f" (95 % intervals from {_number(ours.low.min())} to {_number(ours.high.max())})"
        )
    return [sentence + "."]


def _flat_spectrum(tests: pd.DataFrame, alpha: float) -> list[str]:
    flat = _rows(tests, FLAT, GAUSSIAN)
    flat = flat[flat["mean"].notna()]
    if not len(flat):
        return []
    above = flat[flat.holm_above < alpha]
    whole = flat[flat.pairs == "off_diagonal"]
    return [
        "With every singular value of W₀ set to one, its singular vectors and the trained A and B kept, "
        f"mean φ is {_range(whole['mean'])} (Gaussian matrices: {_range(whole.null)}); above Gaussian "
        f"matrices: {_listed(above)}. A similarity found here does not depend on small singular values."
    ]


def table_of_tests(tests: pd.DataFrame) -> typeset.Table:
    """Trained against Gaussian A and B through W0^-1, by task and set of pairs."""
    rows = []
    for test in _rows(tests, TRAINED, CONTROL).itertuples():
        p = [_p(value) for value in (test.p_above, test.holm_above, test.p_below, test.holm_below)]
        numbers = [_number(x) for x in (test.mean, test.null, test.difference)]
        interval = f"{_number(test.low)} to {_number(test.high)}"
        task = TASKS.get(test.task, test.task)
        name = [test.module, MATRIX_LABEL[test.matrix], task, PAIRS[test.pairs]]
        rows.append([*name, str(test.n), *numbers, interval, *p])
    header = ["modules", "matrix", "task", "pairs", "runs", "trained", "Gaussian", "difference"]
    header += ["95 % interval", "p above", "Holm", "p below", "Holm"]
    return typeset.Table(
        name="figure1_tests",
        title="Trained conversion matrices against Gaussian A and B through W₀⁻¹",
        header=header,
        rows=rows,
        data=tests,
        notes=[
            "Mean φ over runs and over draws; Welch's interval of their difference; rank tests of Mann, "
            "Whitney and Wilcoxon, one for each side (exact where the csv says so), also "
            "Holm-adjusted over all rows. The csv has the same comparison with Gaussian matrices, and for W₀ with a flat spectrum."
        ],
        text_columns=4,
    )


def _rows(tests: pd.DataFrame, source: str, against: str) -> pd.DataFrame:
    return tests[(tests.source == source) & (tests.against == against)]


def _listed(tests: pd.DataFrame) -> str:
    names = [
        f"{TASKS.get(t.task, t.task)} {t.module} {MATRIX_LABEL[t.matrix]}, {PAIRS[t.pairs]} "
        f"({_number(t.mean)} against {_number(t.null)})"
        for t in tests.itertuples()
    ]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ("; ".join(names[:8]) + more) or "none"


def _range(values: pd.Series | np.ndarray) -> str:
    low, high = _number(min(values)), _number(max(values))
    return low if low == high else f"{low} to {high}"


def _number(value: float) -> str:
    return formatting.number(value, 4)


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else formatting.number(value, 4)
