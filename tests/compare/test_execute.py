from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tests.compare.workers import by_label
from tutelage.compare import execute, plan
from tutelage.compare.cell import Job
from tutelage.compare.config import ComparisonRecipe
from tutelage.compare.execute import run_here, run_spawned, steps_done
from tutelage.errors import UserError
from tutelage.train.signals import Interrupted


@pytest.fixture
def make_job(make_recipe: Callable[..., ComparisonRecipe], tmp_path: Path) -> Callable[[str], Job]:
    recipe = make_recipe()
    config = plan.make_cell(recipe, plan.expand(recipe)[0], {}, 0).config
    return lambda label: Job(label, tmp_path / label, config, "trained", None, 1)


def test_processes_that_end_well_and_badly(make_job: Callable[[str], Job], tmp_path: Path) -> None:
    printed = io.StringIO()
    jobs = [make_job(label) for label in ("works", "fails", "dies")]
    failures = run_spawned(jobs, by_label, 3, Console(file=printed, width=200))
    found = {failure.label: failure.error for failure in failures}
    assert found.keys() == {"fails", "dies"}
    assert found["fails"] == "the loss is nan"
    assert found["dies"].startswith("ended by SIGKILL (out of memory? lower jobs)")
    assert (tmp_path / "works" / "process.log").read_text() == "working on works\n"
    lines = printed.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["1/3", "2/3", "3/3"]
    assert sum("works: done" in line for line in lines) == 1


def test_a_signal_reaches_every_run_once_and_they_checkpoint(make_job: Callable[[str], Job], tmp_path: Path) -> None:
    def interrupt_when_running() -> None:
        deadline = time.monotonic() + 120
        while not (tmp_path / "runs" / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    printed = io.StringIO()
    thread = threading.Thread(target=interrupt_when_running)
    thread.start()
    with pytest.raises(Interrupted, match="SIGINT: stopped; the same command goes on from here") as stop:
        run_spawned([make_job("runs"), make_job("never starts")], by_label, 1, Console(file=printed))
    thread.join()
    assert "stopping 1 run after its step and a checkpoint; Ctrl-C" in " ".join(printed.getvalue().split())
    assert stop.value.signal_number == signal.SIGINT
    assert (tmp_path / "runs" / "checkpoint").read_text() == "True"
    assert not (tmp_path / "never starts").exists()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (255, "ended with status 255; "),
        (2, "ended with status 2; "),
        (143, "ended by SIGTERM; "),
        (-11, "ended by SIGSEGV; "),
        (137, "ended by SIGKILL (out of memory? lower jobs); "),
    ],
)
def test_a_signal_is_named_where_there_is_one(status: int, said: str, make_job: Callable[[str], Job]) -> None:
    job = make_job("ended")
    process: Any = SimpleNamespace(join=lambda: None, exitcode=status)
    assert execute._end(process, job) == f"{said}what it printed is in {job.folder / 'process.log'}"


def test_in_this_process_an_error_is_kept_with_its_place(make_job: Callable[[str], Job]) -> None:
    def work(job: Job) -> None:
        if job.label == "mine":
            raise UserError("the loss is nan")
        if job.label == "theirs":
            raise ZeroDivisionError("by zero")

    failures = run_here([make_job(label) for label in ("mine", "theirs", "fine")], work, 1, Console(file=io.StringIO()))
    assert [failure.label for failure in failures] == ["mine", "theirs"]
    assert failures[0].error == "the loss is nan"
    assert failures[1].error.startswith("ZeroDivisionError: by zero (test_execute.py, line ")


def test_steps_of_a_run_that_is_being_written(tmp_path: Path) -> None:
    assert steps_done(tmp_path) == 0
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1')
    assert steps_done(tmp_path) == 0
    path.write_text('{"step": 1}\n' * 20_000 + '{"step": 7}\n{"step": 8, "los')
    assert steps_done(tmp_path) == 7
