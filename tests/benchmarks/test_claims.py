"""The simulation of workers that divide a grid, on grids that can be counted by hand, and against real claims."""

import pandas as pd
import pytest

from benchmarks.claims import Costs, draw, measured, measured_costs, simulated

FREE = Costs(0, 0, 0)


@pytest.mark.parametrize(
    ("workers", "seconds"), [(1, 60), (2, 30), (3, 20), (4, 20), (6, 10), (64, 10)]
)
def test_claims_that_cost_nothing_divide_the_work(workers, seconds):
    assert simulated(workers, 6, 10, FREE) == pytest.approx(seconds)


def test_costs_are_paid_where_they_arise():
    assert simulated(1, 3, 10, Costs(1, 100, 100)) == 33  # one worker passes over nothing
    # The second waits for the disk, finds the first run claimed and does the second, as the third is claimed by then.
    assert simulated(2, 2, 10, Costs(doing=1, refused=0.5, passing=0)) == pytest.approx(12)
    many = simulated(64, 64, 0, Costs(doing=1, refused=0, passing=0))
    assert many == 64  # the disk does one claim after the other


def test_real_claims_take_what_is_simulated(tmp_path):
    costs = measured_costs(20)
    assert 0 < costs.passing < costs.doing
    for workers in (1, 2):
        assert measured(workers, 20, 0.02) > 0.8 * simulated(workers, 20, 0.02, FREE)


def test_the_figure_shows_what_its_table_says(tmp_path):
    rows = [
        (n, 1.0, kind, 100 / n)
        for n in (1, 2)
        for kind in ("measured", "simulated", "with_command")
    ]
    table = pd.DataFrame(rows, columns=["workers", "run_seconds", "kind", "grid_seconds"])
    paths = draw(table.assign(runs_per_hour=1.0), tmp_path)
    assert [path.suffix for path in paths] == [".png", ".pdf", ".csv"]
    assert len(pd.read_csv(paths[2])) == 6
