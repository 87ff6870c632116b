"""A whole run: set-up, evaluation before, training, evaluation after, the student as a Hugging Face folder, a table."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError

from tutelage.console import make_console
from tutelage.errors import UserError
from tutelage.eval import marks
from tutelage.eval.evaluate import evaluate
from tutelage.eval.results import REWARD, Completion, Evaluation, Row, changed_keys, read, save, shortened
from tutelage.eval.statistics import Interval
from tutelage.models import load
from tutelage.models.language_model import LanguageModel
from tutelage.report import write_report
from tutelage.tasks.base import Task
from tutelage.teacher.local import LocalTeacher
from tutelage.train import loop, metrics
from tutelage.train.checkpoint import is_disk_full
from tutelage.train.config import Config
from tutelage.train.prompts import sampling_of
from tutelage.train.setup import holds_run, prepare
from tutelage.train.signals import how_to_go_on, leaving_on_sigterm

# Given what makes an evaluation, returns it, or the same that was made before.
Start = Callable[[Callable[[], Evaluation]], Evaluation]
# A measure of one decoding: its name, its value, the value's interval.
Measured = tuple[str, float | None, Interval | None]


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        student: the trained student.
        folder: the Hugging Face folder it was saved to.
        records: the metrics of every step this process ran.
        before, after: evaluations; None where none was asked for. A run that goes on reads `before` from its folder.
    """

    student: LanguageModel
    folder: Path
    records: Sequence[Mapping[str, Any]] = field(repr=False)
    before: Evaluation | None
    after: Evaluation | None


def run(
    config: Config,
    *,
    student: LanguageModel | None = None,
    teacher: LanguageModel | None = None,
    task: Task | None = None,
    console: Console | None = None,
    start: Start | None = None,
) -> RunResult:
    """Runs a configuration from beginning to end.

    Args:
        config: the run.
        student, teacher, task: live objects in place of what the configuration names.
        console: for the samples, the closing table and the paths; None: standard output.
        start: is given what makes the evaluation before training, and returns it, or the same that another run made.

    Raises:
        UserError: wrong input (before any long work), a full disk, or a loss that is not finite.
        Interrupted: SIGTERM or Ctrl-C, between steps after a checkpoint; elsewhere SIGTERM, at once.
    """
    console = console or make_console()
    notices = Console(stderr=True, soft_wrap=True, highlight=False)
    resuming = config.resume and holds_run(config.output)
    if config.resume and not resuming:
        notices.print(f"no run to resume in {config.output}: starting at step 0", style="yellow", markup=False)
    replacing = config.overwrite and not config.resume and holds_run(config.output)
    with leaving_on_sigterm(lambda: _way_on(config.output, replacing)):
        try:
            parts, task = prepare(config, student=student, teacher=teacher, task=task)
            replacing = False
            if resuming:
                _check_log(config, parts)
                notices.print(_where_it_goes_on(config, parts), markup=False)
            judge = _Judge(config, parts, task)
            before = judge.recall("before") if parts.checkpoints.steps() else judge.judge("before", start)
            history = loop.train(parts, config, judge.headline)
            folder = config.output / "model"
            load.save(parts.student.model, folder)
            after = judge.judge("after")
        except (OSError, SafetensorError) as error:
            if not is_disk_full(error):
                raise
            raise UserError(
                f"no space left on the disk of {config.output}; free some, then go on from the last checkpoint (resume)"
            ) from error
        parts.log.close()
        if after is not None and config.log.samples:
            _show_samples(before, after, console, config.log.samples)
        records = metrics.read_metrics(config.output / "metrics.jsonl")
        if records:
            console.print(metrics.closing_table(_summary(records, history, before, after)))
        # Not in the table, which would break the path into lines as wide as itself.
        console.print(f"student: {folder}", soft_wrap=True, markup=False, highlight=False)
        if config.log.report:
            report = write_report([config.output], config.output / "report.html")
            console.print(f"report: {report}", soft_wrap=True, markup=False, highlight=False)
    return RunResult(parts.student.model, folder, history.records, before, after)


def _way_on(output: Path, replacing: bool) -> str:
    """What to do after an interruption outside the steps; `replacing`: while the folder may still hold the run before this."""
    if replacing:
        return f"before the run in {output} was replaced; start the same command again"
    if holds_run(output):
        return how_to_go_on(output)
    return f"before anything was trained in {output}; start the same command again"


def _check_log(config: Config, parts: loop.Parts) -> None:
    """Raises UserError where the steps that are left need sequences of earlier ones that the rollout log has lost."""
    done = max(parts.checkpoints.steps(), default=0)
    if done < config.train.steps:
        parts.source.check_log(done)


def _where_it_goes_on(config: Config, parts: loop.Parts) -> str:
    """Tells how much of a resumed run is trained already."""
    done, steps = max(parts.checkpoints.steps(), default=0), config.train.steps
    if done < steps:
        return f"going on from step {done} of {steps} in {config.output}"
    left = "saving the student and evaluating it" if parts.held_out else "saving the student"
    return f"all {steps} steps in {config.output} are done: only {left}"


class _Judge:
    """Evaluates the student of a run on its held-out prompts."""

    def __init__(self, config: Config, parts: loop.Parts, task: Task) -> None:
        self.config, self.parts, self.task = config, parts, task
        self.rewarder = parts.rewarder if config.eval.reward else None
        self.marker = self._marker()

    def judge(self, when: str, once: Start | None = None) -> Evaluation | None:
        """The full evaluation, saved in the run's folder, marks beside it; None when there is nothing to evaluate on."""
        if not self.parts.held_out:
            return None
        result = self._full(when) if once is None else once(partial(self._full, when))
        save(result, self.config.output / "evaluation" / when, {"config": self.config.model_dump(mode="json")})
        self._mark(self.config.train.steps if when == "after" else 0)
        return result

    def _full(self, when: str) -> Evaluation:
        """An evaluation in all the run's decodings, with the distance from the teacher and the reward."""
        examples, decodings = len(self.parts.held_out), len(self.config.eval.temperatures)
        metrics.announce(f"evaluating, {when}: {examples} examples x {decodings} decodings", self.config.log.progress)
        columns = (TextColumn(f"evaluating, {when}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        hidden = not self.config.log.progress or not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
            shown = bar.add_task("", total=None)
            return self._evaluate(
                teacher=self.parts.teacher if self.config.eval.teacher_divergence else None,
                samples_per_prompt=self.config.eval.samples_per_prompt,
                bootstrap=self.config.eval.bootstrap,
                progress=lambda done, total: bar.update(shown, completed=done, total=total),
            )

    def recall(self, when: str) -> Evaluation | None:
        """The evaluation that an earlier process of this run saved; None where it saved none of the same examples."""
        saved = read(self.config.output / "evaluation" / when)
        if saved is None or not self.parts.held_out:
            return None
        evaluation, about = saved
        changed = changed_keys(about["config"]["eval"], self.config.eval.model_dump(mode="json"))
        if changed:
            logging.getLogger(__name__).warning(
                "the evaluation before training had another %s: the closing table leaves it out", ", ".join(changed)
            )
            return None
        return evaluation

    def headline(self, step: int) -> Mapping[str, float]:
        """The headline metric and the reward by decoding, for the metrics file."""
        result = self._evaluate(teacher=None, samples_per_prompt=1, bootstrap=0, progress=None)
        if step < self.config.train.steps:  # the last step's are the full evaluation's
            self._mark(step)
        rewards = {f"{REWARD} {row.decoding}": row.reward.value for row in result.rows if row.reward is not None}
        return {f"{row.metric} {row.decoding}": row.value for row in result.rows if row.value is not None} | rewards

    def _marker(self) -> marks.Marker | None:
        """What marks a few held-out sequences token by token; None without a teacher in this process or without them."""
        divergence, teacher, config = self.parts.student.divergence, self.parts.teacher, self.config
        if (
            divergence is None
            or not isinstance(teacher, LocalTeacher)
            or not self.parts.held_out
            or not config.eval.marks
        ):
            return None
        sampling = sampling_of(config, self.task)
        return marks.Marker(
            self.parts.student.model,
            teacher.model,
            self.task,
            self.parts.held_out,
            divergence,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            loss_temperature=config.loss.temperature,
            teacher_temperature=teacher.own_temperature,
            seed=config.seed,
            sequences=config.eval.marks,
            batch_rows=config.eval.batch_rows,
        )

    def _mark(self, step: int) -> None:
        if self.marker is not None:
            marks.save(self.marker.mark(), self.config.output, step)

    def _evaluate(
        self, *, teacher: Any, samples_per_prompt: int, bootstrap: int, progress: Callable[[int, int], None] | None
    ) -> Evaluation:
        return evaluate(
            self.parts.student.model,
            self.task,
            self.parts.held_out,
            temperatures=self.config.eval.temperatures,
            max_new_tokens=sampling_of(self.config, self.task).max_new_tokens,
            seed=self.config.seed,
            batch_rows=self.config.eval.batch_rows,
            samples_per_prompt=samples_per_prompt,
            bootstrap=bootstrap,
            teacher=teacher.model if isinstance(teacher, LocalTeacher) else None,
            rewarder=self.rewarder,
            progress=progress,
        )


def _show_samples(before: Evaluation | None, after: Evaluation, console: Console, count: int) -> None:
    """The same examples before and after training, in the first decoding setting."""
    table = Table(title="samples", show_lines=True)
    for name in ("prompt", "before", "after"):
        table.add_column(name, overflow="fold")
    earlier = {each.prompt_id: each.text for each in _first_samples(before)} if before is not None else {}
    for completion in _first_samples(after)[:count]:
        old = earlier.get(completion.prompt_id, "-")
        texts = (shortened(text) for text in (completion.prompt, old, completion.text))
        table.add_row(*(Text(text, style=style) for text, style in zip(texts, ("dim", "", ""), strict=True)))
    console.print(table)


def _first_samples(evaluation: Evaluation) -> list[Completion]:
    """One completion of each example, in the first decoding setting."""
    first = evaluation.rows[0].decoding
    return [each for each in evaluation.completions if each.decoding == first and each.sample == 0]


def _summary(
    records: Sequence[Mapping[str, Any]],
    history: loop.History,
    before: Evaluation | None,
    after: Evaluation | None,
) -> metrics.Summary:
    """Of the whole run: `records` of the metrics file begin with the steps that earlier processes did."""
    first, last = records[0], records[-1]
    seconds = Counter(history.watch.seconds)
    for record in records[: len(records) - len(history.records)]:
        seconds.update(record["seconds"])
    summary: metrics.Summary = {
        "steps": last["step"],
        "loss": (first["loss"], last["loss"]),
        "tokens": sum(r["tokens"] for r in records),
        "seconds": seconds,
        "evaluations": _evaluations(before, after, lambda row: (row.metric, row.value, row.interval)),
        "rewards": _evaluations(before, after, _reward),
    }
    if after is not None and any(
        row.interval is not None or (row.reward is not None and row.reward.interval is not None) for row in after.rows
    ):
        summary["examples"] = after.rows[0].examples
    if "reward" in first and "reward" in last:
        summary["reward"] = (first["reward"], last["reward"])
    for key in ("forward_kl", "reverse_kl", "agreement"):
        if "forward_kl" in first and "forward_kl" in last:  # else "agreement" is with the targets, not with a teacher
            # The file has null where a value is not finite.
            start, end = (math.nan if record[key] is None else record[key] for record in (first, last))
            summary[key] = (start, end)
    return summary


def _reward(row: Row) -> Measured:
    return (REWARD, None, None) if row.reward is None else (REWARD, row.reward.value, row.reward.interval)


def _evaluations(
    before: Evaluation | None, after: Evaluation | None, measured: Callable[[Row], Measured]
) -> dict[str, tuple[Any, Any]]:
    """Measure and decoding -> values with intervals before and after."""
    found: dict[str, tuple[Any, Any]] = {}
    for position, evaluation in enumerate((before, after)):
        for row in evaluation.rows if evaluation is not None else ():
            name, value, interval = measured(row)
            if value is not None:
                low, high = (interval.low, interval.high) if interval else (value, value)
                pair = list(found.get(f"{name}, {row.decoding}", (None, None)))
                pair[position] = {"value": value, "low": low, "high": high}
                found[f"{name}, {row.decoding}"] = (pair[0], pair[1])
    return found
