from __future__ import annotations

import numpy as np
import pytest

from tutelage.compare.intervals import gain, gain_ratio, over_seeds, percentiles, replicate, seed_ratio
from tutelage.eval.statistics import Interval, bootstrap_interval


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


def test_seeds_are_drawn_with_replacement() -> None:
    means = over_seeds(constant(0.0, 6.0, resamples=4000), seed=0)
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0.0, 3.0, 6.0]
    assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_examples_are_drawn_together_with_seeds() -> None:
    runs = [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]  # equal seeds: what varies is the examples
    assert over_seeds(runs, seed=5).tolist() == [1.0, 2.0, 3.0]


def test_a_gain_by_hand() -> None:
    found = gain([30.0, 34.0], 20.0, constant(30.0, 34.0), [20.0] * 400)
    assert found.value == 12.0
    assert found.interval == Interval(10.0, 14.0)  # both ends: the same seed drawn twice, a quarter of the time each


def test_the_initial_students_luck_with_the_examples_is_taken_off() -> None:
    noise = np.random.default_rng(0).normal(size=400)
    found = gain([30.0], 20.0, [30.0 + noise], 20.0 + noise)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((10.0, 10.0))


def test_a_ratio_by_hand() -> None:
    found = gain_ratio([40.0, 50.0], [30.0], 20.0, constant(40.0, 50.0), constant(30.0), [20.0] * 400)
    assert found is not None
    assert found.value == 2.5
    assert found.interval == Interval(2.0, 3.0)
    assert seed_ratio([20.0, 30.0], [10.0]) == found


def test_a_baseline_that_gains_nothing_divides_nothing() -> None:
    assert gain_ratio([40.0], [20.0], 20.0, constant(40.0), constant(20.0), [20.0] * 400) is None
    assert gain_ratio([40.0], [19.0], 20.0, constant(40.0), constant(19.0), [20.0] * 400) is None


def test_a_baseline_that_may_gain_nothing_gives_no_interval() -> None:
    found = gain_ratio([40.0], [18.0, 24.0], 20.0, constant(40.0), constant(18.0, 24.0), [20.0] * 400)
    assert found is not None
    assert (found.value, found.interval) == (20.0, None)


def test_rare_worthless_resamples_of_the_baseline_are_beyond_every_bound() -> None:
    baseline = np.full(400, 25.0)
    baseline[:4] = 20.0  # 1% of the resamples: no gain there
    found = gain_ratio([40.0], [25.0], 20.0, constant(40.0), [baseline], [20.0] * 400)
    assert found is not None
    assert found.interval == Interval(4.0, 4.0)
