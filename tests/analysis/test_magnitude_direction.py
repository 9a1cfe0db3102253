"""Changes of magnitude and direction: against the matrices formed in full, and by hand."""

import pytest
import torch

from analysis.maths.magnitude_direction import (
    changes,
    changes_of_weights,
    magnitude_and_direction,
    of_changed_weights,
)
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


def test_the_changes_of_whole_weights_are_those_of_their_update():
    W, A, B = gaussian(L, D, 9), gaussian(1, L, R, 9, seed=1), gaussian(1, L, D, R, seed=2)
    wanted = changes(W, A, B, torch.ones(1))
    found = changes_of_weights(W, W + (B @ A)[0])
    torch.testing.assert_close(found, (wanted[0][0], wanted[1][0]))


def test_full_fine_tuning_and_dora_are_rows_of_the_table():
    """Rows that are scaled change in size alone; those that also turn, in proportion to the layer's number, in both."""
    W = torch.eye(D, dtype=torch.float64).expand(L, -1, -1)
    layer = torch.arange(1, L + 1)[:, None, None] / 10
    turned = W.roll(1, dims=-1)
    weights = {
        "full": W * (1.5 - layer) + layer * turned,  # the more a row turns, the less it grows
        "dora": W * (1 + layer) + layer * turned,
    }

    def load(folder):
        return {"query": (W, weights[folder.parts[-2]], list(range(L)))}

    cells = [make_cell("rte", method, 0) for method in ("lora", "full", "dora")]
    found = of_changed_weights(cells, load).set_index("method")
    assert list(found.index) == ["full", "dora"]
    assert found.correlation["full"] < -0.9 and found.correlation["dora"] > 0.9
    table = magnitude_direction.section(found.reset_index()).details[0]
    assert {row[1] for row in table.rows} == {"Full fine-tuning", "DoRA"}
    assert not len(of_changed_weights([make_cell("rte", "lora", 0)]))
