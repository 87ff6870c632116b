"""Intervals against closed forms, enumeration and published tables."""

from itertools import combinations

import numpy as np
import pytest

from tutelage.eval.statistics import (
    Interval,
    bootstrap_interval,
    paired_bootstrap,
    pass_at_k,
    seed_summary,
    student_t_quantile,
    wilson_interval,
)


def test_bootstrap_matches_the_normal_approximation() -> None:
    values = np.random.default_rng(3).normal(5.0, 2.0, 400)
    interval = bootstrap_interval(lambda i: float(values[i].mean()), 400, resamples=4000)
    half = 1.959964 * values.std() / np.sqrt(400)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.02)


def test_bootstrap_level_and_seed() -> None:
    values = np.arange(50.0)

    def mean(indices: np.ndarray) -> float:
        return float(values[indices].mean())

    wide, narrow = bootstrap_interval(mean, 50, level=0.99), bootstrap_interval(mean, 50, level=0.5)
    assert wide.low < narrow.low < 24.5 < narrow.high < wide.high
    assert bootstrap_interval(mean, 50, seed=1) == bootstrap_interval(mean, 50, seed=1)
    assert bootstrap_interval(mean, 50, seed=1) != bootstrap_interval(mean, 50, seed=2)


def test_bootstrap_of_a_constant_is_a_point() -> None:
    assert bootstrap_interval(lambda i: 7.0, 10) == Interval(7.0, 7.0)


def test_paired_bootstrap_is_narrower_than_unpaired_for_correlated_systems() -> None:
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 10, 300)
    first, second = difficulty + 0.5 + rng.normal(0, 1, 300), difficulty + rng.normal(0, 1, 300)
    result = paired_bootstrap(lambda i: float(first[i].mean()), lambda i: float(second[i].mean()), 300, resamples=2000)
    gap = first - second
    assert result.difference == pytest.approx(gap.mean())
    assert result.interval.high - result.interval.low == pytest.approx(2 * 1.96 * gap.std() / np.sqrt(300), rel=0.1)
    assert result.p_value < 0.01


def test_paired_bootstrap_of_a_system_with_itself_finds_no_difference() -> None:
    values = np.arange(20.0)
    result = paired_bootstrap(lambda i: float(values[i].mean()), lambda i: float(values[i].mean()), 20)
    assert (result.difference, result.interval, result.p_value) == (0.0, Interval(0.0, 0.0), 1.0)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(15, 30, 0.331502, 0.668498), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (81, 263, 0.255289, 0.366174)],
)
def test_wilson_published_values(successes: int, n: int, low: float, high: float) -> None:
    interval = wilson_interval(successes, n)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


@pytest.mark.parametrize(("n", "correct", "k"), [(5, 2, 1), (5, 2, 3), (6, 1, 4), (4, 0, 2), (4, 4, 2), (5, 3, 3)])
def test_pass_at_k_equals_enumeration(n: int, correct: int, k: int) -> None:
    subsets = list(combinations(range(n), k))
    expected = sum(any(i < correct for i in chosen) for chosen in subsets) / len(subsets)
    assert pass_at_k(n, correct, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("degrees", "t"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227)]
)
def test_student_t_table(degrees: int, t: float) -> None:
    assert student_t_quantile(0.95, degrees) == pytest.approx(t, rel=2e-6)


def test_seed_summary() -> None:
    summary = seed_summary([1.0, 2.0, 3.0])
    assert summary.mean == 2.0
    assert summary.interval is not None
    assert summary.interval.high - 2.0 == pytest.approx(4.30265 / 3**0.5, rel=1e-5)
    assert seed_summary([4.0]).interval is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap_interval(lambda i: 0.0, 0),
        lambda: bootstrap_interval(lambda i: 0.0, 5, resamples=0),
        lambda: bootstrap_interval(lambda i: 0.0, 5, level=95),
        lambda: wilson_interval(3, 2),
        lambda: pass_at_k(4, 2, 5),
        lambda: pass_at_k(4, 5, 1),
        lambda: student_t_quantile(0.95, 0),
        lambda: seed_summary([]),
    ],
)
def test_impossible_arguments_raise(call) -> None:
    with pytest.raises(ValueError, match=r"got|at least"):
        call()
