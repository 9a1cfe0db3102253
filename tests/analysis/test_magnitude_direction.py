"""Changes of magnitude and direction: against the matrices formed in full, and by hand."""

import pytest
import torch

from analysis.maths.magnitude_direction import changes, magnitude_and_direction
from analysis.present import magnitude_direction
from analysis.study.stacks import Stack
from tests.analysis.conftest import make_cell

L, D, R, RUNS = 4, 12, 2, 3


def gaussian(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_the_changes_are_those_of_the_matrices_formed_in_full():
    W, A, B = gaussian(L, D, 9), gaussian(RUNS, L, R, 9, seed=1), gaussian(RUNS, L, D, R, seed=2)
    s = torch.tensor([0.5, 1.0, 2.0])
    magnitude, direction = changes(W, A, B, s)
    after = W + s[:, None, None, None] * (B @ A)
    norms, new_norms = W.norm(dim=-1), after.norm(dim=-1)
    torch.testing.assert_close(magnitude, (new_norms - norms).abs().mean(dim=-1))
    cosine = torch.cosine_similarity(after, W.expand_as(after), dim=-1)
    torch.testing.assert_close(direction, (1 - cosine).mean(dim=-1))


def test_updates_along_the_rows_change_magnitude_alone():
    W = torch.eye(D, dtype=torch.float64).expand(L, -1, -1)
    A, B = torch.eye(D)[None, None, :1], torch.eye(D)[None, None, :, :1]
    magnitude, direction = changes(W, A.expand(1, L, -1, -1), B.expand(1, L, -1, -1), torch.ones(1))
    assert magnitude.tolist() == [pytest.approx([1 / D] * L)]
    assert direction.abs().max() < 1e-12


def test_every_run_has_a_correlation_and_a_place_in_the_table():
    cells = [make_cell("rte", "lora", seed) for seed in range(RUNS)]
    A, B = gaussian(RUNS, L, R, D, seed=1), gaussian(RUNS, L, D, R, seed=2)
    scale = torch.linspace(0.01, 0.1, L, dtype=torch.float64)[:, None, None]
    stack = Stack("lora", "value", [1, 2, 3, 4], gaussian(L, D, D), A, B * scale, cells)
    found = magnitude_and_direction([stack])
    assert len(found) == RUNS and (found.correlation > 0.9).all()  # larger updates change both more
    section = magnitude_direction.section(found)
    assert section.details[0].rows[0][:3] == ["value", "LoRA", "4"]
    assert magnitude_direction.section(magnitude_and_direction([])).text == []
