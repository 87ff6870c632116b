from __future__ import annotations

import numpy as np
import pytest

from tutelage.compare.intervals import Estimate, gain, gain_ratio, over_seeds, percentiles, replicate, seed_ratio
from tutelage.eval.statistics import Interval, bootstrap_interval, seed_summary


def constant(*values: float, resamples: int = 400) -> list[list[float]]:
    """Runs whose metric is the same on every resample of the examples: only seeds vary."""
    return [[value] * resamples for value in values]


def test_replicates_are_of_the_same_examples_for_every_model() -> None:
    marks = np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    first = replicate(lambda chosen: float(marks[chosen].mean()), 5, 300)
    opposite = replicate(lambda chosen: float(1 - marks[chosen].mean()), 5, 300)
    assert np.allclose(np.add(first, opposite), 1.0)
    expected = bootstrap_interval(lambda chosen: float(marks[chosen].mean()), 5, 300, seed=0)
    assert percentiles(np.asarray(first)) == expected


@pytest.mark.parametrize("seeds", [(0.0, 6.0), (1.0, 2.0, 9.0), (30.0, 34.0, 31.0, 36.0, 29.0)])
def test_without_luck_of_the_examples_it_is_students_t(seeds: tuple[float, ...]) -> None:
    means = over_seeds(constant(*seeds, resamples=4000), seed=0)
    expected = seed_summary(seeds)
    assert means.mean() == pytest.approx(expected.mean)
    assert expected.interval is not None
    found = percentiles(means)
    assert (found.low, found.high) == pytest.approx((expected.interval.low, expected.interval.high), rel=1e-3)


def test_the_interval_of_three_seeds_leaves_their_range() -> None:
    """A bootstrap over them could not."""
    found = percentiles(over_seeds(constant(1.0, 2.0, 3.0), seed=0))
    assert found.low < 1.0
    assert found.high > 3.0


def test_examples_are_drawn_together_with_seeds() -> None:
    runs = [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]  # equal seeds: what varies is the examples
    assert over_seeds(runs, seed=5).tolist() == [1.0, 2.0, 3.0]


def test_luck_of_seeds_and_of_examples_add_up() -> None:
    noise = np.random.default_rng(0).normal(scale=3.0, size=4000)
    both = over_seeds([20.0 + noise, 26.0 + noise, 29.0 + noise, 25.0 + noise], seed=0)
    alone = over_seeds(constant(20.0, 26.0, 29.0, 25.0, resamples=4000), seed=0)
    assert both.var() == pytest.approx(alone.var() + noise.var(), rel=0.1)


def test_a_gain_by_hand() -> None:
    found = gain([10.0, 14.0, 12.0], constant(10.0, 14.0, 12.0))
    assert found.value == 12.0
    half = 4.302653 * 2 / 3**0.5  # Student's t with two degrees of freedom; the standard deviation is 2
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((12 - half, 12 + half), rel=1e-3)


def test_a_single_run_varies_with_the_examples_alone() -> None:
    assert gain([10.0], constant(10.0)).interval == Interval(10.0, 10.0)
    resampled = 10.0 + np.random.default_rng(0).normal(size=400)
    assert gain([10.0], [resampled]).interval == percentiles(resampled)


def test_a_ratio_by_hand() -> None:
    gains = [23.0, 25.0, 27.0]
    found = gain_ratio(gains, [10.0], constant(*gains), constant(10.0))
    assert found is not None
    assert found.value == 2.5
    half = 4.302653 * 2 / 3**0.5 / 10
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((2.5 - half, 2.5 + half), rel=1e-3)
    assert seed_ratio(gains, [10.0, 10.0], resamples=400) == found  # no luck on the other side


@pytest.mark.parametrize(("gains", "baseline"), [([20.0], [10.0]), ([20.0], [9.0, 11.0]), ([19.0, 21.0], [10.0])])
def test_a_ratio_over_seeds_needs_several_on_both_sides(gains: list[float], baseline: list[float]) -> None:
    assert seed_ratio(gains, baseline) == Estimate(2.0, None)


def test_a_baseline_that_gains_nothing_divides_nothing() -> None:
    assert gain_ratio([20.0], [0.0], constant(20.0), constant(0.0)) is None
    assert gain_ratio([20.0], [-1.0], constant(20.0), constant(-1.0)) is None


def test_a_baseline_that_may_gain_nothing_gives_no_interval() -> None:
    found = gain_ratio([20.0], [-2.0, 4.0], constant(20.0), constant(-2.0, 4.0))
    assert found is not None
    assert (found.value, found.interval) == (20.0, None)


def test_rare_worthless_resamples_of_the_baseline_are_beyond_every_bound() -> None:
    baseline = np.full(400, 5.0)
    baseline[:4] = 0.0  # 1% of the resamples: no gain there
    found = gain_ratio([20.0], [5.0], constant(20.0), [baseline])
    assert found is not None
    assert found.interval == Interval(4.0, 4.0)
