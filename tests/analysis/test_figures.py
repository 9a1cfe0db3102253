"""Figure 1: its numbers, its baselines, and files that are byte-equal when made again."""

import os
import subprocess
import sys

import numpy as np
import pytest

from analysis.maths import conversion_similarity, subspace
from analysis.maths.conversion_similarity import CONTROL, GAUSSIAN, TRAINED
from analysis.present import conversion_similarity as present_conversion_similarity
from analysis.present import figures, score_figures
from analysis.present import glue_scores as present_glue_scores
from analysis.study import names, scores
from analysis.study.stacks import load_stacks
from tests.tasks import ROOT


@pytest.fixture
def cells(cell):
    return [cell(task, "lora", seed) for task in ("mnli", "rte") for seed in (0, 1)] + [
        cell("mnli", "condlora", 0)
    ]


@pytest.fixture
def result(cells, load, settings):
    return conversion_similarity.figure1(load_stacks(cells, load), settings)


def test_means_are_over_pairs_of_different_layers(result, cells, load, weights):
    factors = load(cells[1].folder)["value"]
    maps = subspace.conversion_maps(
        *subspace.conversion_matrices(weights, factors.A, factors.B), factors.A, 4, 4
    )
    phi = maps["A"].numpy()
    v = result.values
    row = v[(v.module == "value") & (v.matrix == "A") & (v.source == TRAINED)].iloc[1]
    assert (row.task, row.seed_or_draw) == ("mnli", 1)
    assert row.off_diagonal == pytest.approx((phi.sum() - 6) / 30)
    assert row.deep == pytest.approx((phi[3, 4] + phi[3, 5] + phi[4, 5]) / 3)
    assert row.shallow == pytest.approx((phi[0, 1] + phi[0, 2] + phi[1, 2]) / 3)
    np.testing.assert_allclose(result.maps["value", "A", TRAINED, "mnli"][1], phi)


def test_only_lora_runs_count(result):
    assert len(result.select("off_diagonal", "value", "A", TRAINED)) == 4


def test_baselines_are_random_and_follow_their_seed(result, cells, load, settings):
    gaussian = result.select("off_diagonal", "value", "B", GAUSSIAN)
    assert len(gaussian) == 40
    # 40 draws of 15 pairs, each with a deviation below 0.06.
    assert gaussian.mean() == pytest.approx(4 / 32, abs=0.01)
    again = conversion_similarity.figure1(load_stacks(cells, load), settings)
    for key, maps in result.maps.items():
        assert maps.tobytes() == again.maps[key].tobytes()


def test_the_control_shows_what_the_inverse_does_by_itself(cells, load, settings, weights):
    """Where the small singular directions of W0 are shared, Gaussian A and B become alike."""
    shared = weights.clone()
    Vh = np.linalg.svd(weights[0].numpy())[2]
    for n in range(len(shared)):
        scale = np.concatenate([np.ones(28), np.full(4, 1e-3)])
        shared[n] = shared.new_tensor(np.linalg.svd(weights[n].numpy())[0] * scale @ Vh)

    def on_shared(folder):
        found = load(folder)
        for factors in found.values():
            factors.W = shared
        return found

    result = conversion_similarity.figure1(load_stacks(cells, on_shared), settings)
    assert result.select("off_diagonal", "value", "A", CONTROL).mean() > 0.9
    assert result.select("off_diagonal", "value", "A", GAUSSIAN).mean() < 0.2


def test_weights_without_inverse_are_said_and_not_drawn(cells, load, settings, tmp_path):
    def singular(folder):
        found = load(folder)
        for factors in found.values():
            factors.W = factors.W * 0
        return found

    result = conversion_similarity.figure1(load_stacks(cells, singular), settings)
    assert len(result.notes) == 2 and "layer 1, 2, 3, 4, 5, 6 is singular" in result.notes[0]
    assert result.values.empty
    assert present_conversion_similarity.draw(result, tmp_path) == {}


def test_feed_forward_modules_are_measured_beside_baselines_of_their_own_sides(
    cells, load, settings
):
    """W0 (32, 16): conversion matrices of A have 32 rows, those of B have 16."""

    def rectangular(folder):
        factors = load(folder)["value"]
        factors.W, factors.A = factors.W[..., :16], factors.A[..., :16]
        return {"intermediate": factors}

    result = conversion_similarity.figure1(load_stacks(cells, rectangular), settings)
    for matrix, rows in (("A", 32), ("B", 16)):
        random = result.select("off_diagonal", "intermediate", matrix, GAUSSIAN)
        # 40 draws of 15 pairs, each with a deviation below 0.09.
        assert random.mean() == pytest.approx(4 / rows, abs=0.015)
        assert len(result.select("off_diagonal", "intermediate", matrix, TRAINED)) == 4
    assert len(result.notes) == 1
    assert "32 x 16" in result.notes[0] and "only a part of B" in result.notes[0]


@pytest.fixture(scope="module")
def drawn(cell, load, settings, tmp_path_factory):
    """Four layers' value modules of one task with two seeds: what Figure 1 rests on, and where it is drawn."""

    def value_modules(folder):
        f = load(folder)["value"]
        f.W, f.A, f.B, f.layers = f.W[:4], f.A[:4], f.B[:4], f.layers[:4]
        return {"value": f}

    stacks = load_stacks([cell("mnli", "lora", seed) for seed in (0, 1)], value_modules)
    result = conversion_similarity.figure1(stacks, settings)
    folder = tmp_path_factory.mktemp("figures")
    assert set(draw(result, folder)) == {"figure1", "figure1_value"}
    return result, folder


def draw(result, folder):
    """With the fonts that are shipped, which tests/analysis/conftest.py replaces."""
    with figures.plt.rc_context({"pdf.fonttype": 42}):
        return present_conversion_similarity.draw(result, folder)


def test_figures_are_byte_equal_on_repeat(drawn, tmp_path):
    result, folder = drawn
    draw(result, tmp_path / "second")
    first = sorted(folder.iterdir())
    assert len(first) == 6 and {path.suffix for path in first} == {".png", ".pdf", ".csv"}
    for path in first:
        data = path.read_bytes()
        assert data == (tmp_path / "second" / path.name).read_bytes(), path.name
        assert b"CreationDate" not in data and b"matplotlib" not in data.lower()[:2000]


def test_csv_of_the_figure_holds_what_is_drawn(drawn):
    result, folder = drawn
    lines = (folder / "figure1.csv").read_text().splitlines()
    assert lines[0] == "module,matrix,source,task,layer_x,layer_y,phi,phi_mean,phi_sd,n"
    assert len(lines) == 1 + 3 * 3 * 16  # W0->A, W0^-T A' and W0->B of three sources
    control = [line.split(",") for line in lines if CONTROL in line]
    phi = result.maps["value", "A", CONTROL, ""][:2].mean(axis=0)  # two seeds, so two draws
    assert float(control[1][6]) == pytest.approx(phi[0, 1], rel=1e-6)


def test_the_papers_panel_is_taken_where_it_ran_else_its_modules(result, cell, load, settings):
    assert present_conversion_similarity.paper_panel(result) == ("mnli", "value")
    other = conversion_similarity.figure1(load_stacks([cell("rte", "lora", 0)], load), settings)
    assert present_conversion_similarity.paper_panel(other) == ("rte", "value")


def test_heat_map_leaves_the_diagonal_and_keeps_its_scale():
    fig, ax = figures.plt.subplots()
    image = figures.heatmap(np.full((3, 3), 0.5), ax, title="", limit=0.75, layers=[1, 2, 3])
    shown = image.get_array()
    assert shown.mask.diagonal().all() and shown.mask.sum() == 3
    assert image.get_clim() == (0, 0.75)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "3"]
    figures.plt.close(fig)


@pytest.mark.parametrize(("value", "limit"), [(0.0301, 0.05), (0.05, 0.05), (0.8, 1.0)])
def test_colour_limits_are_never_below_the_values(value, limit):
    assert figures.round_up(value) == limit


def test_differences_are_drawn_only_for_pairs(cell, tmp_path):
    alone = scores.scores([cell("rte", "lora", 0)])
    assert present_glue_scores.draw_differences(alone, tmp_path) is None
    pair = scores.scores([cell("rte", "lora", 0), cell("rte", "condlora", 0, 0.7)])
    assert present_glue_scores.draw_differences(pair, tmp_path).is_file()
    assert "condlora,-10" in (tmp_path / "table2_differences.csv").read_text()


def test_many_methods_have_a_row_each_in_the_order_of_names_and_a_dot_per_seed(cell):
    points = {"lora": 0.8, "condlora": 0.7, "vera": 0.9, "tied_lora": 0.6, "lora_xs": 0.3}
    cells = [
        cell(task, adapter, seed, score)
        for adapter, score in points.items()
        for task in ("cola", "rte")
        for seed in (0, 1)
    ]
    gaps = scores.differences(scores.scores(cells))
    fig = score_figures.draw(gaps, {"cola": "CoLA", "rte": "RTE"}, 1)
    assert [ax.get_title() for ax in fig.axes] == ["CoLA", "RTE"]
    names = [tick.get_text() for tick in fig.axes[0].get_yticklabels()]
    assert names == ["CondLoRA", "LoRA-XS", "Tied-LoRA", "VeRA"]
    for ax in fig.axes:
        dots = sorted(map(tuple, ax.collections[0].get_offsets().round(6).tolist()))
        assert dots == [
            (x, y) for x, y in [(-50, 1), (-20, 2), (-10, 0), (10, 3)] for _ in range(2)
        ]
    figures.plt.close(fig)


def test_a_methods_rank_is_part_of_its_name_and_no_two_methods_look_alike():
    assert names.label("share_lora_ab_r6") == "ShareLoRA, A and B, r = 6"
    assert names.label("someones_own") == "someones_own"
    listed = ["condlora", "lora", "share_lora_ab", "condlora_random", "vera"]
    styles = [figures.method_style(method, listed) for method in listed]
    for key in ("color", "marker", "label"):
        assert len({style[key] for style in styles}) == 5


@pytest.mark.slow
def test_a_figure_depends_on_no_setting_of_the_user(tmp_path):
    """Neither a backend that does not exist here nor a matplotlibrc changes a byte."""
    code = (
        "from pathlib import Path; import sys; import pandas as pd\n"
        "from analysis.present.figures import save; import matplotlib.pyplot as plt\n"
        "fig, ax = plt.subplots(); ax.plot([1, 2], [3, 4]); ax.set_title('t')\n"
        "save(fig, Path(sys.argv[1]) / 'figure', pd.DataFrame({'x': [1]}))\n"
    )
    made = []
    for name, extra in (("plain", {}), ("odd", {"MPLBACKEND": "module://nowhere.backend"})):
        folder = tmp_path / name
        folder.mkdir()
        if extra:
            (folder / "matplotlibrc").write_text("font.size: 30\nlines.linewidth: 9\n")
        env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | {"PYTHONPATH": str(ROOT)}
        env |= extra
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=folder, env=env)
        made.append((folder / "figure.png").read_bytes())
    assert made[0] == made[1]
