"""The controls of Figure 1 as tables, figures and a section of the report."""

from pathlib import Path

from analysis.maths.conversion_controls import (
    BOTH_RANDOM,
    FLAT,
    OTHER_LAYER,
    OTHER_SEED,
    PAIRS,
    ROTATIONS,
    U_RANDOM,
    UNTRAINED,
    V_RANDOM,
    Controls,
)
from analysis.maths.conversion_similarity import CONTROL, GAUSSIAN, TRAINED
from analysis.present import inverse_spectrum, typeset
from analysis.present.conversion_figures import draw_controls, draw_spectra, draw_truncation
from analysis.present.conversion_origin import CHECK_IT, statement, table_of_tests
from analysis.present.inverse_spectrum import table_of_directions, table_of_spectra
from analysis.present.typeset import Picture, Section
from analysis.stats import formatting
from analysis.stats.rank_tests import conversion_tests
from analysis.stats.rules import Thresholds
from analysis.stats.significance import summarise
from analysis.study.names import MATRIX_LABEL

SOURCES = {
    TRAINED: "trained LoRA",
    CONTROL: "Gaussian A, B",
    UNTRAINED: "LoRA before training",
    OTHER_LAYER: "another layer's A, B",
    OTHER_SEED: "another seed's A, B",
    U_RANDOM: "trained; random U in W₀",
    V_RANDOM: "trained; random V in W₀",
    BOTH_RANDOM: "trained; random U, V in W₀",
    FLAT: "trained; flat spectrum of W₀",
    GAUSSIAN: "Gaussian matrices, no W₀",
}


def table(result: Controls) -> typeset.Table:
    """Mean phi over pairs of layers, trained and of each control, over all tasks."""
    rows = []
    v = result.values
    for module, matrix in v[["module", "matrix"]].drop_duplicates().itertuples(index=False):
        for source, name in SOURCES.items():
            of = v[(v.module == module) & (v.matrix == matrix) & (v.source == source)]
            found = [summarise(of[pairs].to_numpy()) for pairs in PAIRS]
            cells = [formatting.mean_sd(x, 4) for x in found]
            if source == UNTRAINED and matrix == "B":
                cells = ["undefined: B = 0", *[formatting.UNDEFINED] * (len(PAIRS) - 1)]
            rows.append([module, MATRIX_LABEL[matrix], name, *cells])
    return typeset.Table(
        name="figure1_controls",
        title="Figure 1's controls: mean φ between conversion matrices of two different layers",
        header=["modules", "matrix", "source", *PAIRS.values()],
        rows=rows,
        data=v,
        notes=[
            "Mean ± sd (n): over runs of all tasks and seeds, over draws (Gaussian matrices, LoRA "
            "before training) or over pairs of runs of one task (another seed, where n counts pairs "
            "that share runs). All but the last row pass through W₀⁻¹ = V S⁻¹ U′. Random U or V: "
            f"new random singular vectors for each layer, S kept; each run is a mean over {ROTATIONS} "
            "draws. Another layer: a mean over all cyclic shifts of the layers. With random V, any "
            "adapter has the value of random subspaces; with random U, that of Gaussian A and B if "
            "i = j = r.",
        ],
        text_columns=3,
    )


def section(result: Controls, thresholds: Thresholds, folder: Path) -> Section:
    """The verdicts, the controls, and the spectra of W0 in the details; figures go to `folder`."""
    title = "Figure 1's controls: is the similarity learned, or does it come from W₀?"
    tests = conversion_tests(result.values)
    text = [*statement(result.values, tests, thresholds), *result.notes]
    if len(result.values):
        text.insert(-1 - len(result.notes), inverse_spectrum.statement(result.spectra))
    if not len(result.values):
        return Section(title, text, [], [])
    means = [
        f"{module} {matrix} {formatting.number(group.off_diagonal.mean(), 3)}"
        for (module, matrix), group in result.values[result.values.source == TRAINED].groupby(
            ["module", "matrix"], sort=False
        )
    ]
    controls_ = Picture(
        draw_controls(result.values, SOURCES, folder),
        "Mean φ of trained LoRAs and of each control. Trained: " + ", ".join(means),
        "Mean φ over pairs of two layers: one dot per run, pair of runs or draw; bars are means.",
    )
    spectra = Picture(
        draw_spectra(result.spectra, folder),
        "Singular values of every W₀ by their place in the order; numbers are in the table.",
        "Singular values of W₀, smallest first, one line per layer.",
    )
    truncation = Picture(
        draw_truncation(result.spectra, folder),
        "Mean φ over the number of W₀'s smallest singular directions taken out of conversion "
        "matrices; numbers are in the table.",
        "Mean φ ± sd once W₀'s smallest singular directions are taken out.",
    )
    return Section(
        title,
        [*text, *CHECK_IT],
        [controls_, table(result), truncation],
        [
            table_of_tests(tests),
            table_of_directions(result.spectra),
            spectra,
            table_of_spectra(result.spectra),
        ],
    )
