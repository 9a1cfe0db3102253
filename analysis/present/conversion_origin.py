"""Are conversion matrices alike by what was learned, or by W0 itself? Tests and a plain answer.

Takes the values of Figure 1's controls; every sentence follows from numbers, whichever way they fall.
"""

import numpy as np
import pandas as pd

from analysis.maths.conversion_controls import FLAT, PAIRS
from analysis.maths.conversion_similarity import CONTROL, GAUSSIAN, TRAINED
from analysis.present import typeset
from analysis.stats import formatting
from analysis.study.names import MATRIX_LABEL, TASKS

LEVEL = 0.05
# Verdicts on the likeness of trained conversion matrices.
NOTHING, FROM_W0, MOSTLY_W0, LEARNED, UNDECIDED = (
    "nothing to explain", "W0 itself", "mostly W0 itself", "mostly learned", "undecided",
)  # fmt: skip
CHECK_IT = [
    "To check this in a minute on any encoder, without training: 1. take W₀ of the value modules of all "
    "layers; 2. draw one Gaussian A′ per layer; 3. solve W₀X = A′ in double precision; 4. compare "
    "the mean φ between the layers' X with that between their A′. What the X have more, W₀⁻¹ has made. "
    "python analysis/conversion_controls.py prints the lines of PyTorch that do so."
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


def verdict(tests: pd.DataFrame) -> str:
    """Where the likeness of trained conversion matrices comes from, of `compare`'s comparisons.

    NOTHING: trained ones exceed Gaussian matrices nowhere. FROM_W0: somewhere they do, and nowhere do
    they exceed Gaussian A and B through the same W0^-1. Otherwise training adds to it: LEARNED where
    more than half of the excess over Gaussian matrices is not in the control, in the median over the
    comparisons that exceed these; else MOSTLY_W0. UNDECIDED: with so few runs and draws no p value
    could have been small enough. All at 5 % after Holm's correction.
    """
    against_W0, against_gaussian = _rows(tests, TRAINED, CONTROL), _rows(tests, TRAINED, GAUSSIAN)
    if len(against_W0) == 0 or against_W0.p_above.isna().all():
        return UNDECIDED
    alike = (against_gaussian.holm_above < LEVEL).to_numpy()
    above = (against_W0.holm_above < LEVEL).to_numpy()
    can_tell = against_W0.smallest_p.min() * len(against_W0) < LEVEL
    if not above.any():
        if not can_tell:
            return UNDECIDED
        return FROM_W0 if alike.any() else NOTHING
    excess = (against_W0["difference"].to_numpy() / against_gaussian["difference"].to_numpy())[
        alike | above
    ]
    return LEARNED if np.median(excess) > 0.5 else MOSTLY_W0


def statement(tests: pd.DataFrame) -> list[str]:
    """The answer in sentences, the verdict first, each with the numbers that it rests on."""
    against_W0, against_gaussian = _rows(tests, TRAINED, CONTROL), _rows(tests, TRAINED, GAUSSIAN)
    if not len(against_W0):
        return [
            "No conversion matrices, so nothing can be said of where their likeness comes from."
        ]
    found, count = verdict(tests), len(against_W0)
    above, below = (against_W0[against_W0[f"holm_{side}"] < LEVEL] for side in ("above", "below"))
    alike = (against_gaussian.holm_above < LEVEL).sum()
    opening = {
        NOTHING: "Trained conversion matrices are nowhere more alike than Gaussian matrices: there is "
        "no likeness to explain.",
        FROM_W0: "The likeness of conversion matrices comes from W₀ itself: nowhere are trained ones more "
        "alike than what the same W₀⁻¹ makes of Gaussian A and B.",
        MOSTLY_W0: "Most of the likeness of conversion matrices comes from W₀ itself, as W₀⁻¹ makes it of "
        f"Gaussian A and B; training adds to it in {len(above)} of {count} comparisons.",
        LEARNED: "Most of the likeness of conversion matrices comes from what was learned: in "
        f"{len(above)} of {count} comparisons they are more alike than what the same W₀⁻¹ makes of "
        "Gaussian A and B.",
        UNDECIDED: "Whether training adds to the likeness of conversion matrices cannot be told: with "
        "this number of runs and draws no difference could pass the test.",
    }[found]
    sentences = [
        f"{opening} (Compared by module kind, matrix and task, over all pairs of layers and over both "
        "halves: rank tests of runs against draws, Holm's correction, 5 %.)",
        f"Above Gaussian matrices: {alike} of {count} comparisons. Above Gaussian A and B through W₀⁻¹: "
        f"{_listed(above)}. Below them: {_listed(below)}.",
    ]
    for pairs in ("off_diagonal", "deep"):
        sentences += _in_numbers(against_W0, against_gaussian, pairs)
    return [*sentences, *_flat_spectrum(tests)]


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


def _flat_spectrum(tests: pd.DataFrame) -> list[str]:
    flat = _rows(tests, FLAT, GAUSSIAN)
    flat = flat[flat["mean"].notna()]
    if not len(flat):
        return []
    above = flat[flat.holm_above < LEVEL]
    whole = flat[flat.pairs == "off_diagonal"]
    return [
        "With every singular value of W₀ set to one, its singular vectors and the trained A and B kept, "
        f"mean φ is {_range(whole['mean'])} (Gaussian matrices: {_range(whole.null)}); above Gaussian "
        f"matrices: {_listed(above)}. Such a likeness would need no small singular value."
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
            "Mean φ over runs and over draws; Welch's interval of their difference; exact rank tests "
            "of Mann, Whitney and Wilcoxon, one for each side, also corrected over all rows by Holm. "
            "The csv holds the same against Gaussian matrices, and of W₀ with a flat spectrum."
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
