"""What a report knows about a run: everything its folder holds, nothing else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import ValidationError

from tutelage.errors import UserError
from tutelage.eval import marks
from tutelage.eval.marks import MarkedSequence, mean_divergence
from tutelage.eval.results import Evaluation, Row
from tutelage.eval.results import read as read_evaluation
from tutelage.report.naming import names, runs_of
from tutelage.train import config_io
from tutelage.train.config import Recipe
from tutelage.train.methods import METHODS, is_reward_alone
from tutelage.train.metrics import read_metrics

MARKED_STEPS = 12  # of a run that a page holds token by token: a page of all of a long run's marks is too large to open
_MARKS = f"{marks.FOLDER}/step-{'[0-9]' * 8}.jsonl"

# A prompt's id with its text: every data set counts its prompts from 0.
ExampleKey = tuple[int, str]


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
        before, after: evaluations; None where there was none.
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
        """Seconds of training by phase, in the order the phases appeared."""
        total: Counter[str] = Counter()
        for record in self.records:
            total.update(record["seconds"])
        return dict(total)

    @property
    def evaluated(self) -> list[tuple[str, str]]:
        """Headline metric and label of the decoding setting of each result, before or after."""
        found = [evaluation for evaluation in (self.before, self.after) if evaluation is not None]
        return list(dict.fromkeys((row.metric, row.decoding) for evaluation in found for row in evaluation.rows))

    def rows(self, decoding: str, metric: str | None = None) -> tuple[Row | None, Row | None]:
        """The results of a decoding setting before and after training; with a metric: those alone whose headline metric it is."""
        before, after = (
            next((row for row in rows if row.decoding == decoding and metric in (None, row.metric)), None)
            for rows in (each.rows if each is not None else () for each in (self.before, self.after))
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


def evaluated(runs: Iterable[RunData]) -> list[tuple[str, str]]:
    """Headline metrics and decoding settings of the runs, each pair once: values of two pairs cannot be compared."""
    return list(dict.fromkeys(pair for run in runs for pair in run.evaluated))


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
    return RunData(
        name=name,
        folder=folder,
        config=config,
        divergence=None if is_reward_alone(config) else config.divergence or (preset.divergence if preset else None),
        student_data_fraction=fraction if config.student_data_fraction is None else config.student_data_fraction,
        records=tuple(read_metrics(folder / "metrics.jsonl")),
        before=_evaluation(folder / "evaluation" / "before"),
        after=_evaluation(folder / "evaluation" / "after"),
        marks=marked,
        marked_divergence=marked_divergence,
    )


def _read_marks(folder: Path) -> tuple[dict[int, list[MarkedSequence]], dict[int, float]]:
    """A run's `marks` and `marked_divergence`. A long run's marks are gigabytes as objects: no more than one further file is held."""
    files = sorted(folder.glob(_MARKS))
    last, spaces = len(files) - 1, MARKED_STEPS - 1
    kept = set(files) if last <= spaces else {files[i * last // spaces] for i in range(MARKED_STEPS)}
    marked: dict[int, list[MarkedSequence]] = {}
    divergence: dict[int, float] = {}
    for path in files:
        step, sequences = int(path.stem.removeprefix("step-")), marks.read(path)
        if sequences:
            divergence[step] = fmean(mean_divergence(sequence) for sequence in sequences)
            if path in kept:
                marked[step] = sequences
    return marked, divergence


def _evaluation(folder: Path) -> Evaluation | None:
    try:
        found = read_evaluation(folder)
    except (OSError, json.JSONDecodeError, ValidationError) as error:
        problem = str(error).splitlines()[0]
        raise UserError(f"the evaluation in {folder} is damaged: {problem}; delete the folder to go on") from error
    return None if found is None else found[0]
