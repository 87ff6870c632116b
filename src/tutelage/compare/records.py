"""What a finished run leaves for the tables: written whole or not at all, last of everything."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError, field_validator

from tutelage.errors import UserError
from tutelage.eval.results import REWARD, Evaluation
from tutelage.eval.signals import Estimate
from tutelage.eval.statistics import Interval
from tutelage.section import Section
from tutelage.train.config import Config
from tutelage.train.metrics import TRAINING_PHASES

SomeSection = TypeVar("SomeSection", bound=Section)


class _Kept(Section):
    """Written to disk and read again; a divergence may be infinite."""

    model_config = ConfigDict(ser_json_inf_nan="constants")


class Score(_Kept):
    """One metric in one decoding.

    Attributes:
        metric, decoding: their names.
        value: 0 to 100 for the task's metrics, nats for divergences from the teacher, in its own unit the reward.
        low, high: 95% interval over examples; None where there is none.
        headline: whether this is the task's headline metric.
    """

    metric: str
    decoding: str
    value: float
    low: float | None = None
    high: float | None = None
    headline: bool = False


class Point(_Kept):
    """An evaluation on validation during training.

    Attributes:
        step: optimiser steps done.
        seconds: spent in training steps until then, all `TRAINING_PHASES` together.
        tokens: completion tokens trained on until then.
        scores: of the headline metric.
    """

    step: int
    seconds: float
    tokens: int
    scores: tuple[Score, ...]


class RunRecord(_Kept):
    """A finished run.

    Attributes:
        config: resolved.
        steps: optimiser steps.
        tokens: completion tokens trained on.
        seconds: by phase, each of `TRAINING_PHASES`; evaluations and checkpoints left out.
        threads: of its process.
        scores: on validation, after the last step.
        curve: on validation, from step 0 to the last; headline metric only.
    """

    config: dict[str, Any]
    steps: int
    tokens: int
    seconds: dict[str, float]
    threads: int
    scores: tuple[Score, ...]
    curve: tuple[Point, ...]

    @field_validator("seconds")
    @classmethod
    def _every_phase(cls, seconds: dict[str, float]) -> dict[str, float]:
        # A version that knew fewer phases left their work out of its seconds, which cannot be compared with these.
        if seconds.keys() != set(TRAINING_PHASES):
            raise ValueError(f"needs the seconds of {', '.join(TRAINING_PHASES)}; has those of {', '.join(seconds)}")
        return seconds

    @property
    def total_seconds(self) -> float:
        """Seconds of training over all phases."""
        return sum(self.seconds.values())


class EvaluationProtocol(_Kept):
    """How the test split is evaluated.

    Attributes:
        limit: examples; None: all.
        temperatures, num_beams: the decodings.
        resamples: of the bootstrap.
    """

    limit: int | None
    temperatures: tuple[float, ...]
    num_beams: int
    resamples: int


class EvaluationRecord(_Kept):
    """The one evaluation of a model on the test split.

    Attributes:
        protocol: how.
        examples: fingerprint of which; systems are compared on equal ones only.
        scores: all metrics.
        replicates: by decoding, the headline metric on each bootstrap resample of the examples. Every model's r-th
            resample is of the same examples, so that replicates of different models may be subtracted.
    """

    protocol: EvaluationProtocol
    examples: str
    scores: tuple[Score, ...]
    replicates: dict[str, tuple[float, ...]]


def write(record: Section, path: Path) -> None:
    """Writes a record so that a kill leaves the whole of it or nothing."""
    partial = path.with_name(f".{path.name}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(record.model_dump_json(indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read(kind: type[SomeSection], path: Path) -> SomeSection | None:
    """A record; None where none was written.

    Raises:
        UserError: it is not what this program writes.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{path} is damaged or of another version; delete it to have it made again") from error


def scores_of(evaluation: Evaluation) -> tuple[Score, ...]:
    """All metrics of an evaluation by decoding, and the divergences from the teacher where it measured them."""
    found = []
    for row in evaluation.rows:
        for metric, value in row.values.items():
            headline = metric == row.metric
            found.append(_score(metric, row.decoding, value, _ends(row.interval if headline else None), headline))
        found.append(_score("completion_length", row.decoding, row.mean_length))
        if row.reward is not None:
            found.append(_score(REWARD, row.decoding, row.reward.value, _ends(row.reward.interval)))
    for written_by, divergence in evaluation.divergence.items():
        for metric in ("forward_kl", "reverse_kl"):
            estimate: Estimate = getattr(divergence, metric)
            found.append(_score(metric, written_by, estimate.value, _ends(estimate.interval)))
    return tuple(found)


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)


def run_record(
    config: Config,
    before: Evaluation | None,
    after: Evaluation,
    metrics: Sequence[Mapping[str, Any]],
    threads: int,
) -> RunRecord:
    """The record of a run from its evaluations and the records of its metrics file."""
    curve = [] if before is None else [Point(step=0, seconds=0.0, tokens=0, scores=_headlines(before))]
    seconds = dict.fromkeys(TRAINING_PHASES, 0.0)
    tokens = 0
    for line in metrics:
        tokens += line["tokens"]
        for phase in TRAINING_PHASES:
            seconds[phase] += line["seconds"].get(phase, 0.0)
        spent = sum(seconds.values())
        if line is metrics[-1]:
            curve.append(Point(step=line["step"], seconds=spent, tokens=tokens, scores=_headlines(after)))
        elif "evaluation" in line:
            scores = tuple(_measured(after, line["evaluation"]))
            curve.append(Point(step=line["step"], seconds=spent, tokens=tokens, scores=scores))
    return RunRecord(
        config=config.model_dump(mode="json"),
        steps=metrics[-1]["step"],
        tokens=tokens,
        seconds=seconds,
        threads=threads,
        scores=scores_of(after),
        curve=tuple(curve),
    )


def _score(
    metric: str,
    decoding: str,
    value: float,
    ends: tuple[float | None, float | None] = (None, None),
    headline: bool = False,
) -> Score:
    return Score(metric=metric, decoding=decoding, value=value, low=ends[0], high=ends[1], headline=headline)


def _headlines(evaluation: Evaluation) -> tuple[Score, ...]:
    return tuple(score for score in scores_of(evaluation) if score.headline)


def _measured(after: Evaluation, values: Mapping[str, float]) -> list[Score]:
    """The scores of an evaluation during training, whose names are "METRIC DECODING" of the rows at the end."""
    names = {f"{row.metric} {row.decoding}": row for row in after.rows}
    return [
        _score(names[name].metric, names[name].decoding, value, headline=True)
        for name, value in values.items()
        if name in names
    ]
