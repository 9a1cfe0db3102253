"""Statistics with answers worked by hand, and how often they are wrong in worlds that are known."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from analysis.stats.significance import (
    Interval,
    Summary,
    bootstrap_interval,
    empirical_p,
    holm,
    one_example_points,
    p_mean_above,
    paired_test,
    percentiles,
    resampled_scores,
    summarise,
    t_interval,
)
from analysis.stats.task_means import task_mean
from condlora.glue.metrics import METRICS


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def upper_tail_of_t2(t: float) -> float:
    """P(T > t) for two degrees of freedom, where Student's distribution has a closed form."""
    return 0.5 - t / (2 * math.sqrt(2 + t**2))


def test_summarise_by_hand():
    assert summarise([1.0, 2.0, 6.0]) == Summary(3.0, pytest.approx(math.sqrt(7)), 3)
    one, none, broken = summarise([4.0]), summarise([]), summarise([1.0, math.nan])
    assert one.mean == 4 and math.isnan(one.sd) and one.n == 1
    assert math.isnan(none.mean) and none.n == 0
    assert math.isnan(broken.mean)
    with pytest.raises(ValueError, match="flat list"):
        summarise(np.ones((2, 2)))


def test_t_interval_by_hand():
    # mean 2, standard error 1 / sqrt 3, Student's 97.5 % quantile at two degrees of freedom 4.30265
    half = 4.302653 / math.sqrt(3)
    assert t_interval([1.0, 2.0, 3.0], 0.95) == pytest.approx((2 - half, 2 + half), rel=1e-6)


def test_paired_tests_by_hand():
    # mean 0, standard error 1 / sqrt 3: sqrt 3 standard errors to either end of the margin
    centred = paired_test([0.0, 1.0, -1.0], 1.0)
    assert centred.equivalence == pytest.approx(upper_tail_of_t2(math.sqrt(3)))
    assert centred.difference == 1.0
    assert centred.outside == 1.0
    # mean 3: 3 sqrt 3 standard errors from zero, 2 sqrt 3 from the margin
    far = paired_test([-2.0, -3.0, -4.0], 1.0)
    beyond = upper_tail_of_t2(2 * math.sqrt(3))
    assert far.difference == pytest.approx(2 * upper_tail_of_t2(3 * math.sqrt(3)))
    assert far.outside == pytest.approx(2 * beyond)
    assert far.equivalence == pytest.approx(1 - beyond)
    assert p_mean_above([2.0, 3.0, 4.0], 1.0) == pytest.approx(beyond)
    assert p_mean_above([2.0, 3.0, 4.0], 3.0) == pytest.approx(0.5)


@pytest.mark.parametrize("values", [[], [1.0], [0.5, 0.5, 0.5 + 1e-12], [1.0, math.nan, 2.0]])
def test_without_spread_every_test_is_undefined(values):
    test = paired_test(values, 1.0)
    p = [test.difference, test.equivalence, test.outside, p_mean_above(values, 0.0)]
    assert all(map(math.isnan, [*p, *t_interval(values, 0.95)]))


def test_holm_by_hand():
    # 0.01 x 3; then 0.03 x 2; then 0.04 x 1, raised to the one before it
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    with_gap = holm([0.02, math.nan, 0.03])
    assert with_gap[[0, 2]].tolist() == pytest.approx([0.04, 0.04]) and math.isnan(with_gap[1])
    assert np.isnan(holm([math.nan])).all() and holm([]).size == 0


def test_holm_agrees_with_statsmodels(rng):
    for size in (1, 5, 8):
        p = rng.random(size) / size
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_empirical_p_counts_the_value_itself_and_ties():
    assert empirical_p(3.0, [1.0, 2.0, 3.0, 4.0]) == 3 / 5
    assert empirical_p(9.0, [1.0, 2.0, 3.0, 4.0]) == 1 / 5
    for value, draws in ((math.nan, [1.0]), (1.0, []), (1.0, [0.0, math.nan])):
        assert math.isnan(empirical_p(value, draws))


def test_bootstrap_of_a_constant_has_no_width(rng):
    found = bootstrap_interval([2.0, 2.0, 2.0], 0.95, resamples=50, rng=rng)
    assert found == Interval(2.0, 2.0)
    for values in ([], [1.0], [1.0, math.nan]):
        assert math.isnan(bootstrap_interval(values, 0.95, resamples=50, rng=rng).low)


def test_bootstrap_of_two_values_takes_each_or_their_mean(rng):
    # Samples of {0, 1}: means 0, 1/2 and 1 with chances 1/4, 1/2 and 1/4.
    assert bootstrap_interval([0.0, 1.0], 0.4, resamples=999, rng=rng) == Interval(0.5, 0.5)
    assert bootstrap_interval([0.0, 1.0], 0.6, resamples=999, rng=rng) == Interval(0.0, 1.0)


def test_the_same_generator_gives_the_same_interval():
    x = [1.0, 4.0, 2.0, 8.0]
    seeded = [
        bootstrap_interval(x, 0.9, resamples=99, rng=np.random.default_rng(s)) for s in (1, 1, 2)
    ]
    assert seeded[0] == seeded[1] != seeded[2]


class Drawn:
    """A generator whose one draw is given: as many of each distinct example as in `counts`."""

    def __init__(self, counts):
        self.counts = counts

    def multinomial(self, n, p, size):
        assert n == sum(self.counts) and size == 1
        return np.array([self.counts])


@pytest.mark.parametrize("metric", ["accuracy", "matthews_correlation", "pearson"])
def test_a_resampled_score_is_the_metric_on_the_examples_drawn(metric):
    references = np.array([0, 0, 1, 1, 1])
    predictions = np.array([[0, 1, 1, 1, 0], [1, 0, 0, 1, 0]])
    if metric == "pearson":
        references, predictions = references * 2.5 + 1000, predictions / 3 + references
    order = np.lexsort([predictions[1], predictions[0], references])  # as np.unique has them
    counts = np.array([3, 0, 1, 0, 1])
    drawn = np.repeat(order, counts)
    found = resampled_scores(metric, references, predictions, resamples=1, rng=Drawn(counts))
    wanted = [METRICS[metric](run[drawn], references[drawn]) for run in predictions]
    assert found[0] == pytest.approx(wanted, abs=1e-9)


def test_examples_are_drawn_for_all_runs_at_once(rng):
    references = np.arange(40) % 2
    predictions = np.where(np.arange(40) < 30, references, 1 - references)
    found = resampled_scores(
        "accuracy", references, np.stack([predictions, predictions]), resamples=4000, rng=rng
    )
    assert (found[:, 0] == found[:, 1]).all()
    # A share of 3/4 of 40: binomial, variance 3/16 / 40.
    assert found[:, 0].mean() == pytest.approx(0.75, abs=0.005)
    assert found[:, 0].var() == pytest.approx(3 / 16 / 40, rel=0.1)


def test_a_sample_without_a_score_makes_the_interval_undefined(rng):
    found = resampled_scores(
        "matthews_correlation", np.array([0, 1]), np.array([[0, 1]]), resamples=50, rng=rng
    )
    assert set(found[~np.isnan(found)]) == {1.0} and np.isnan(found).any()
    assert math.isnan(percentiles(found[:, 0], 0.95).low)
    assert percentiles(np.arange(101.0), 0.9) == pytest.approx((5.0, 95.0))


def test_metrics_that_cannot_be_resampled_are_refused(rng):
    three = np.array([0, 1, 2])
    with pytest.raises(ValueError, match="classes 0 and 1"):
        resampled_scores("matthews_correlation", three, three[None], resamples=2, rng=rng)
    with pytest.raises(ValueError, match="cannot resample f1"):
        resampled_scores("f1", three % 2, three[None] % 2, resamples=2, rng=rng)


def test_one_example_is_worth_a_hundredth_of_a_hundred():
    assert one_example_points("accuracy", 277) == pytest.approx(0.361, abs=5e-4)
    assert math.isnan(one_example_points("pearson", 1500))


def test_intervals_hold_the_truth_as_often_as_they_say(rng):
    """Normal values: Student's interval at any n, the bootstrap nearly so at 40 and not at 4."""
    repeats = 300

    def coverage(n, interval):
        found = [interval(rng.normal(3.0, 2.0, size=n)) for _ in range(repeats)]
        return np.mean([low <= 3.0 <= high for low, high in found])

    def bootstrapped(x):
        return bootstrap_interval(x, 0.95, resamples=400, rng=rng)

    assert coverage(4, lambda x: t_interval(x, 0.95)) == pytest.approx(0.95, abs=0.035)
    assert coverage(40, bootstrapped) == pytest.approx(0.95, abs=0.045)
    assert coverage(4, bootstrapped) < 0.9


REPEATS = 200
# Two deviations of a share of 5 % in 200 repeats.
AT_MOST = 0.05 + 2 * math.sqrt(0.05 * 0.95 / REPEATS)


def share_equivalent(rng, *, true_difference: float, n: int, sd: float) -> float:
    found = [
        paired_test(true_difference + sd * rng.standard_normal(n), 1.0).equivalence < 0.05
        for _ in range(REPEATS)
    ]
    return float(np.mean(found))


@pytest.mark.parametrize("n", [3, 5, 20])
def test_methods_a_margin_apart_are_seldom_found_equal(rng, n):
    assert share_equivalent(rng, true_difference=1.0, n=n, sd=0.7) <= AT_MOST
    assert share_equivalent(rng, true_difference=-1.0, n=n, sd=0.7) <= AT_MOST


def test_a_mean_over_tasks_by_hand():
    """Variances 1 and 4 with 3 and 2 runs: v = 1/3 and 2, standard error sqrt(7/3) / 2."""
    found = task_mean([np.array([1.0, 2.0, 3.0]), np.array([10 - 2**0.5, 10 + 2**0.5])])
    assert (found.mean, found.n) == (6, 2)
    assert found.sd == pytest.approx(5**0.5 / 2)
    assert found.standard_error == pytest.approx((7 / 3) ** 0.5 / 2)
    freedom = (7 / 3) ** 2 / ((1 / 3) ** 2 / 2 + 2**2 / 1)
    assert found.degrees_of_freedom == pytest.approx(freedom)
    half = stats.t.ppf(0.975, freedom) * (7 / 3) ** 0.5 / 2
    assert found.interval(0.95) == pytest.approx((6 - half, 6 + half))
    assert math.isnan(task_mean([np.array([1.0]), np.array([1.0, 2.0])]).standard_error)
    assert task_mean([]).n == 0


def test_one_task_has_the_tests_of_paired_differences():
    x = np.array([0.2, -0.4, 0.5, 0.3])
    ours, theirs = task_mean([x]).test(1.0), paired_test(x, 1.0)
    for name in ("difference", "equivalence", "outside"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name))
    assert task_mean([x]).interval(0.95) == pytest.approx(t_interval(x, 0.95))


def test_the_order_of_seeds_does_not_change_a_mean_over_tasks():
    """Pairing over tasks by the seed's number gives these two tasks an interval without width."""
    first, second = np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])
    assert math.isnan(t_interval((first + second) / 2, 0.95).low)
    low, high = task_mean([first, second]).interval(0.95)
    assert (low, high) == task_mean([first, second[::-1]]).interval(0.95) and high - low > 1


def test_intervals_of_a_mean_over_tasks_hold_the_truth(rng):
    inside = []
    for _ in range(300):
        tasks = [rng.normal(0, sd, size=n) for sd, n in ((1.0, 3), (2.0, 3), (0.5, 5))]
        low, high = task_mean(tasks).interval(0.95)
        inside.append(low <= 0 <= high)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.035)
