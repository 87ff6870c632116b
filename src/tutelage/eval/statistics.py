"""Intervals for evaluation results: bootstrap, paired bootstrap, Wilson, pass@k and Student-t over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import numpy as np

Resample = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low, high: its ends, in the unit of what was measured.
    """

    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """First system minus second system on the same examples.

    Attributes:
        difference: on the full set.
        interval: of the difference, from resamples that both systems share.
        p_value: two-sided, for no difference: twice the smaller share of resamples on either side of zero, ties
            counted on both.
    """

    difference: float
    interval: Interval
    p_value: float


@dataclass(frozen=True)
class SeedSummary:
    """Runs that differ only by their seed.

    Attributes:
        mean: over the runs.
        interval: Student-t interval of the mean; None for a single run, which says nothing about spread.
    """

    mean: float
    interval: Interval | None


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")


def _draws(resamples: int, n_examples: int, seed: int) -> list[np.ndarray]:
    """Index sets of a bootstrap, each [n_examples] with replacement."""
    if n_examples < 1 or resamples < 1:
        raise ValueError(f"a bootstrap needs examples and resamples, got {n_examples} and {resamples}")
    generator = np.random.default_rng(seed)
    return [generator.integers(0, n_examples, n_examples) for _ in range(resamples)]


def _percentiles(values: Sequence[float] | np.ndarray, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(np.asarray(values, dtype=np.float64), [tail, 1 - tail])
    return Interval(float(low), float(high))


def bootstrap_interval(
    resample: Resample, n_examples: int, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of any statistic of a set of examples.

    Args:
        resample: indices [n_examples] -> the statistic on the examples they name (with repetition).
        n_examples: size of the set.
        resamples: index sets drawn.
        level: coverage.
        seed: of the draws; one seed gives every system the same index sets.

    Raises:
        ValueError: no examples, no resamples, or a level outside (0, 1).

    Source: Efron & Tibshirani 1993, section 13.3; for corpus metrics of text, Koehn 2004.
    """
    _check_level(level)
    return _percentiles([resample(indices) for indices in _draws(resamples, n_examples, seed)], level)


def paired_bootstrap(
    first: Resample, second: Resample, n_examples: int, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> PairedDifference:
    """Bootstrap of the difference of two systems that answered the same examples.

    Args:
        first, second: as `resample` of `bootstrap_interval`; indices name the same examples in both.
        n_examples: size of the set.
        resamples, level, seed: as in `bootstrap_interval`.

    Raises:
        ValueError: as `bootstrap_interval`.

    Source: Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation".
    """
    _check_level(level)
    every = np.arange(n_examples)
    differences = np.array([first(drawn) - second(drawn) for drawn in _draws(resamples, n_examples, seed)])
    tail = min(float(np.mean(differences <= 0)), float(np.mean(differences >= 0)))
    return PairedDifference(
        difference=first(every) - second(every),
        interval=_percentiles(differences, level),
        p_value=min(1.0, 2 * tail),
    )


def wilson_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Score interval of a share; inside [0, 1] and sensible at 0 and n successes.

    Args:
        successes: how many of the `n` trials succeeded.
        n: trials.
        level: coverage.

    Raises:
        ValueError: not 0 <= successes <= n with n >= 1, or a level outside (0, 1).

    Source: Wilson 1927; Brown, Cai & DasGupta 2001, Eq. 4.
    """
    _check_level(level)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a share needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n the ends are exactly 0 and 1; rounding would leave them at 1e-17 off.
    return Interval(0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of `k` samples is right, from `n` samples of which `correct` are.

    Args:
        n: samples drawn.
        correct: how many of them are right.
        k: samples allowed, at most `n`.

    Raises:
        ValueError: not 0 <= correct <= n or not 1 <= k <= n.

    Source: Chen et al. 2021 (arXiv 2107.03374), Eq. 1: 1 - C(n - c, k) / C(n, k).
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k needs 0 <= correct <= n and 1 <= k <= n, got n={n}, correct={correct}, k={k}")
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def student_t_quantile(coverage: float, degrees: int) -> float:
    """The t with P(-t < T < t) = `coverage` for Student's t with an integer number of degrees of freedom.

    Args:
        coverage: in (0, 1).
        degrees: at least 1.

    Raises:
        ValueError: arguments outside these ranges.

    Source: Abramowitz & Stegun 26.7.3 and 26.7.4 (finite sums in theta = arctan(t / sqrt(degrees))), inverted by
    bisection.
    """
    _check_level(coverage)
    if degrees < 1:
        raise ValueError(f"Student's t needs at least one degree of freedom, got {degrees}")

    def central_probability(theta: float) -> float:
        odd = degrees % 2
        term, total = (math.cos(theta), 0.0) if odd else (1.0, 0.0)
        for j in range(degrees // 2):
            total += term
            term *= math.cos(theta) ** 2 * (2 * j + 1 + odd) / (2 * j + 2 + odd)
        if odd:
            return 2 / math.pi * (theta + math.sin(theta) * total)
        return math.sin(theta) * total

    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if central_probability(middle) < coverage else (low, middle)
    return math.tan((low + high) / 2) * math.sqrt(degrees)


def seed_summary(values: Sequence[float], level: float = 0.95) -> SeedSummary:
    """Mean over seeds with its Student-t interval.

    Args:
        values: one result per seed.
        level: coverage.

    Raises:
        ValueError: no values, or a level outside (0, 1).
    """
    _check_level(level)
    if not values:
        raise ValueError("a summary over seeds needs at least one value")
    mean = fmean(values)
    if len(values) == 1:
        return SeedSummary(mean, None)
    half = student_t_quantile(level, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return SeedSummary(mean, Interval(mean - half, mean + half))
