"""Similarity of A's and B's spans between layers: tests at their level, and what was planted is found."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from analysis.maths import subspace
from analysis.maths.conversion_similarity import GAUSSIAN
from analysis.maths.span_similarity import spans
from analysis.present import span_similarity
from analysis.stats.span_tests import closeness, span_tests
from analysis.study.stacks import Stack

L, D, R, RUNS = 6, 40, 3, 2


def gaussian(*shape, seed=0):
    return subspace.gaussian(shape, torch.Generator().manual_seed(seed))


def stack(A, B):
    cells = [SimpleNamespace(task="rte", seed=n) for n in range(len(A))]
    return Stack("lora", "value", list(range(1, L + 1)), None, A, B, cells)


def test_the_fast_basis_spans_what_the_careful_one_does():
    X = gaussian(3, L, D, R) * torch.tensor([1e4, 1.0, 1e-4])
    ours, theirs = subspace.span_basis(X), subspace.left_basis(X, R)
    torch.testing.assert_close(ours @ ours.mT, theirs @ theirs.mT)
    torch.testing.assert_close(ours.mT @ ours, torch.eye(R).double().expand(3, L, R, R))
    X[0, 1, :, 2] = 0
    assert subspace.span_basis(X)[0, 1].isnan().all() and subspace.span_basis(X)[1].isfinite().all()


@pytest.mark.parametrize("distance", [1e-7, 1e-12])
def test_nearly_dependent_columns_have_a_basis_too(distance):
    """Their Gram matrix is singular to working precision, where Cholesky's factorisation fails or is inexact."""
    X = gaussian(2, L, D, R)
    X[..., 1] = X[..., 0] + distance * X[..., 1]
    ours, theirs = subspace.span_basis(X), subspace.left_basis(X, R)
    torch.testing.assert_close(ours @ ours.mT, theirs @ theirs.mT, atol=1e-12, rtol=0)


def test_shared_directions_are_found_in_the_matrix_that_has_them(settings, tmp_path):
    A = gaussian(RUNS, L, R, D) + 2 * gaussian(RUNS, 1, R, D, seed=1)
    found = spans([stack(A, gaussian(RUNS, L, D, R, seed=2))], settings)
    tests = span_tests(found, 0).set_index("matrix")
    assert tests.p_above["A"] < 1e-4 and tests.ratio["A"] > 3
    assert tests.p_above["B"] > 0.01 and tests.ratio["B"] == pytest.approx(1, abs=0.25)
    assert tests.chance["A"] == R / D
    text = span_similarity.section(found, span_tests(found, 0), tmp_path)
    assert "A: " in text.text[0] and "above it in 1 of 1" in text.text[0]


def test_the_rank_test_holds_its_level(settings):
    """Runs that are draws of the null are rejected as often as the level says."""
    found = spans([stack(gaussian(400, L, R, D, seed=3), gaussian(400, L, D, R, seed=4))], settings)
    v = found.values
    null = v.off_diagonal[(v.source == GAUSSIAN) & (v.matrix == "B")].to_numpy()
    runs = v.off_diagonal[(v.source != GAUSSIAN)].to_numpy()
    p = (1 + (null[None] >= runs[:, None]).sum(axis=1)) / (1 + len(null))
    assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.025)


def test_closeness_is_seen_and_order_alone_is_not():
    rng, places = np.random.default_rng(0), np.arange(8)
    near = np.exp(-np.abs(places[:, None] - places)) + 0.01 * rng.random((8, 8))
    correlation, p = closeness((near + near.T) / 2, rng)
    assert correlation > 0.9 and p < 0.001
    noise = rng.random((8, 8))
    assert closeness((noise + noise.T) / 2, rng)[1] > 0.01
    assert np.isnan(closeness(near[:3, :3], rng)).all()
