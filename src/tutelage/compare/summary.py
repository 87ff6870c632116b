"""What a comparison found: every method at equal steps on the test split, and at equal time on validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from tutelage.compare.intervals import Estimate, gain, gain_ratio, seed_ratio
from tutelage.compare.plan import Choice, Variant
from tutelage.compare.records import EvaluationRecord, Point, RunRecord, Score
from tutelage.eval.statistics import SeedSummary, seed_summary


@dataclass(frozen=True)
class Reference:
    """A model that no method trained.

    Attributes:
        name: "initial student", "teacher" or, where runs have several, "first teacher"; with the folder where there are several.
        model: its folder or hub name.
        test: on the test split.
    """

    name: str
    model: str
    test: EvaluationRecord


@dataclass(frozen=True)
class FinalRun:
    """A run that is compared.

    Attributes:
        variant: name of its method.
        cell: name of its folder.
        record: of the training.
        test: on the test split.
        initial: the student it started from; None where that could not be evaluated.
    """

    variant: str
    cell: str
    record: RunRecord
    test: EvaluationRecord
    initial: Reference | None


@dataclass(frozen=True)
class Method:
    """A method with its runs.

    Attributes:
        variant: name, label, grid.
        choice: the hyperparameters.
        runs: one per seed that finished.
    """

    variant: Variant
    choice: Choice
    runs: tuple[FinalRun, ...]

    @property
    def seconds(self) -> float:
        """Of a training, mean over the runs."""
        return fmean(run.record.total_seconds for run in self.runs)


@dataclass(frozen=True)
class Line:
    """One method in one decoding.

    Attributes:
        method: its name.
        metric, decoding: what was measured.
        runs: how many, one per seed.
        steps: optimiser steps.
        tokens, seconds: of training until then, means over the runs.
        over_seeds: mean of the metric with its Student-t interval.
        gain: over the initial student; None without it, or where it met other examples or another metric.
        ratio: of the gain to the baseline's; None where there is none.
    """

    method: str
    metric: str
    decoding: str
    runs: int
    steps: int
    tokens: float
    seconds: float
    over_seeds: SeedSummary
    gain: Estimate | None
    ratio: Estimate | None


def equal_steps(methods: Sequence[Method], baseline: str) -> list[Line]:
    """The finished students on the test split, by method and decoding; intervals of gains over seeds and examples.

    Args:
        methods: each with at least one run.
        baseline: name of the method whose gain divides the others'.
    """
    under = next((method for method in methods if method.variant.name == baseline), None)
    return [line for method in methods for line in _tested(method, under)]


def _tested(method: Method, baseline: Method | None) -> Iterator[Line]:
    first, starts = method.runs[0], _starts(method)
    for score in (score for score in first.test.scores if score.headline):
        decoding = score.decoding
        values = [_headline(run.test.scores, decoding).value for run in method.runs]
        over_initial = ratio = None
        if starts is not None:
            gains, runs = _gains_on_test(method, starts, decoding)
            over_initial = gain(gains, runs)
            others = None if baseline is None or baseline is method else _starts(baseline)
            if baseline is not None and others is not None and any(start in others for start in starts):
                under, under_runs = _gains_on_test(baseline, others, decoding)
                ratio = gain_ratio(gains, under, runs, under_runs)
        yield Line(
            method.variant.name,
            score.metric,
            decoding,
            len(values),
            first.record.steps,
            fmean(run.record.tokens for run in method.runs),
            method.seconds,
            seed_summary(values),
            over_initial,
            ratio,
        )


def _starts(method: Method) -> list[Reference] | None:
    """The initial student of each run of a method, where each was tested, on the very examples and by the metric that its run was."""
    starts = [run.initial for run in method.runs if run.initial is not None]
    same = len(starts) == len(method.runs) and all(
        _measured(run.test) == _measured(start.test) for run, start in zip(method.runs, starts, strict=True)
    )
    return starts if same else None


def _measured(test: EvaluationRecord) -> tuple[str, frozenset[tuple[str, str]]]:
    """What must agree for two tests to be subtracted: the examples, and the headline metric in each decoding."""
    return test.examples, frozenset((score.metric, score.decoding) for score in test.scores if score.headline)


def _gains_on_test(
    method: Method, starts: Sequence[Reference], decoding: str
) -> tuple[list[float], list[NDArray[np.float64]]]:
    """Each run's metric over its own initial student's: on all examples, [S], and on each resample of them, [S, R]."""
    pairs = [(run.test, start.test) for run, start in zip(method.runs, starts, strict=True)]
    values = [_headline(run.scores, decoding).value - _headline(start.scores, decoding).value for run, start in pairs]
    return values, [np.subtract(run.replicates[decoding], start.replicates[decoding]) for run, start in pairs]


def time_budget(methods: Sequence[Method]) -> float:
    """The seconds that the quickest method trains for: what every method is given at equal time."""
    return min(method.seconds for method in methods)


def reached(method: Method, budget: float) -> list[Point]:
    """Where each run of a method stands after a budget of seconds: between two evaluations linearly, the last where all is trained.

    The time of an evaluation is its mean over the runs, so that one run on a busy machine does not fall behind.
    """
    curves = [run.record.curve for run in method.runs]
    times = [fmean(point.seconds for point in points) for points in zip(*curves, strict=True)]
    # The quickest method's own mean is the budget: rounding must not cost it its last evaluation.
    last = max(i for i, seconds in enumerate(times) if seconds <= budget * (1 + 1e-9))
    if last + 1 == len(times):
        return [curve[last] for curve in curves]
    share = max(0.0, budget - times[last]) / (times[last + 1] - times[last])
    return [_between(curve[last], curve[last + 1], share) for curve in curves]


def _between(first: Point, second: Point, share: float) -> Point:
    def mix(one: float, other: float) -> float:
        return one + share * (other - one)

    scores = tuple(
        Score(
            metric=score.metric,
            decoding=score.decoding,
            value=mix(score.value, _headline(second.scores, score.decoding).value),
            headline=True,
        )
        for score in first.scores
    )
    step, tokens = (round(mix(one, other)) for one, other in ((first.step, second.step), (first.tokens, second.tokens)))
    return Point(step=step, seconds=mix(first.seconds, second.seconds), tokens=tokens, scores=scores)


def equal_time(methods: Sequence[Method], baseline: str) -> list[Line]:
    """The students on validation after the seconds of the quickest method; intervals over seeds only.

    Args:
        methods: each with at least one run, and evaluations during training.
        baseline: as in `equal_steps`.
    """
    budget = time_budget(methods)
    points = {method.variant.name: reached(method, budget) for method in methods}
    gains = {method.variant.name: _gains_at(method, points[method.variant.name]) for method in methods}
    lines = []
    for name, at in points.items():
        for score in at[0].scores:
            decoding = score.decoding
            gained = seed_summary(gains[name][decoding])
            others = None
            if baseline in gains and baseline != name:
                under = _headline(points[baseline][0].scores, decoding)
                others = gains[baseline][decoding] if under.metric == score.metric else None
            lines.append(
                Line(
                    name,
                    score.metric,
                    decoding,
                    len(at),
                    at[0].step,
                    fmean(point.tokens for point in at),
                    fmean(point.seconds for point in at),
                    seed_summary([_headline(point.scores, decoding).value for point in at]),
                    Estimate(gained.mean, gained.interval),
                    None if others is None else seed_ratio(gains[name][decoding], others),
                )
            )
    return lines


def _gains_at(method: Method, points: Sequence[Point]) -> dict[str, list[float]]:
    """By decoding: each run's metric there over its own before training."""
    found: dict[str, list[float]] = {}
    for run, at in zip(method.runs, points, strict=True):
        before = run.record.curve[0]
        for score in at.scores:
            found.setdefault(score.decoding, []).append(score.value - _headline(before.scores, score.decoding).value)
    return found


def has_curves(methods: Sequence[Method]) -> bool:
    """Whether every run was evaluated before training, during it and after it, all runs of a method at the same steps."""
    return all(
        len(run.record.curve) > 2
        and run.record.curve[0].step == 0
        and [point.step for point in run.record.curve] == [point.step for point in method.runs[0].record.curve]
        for method in methods
        for run in method.runs
    )


def notes(methods: Sequence[Method], at_steps: Sequence[Line], at_time: Sequence[Line], baseline: str) -> list[str]:
    """What a reader of the tables must know.

    Args:
        methods: each with at least one run.
        at_steps, at_time: the lines of both tables.
        baseline: as in `equal_steps`.
    """
    found = _edge_notes(methods)
    for method in methods:
        name, choice = method.variant.name, method.choice
        failed = [point for point, score in choice.tried if score is None]
        if failed:
            shown = "; ".join(", ".join(f"{key} = {value}" for key, value in point.items()) for point in failed)
            found.append(f"Warning: {name} was not chosen at {shown}: a run there failed.")
        if _starts(method) is None:
            found.append(
                f"{name} has no gain at equal steps: its initial student was not tested, or not on the same examples by the same metric."
            )
    if len({method.runs[0].record.steps for method in methods}) > 1:
        found.append("Warning: the methods do not train for the same number of steps.")
    threads = {method.variant.name: {run.record.threads for run in method.runs} for method in methods}
    if len(set().union(*threads.values())) > 1:
        shown = "; ".join(f"{name}: {', '.join(map(str, sorted(several)))}" for name, several in threads.items())
        found.append(
            f"Warning: seconds and equal time are of runs with different numbers of threads ({shown}) and say nothing of the methods; "
            "make all runs with the same jobs on the same machine."
        )
    single = {method.variant.name for method in methods if len(method.runs) == 1}
    if single:
        without = "; at equal time it has none, nor has a ratio with it on either side" if at_time else ""
        found.append(
            f"A single seed says nothing about the luck of a training: its interval is over examples only{without}."
        )
    # A ratio at equal time that has a single run on either side lacks its interval for that.
    of_several = [] if baseline in single else [line for line in at_time if line.method not in single]
    if any(line.ratio is not None and line.ratio.interval is None for line in [*at_steps, *of_several]):
        found.append("A ratio without an interval: the baseline's own gain cannot be told from zero.")
    return found


def _edge_notes(methods: Sequence[Method]) -> list[str]:
    """One remark on all methods whose choice lies at the end of its grid, however many keys move together there."""
    at_end = [method for method in methods if method.choice.edges]
    found = []
    if wide := [method for method in at_end if method.choice.has_inside]:
        found.append(
            f"Warning: the choice lies at the end of the grid for {_choices_at_end(wide)}: the best may lie beyond; widen the search."
        )
    # No warning, for there was no other way it could end; but no silence either, for nobody has seen the best.
    if narrow := [method for method in at_end if not method.choice.has_inside]:
        found.append(
            "A grid of two values has no inside: the choice is the better of the two, and the best may lie beyond, for "
            f"{_choices_at_end(narrow)}."
        )
    return found


def _choices_at_end(methods: Sequence[Method]) -> str:
    chosen = (
        (method.variant.name, ", ".join(f"{key} = {method.choice.point[key]}" for key in method.choice.edges))
        for method in methods
    )
    return ", ".join(f"{name} ({values})" for name, values in chosen)


def _headline(scores: Sequence[Score], decoding: str) -> Score:
    return next(score for score in scores if score.headline and score.decoding == decoding)
