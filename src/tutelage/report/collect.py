"""What a report knows about a run: everything its folder holds, nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from tutelage.errors import UserError
from tutelage.eval import marks
from tutelage.eval.marks import MarkedSequence, mean_divergence
from tutelage.eval.results import Evaluation, Row, changed_keys
from tutelage.eval.results import read as read_evaluation
from tutelage.report.naming import names, runs_of
from tutelage.train import config_io
from tutelage.train.config import Recipe
from tutelage.train.methods import METHODS, is_reward_alone
from tutelage.train.metrics import TRAINING_PHASES, read_metrics

MARKED_STEPS = 12  # of a run that a page holds token by token: a page of all of a long run's marks is too large to open
MARKED_TOKENS = 250_000  # of all runs together, some 30 MB
_MARKS = f"{marks.FOLDER}/step-{'[0-9]' * 8}.jsonl"

# A prompt's id with its text: every data set counts its prompts from 0.
ExampleKey = tuple[int, str]


_Item = TypeVar("_Item")


class TaskKey(NamedTuple):
    """What two runs share whose metrics are of the same examples: the task's name, its data, its options as JSON."""

    name: str
    data: str | None
    options: str


class Measure(NamedTuple):
    """What a column or a chart shows: values of two measures cannot be compared."""

    metric: str
    decoding: str
    task: TaskKey


@dataclass(frozen=True)
class RunData:
    """A run as its folder tells it.

    Attributes:
        name: what the report calls it, unlike any other run of the report.
        folder: where it lies.
        config: its configuration.
        divergence: spelling of its divergence; None for the negative log-likelihood, and for a reward alone.
        student_data_fraction: lambda of the paper's Algorithm 1; None for a method this version does not know.
        records: one per step, as in metrics.jsonl; null where a metric was not finite.
        before, after: evaluations; None where there was none. Metrics and Self-BLEUs that are not finite are None, and so are
            intervals with such an end.
        split: the split they are of.
        changed: keys of `eval` that changed after an evaluation before training, which is left out: it was of other examples than
            the one after, or decoded otherwise.
        marks: marked sequences by step, steps ascending: all, or `MARKED_STEPS` of them, the first and the last included.
        marked_divergence: divergence of the marked sequences at every marked step, in nats: mean over tokens, then over sequences.
    """

    name: str
    folder: Path
    config: Recipe
    divergence: str | None
    student_data_fraction: float | None
    records: tuple[Mapping[str, Any], ...]
    before: Evaluation | None
    after: Evaluation | None
    split: str
    changed: tuple[str, ...]
    marks: Mapping[int, Sequence[MarkedSequence]]
    marked_divergence: Mapping[int, float]

    @property
    def steps(self) -> int:
        """Optimiser steps done."""
        return int(self.records[-1]["step"]) if self.records else 0

    @property
    def tokens(self) -> int:
        """Completion tokens trained on."""
        return sum(int(record["tokens"]) for record in self.records)

    @property
    def seconds(self) -> Mapping[str, float]:
        """Seconds by phase, in the order the phases appeared, evaluations and checkpoints among them."""
        total: Counter[str] = Counter()
        for record in self.records:
            total.update(record["seconds"])
        return dict(total)

    @property
    def training_seconds(self) -> float:
        """Seconds of training alone: of `TRAINING_PHASES`."""
        return math.fsum(seconds for phase, seconds in self.seconds.items() if phase in TRAINING_PHASES)

    @property
    def task(self) -> TaskKey:
        """The task; by its evaluations' name for it where there are any, for a task of one's own has no other."""
        task = self.config.task
        name = next((evaluation.task for evaluation in self._evaluations if evaluation.task), task.name)
        return TaskKey(name, task.data, json.dumps(task.options, sort_keys=True, default=str))

    @property
    def decodings(self) -> list[str]:
        """Labels of the decoding settings, before or after."""
        return list(dict.fromkeys(row.decoding for evaluation in self._evaluations for row in evaluation.rows))

    @property
    def examples(self) -> int | None:
        """How many were evaluated; None where none were."""
        found = [row.examples for evaluation in self._evaluations[::-1] for row in evaluation.rows]
        return found[0] if found else None

    @property
    def evaluated(self) -> list[Measure]:
        """The headline metric in each decoding setting, before or after; none for a task without a metric."""
        rows = [row for evaluation in self._evaluations for row in evaluation.rows if row.metric in row.values]
        return list(dict.fromkeys(Measure(row.metric, row.decoding, self.task) for row in rows))

    @property
    def _evaluations(self) -> list[Evaluation]:
        return [evaluation for evaluation in (self.before, self.after) if evaluation is not None]

    def rows(self, decoding: str) -> tuple[Row | None, Row | None]:
        """The results of a decoding setting before and after training."""
        before, after = (
            next((row for row in rows if row.decoding == decoding), None)
            for rows in (each.rows if each is not None else () for each in (self.before, self.after))
        )
        return before, after

    def measured(self, measure: Measure) -> tuple[Row | None, Row | None]:
        """The results before and after training whose headline metric this is; none for a run on another task."""
        if measure.task != self.task:
            return None, None
        before, after = (
            row if row is not None and row.metric == measure.metric else None for row in self.rows(measure.decoding)
        )
        return before, after


def collect(folders: Sequence[Path]) -> list[RunData]:
    """Reads run folders; the folder of a finished comparison stands for the runs that it compares.

    Raises:
        UserError: no folder, one twice, one that holds no run, or a damaged file in one (names it).
    """
    if not folders:
        raise UserError("nothing to report on: name at least one folder of a run (--output of tutelage train)")
    folders = [run for folder in folders for run in runs_of(folder)]
    resolved = [folder.resolve() for folder in folders]
    twice = [str(folder) for folder, count in Counter(resolved).items() if count > 1]
    if twice:
        raise UserError(f"{', '.join(twice)} is given twice; name every run once")
    return [_read(folder, name) for folder, name in zip(folders, names(resolved), strict=True)]


def evaluated(runs: Iterable[RunData]) -> list[Measure]:
    """What the runs' evaluations measured, each measure once."""
    return list(dict.fromkeys(measure for run in runs for measure in run.evaluated))


def task_names(runs: Sequence[RunData]) -> dict[TaskKey, str]:
    """What the page calls the runs' tasks: name and data, and those of the options in which tasks of this name differ."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    options = {task: json.loads(task.options) for task in tasks}
    names = {}
    for task in tasks:
        others = [options[other] for other in tasks if (other.name, other.data) == (task.name, task.data)]
        told = [
            f"{key}={value}"
            for key, value in options[task].items()
            if any(key not in other or other[key] != value for other in others)
        ]
        names[task] = ", ".join([task.name, *([task.data] if task.data else []), *told])
    return names


def endings(metrics: Iterable[tuple[str, TaskKey]], runs: Sequence[RunData]) -> dict[tuple[str, TaskKey], str]:
    """What tells apart the metrics of one name that several tasks have: " on gsm8k"; empty for all others."""
    pairs = list(dict.fromkeys(metrics))
    names, times = task_names(runs), Counter(metric for metric, _ in pairs)
    return {(metric, task): f" on {names[task]}" if times[metric] > 1 else "" for metric, task in pairs}


def references(run: RunData) -> dict[ExampleKey, str]:
    """The ground-truth completions, as the run's marks and evaluations hold them."""
    found = [((each.prompt_id, each.prompt), each.reference) for each in _marked(run)]
    for evaluation in (run.before, run.after):
        completions = evaluation.completions if evaluation is not None else ()
        found += [((each.prompt_id, each.prompt), each.reference) for each in completions]
    return {example: text for example, text in found if text is not None}


def teacher_texts(run: RunData) -> dict[ExampleKey, str]:
    """What the teacher writes, where the run's marks hold it."""
    return {(each.prompt_id, each.prompt): each.teacher for each in _marked(run) if each.teacher is not None}


def within_budget(runs: Sequence[RunData], tokens: int | None = None) -> tuple[list[RunData], int | None]:
    """The runs with as many of their marks as a page can hold, `tokens` of them all (None: `MARKED_TOKENS`), and how many sequences
    of a step are left; None: all.

    All runs lose steps first, down to the first and the last, then sequences, down to one.
    """
    budget = MARKED_TOKENS if tokens is None else tokens
    most = max((len(several) for run in runs for several in run.marks.values()), default=0)
    ways = [(steps, None) for steps in range(MARKED_STEPS, 1, -1)] + [(2, left) for left in range(most - 1, 0, -1)]
    for steps, left in ways:
        found = [
            dataclasses.replace(run, marks={step: run.marks[step][:left] for step in _spaced(list(run.marks), steps)})
            for run in runs
        ]
        if sum(len(each.tokens) for run in found for each in _marked(run)) <= budget:
            break
    return found, left


def _spaced(items: Sequence[_Item], count: int) -> list[_Item]:
    """So many of the items, two or more, evenly spaced, the first and the last included; all where there are no more."""
    last = len(items) - 1
    return list(items) if len(items) <= count else [items[i * last // (count - 1)] for i in range(count)]


def _marked(run: RunData) -> Iterator[MarkedSequence]:
    return chain.from_iterable(run.marks.values())


def _read(folder: Path, name: str) -> RunData:
    if not (folder / "config.yaml").is_file():
        seen = "holds no run (no config.yaml)" if folder.is_dir() else "is no folder"
        raise UserError(
            f"{folder} {seen}; name the folder a run was written to (--output of tutelage train), or that of a finished comparison"
        )
    config = config_io.validate(Recipe, config_io.load_yaml(folder / "config.yaml"))
    preset = METHODS.get(config.method)
    fraction = preset.student_data_fraction if preset is not None else None
    marked, marked_divergence = _read_marks(folder)
    before, after, settings, changed = _read_evaluations(folder / "evaluation", config)
    return RunData(
        name=name,
        folder=folder,
        config=config,
        divergence=None if is_reward_alone(config) else config.divergence or (preset.divergence if preset else None),
        student_data_fraction=fraction if config.student_data_fraction is None else config.student_data_fraction,
        records=tuple(read_metrics(folder / "metrics.jsonl")),
        before=before,
        after=after,
        split="validation" if settings.get("final", "auto") == "auto" else settings["final"],
        changed=changed,
        marks=marked,
        marked_divergence=marked_divergence,
    )


def _read_marks(folder: Path) -> tuple[dict[int, list[MarkedSequence]], dict[int, float]]:
    """A run's `marks` and `marked_divergence`. A long run's marks are gigabytes as objects: no more than one further file is held."""
    files = sorted(folder.glob(_MARKS))
    kept = set(_spaced(files, MARKED_STEPS))
    marked: dict[int, list[MarkedSequence]] = {}
    divergence: dict[int, float] = {}
    for path in files:
        step, sequences = int(path.stem.removeprefix("step-")), marks.read(path)
        if sequences:
            divergence[step] = fmean(mean_divergence(sequence) for sequence in sequences)
            if path in kept:
                marked[step] = sequences
    return marked, divergence


def _read_evaluations(
    folder: Path, config: Recipe
) -> tuple[Evaluation | None, Evaluation | None, Mapping[str, Any], tuple[str, ...]]:
    """Before, after, the `eval` section that they share, and what of it changed since an evaluation before, left out for that.

    A run may go on with another `eval`: its evaluation before training then is no measure for the one after.
    """
    now = config.eval.model_dump(mode="json")
    after, settings = _evaluation(folder / "after", now)
    before, earlier = _evaluation(folder / "before", settings)
    changed = tuple(changed_keys(earlier, settings))
    return None if changed else before, after, settings, changed


def _evaluation(folder: Path, settings: Mapping[str, Any]) -> tuple[Evaluation | None, Mapping[str, Any]]:
    """An evaluation with the `eval` section it was made with; `settings` where it does not say, or where there is none."""
    try:
        found = read_evaluation(folder)
    except (OSError, json.JSONDecodeError, ValidationError) as error:
        problem = str(error).splitlines()[0]
        raise UserError(f"the evaluation in {folder} is damaged: {problem}; delete the folder to go on") from error
    if found is None:
        return None, settings
    evaluation, about = found
    made_with = about.get("config", {}).get("eval", settings)
    return dataclasses.replace(evaluation, rows=tuple(_finite(row) for row in evaluation.rows)), made_with


def _finite(row: Row) -> Row:
    """The row without figures that no axis can show."""

    def kept(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    interval = row.interval
    if kept(row.value) is None or (interval and not math.isfinite(interval.high - interval.low)):
        interval = None
    return dataclasses.replace(row, value=kept(row.value), interval=interval, self_bleu=kept(row.self_bleu))
