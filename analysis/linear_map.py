"""The paper's hypothesis tested directly: does one linear map of W0 give A, or B, of every layer?

The fit and its left-out layers are in `analysis.maths.linear_map`.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from scipy import stats
from torch import Tensor

from analysis.maths import subspace
from analysis.maths.linear_map import explained
from analysis.present import typeset
from analysis.present.typeset import Section
from analysis.stats.significance import holm, summarise
from analysis.study.selection import REFERENCE, Settings, Stack, load_stacks, open_study
from condlora.commands.cli import command

TRAINED, OTHER_LAYER, RANDOM = "trained", "other_layer_W0", "random_W0"
SHARED, GAUSSIAN = "no_W0", "gaussian_A_B"
SOURCES = {
    TRAINED: "trained, own W₀",
    OTHER_LAYER: "trained, another layer's W₀",
    RANDOM: "trained, random W₀",
    SHARED: "trained, no W₀",
    GAUSSIAN: "Gaussian A, B, own W₀",
}
FORMS = {"A_code": "A = θW₀′", "A_consistent": "A = θW₀", "B": "B = W₀θ′"}
GAUSSIAN_DRAWS = 24  # each is fitted once per fold; its value is already a mean over layers
LEVEL = 0.05


@dataclass(frozen=True)
class LinearMap:
    """How much of LoRA's A and B one linear map of W0 explains.

    values: a row per module, form, source, task and run or draw (`of`), each the mean over layers:
    `fitted` (phi of the map fitted on all layers), `left_out` (phi of the layer left out), `energy`
    (the share of the squared norm of A or B in the same span). chance: (module, form) -> r / d.
    tests: a row per module and form: `left_out` of the runs of all tasks against Gaussian A and B, by
    the exact rank test of Mann, Whitney and Wilcoxon (p_above) with Holm's correction.
    """

    values: pd.DataFrame
    tests: pd.DataFrame
    chance: dict[tuple[str, str], float]


def linear_maps(stacks: list[Stack], settings: Settings) -> LinearMap:
    """Every LoRA stack of two layers or more, each form that its W0's shape allows, and the nulls."""
    rows, chance = [], {}
    for stack in (s for s in stacks if s.adapter == REFERENCE and len(s.layers) > 1):
        generator = settings.generator()
        for form, M, X in _problems(stack):
            n, r = len(X), X.shape[-1]
            chance[stack.module, form] = subspace.expected_random_phi(r, r, X.shape[-2])
            runs = [(cell.task, f"seed {cell.seed}") for cell in stack.cells]
            drawn = subspace.gaussian((GAUSSIAN_DRAWS, *X.shape[1:]), generator)
            # Each X with the M of the layer half the depth away: as other runs of the same M.
            moved = X.double().roll(len(M) // 2, dims=1)
            scores = _means(M, torch.cat([X.double(), moved, drawn]))
            named = [
                (TRAINED, runs, scores[:n]),
                (OTHER_LAYER, runs, scores[n : 2 * n]),
                (RANDOM, runs, _means(subspace.gaussian(M.shape, generator), X)),
                (SHARED, runs, _means(torch.eye(X.shape[-2]).expand(len(M), -1, -1), X)),
                (GAUSSIAN, [("", f"draw {k}") for k in range(GAUSSIAN_DRAWS)], scores[2 * n :]),
            ]  # fmt: skip
            for source, names, numbers in named:
                for (task, of), row in zip(names, numbers.tolist(), strict=True):
                    rows.append([stack.module, form, source, task, of, *row])
    columns = ["module", "form", "source", "task", "of", "fitted", "left_out", "energy"]
    values = pd.DataFrame(rows, columns=columns)
    return LinearMap(values, _compare(values), chance)


def _problems(stack: Stack) -> list[tuple[str, Tensor, Tensor]]:
    """(form, M (L, d, p), X (n, L, d, r)); the code's A = theta W' needs a square W."""
    forms = [("A_consistent", stack.W.mT, stack.A.mT), ("B", stack.W, stack.B)]
    if stack.W.shape[-2] == stack.W.shape[-1]:
        forms.insert(0, ("A_code", stack.W, stack.A.mT))
    return forms


def _means(M: Tensor, X: Tensor) -> Tensor:
    return torch.stack(explained(M, X), dim=-1).mean(dim=1)


def _compare(values: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (module, form), group in values.groupby(["module", "form"], sort=False):
        x, null = (group.left_out[group.source == source] for source in (TRAINED, GAUSSIAN))
        is_defined = x.notna().all() and null.notna().all()
        p = stats.mannwhitneyu(x, null, alternative="greater").pvalue if is_defined else np.nan
        smallest = 1 / math.comb(len(x) + len(null), len(x))
        rows.append([module, form, len(x), x.mean(skipna=False), null.mean(), p, smallest])
    columns = ["module", "form", "n", "mean", "null", "p_above", "smallest_p"]
    tests = pd.DataFrame(rows, columns=columns)
    return tests.assign(holm_above=holm(tests.p_above.to_numpy()))


def statement(result: LinearMap) -> list[str]:
    """The answer in sentences, with the numbers that it rests on."""
    tests = result.tests[result.tests.p_above.notna()]
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
            cells = [typeset.spread(x, 4) for x in found]
            rows.append([module, FORMS[form], label, *cells, typeset.number(chance, 4)])
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
            result.tests.drop(columns=["n", "mean", "null"]),
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
    return typeset.number(value, 3)


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    result = linear_maps(load_stacks(study.done), study.settings)
    typeset.write(table(result), study.folder / "tables")
    print(*statement(result), f"Table: {study.folder / 'tables' / 'linear_map.md'}", sep="\n")


if __name__ == "__main__":
    main()
