"""Figure 1's controls: each against a slow oracle, and the answer in worlds that go either way."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from analysis.maths import conversion_controls, conversion_similarity, subspace
from analysis.maths.conversion_controls import (
    BOTH_RANDOM,
    FLAT,
    OTHER_LAYER,
    OTHER_SEED,
    U_RANDOM,
    UNTRAINED,
    V_RANDOM,
)
from analysis.maths.conversion_similarity import CONTROL, GAUSSIAN, TRAINED
from analysis.present import conversion_controls as present_conversion_controls
from analysis.present import conversion_figures
from analysis.present import conversion_origin as present_conversion_origin
from analysis.present.conversion_controls import SOURCES
from analysis.stats import rank_tests
from analysis.stats.matrix_parts import conversion_parts
from analysis.stats.rules import HOLDS, NOT_RESOLVED, combine, load_rules
from analysis.study.selection import Settings
from analysis.study.stacks import Stack

THRESHOLDS = load_rules()[0]
SETTINGS = Settings(i=None, j=None, baseline_seed=0, baseline_draws=40)
L, d, r, RUNS = 6, 32, 4, 3


def gaussian(*shape, seed=0):
    return subspace.gaussian(shape, torch.Generator().manual_seed(seed))


def stack_of(W, A, B):
    cells = [SimpleNamespace(task="rte", seed=n) for n in range(len(A))]
    return Stack("lora", "value", list(range(1, len(W) + 1)), W, A, B, cells)


@pytest.fixture(scope="module")
def weights():
    """Well-conditioned W0: its inverse favours no direction by much."""
    return torch.eye(d).double() + 0.3 * gaussian(L, d, d, seed=7) / d**0.5


@pytest.fixture(scope="module")
def shared_weights(weights):
    """shared_weights(scale): right singular vectors of all layers alike, four values set to scale."""
    U, _, Vh = torch.linalg.svd(weights)

    def build(scale):
        return U * torch.cat([torch.ones(d - 4), torch.full((4,), scale)]) @ Vh[:1]

    return build


@pytest.fixture(scope="module")
def factors():
    """Independent Gaussian A and B of three runs."""
    return gaussian(RUNS, L, r, d, seed=1), gaussian(RUNS, L, d, r, seed=2)


def one_map(W, seed=3):
    """A = theta W' and B = W theta' in every layer: all conversion matrices of a run are equal."""
    theta_A, theta_B = gaussian(RUNS, 1, r, d, seed=seed), gaussian(RUNS, 1, r, d, seed=seed + 1)
    return theta_A @ W.mT, W @ theta_B.mT


@pytest.fixture(scope="module")
def result(weights, factors):
    return conversion_controls.controls([stack_of(weights, *factors)], SETTINGS)


def means(result, matrix, source, pairs="off_diagonal"):
    v = result.values
    return v.loc[(v.matrix == matrix) & (v.source == source), pairs].to_numpy()


def mean_phi(layers, others=None):
    """Mean phi over pairs of two layers, pair by pair with NumPy's SVD."""
    first, second = (
        [np.linalg.svd(x, full_matrices=False)[0][:, :r] for x in side]
        for side in (layers, others if others is not None else layers)
    )
    pairs = [(a, b) for a in range(L) for b in range(L) if a != b]
    return np.mean([np.linalg.norm(first[a].T @ second[b]) ** 2 / r for a, b in pairs])


def test_trained_and_gaussian_values_are_those_of_figure_1(result, weights, factors):
    """By singular vectors here, by an LU factorisation there."""
    other = conversion_similarity.figure1([stack_of(weights, *factors)], SETTINGS).values
    for matrix in ("A", "B"):
        for source in (TRAINED, GAUSSIAN, CONTROL):
            for pairs in ("off_diagonal", "deep", "shallow"):
                theirs = other[(other.matrix == matrix) & (other.source == source)][pairs]
                # The controls compare bases in float32.
                np.testing.assert_allclose(means(result, matrix, source, pairs), theirs, atol=1e-6)


def test_another_layers_factors_go_through_this_layers_inverse(result, weights, factors):
    for matrix, X in (("A", factors[0].mT), ("B", factors[1])):
        for run in range(RUNS):
            expected = []
            for shift in range(1, L):
                moved = [
                    np.linalg.inv(weights[n].numpy()) @ X[run, (n - shift) % L].numpy()
                    for n in range(L)
                ]
                expected.append(mean_phi(moved))
            assert means(result, matrix, OTHER_LAYER)[run] == pytest.approx(np.mean(expected))


def test_another_seed_is_compared_layer_by_layer_with_the_first(result, weights, factors):
    inverse = np.linalg.inv(weights.numpy())
    runs = [[w @ b for w, b in zip(inverse, B.numpy(), strict=True)] for B in factors[1]]
    expected = [mean_phi(runs[a], runs[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(means(result, "B", OTHER_SEED), expected)
    v = result.values
    assert v.run_or_draw[v.source == OTHER_SEED].iloc[0] == "seed 0, seed 1"


def test_pairs_of_seeds_are_of_one_task(weights, factors):
    stack = stack_of(weights, *factors)
    stack.cells[2].task = "mrpc"
    v = conversion_controls.controls([stack], SETTINGS).values
    assert v[v.source == OTHER_SEED].task.tolist() == ["rte", "rte"]


def test_a_flat_spectrum_keeps_the_singular_vectors(result, weights, factors):
    U, _, Vh = np.linalg.svd(weights.numpy())
    for run in range(RUNS):
        flat = [Vh[n].T @ U[n].T @ factors[0][run, n].T.numpy() for n in range(L)]
        assert means(result, "A", FLAT)[run] == pytest.approx(mean_phi(flat))


def test_random_singular_vectors_show_which_side_matters(shared_weights):
    """Adapters of one map, so that trained matrices are equal in all layers (phi = 1)."""
    W = shared_weights(0.05)
    result = conversion_controls.controls([stack_of(W, *one_map(W))], SETTINGS)
    for matrix in ("A", "B"):
        np.testing.assert_allclose(means(result, matrix, TRAINED), 1)
        # Means over 12 maps of 15 pairs with deviations below 0.06 (random) and 0.15 (control).
        for source in (V_RANDOM, BOTH_RANDOM):
            assert means(result, matrix, source).mean() == pytest.approx(r / d, abs=0.02)
        control = means(result, matrix, CONTROL).mean()
        assert 0.3 < control < 0.99
        assert means(result, matrix, U_RANDOM).mean() == pytest.approx(control, abs=0.05)


def test_before_training_only_a_has_conversion_matrices(result):
    # 40 draws of 15 pairs, as Gaussian A: W0 is the same and the spans are random.
    before, control = means(result, "A", UNTRAINED), means(result, "A", CONTROL)
    assert len(before) == 40 and not np.array_equal(before, control)
    assert before.mean() == pytest.approx(control.mean(), abs=0.01)
    assert len(means(result, "B", UNTRAINED)) == 0
    rows = {tuple(row[1:3]): row[3] for row in present_conversion_controls.table(result).rows}
    assert rows["B", SOURCES[UNTRAINED]] == "undefined: B = 0"


def test_initial_a_is_loras():
    drawn = subspace.initial_A((50, 8, 64), torch.Generator().manual_seed(0))
    expected = torch.empty(400, 64)
    torch.nn.init.kaiming_uniform_(expected, a=5**0.5, generator=torch.Generator().manual_seed(1))
    assert drawn.dtype == torch.float64 and drawn.abs().max() <= 1 / 8
    assert drawn.abs().max().item() == pytest.approx(expected.abs().max().item(), rel=1e-3)
    assert drawn.std().item() == pytest.approx(expected.std().item(), rel=0.02)


def test_rotation_keeps_lengths_and_angles_and_is_uniform():
    X = gaussian(1, 6, 2).expand(2000, -1, -1)
    rotated = subspace.rotated(X, torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotated.mT @ rotated, X.mT @ X)
    # Every direction alike: mean 0 and covariance I / d for the first column, scaled to length 1.
    first = rotated[:, :, 0] / X[0, :, 0].norm()
    assert first.mean(dim=0).abs().max() < 0.04  # four standard errors of 0.41 / sqrt(2000)
    assert (first.mT @ first / 2000 - torch.eye(6) / 6).abs().max() < 0.03


def answer(W, A, B, settings=SETTINGS):
    """The verdicts against Gaussian matrices and against the control, and the sentences."""
    values = conversion_controls.controls([stack_of(W, A, B)], settings).values
    tests = rank_tests.conversion_tests(values)
    verdicts = [
        combine(conversion_parts(values, source, THRESHOLDS))[0] for source in (GAUSSIAN, CONTROL)
    ]
    return verdicts, present_conversion_origin.statement(values, tests, THRESHOLDS)


def test_similarity_from_w0_alone_is_not_above_the_control(shared_weights, factors):
    found, sentences = answer(shared_weights(0.05), *factors)
    assert found[0] == HOLDS and found[1] != HOLDS
    assert "above Gaussian matrices in 6 of 6 comparisons" in sentences[1]
    assert "Above Gaussian A and B through W₀⁻¹: none. Below them: none." in sentences[1]


def test_similarity_from_one_learned_map_is_above_the_control(weights):
    found, sentences = answer(weights, *one_map(weights))
    assert found == [HOLDS, HOLDS]
    assert "Training adds to the similarity" in sentences[0]
    assert "RTE value A, all pairs (1.0000 against 0.1" in sentences[1]
    assert "95 % intervals" in sentences[2]


def test_independent_matrices_are_above_neither(weights, factors):
    assert HOLDS not in answer(weights, *factors)[0]


@pytest.mark.slow
def test_the_section_says_what_the_claims_say(shared_weights, factors, tmp_path):
    """One rule decides: the section has no thresholds of its own."""
    result = conversion_controls.controls([stack_of(shared_weights(0.05), *factors)], SETTINGS)
    text = present_conversion_controls.section(result, THRESHOLDS, tmp_path).text[0]
    verdict = combine(conversion_parts(result.values, CONTROL, THRESHOLDS))[0]
    assert f"passed through the same W₀⁻¹: {verdict}." in text
    strict = replace(THRESHOLDS, alpha=1e-4)
    text = present_conversion_controls.section(result, strict, tmp_path).text[0]
    assert "than Gaussian matrices: not resolved" in text


def test_one_run_and_few_draws_resolve_nothing(weights):
    A, B = one_map(weights)
    settings = Settings(i=None, j=None, baseline_seed=0, baseline_draws=10)
    assert answer(weights, A[:1], B[:1], settings)[0] == [NOT_RESOLVED, NOT_RESOLVED]
    none = conversion_controls.controls([], settings).values
    tests = rank_tests.conversion_tests(none)
    sentences = present_conversion_origin.statement(none, tests, THRESHOLDS)
    assert sentences[0].startswith("There are no conversion matrices")


def test_less_similar_than_the_control_is_reported(shared_weights):
    """Adapters that avoid what falls on W0's smallest directions, in other directions per layer."""
    W = shared_weights(0.05)
    U = torch.linalg.svd(W)[0]
    B = U[:, :, : d - 4] @ gaussian(RUNS, L, d - 4, r, seed=5)
    assert "Below them: RTE value A, all pairs" in answer(W, B.mT, B)[1][1]


def test_a_rank_test_is_called_exact_only_without_ties():
    values = [["value", "A", TRAINED, "rte", x] for x in np.arange(0.5, 12.5)]
    values += [["value", "A", s, "", x] for s in (CONTROL, GAUSSIAN) for x in np.arange(0.0, 20.0)]
    columns = ["module", "matrix", "source", "task", "off_diagonal"]
    frame = pd.DataFrame(values, columns=columns)
    frame = frame.assign(deep=frame.off_diagonal.round(), shallow=frame.off_diagonal)
    tests = rank_tests.conversion_tests(frame).set_index(["against", "pairs"])
    assert tests.is_exact[CONTROL, "off_diagonal"] and not tests.is_exact[CONTROL, "deep"]
    x, null = np.arange(0.5, 12.5), np.arange(0.0, 20.0)
    exact = stats.mannwhitneyu(x, null, alternative="greater", method="exact").pvalue
    assert tests.p_above[CONTROL, "off_diagonal"] == exact


def test_p_values_by_hand():
    """One run above 9 of 9 draws, then below all: p = 1 / 10 on its side and 1 on the other."""
    pairs = {"off_diagonal": 1.0, "deep": 0.0, "shallow": 0.45}
    kind = {"module": "value", "matrix": "A", "task": "rte"}
    trained = [kind | {"source": TRAINED, "run_or_draw": "seed 0"} | pairs]
    draws = [
        kind
        | {"source": source, "task": "", "run_or_draw": f"draw {n}"}
        | dict.fromkeys(pairs, n / 10)
        for source in (CONTROL, GAUSSIAN)
        for n in range(1, 10)
    ]
    tests = rank_tests.conversion_tests(pd.DataFrame([*trained, *draws]))
    tests = tests[tests.against == CONTROL].set_index("pairs")
    assert tests.p_above.to_dict() == pytest.approx(
        {"off_diagonal": 0.1, "deep": 1.0, "shallow": 0.6}
    )
    assert tests.p_below.to_dict() == pytest.approx(
        {"off_diagonal": 1.0, "deep": 0.1, "shallow": 0.5}
    )
    assert tests.holm_above["off_diagonal"] == pytest.approx(0.3)  # three comparisons
    assert tests.difference["off_diagonal"] == pytest.approx(0.5)
    assert tests.low.isna().all()


def test_the_interval_is_welchs():
    """Runs 1, 3 and draws 0, 0, 0, 2: standard error sqrt(1 + 1/4), 2.0 degrees of freedom or so."""
    values = pd.DataFrame(
        [["value", "A", TRAINED, "rte", x] for x in (1.0, 3.0)]
        + [["value", "A", s, "", x] for s in (CONTROL, GAUSSIAN) for x in (0.0, 0.0, 0.0, 2.0)],
        columns=["module", "matrix", "source", "task", "off_diagonal"],
    ).assign(deep=lambda v: v.off_diagonal, shallow=lambda v: v.off_diagonal)
    test = rank_tests.conversion_tests(values).iloc[0]
    freedom = 1.25**2 / (1 + 0.25**2 / 3)
    half = stats.t.ppf(0.975, freedom) * 1.25**0.5
    assert (test.difference, test.low, test.high) == pytest.approx((1.5, 1.5 - half, 1.5 + half))


def test_an_untrained_adapter_has_no_verdict_on_b(weights, factors):
    result = conversion_controls.controls([stack_of(weights, factors[0], 0 * factors[1])], SETTINGS)
    tests = rank_tests.conversion_tests(result.values)
    assert tests[(tests.matrix == "B") & (tests.source == TRAINED)].p_above.isna().all()
    assert "nan" not in " ".join(
        present_conversion_origin.statement(result.values, tests, THRESHOLDS)
    )


def test_rectangular_modules_have_controls_of_their_own_sides(factors):
    A, B = factors[0][..., :20], factors[1]
    stack = stack_of(gaussian(L, d, 20), A, B)
    result = conversion_controls.controls([stack], SETTINGS)
    other = conversion_similarity.figure1([stack], SETTINGS).values
    for matrix, rows in (("A", d), ("B", 20)):
        for source in (TRAINED, CONTROL, GAUSSIAN):
            theirs = other[(other.matrix == matrix) & (other.source == source)].off_diagonal
            np.testing.assert_allclose(means(result, matrix, source), theirs, atol=1e-9)
        # 12 maps of 15 pairs, each with a deviation below 0.09.
        assert means(result, matrix, V_RANDOM).mean() == pytest.approx(r / rows, abs=0.03)


def test_the_section_shows_every_control_and_is_the_same_when_made_again(result, tmp_path):
    for name in ("first", "second"):
        section = present_conversion_controls.section(result, THRESHOLDS, tmp_path / name)
    files = sorted((tmp_path / "first").iterdir())
    assert len(files) == 9 and all(
        path.read_bytes() == (tmp_path / "second" / path.name).read_bytes() for path in files
    )
    assert [t.name for t in section.details if hasattr(t, "name")] == [
        "figure1_tests",
        "figure1_smallest_directions",
        "figure1_spectra",
    ]
    assert {row[2] for row in present_conversion_controls.table(result).rows} == set(
        SOURCES.values()
    )


def test_every_value_lies_within_its_axes(weights, shared_weights, factors, tmp_path, monkeypatch):
    """Two module kinds on one scale, the second with values beyond those of the first."""
    stacks = [
        replace(stack_of(W, *factors), module=name)
        for name, W in (("query", weights), ("value", shared_weights(0.01)))
    ]
    result = conversion_controls.controls(stacks, SETTINGS)
    drawn = []
    monkeypatch.setattr(conversion_figures, "save", lambda fig, *_: drawn.append(fig) or [tmp_path])
    conversion_figures.draw_controls(result.values, SOURCES, tmp_path)
    conversion_figures.draw_truncation(result.spectra, tmp_path)
    conversion_figures.draw_spectra(result.spectra, tmp_path)
    for fig in drawn:
        for ax in fig.axes:
            assert ax.lines
            for line in ax.lines:
                assert np.nanmax(line.get_xdata()) <= max(ax.get_xlim())
                assert np.nanmax(line.get_ydata()) <= max(ax.get_ylim())
        conversion_figures.plt.close(fig)


def test_singular_weights_are_said_and_not_drawn(factors, tmp_path):
    result = conversion_controls.controls([stack_of(torch.zeros(L, d, d), *factors)], SETTINGS)
    section = present_conversion_controls.section(result, THRESHOLDS, tmp_path)
    assert "No controls for value modules: W0 of layer 1 is singular" in section.text[-1]
    assert section.shown == section.details == []


def test_the_check_for_readers_runs_and_gives_our_numbers(tiny_bert, monkeypatch, capsys):
    model = tiny_bert()
    fake = SimpleNamespace(from_pretrained=lambda name: model)
    monkeypatch.setattr("transformers.AutoModel", fake)
    exec(present_conversion_origin.RECIPE, {})
    gaussian_line, through_line = capsys.readouterr().out.splitlines()
    attention = [layer.attention.self for layer in model.bert.encoder.layer]
    W = torch.stack([module.value.weight.detach() for module in attention])
    A = gaussian(3, 16, 8)
    for line, X in ((gaussian_line, A), (through_line, torch.linalg.inv(W.double()) @ A)):
        U = subspace.left_basis(X, 8)
        expected = subspace.means_of_pairs(subspace.phi_map(U, U, 8, 8))[0].item()
        assert float(line.split(":")[1]) == pytest.approx(expected)
