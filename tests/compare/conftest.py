"""Comparisons whose runs are written by hand, every number known and nothing trained, and one of tiny models."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.conftest import build_module, tokenizer
from tutelage.compare import records
from tutelage.compare.cell import RUN_RECORD, TEST_RECORD, Job
from tutelage.compare.comparison import Comparison, ComparisonResult
from tutelage.compare.config import ComparisonRecipe, read
from tutelage.compare.execute import run_here
from tutelage.compare.records import EvaluationProtocol, EvaluationRecord, Point, RunRecord, Score
from tutelage.errors import UserError
from tutelage.train import config_io
from tutelage.train.metrics import TRAINING_PHASES

BASE: dict[str, Any] = {
    "student": "tiny-student",
    "teacher": "tiny-teacher",
    "task": {"name": "arithmetic", "options": {"level": "easy", "train_size": 20}},
    "train": {"steps": 4, "device": "cpu"},
    "eval": {"every": 2},
}


def raw_recipe(output: Path, **changes: Any) -> dict[str, Any]:
    """A comparison of two methods with two seeds; `changes` replace its keys."""
    methods = [{"name": "kd", "method": "supervised_kd"}, {"name": "gkd", "method": "gkd"}]
    return {
        "base": BASE, "methods": methods, "seeds": [0, 1], "temperatures": [0.0], "resamples": 20, "jobs": 1,
        "output": str(output), **changes,
    }  # fmt: skip


@pytest.fixture
def make_recipe(tmp_path: Path) -> Callable[..., ComparisonRecipe]:
    def make(**changes: Any) -> ComparisonRecipe:
        return read(raw_recipe(tmp_path / "compare", **changes))

    return make


def score(value: float, decoding: str = "greedy") -> Score:
    """A headline score."""
    return Score(metric="accuracy", decoding=decoding, value=value, low=value - 1, high=value + 1, headline=True)


def run_record(
    values: Sequence[float], *, step_seconds: float = 1.0, every: int = 2, seed: int = 0, **config: Any
) -> RunRecord:
    """A run with these values on validation, from step 0 on, `every` steps apart; 10 tokens a step."""
    curve = tuple(
        Point(step=every * i, seconds=every * i * step_seconds, tokens=10 * every * i, scores=(score(value),))
        for i, value in enumerate(values)
    )
    steps = curve[-1].step
    return RunRecord(
        config={"seed": seed, **config},
        steps=steps,
        tokens=10 * steps,
        seconds=dict.fromkeys(TRAINING_PHASES, 0.0)
        | {"rollout": 0.25 * steps * step_seconds, "update": 0.75 * steps * step_seconds},
        threads=1,
        scores=curve[-1].scores,
        curve=curve,
    )


def half(prompt: str, completion: str, reference: str | None, example: Any) -> float:
    """A reward that is always 0.5."""
    return 0.5


def held_out_record(
    value: float, protocol: EvaluationProtocol, examples: str = "these", reward: float | None = None
) -> EvaluationRecord:
    """A test whose metric is `value` on every resample of the examples."""
    constant = {"greedy": (value,) * protocol.resamples}
    scores = [score(value)]
    if reward is not None:
        scores.append(Score(metric="reward", decoding="greedy", value=reward, low=reward - 0.25, high=reward + 0.25))
    return EvaluationRecord(protocol=protocol, examples=examples, scores=tuple(scores), replicates=constant)


@dataclass
class Worker:
    """Does jobs by writing records: what it was asked is kept, in order.

    Attributes:
        value: job -> the metric at the end of its run.
        breaks: labels of jobs that fail.
        stop_after: jobs done before it is interrupted; None: never.
        trained, tested: labels of the jobs.
    """

    value: Callable[[Job], float] = lambda job: 50.0
    breaks: tuple[str, ...] = ()
    stop_after: int | None = None
    trained: list[str] = field(default_factory=list)
    tested: list[str] = field(default_factory=list)

    def __call__(self, job: Job) -> None:
        if job.label in self.breaks:
            raise UserError("the loss is nan")
        if self.stop_after is not None and len(self.trained) + len(self.tested) >= self.stop_after:
            raise KeyboardInterrupt
        job.folder.mkdir(parents=True, exist_ok=True)
        value = self.value(job) if job.model == "trained" else {"initial": 10.0, "teacher": 90.0}[job.model]
        if job.model == "trained" and job.run_record is None:
            self.trained.append(job.label)
            slow = 3.0 if job.config.method == "gkd" else 1.0
            config = job.config.model_dump(mode="json")
            record = run_record([10.0, (10 + value) / 2, value], step_seconds=slow, **config)
            records.write(record, job.folder / RUN_RECORD)
        if job.test is not None and job.test_record is None:
            self.tested.append(job.label)
            reward = None if job.config.rl.reward is None else 1 - value / 100
            records.write(held_out_record(value, job.test, reward=reward), job.folder / TEST_RECORD)


def rows_of(path: Path) -> list[dict[str, str]]:
    """A CSV table."""
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def run_comparison(tmp_path: Path) -> Callable[..., ComparisonResult]:
    """Runs a comparison in this process with a `Worker`; `printed` takes what it prints."""

    def go(worker: Worker, printed: io.StringIO | None = None, **changes: Any) -> ComparisonResult:
        recipe = read(config_io.deep_merge(raw_recipe(tmp_path / "compare"), changes))
        console = Console(file=printed or io.StringIO(), width=200)
        return Comparison(recipe, console, worker, run_here).run()

    return go


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, (role, hidden) in enumerate({"student": 16, "teacher": 32}.items()):
        module: Any = build_module("llama", seed=seed, dtype=torch.float32, vocab=len(tokenizer()), hidden=hidden)
        module.save_pretrained(folder / role)
        tokenizer().save_pretrained(folder / role)
    return folder


def raw(models: Path, output: Path, **changes: Any) -> dict[str, Any]:
    sizes = {"level": "easy", "train_size": 20, "validation_size": 6, "test_size": 5}
    recipe = {
        "base": {
            "student": str(models / "student"),
            "teacher": str(models / "teacher"),
            "task": {"name": "arithmetic", "options": sizes, "max_prompt_tokens": 72},
            "rollout": {"max_new_tokens": 6},
            "train": {"steps": 3, "batch_size": 4, "learning_rate": 0.01, "checkpoint_every": 1, "device": "cpu"},
            "eval": {"every": 1, "bootstrap": 10},
        },
        "methods": [{"name": "kd", "method": "supervised_kd"}, {"name": "gkd", "method": "gkd"}],
        "seeds": [0, 1], "resamples": 30, "jobs": 1, "output": str(output),
    }  # fmt: skip
    return config_io.deep_merge(recipe, changes)
