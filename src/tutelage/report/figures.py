"""Which charts a report has, from the runs it is about."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from markupsafe import Markup

from tutelage.eval.results import REWARD, Row, metric_name, temperature_of
from tutelage.report.charts import Moment, Point, Series, Trajectory, line_chart, stacked_bars, trajectory_chart
from tutelage.report.collect import Measure, RunData, TaskKey, endings, evaluated

# Metric -> (heading, axis, what a reader sees in it), in the order of the page.
CURVES: dict[str, tuple[str, str, str]] = {
    "loss": ("Loss", "loss", "What training lowers. Losses of different divergences cannot be compared."),
    "reward": ("Reward", "reward", "What the task or the scorer gives the student's sequences. Mean over the step's."),
    "forward_kl": (
        "Forward KL from the teacher",
        "nats a token",
        "High where the student misses what the teacher finds likely. On the sequences trained on.",
    ),
    "reverse_kl": (
        "Reverse KL from the teacher",
        "nats a token",
        "High where the student writes what the teacher finds unlikely. On the sequences trained on.",
    ),
    "student_entropy": ("Entropy of the student", "nats a token", "How undecided the student is; 0: certain."),
    "teacher_entropy": ("Entropy of the teacher", "nats a token", "How undecided the teacher is on these sequences."),
    "agreement": ("Agreement", "share of tokens", "How often both models find the same token likeliest."),
    "completion_length": ("Length of completions", "tokens", "Mean over the sequences trained on."),
    "grad_norm": ("Gradient norm", "norm", "Before clipping. Spikes mark unstable steps."),
    "learning_rate": ("Learning rate", "learning rate", "As scheduled."),
}
_NOT_DRAWN = frozenset({"step", "tokens", "sequences", "divergence", "student_share"})
# Phase of training -> what is done in it.
_PHASES = {
    "rollout": "the student (or the teacher) writes sequences",
    "reward": "the task, the scorer or the function rewards them",
    "importance": "they are weighed by what the student of now would have written",
    "returns": "every token gets the divergence of what follows it",
    "teacher": "it marks them",
    "update": "the student's forward and backward pass with the optimiser",
    "evaluate": "held-out examples during training",
    "checkpoint": "the state is written to the disk",
}
# What training cost a run: columns of the table of phases.
COSTS = ("training", "tokens/s", "seconds a step")
DIVERSITY_HINT = (
    "Charts of diversity take two sampling temperatures and several samples a prompt: --eval.temperatures 0 0.5 1 "
    "--eval.samples-per-prompt 4."
)
_MOMENTS = 12  # of a trajectory; a step's mean over a few sequences is mostly noise

_GAMING = (
    "Up and to the right: the student earns its reward by doing the task. Gaming the reward looks like a path that goes on to the right "
    "but no further up, or bends down."
)


@dataclass(frozen=True)
class Figure:
    """A chart with its words.

    Attributes:
        heading: what it shows.
        caption: how to read it.
        chart: the SVG.
    """

    heading: str
    caption: str
    chart: Markup


def curve_figures(runs: Sequence[RunData]) -> list[Figure]:
    """One chart for every metric of the runs' metrics.jsonl, all runs in each; metrics without a name here come last."""
    found = dict.fromkeys(key for run in runs for record in run.records for key in record if _is_number(record[key]))
    figures = []
    for key in [*CURVES, *(key for key in found if key not in CURVES and key not in _NOT_DRAWN)]:
        heading, unit, caption = CURVES.get(key, (key.replace("_", " ").capitalize(), key, ""))
        figures += _figure(heading, caption, runs, lambda run, key=key: _metric(run, key), "step", unit)  # type: ignore[misc]
    return figures


def evaluation_figures(runs: Sequence[RunData]) -> list[Figure]:
    """The headline metric over the steps, one chart a metric and decoding setting; both ends are the full evaluations."""
    figures = []
    found = evaluated(runs)
    ending = endings([(measure.metric, measure.task) for measure in found], runs)
    for measure in found:
        figures += _figure(
            f"{metric_name(measure.metric)}{ending[measure.metric, measure.task]}, {measure.decoding}",
            "On held-out examples. Bars: 95% intervals, where they were measured.",
            runs,
            lambda run, measure=measure: _evaluated(run, measure),  # type: ignore[misc]
            "step",
            measure.metric,
        )
    return figures


def quality_figures(runs: Sequence[RunData]) -> list[Figure]:
    """Quality and diversity against temperature, and against one another, where the evaluations hold them; a chart a metric."""
    before = "Thin lines and hollow points: before training."
    samples = "Self-BLEU rises with the number of samples: compare runs with equally many."
    temperature, self_bleu = _Axis("sampling temperature", _temperature), _Axis("Self-BLEU", _self_bleu)
    metrics = endings([(measure.metric, measure.task) for measure in evaluated(runs)], runs)
    figures = []
    for (metric, task), ending in metrics.items():
        caption = f"{before} Temperature 0 is greedy decoding."
        heading = f"{metric_name(metric)}{ending} against temperature"
        figures += _against(heading, caption, runs, temperature, _quality(metric), task)
    caption = f"{before} Lower: samples of one prompt differ more. {samples}"
    figures += _against("Self-BLEU against temperature", caption, runs, temperature, self_bleu)
    for (metric, task), ending in metrics.items():
        caption = f"{before} Further left: more diverse; further up: better. {samples}"
        heading = f"{metric_name(metric)}{ending} against diversity"
        figures += _against(heading, caption, runs, self_bleu, _quality(metric), task)
    return figures


def diversity_hint(runs: Sequence[RunData]) -> str:
    """What gives the charts of diversity; empty where some run has them, or where nothing was evaluated."""
    evaluations = [each for run in runs for each in (run.before, run.after) if each is not None]
    drawn = any(sum(row.self_bleu is not None for row in each.rows) > 1 for each in evaluations)
    return DIVERSITY_HINT if evaluations and not drawn else ""


def marks_figure(runs: Sequence[RunData]) -> list[Figure]:
    """The run's divergence over the marked tokens, step by step; none where nothing was marked more than once."""
    series = []
    for slot, run in enumerate(runs):
        points = [Point(step, value) for step, value in run.marked_divergence.items() if math.isfinite(value)]
        series.append(Series(run.name, slot, tuple(points)))
    if all(len(curve.points) < 2 for curve in series):
        return []
    heading = "Divergence of the marked sequences"
    caption = "Each run's own divergence, mean over tokens, then over sequences: the same prompts at every step, the same random draws."
    return [Figure(heading, caption, line_chart(heading, series, x_label="step", y_label="nats a token"))]


def reward_figures(runs: Sequence[RunData]) -> list[Figure]:
    """The reward against what it may be gamed against: the task's metric and the divergence from the teacher.

    First on held-out examples, as the evaluations have both, then on the sequences trained on. A run whose reward is that very metric is
    left out of the charts of the metric.

    Source: Gao, Schulman & Hilton, Scaling laws for reward model overoptimization, ICML 2023 (arXiv 2210.10760), figure 1.
    """
    figures = _held_out_rewards(runs)
    metrics = {run.name: (metric, run.task) for run in runs if (metric := _task_metric(run)) is not None}
    for (metric, task), ending in endings(metrics.values(), runs).items():
        caption = (
            f"{_GAMING} Both are of sequences written for training: without a calculator that the evaluation may lend."
        )
        ways = [
            Trajectory(
                run.name, slot, _moments(run, [record.get("task_metrics", {}).get(metric) for record in run.records])
            )
            for slot, run in enumerate(runs)
            if metrics.get(run.name) == (metric, task) and run.config.rl.reward != metric
        ]
        figures += _against_reward(f"{metric_name(metric)}{ending}", caption, ways, metric)
    caption = (
        "How far from the teacher the student goes for its reward. Gaming the reward looks like a path that climbs ever more steeply: "
        "much distance for little more reward, in text that the teacher finds unlikely."
    )
    ways = [
        Trajectory(run.name, slot, _moments(run, [record.get("reverse_kl") for record in run.records]))
        for slot, run in enumerate(runs)
    ]
    return [*figures, *_against_reward("Reverse KL", caption, ways, "reverse KL (nats a token)")]


def _held_out_rewards(runs: Sequence[RunData]) -> list[Figure]:
    """The metric of held-out examples against their reward, one chart a metric and decoding setting."""
    found = evaluated(runs)
    ending = endings([(measure.metric, measure.task) for measure in found], runs)
    figures = []
    for measure in found:
        ways = [
            Trajectory(run.name, slot, _held_out_moments(run, measure))
            for slot, run in enumerate(runs)
            if run.config.rl.reward != measure.metric
        ]
        name = f"{metric_name(measure.metric)}{ending[measure.metric, measure.task]}"
        caption = f"{_GAMING} On held-out examples, from the evaluation before training to the one after it."
        figures += _against_reward(name, caption, ways, measure.metric, f"held out, {measure.decoding}")
    return figures


def phases(runs: Sequence[RunData]) -> dict[str, int]:
    """Phase of training -> colour, in the order the phases appeared."""
    return {phase: i for i, phase in enumerate(dict.fromkeys(phase for run in runs for phase in run.seconds))}


def time_figure(runs: Sequence[RunData]) -> list[Figure]:
    """Where the seconds of training went."""
    bars = {run.name: run.seconds for run in runs if run.seconds}
    if not bars:
        return []
    words = [f"{phase.capitalize()}: {_PHASES[phase]}." for phase in phases(runs) if phase in _PHASES]
    costs = "Training, tokens/s and seconds a step leave evaluate and checkpoint out."
    caption = " ".join([*words, "Loading, and the evaluations before and after training, are not in it.", costs])
    return [Figure("Seconds by phase", caption, stacked_bars("Seconds by phase", bars, phases(runs), "seconds"))]


def _figure(
    heading: str,
    caption: str,
    runs: Sequence[RunData],
    points_of: Callable[[RunData], Sequence[Point]],
    x_label: str,
    y_label: str,
) -> list[Figure]:
    """One curve a run; no figure where no run has points."""
    series = [Series(run.name, slot, tuple(points_of(run))) for slot, run in enumerate(runs)]
    if not any(curve.points for curve in series):
        return []
    return [Figure(heading, caption, line_chart(heading, series, x_label=x_label, y_label=y_label))]


class _Axis(NamedTuple):
    """What an axis shows of the results of a decoding setting.

    Attributes:
        label: its name.
        of: the value in a row; None where it has none.
        has_interval: whether the row's interval is of it.
    """

    label: str
    of: Callable[[Row], float | None]
    has_interval: bool = False


def _against(
    heading: str, caption: str, runs: Sequence[RunData], x: _Axis, y: _Axis, task: TaskKey | None = None
) -> list[Figure]:
    """Two curves a run, before and after training; with a task: for the runs on it. A single point is in the summary; a chart of it
    says nothing."""
    series = []
    for slot, run in enumerate(runs):
        for evaluation, hollow in ((run.before, True), (run.after, False)):
            rows = evaluation.rows if evaluation is not None and task in (None, run.task) else ()
            series.append(Series(run.name, slot, tuple(sorted(_points(rows, x, y))), hollow))
    if all(len(curve.points) < 2 for curve in series):
        return []
    return [Figure(heading, caption, line_chart(heading, series, x_label=x.label, y_label=y.label))]


def _against_reward(
    measure: str, caption: str, ways: Sequence[Trajectory], unit: str, where: str = "in training"
) -> list[Figure]:
    """One trajectory a run; no figure where none has two moments."""
    if all(len(way.moments) < 2 for way in ways):
        return []
    heading = f"{measure} against the reward, {where}"
    return [Figure(heading, caption, trajectory_chart(heading, ways, x_label="reward", y_label=unit))]


def _moments(run: RunData, values: Sequence[Any]) -> tuple[Moment, ...]:
    """The reward and another value of each record: means over equal stretches of the steps that have both."""
    both = [
        Moment(record["step"], record["reward"], value)
        for record, value in zip(run.records, values, strict=True)
        if _is_number(record.get("reward")) and _is_number(value)
    ]
    count = min(_MOMENTS, len(both))
    stretches = [both[i * len(both) // count : (i + 1) * len(both) // count] for i in range(count)]
    return tuple(
        Moment(stretch[-1].step, fmean(each.x for each in stretch), fmean(each.y for each in stretch))
        for stretch in stretches
    )


def _held_out_moments(run: RunData, measure: Measure) -> tuple[Moment, ...]:
    """Reward and metric of the run's evaluations: before, during and after training, those that have both."""
    found: dict[int, Moment] = {}
    for record in run.records if measure.task == run.task and not run.changed else ():  # as in `_evaluated`
        evaluation = record.get("evaluation", {})
        reward, value = (evaluation.get(f"{name} {measure.decoding}") for name in (REWARD, measure.metric))
        if _is_number(reward) and _is_number(value):
            found[record["step"]] = Moment(record["step"], reward, value)
    for step, row in zip((0, run.steps), run.measured(measure), strict=True):
        if row is not None and row.reward is not None and row.value is not None:
            found[step] = Moment(step, row.reward.value, row.value)
    return tuple(found[step] for step in sorted(found))


def _task_metric(run: RunData) -> str | None:
    """The task's headline metric, the first of those measured beside a reward; None without a reward or a metric."""
    return next((name for record in run.records for name in record.get("task_metrics", ())), None)


def _metric(run: RunData, key: str) -> list[Point]:
    # Where a step saw no distribution of a teacher's, "agreement" is how often a token trained on is the student's likeliest.
    records = [record for record in run.records if key != "agreement" or "forward_kl" in record]
    return [Point(record["step"], record[key]) for record in records if _is_number(record.get(key))]


def _evaluated(run: RunData, measure: Measure) -> list[Point]:
    before, after = run.measured(measure)
    points: dict[int, Point] = {}
    # Where the evaluation changed during the run, no record says whether its figures are of the examples before or after that.
    records = run.records if measure.task == run.task and not run.changed else ()
    for record in records:
        value = record.get("evaluation", {}).get(f"{measure.metric} {measure.decoding}")  # as the loop names it
        if _is_number(value):
            points[record["step"]] = Point(record["step"], value)
    for step, row in ((0, before), (run.steps, after)):
        if row is not None and row.value is not None:
            ends = (row.interval.low, row.interval.high) if row.interval is not None else (None, None)
            points[step] = Point(step, row.value, *ends)
    return [points[step] for step in sorted(points)]


def _points(rows: Sequence[Row], x: _Axis, y: _Axis) -> Iterator[Point]:
    for row in rows:
        across, up = x.of(row), y.of(row)
        if across is not None and up is not None:
            interval = row.interval if y.has_interval else None
            yield Point(across, up, *((interval.low, interval.high) if interval is not None else (None, None)))


def _quality(metric: str) -> _Axis:
    """A headline metric, for the runs whose it is."""
    return _Axis(metric, lambda row: row.value if row.metric == metric else None, has_interval=True)


def _self_bleu(row: Row) -> float | None:
    return row.self_bleu


def _temperature(row: Row) -> float | None:
    """Of a row by its label; None for beam search, and for an infinite one, which has no place on the axis."""
    temperature = temperature_of(row.decoding)
    return temperature if _is_number(temperature) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def phase_table(runs: Sequence[RunData]) -> list[tuple[str, Mapping[str, str]]]:
    """Run -> phase -> "12.3 (45%)", the total under "all", and `COSTS`."""
    table: list[tuple[str, Mapping[str, str]]] = []
    for run in runs:
        total, training = math.fsum(run.seconds.values()), run.training_seconds
        if total:
            cells = {phase: f"{seconds:,.1f} ({seconds / total:.0%})" for phase, seconds in run.seconds.items()}
            speed = f"{run.tokens / training:,.0f}" if training else "–"
            costs = zip(COSTS, (f"{training:,.1f}", speed, f"{training / len(run.records):,.3g}"), strict=True)
            table.append((run.name, {**cells, "all": f"{total:,.1f}", **dict(costs)}))
    return table
