"""What a run records and shows: metrics.jsonl, trackers, the progress bar, the clock of the phases, the closing table."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypedDict

import torch
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from tutelage.errors import UserError, how_to_install
from tutelage.train.config import Config

PLAIN_INTERVAL_SECONDS = 10.0
# The work of a training step; evaluations and checkpoints belong to no method.
TRAINING_PHASES = ("rollout", "reward", "importance", "returns", "teacher", "update")


class Tracker(Protocol):
    """A service or file that metrics also go to."""

    def log(self, record: Mapping[str, float], step: int) -> None:
        """Takes the numbers of one step."""
        ...

    def close(self) -> None:
        """Flushes and ends."""
        ...


class MetricsWriter:
    """Appends one JSON object per step to a file, and hands its numbers to the trackers.

    NaN and infinity are not JSON; they are written as null. A run stops at a loss or gradient that is not finite and
    says so itself, so that null in a finished run only marks a metric that had nothing to measure.

    Args:
        path: the file, normally metrics.jsonl of the run's folder.
        config: the run's configuration; trackers show it.
        trackers: names from `log.trackers`.
        start_step: steps the checkpoint holds that the run goes on from. Records of later steps, and a last line torn by a
            kill, are dropped, so that the file tells the trajectory that was kept; 0 starts the file afresh. These steps are
            done again but for their rollouts, whose seconds are in the rollout log.

    Raises:
        UserError: a tracker that is not installed, or a damaged line before the last one.
    """

    def __init__(self, path: Path, config: Config, trackers: Sequence[str] = (), *, start_step: int = 0) -> None:
        self._trackers = [_open_tracker(name, path.parent, config) for name in trackers]
        kept = [line for line in read_metrics(path) if line["step"] <= start_step] if start_step else []
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text("".join(_to_json(record) for record in kept), encoding="utf-8")
        partial.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a record; `record["step"]` counts the optimiser steps done, 1 after the first."""
        self._file.write(_to_json(record))
        self._file.flush()
        numbers = {key: float(value) for key, value in _flat(record).items() if isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.log(numbers, record["step"])

    def close(self) -> None:
        """Closes the file and the trackers."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file; a last line torn by a kill is left out.

    Raises:
        UserError: any other line is not a JSON object with a step (names file and line).
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line.endswith("\n"):
            break
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not valid JSON: {error.msg}; delete the line to go on") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise UserError(f"{path}, line {number}: a record is an object with a step; delete the line to go on")
        records.append(record)
    return records


class Stopwatch:
    """Seconds by phase. Phases do not nest: their shares add up to one.

    Args:
        device: a CUDA device is synchronised at both ends of a phase, since its work is only queued by the calls.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._cuda = device if device is not None and device.type == "cuda" else None
        self._running: str | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to `seconds[name]`, also when the body raises."""
        if self._running is not None:
            raise RuntimeError(f"phase {name!r} started inside phase {self._running!r}")
        self._running = name
        start = self._now()
        try:
            yield
        finally:
            self.add(name, self._now() - start)
            self._running = None

    def add(self, name: str, seconds: float) -> None:
        """Adds seconds to a phase, such as those that an earlier process spent in it."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @property
    def total(self) -> float:
        """Seconds over all phases."""
        return sum(self.seconds.values())

    def shares(self) -> dict[str, float]:
        """Each phase's part of the total; empty before any phase."""
        return {name: seconds / self.total for name, seconds in self.seconds.items()} if self.total else {}

    def _now(self) -> float:
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
        return time.perf_counter()


class Progress:
    """A progress bar of training; a plain line now and then where the output is no terminal.

    Args:
        total: steps of the run.
        done: steps done before this process, by the checkpoint it goes on from.
        watch: the run's stopwatch; its phases are shown as shares.
        show: log.progress; False prints nothing.
        console: where to; None: standard error.
    """

    def __init__(
        self, total: int, watch: Stopwatch, *, done: int = 0, show: bool = True, console: Console | None = None
    ) -> None:
        self._console = console or Console(stderr=True)
        self._watch = watch
        self._total, self._done = total, done
        self._started = time.monotonic()
        self._tokens = 0
        self._last_line = -math.inf
        self._plain = show and not self._console.is_terminal
        self._bar = Bar(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            disable=not show or self._plain,
        )
        self._task = self._bar.add_task("", total=total, completed=done)

    def update(self, step: int, loss: float, tokens: int, reward: float | None = None) -> None:
        """Shows a finished step.

        Args:
            step: steps done, the first being 1.
            loss: the step's.
            tokens: completion tokens the step trained on.
            reward: mean reward of its sequences; None where there is none.
        """
        self._tokens += tokens
        rate = self._tokens / self._watch.total if self._watch.total else math.nan
        shares = " ".join(f"{name} {share:.0%}" for name, share in self._watch.shares().items())
        rewarded = "" if reward is None else f"  reward {reward:.3f}"
        text = f"loss {loss:.4f}{rewarded}  {rate:,.0f} tokens/s  {shares}"
        self._bar.update(self._task, completed=step, description=text)
        now = time.monotonic()
        if self._plain and (now - self._last_line >= PLAIN_INTERVAL_SECONDS or step == self._total):
            left = (self._total - step) * (now - self._started) / (step - self._done)
            remaining = f"  {in_words(left)} left" if step < self._total else ""
            self._console.print(f"step {step}/{self._total}  {text}{remaining}", soft_wrap=True, highlight=False)
            self._last_line = now

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def in_words(seconds: float) -> str:
    """A time in its two largest units: 45 s, 1 min 20 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def announce(text: str, show: bool = True, console: Console | None = None) -> None:
    """Prints a line ahead of silent work, where the output is no terminal: there is no bar then.

    Args:
        text: what is about to be done.
        show: log.progress; False prints nothing.
        console: where to; None: standard error.
    """
    console = console or Console(stderr=True)
    if show and not console.is_terminal:
        console.print(text, soft_wrap=True, highlight=False, markup=False)


class Interval(TypedDict):
    """A metric with the ends of its 95% confidence interval."""

    value: float
    low: float
    high: float


class Summary(TypedDict, total=False):
    """What the closing table shows; rows whose key is missing are left out.

    Keys:
        steps: optimiser steps done.
        loss, forward_kl, reverse_kl, agreement: (at the first step, at the last); nats per token, agreement 0 to 1.
        reward: mean of the step's sequences, at the first step and at the last.
        tokens: completion tokens trained on.
        seconds: by phase.
        evaluations: metric name -> (before training, after), None where it was not measured.
        rewards: the same for the reward of held-out completions.
        examples: how many were evaluated, which the intervals hang on.
    """

    steps: int
    loss: tuple[float, float]
    reward: tuple[float, float]
    forward_kl: tuple[float, float]
    reverse_kl: tuple[float, float]
    agreement: tuple[float, float]
    tokens: int
    seconds: Mapping[str, float]
    evaluations: Mapping[str, tuple[Interval | None, Interval | None]]
    rewards: Mapping[str, tuple[Interval | None, Interval | None]]
    examples: int


def closing_table(summary: Summary) -> Group:
    """The tables at the end of a run: what training changed, and what it cost."""
    return Group(_changes(summary), _costs(summary))


def _changes(summary: Summary) -> Table:
    table = Table("", "first", "last", title=f"{summary['steps']} steps", title_justify="left", caption_justify="left")
    for key, label in (
        ("loss", "loss"),
        ("reward", "reward of the step's sequences"),
        ("forward_kl", "forward KL, nats"),
        ("reverse_kl", "reverse KL, nats"),
    ):
        if key in summary:
            first, last = summary[key]  # type: ignore[literal-required]
            table.add_row(label, f"{first:.4f}", f"{last:.4f}")
    if "agreement" in summary:
        table.add_row("agreement with the teacher", *(f"{share:.1%}" for share in summary["agreement"]))
    for metric, (before, after) in summary.get("evaluations", {}).items():
        table.add_row(metric, _with_interval(before), _with_interval(after))
    for name, (before, after) in summary.get("rewards", {}).items():
        table.add_row(name, _with_interval(before, digits=3), _with_interval(after, digits=3))
    if "examples" in summary:
        table.caption = f"in brackets: 95% intervals over n = {summary['examples']:,} examples"
    return table


def _costs(summary: Summary) -> Table:
    table = Table("", "total", "share")
    seconds = summary.get("seconds", {})
    total = sum(seconds.values())
    training = sum(seconds.get(phase, 0.0) for phase in TRAINING_PHASES)
    if "tokens" in summary:
        table.add_row("tokens", f"{summary['tokens']:,}", "")
        if training:
            table.add_row("tokens/s of training", f"{summary['tokens'] / training:,.0f}", "")
    for phase, spent in seconds.items():
        table.add_row(f"seconds, {phase}", f"{spent:.1f}", f"{spent / total:.0%}" if total else "")
    return table


def _with_interval(metric: Interval | None, digits: int = 1) -> str:
    if metric is None:
        return "-"
    value, low, high = (f"{number:.{digits}f}" for number in (metric["value"], metric["low"], metric["high"]))
    return f"{value} [{low}, {high}]"


def _to_json(record: Mapping[str, Any]) -> str:
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The value with null in place of NaN and infinity, at any depth."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"seconds": {"rollout": 1.0}} -> {"seconds/rollout": 1.0}."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat.update(_flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {prefix + key: value})
    return flat


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, record: Mapping[str, float], step: int) -> None:
        for key, value in record.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class _Run:
    """W&B, or trackio, which has the same functions."""

    def __init__(self, module: Any, folder: Path, config: Config) -> None:
        self._module = module
        module.init(project=config.log.project, name=folder.name, config=config.model_dump(mode="json"))

    def log(self, record: Mapping[str, float], step: int) -> None:
        self._module.log(dict(record), step=step)

    def close(self) -> None:
        self._module.finish()


def _open_tracker(name: str, folder: Path, config: Config) -> Tracker:
    try:
        match name:
            case "tensorboard":
                return _TensorBoard(folder)
            case "wandb":
                import wandb

                return _Run(wandb, folder, config)
            case "trackio":
                import trackio

                return _Run(trackio, folder, config)
    except ImportError as error:
        raise UserError(f"log.trackers has {name}, which is not installed: {how_to_install(name)}") from error
    raise UserError(f"log.trackers has {name!r}; known are tensorboard, wandb, trackio")
