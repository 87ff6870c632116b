"""Gains over the initial student, and their ratios, with intervals over seeds and examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tutelage.eval.statistics import Interval, student_t_quantile

LEVEL = 0.95

Replicates = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    Attributes:
        value: from all seeds and examples.
        interval: 95%; None where it cannot be given.
    """

    value: float
    interval: Interval | None


def replicate(resample: Callable[[Sequence[int]], float], n_examples: int, resamples: int) -> tuple[float, ...]:
    """A statistic on bootstrap resamples of the examples; the draws depend on the sizes alone, and are every model's.

    Args:
        resample: indices of examples -> the statistic on these.
        n_examples: how many there are.
        resamples: how many draws, each of `n_examples` with replacement.
    """
    generator = np.random.default_rng(0)
    return tuple(resample(generator.integers(0, n_examples, n_examples).tolist()) for _ in range(resamples))


def over_seeds(runs: Sequence[Replicates], seed: int) -> NDArray[np.float64]:
    """Means over runs, replicated: both the luck of a training and the choice of the examples vary.

    Runs are three or five, too few to be resampled: a bootstrap over them never leaves their range and lacks the factor
    sqrt(S / (S - 1)). Their mean is varied by Student's t instead, so that without any luck of the examples the middle 95% is the
    Student-t interval of the mean.

    Args:
        runs: [S, R]: for each of S runs that differ by their seed, the statistic on R resamples of the examples.
        seed: of the order in which deviations meet resamples.

    Returns:
        [R]: on the r-th resample of the examples, the mean over the runs plus a draw of t with S - 1 degrees of freedom, times the
        mean's standard error on this resample. A single run says nothing about the luck of a training: its own values.

    Source: Efron & Tibshirani 1993, chapter 12 (small samples: Student's t) and section 13.3 (examples: percentiles).
    """
    values = np.asarray(runs, dtype=np.float64)
    count, resamples = values.shape
    mean: NDArray[np.float64] = values.mean(axis=0)
    if count == 1:
        return mean
    drawn = np.random.default_rng(seed).permutation(_t_draws(count - 1, resamples))
    return mean + drawn * values.std(axis=0, ddof=1) / math.sqrt(count)


@cache
def _t_draws(degrees: int, draws: int) -> tuple[float, ...]:
    """Student's t at `draws` equally distant probabilities: a sample without luck of its own, whose percentiles are those of t."""
    upper = []
    for i in range((draws + 1) // 2, draws):
        probability = min(i / (draws - 1), 1 - 0.5 / draws)  # the last would be infinite
        upper.append(student_t_quantile(2 * probability - 1, degrees))
    return (*(-t for t in reversed(upper)), *([0.0] * (draws % 2)), *upper)


def gain(gains: Sequence[float], runs: Sequence[Replicates]) -> Estimate:
    """Mean over seeds of the gain over the initial student.

    Args:
        gains: of each run, on all examples.
        runs: the same on R resamples of the examples: [S, R].
    """
    return Estimate(float(np.mean(gains)), percentiles(over_seeds(runs, seed=1)))


def gain_ratio(
    gains: Sequence[float], baseline: Sequence[float], runs: Sequence[Replicates], baseline_runs: Sequence[Replicates]
) -> Estimate | None:
    """The gain of a method over the initial student, divided by the baseline method's.

    Args:
        gains, baseline: the gain of each run of either method, on all examples.
        runs, baseline_runs: the same on R resamples of the examples: [S, R] and [S', R].

    Returns:
        None where the baseline gains nothing. Its interval is None where the baseline's gain cannot be told from zero: the
        ratio then has no bounds.
    """
    below = float(np.mean(baseline))
    if below <= 0:
        return None
    ratio = float(np.mean(gains)) / below
    over, under = over_seeds(runs, seed=1), over_seeds(baseline_runs, seed=2)
    if percentiles(under).low <= 0:
        return Estimate(ratio, None)
    # At most 2.5% of the denominators are not positive: these replicates are beyond every bound.
    ratios = np.divide(over, under, out=np.where(over < 0, -np.inf, np.inf), where=under > 0)
    return Estimate(ratio, _order_statistics(ratios))


def seed_ratio(gains: Sequence[float], baseline: Sequence[float], resamples: int = 1000) -> Estimate | None:
    """`gain_ratio` of gains whose examples stay as they are: its interval is over seeds alone.

    Args:
        gains, baseline: the gain of each run of either method.
        resamples: draws of t.

    Returns:
        As `gain_ratio`; its interval is None, too, where either method has a single run, which says nothing about spread.
    """
    runs, others = (np.tile(np.asarray(side, dtype=np.float64)[:, None], resamples) for side in (gains, baseline))
    found = gain_ratio(gains, baseline, list(runs), list(others))
    single = 1 in (len(gains), len(baseline))
    return Estimate(found.value, None) if found is not None and single else found


def percentiles(values: NDArray[np.float64]) -> Interval:
    """The middle 95%, between neighbours linearly."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _order_statistics(values: NDArray[np.float64]) -> Interval:
    """The middle 95% of values among which may be infinite ones: no interpolation."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail], method="nearest")
    return Interval(float(low), float(high))
