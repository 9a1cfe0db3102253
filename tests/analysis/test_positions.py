"""Maps over layers and kinds of modules."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.maths import adapter_similarity, positions
from analysis.present import figures
from analysis.present import positions as present_positions
from analysis.study.selection import Settings
from tests.analysis.planted import LAYERS, ranked_cell, stack


@pytest.fixture
def stacks():
    """Both methods at ranks 2 and 8, query and value, two seeds."""
    return [
        stack(name, r, [ranked_cell("rte", name, seed, r) for seed in (0, 1)], n, module)
        for n, (name, r, module) in enumerate(
            (f"{method}_r{r}", r, module)
            for method in ("lora", "condlora")
            for r in (2, 8)
            for module in ("query", "value")
        )
    ]


def test_relative_norms_are_of_the_scaled_update_over_the_weight(stacks, settings):
    stacks[2].B[:, 1] = 0
    stacks[2].A[:, 2], stacks[2].B[:, 2] = 0, 0
    stacks[2].A[:, 2, 0, 0] = stacks[2].B[0, 2, 5, 0] = 3
    found = positions.locate(stacks, settings)
    assert found.r == 8
    drawn = found.map(positions.NORM, "lora").loc["query"]
    full = (stacks[2].B[:, 0] @ stacks[2].A[:, 0]).flatten(1).norm(dim=1).mean()
    assert drawn[1] == pytest.approx((full / stacks[2].W[0].norm()).item())
    assert drawn[2] == 0
    assert drawn[3] == pytest.approx((9 / stacks[2].W[2].norm()).item() / 2)  # one of two seeds


def test_the_scale_alpha_over_r_counts(stacks, settings):
    low = [s for s in stacks if s.A.shape[2] == 2]
    found = positions.locate(low, settings).map(positions.NORM, "lora").loc["query"]
    plain = (low[0].B[:, 0] @ low[0].A[:, 0]).flatten(1).norm(dim=1).mean()
    assert found[1] == pytest.approx((4 * plain / low[0].W[0].norm()).item())


def test_phi_is_that_of_table_3_at_the_same_rank(stacks, settings):
    found = positions.locate(stacks, settings)
    own = [replace(s, adapter=s.adapter[:-3]) for s in stacks if s.A.shape[2] == 8]
    theirs = adapter_similarity.compare(own, settings)
    for matrix in ("A", "B"):
        ours = found.map(positions.PHI, matrix).loc["value"]
        np.testing.assert_allclose(ours, theirs.per_layer("value", matrix).mean())


def test_the_products_map_is_left_out_only_where_it_is_that_of_b(stacks, settings):
    whole = positions.locate(stacks, settings).maps
    assert whole == [("phi", "A"), ("phi", "B"), ("relative_norm", "lora"), ("relative_norm", "condlora")]  # fmt: skip
    part = positions.locate(stacks, Settings(4, 4, 0, 40)).maps
    assert ("phi", "delta_W") in part


def test_one_method_alone_has_its_norms(stacks, settings, tmp_path):
    found = positions.locate([s for s in stacks if s.adapter.startswith("lora")], settings)
    assert found.maps == [("relative_norm", "lora")]
    assert present_positions.draw(found, tmp_path).is_file()


def test_figure_is_byte_equal_on_repeat_and_its_csv_is_what_is_written_in_it(
    stacks, settings, tmp_path
):
    found = positions.locate(stacks, settings)
    first = present_positions.draw(found, tmp_path / "first")
    present_positions.draw(found, tmp_path / "second")
    for path in first.parent.iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name
    lines = first.with_suffix(".csv").read_text().splitlines()
    assert (
        lines[0] == "module,layer,value,quantity,matrix_or_method"
        and len(lines) == 1 + 4 * 2 * LAYERS
    )
    value = found.map(positions.PHI, "A").loc["query", 2]
    assert float(lines[2].split(",")[2]) == pytest.approx(value, rel=1e-6)


def test_a_map_writes_every_number_legibly_and_leaves_what_is_undefined():
    fig, ax = figures.plt.subplots()
    values = np.array([[0.0214, 1.5], [np.nan, 0.5]])
    figures.position_map(values, ax, title="", limit=1.5, modules=["q", "v"], layers=[1, 2])
    written = {text.get_text(): text.get_color() for text in ax.texts}
    assert written == {".021": "white", "1.50": "black", ".500": "white"}
    figures.plt.close(fig)


def test_section_says_where_the_ends_are(stacks, settings, tmp_path):
    found = positions.locate(stacks, settings)
    section = present_positions.section(found, tmp_path)
    phi = found.map(positions.PHI, "A").stack()
    module, layer = phi.idxmax()
    assert f"{phi.max():.3f} ({module}, layer {layer})" in section.text[0]
    assert [type(item).__name__ for item in (*section.shown, *section.details)] == ["Picture", "Table"]  # fmt: skip


def test_updates_that_are_all_zero_have_no_similarity_and_no_crash(stacks, settings, tmp_path):
    for one in stacks:
        one.B.zero_()
    text = present_positions.section(positions.locate(stacks, settings), tmp_path).text[0]
    assert "undefined, as an update of zero has no direction" in text
