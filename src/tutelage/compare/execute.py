"""Runs the jobs of a comparison, each in a process of its own, several at a time."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tutelage.compare.cell import Job
from tutelage.errors import UserError
from tutelage.train.signals import Interrupted, StopRequest

POLL_SECONDS = 0.5
TAIL_BYTES = 2**16
FAILURE = "failure.txt"
LOG = "process.log"

Work = Callable[[Job], None]


@dataclass(frozen=True)
class Failure:
    """A job that did not get to its end.

    Attributes:
        label, folder: the job's.
        error: what stopped it.
    """

    label: str
    folder: Path
    error: str


Execute = Callable[[Sequence[Job], Work, int, Console], list[Failure]]


def run_here(jobs: Sequence[Job], work: Work, parallel: int, console: Console) -> list[Failure]:
    """One job after the other in this process, whatever `parallel` says: to debug, and for runs of seconds.

    Raises:
        Interrupted: as the job.
    """
    failures = []
    with _Display(console, len(jobs)) as display:
        for job in jobs:
            display.start(job)
            error = None
            try:
                work(job)
            except Interrupted:
                raise
            except Exception as problem:  # whatever it is, the other jobs go on, and it is reported at the end
                error = _described(problem)
                failures.append(Failure(job.label, job.folder, error))
            display.end(job, error)
    return failures


def run_spawned(jobs: Sequence[Job], work: Work, parallel: int, console: Console) -> list[Failure]:
    """Every job in a process of its own, `parallel` at a time; a job that fails does not stop the others.

    Args:
        jobs: in the order they start in, each in a folder of its own.
        work: does a job; a function of a module, which the processes import.
        parallel: processes at a time.
        console: for the progress display.

    Returns:
        The jobs that failed.

    Raises:
        Interrupted: SIGTERM or Ctrl-C, once every process has written its checkpoint and left; a second one kills them.
    """
    waiting, running = deque(jobs), dict[Path, tuple[Job, BaseProcess]]()
    failures: list[Failure] = []
    with StopRequest() as stop, _Display(console, len(jobs)) as display:
        try:
            while (waiting or running) and not stop.requested:
                while waiting and len(running) < parallel:
                    job = waiting.popleft()
                    running[job.folder] = job, _start(work, job)
                    display.start(job)
                connection.wait([process.sentinel for _, process in running.values()], POLL_SECONDS)
                for job, process in [pair for pair in running.values() if not pair[1].is_alive()]:
                    del running[job.folder]
                    error = _end(process, job)
                    failures += [] if error is None else [Failure(job.label, job.folder, error)]
                    display.end(job, error)
                display.refresh()
        finally:
            _leave([process for _, process in running.values()], console)
        if stop.requested:
            _interrupted(stop)
    return failures


def steps_done(folder: Path) -> int:
    """The steps that a run in the folder has recorded, 0 before the first."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            whole_lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return int(json.loads(whole_lines[-1])["step"]) if whole_lines else 0


def _start(work: Work, job: Job) -> BaseProcess:
    """Starts the process with Ctrl-C blocked: the terminal sends it to every process of its group, and a run that hears it
    twice, from the terminal and from here, dies without a checkpoint.

    It is a copy of a process that has only imported what runs import, which takes seconds; this one is not copied, for it may
    have threads and a GPU.
    """
    context = multiprocessing.get_context("forkserver")
    # The second by name, for transformers imports it only when it loads a first model.
    context.set_forkserver_preload(["tutelage.compare.cell", "transformers.modeling_utils"])
    process = context.Process(target=_process, args=(work, job))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def _process(work: Work, job: Job) -> NoReturn:
    """The whole life of a job's process; what it prints goes to the job's folder."""
    from transformers.utils import logging as transformers_logging

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # see `_start`
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / FAILURE).unlink(missing_ok=True)
    with (job.folder / LOG).open("a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    transformers_logging.disable_progress_bar()
    try:
        work(job)
    except Interrupted as stop:
        sys.exit(128 + stop.signal_number)
    except Exception as problem:  # the process ends here: the one that started it reads why
        traceback.print_exc()
        (job.folder / FAILURE).write_text(_described(problem), encoding="utf-8")
        sys.exit(1)
    sys.exit(0)


def _leave_with_parent() -> None:
    """Asks this process to checkpoint and leave when the one that started it is gone, killed for instance."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _end(process: BaseProcess, job: Job) -> str | None:
    """What stopped a process that has ended; None when its job is done."""
    process.join()
    status = process.exitcode
    assert status is not None
    if status == 0:
        return None
    if (job.folder / FAILURE).exists():
        return (job.folder / FAILURE).read_text(encoding="utf-8")
    number = -status if status < 0 else status - 128
    name = {each.value: each.name for each in signal.Signals}.get(number)
    what = f"ended with status {status}" if name is None else f"ended by {name}"
    hint = " (out of memory? lower jobs)" if number == signal.SIGKILL else ""
    return f"{what}{hint}; what it printed is in {job.folder / LOG}"


def _leave(processes: Sequence[BaseProcess], console: Console) -> None:
    """Asks processes to leave, and waits for them; killed when the wait is interrupted."""
    if not processes:
        return
    runs = "1 run" if len(processes) == 1 else f"{len(processes)} runs, each"
    console.print(f"stopping {runs} after its step and a checkpoint; Ctrl-C again to kill")
    for process in processes:
        process.terminate()
    try:
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()


def _interrupted(stop: StopRequest) -> NoReturn:
    try:
        stop.leave_if_requested(0, Path())
    except Interrupted as request:
        name = signal.Signals(request.signal_number).name
        raise Interrupted(f"{name}: stopped; the same command goes on from here", request.signal_number) from None
    raise AssertionError("called when a stop was requested")


def _described(problem: Exception) -> str:
    """A user's error speaks for itself; of any other, its kind and the line it came from."""
    if isinstance(problem, UserError):
        return str(problem)
    frame = traceback.extract_tb(problem.__traceback__)[-1]
    return f"{type(problem).__name__}: {problem} ({Path(frame.filename).name}, line {frame.lineno})"


class _Display:
    """Jobs done, and the running ones with their steps; where the output is no terminal, a line for each that ends."""

    def __init__(self, console: Console, total: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
        self._console, self._total, self._done = console, total, 0
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._all = self._bar.add_task("[bold]all runs[/]", total=total)
        self._running: dict[Path, tuple[Job, TaskID]] = {}

    def start(self, job: Job) -> None:
        steps = job.config.train.steps if job.model == "trained" else None
        self._running[job.folder] = job, self._bar.add_task(escape(job.label), total=steps)

    def end(self, job: Job, error: str | None) -> None:
        _, row = self._running.pop(job.folder)
        self._bar.remove_task(row)
        self._done += 1
        self._bar.update(self._all, completed=self._done)
        state = "done" if error is None else f"[red]failed:[/] {escape(error)}"
        self._console.print(
            f"{self._done}/{self._total}  {escape(job.label)}: {state}", soft_wrap=True, highlight=False
        )

    def refresh(self) -> None:
        for job, row in self._running.values():
            if job.model == "trained":
                self._bar.update(row, completed=steps_done(job.folder))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
