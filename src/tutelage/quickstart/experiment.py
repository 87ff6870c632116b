"""The comparison itself: two trainings from one student, then one evaluation of all four models on the test split."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from transformers.utils import logging as transformers_logging

from tutelage.eval.evaluate import evaluate
from tutelage.eval.results import Evaluation, save
from tutelage.eval.statistics import PairedDifference, Resample, paired_bootstrap
from tutelage.models import load
from tutelage.models.language_model import LanguageModel
from tutelage.models.options import ModelConfig
from tutelage.quickstart.settings import Method, Settings, configuration
from tutelage.run import RunResult, run
from tutelage.tasks import load_task
from tutelage.tasks.base import Example, Task
from tutelage.tasks.encode import Encoding, encode_split
from tutelage.train import config_io
from tutelage.train.checkpoint import differences
from tutelage.train.config import Config
from tutelage.train.metrics import read_metrics
from tutelage.train.setup import holds_run

DECODINGS = ("greedy", "T=1")
TEMPERATURES = (0.0, 1.0)

# More threads only wait for each other on matrices of this size.
MOST_THREADS = 4


@dataclass(frozen=True)
class Point:
    """Validation accuracy in percent, by decoding, after so many steps."""

    step: int
    accuracy: Mapping[str, float]


@dataclass(frozen=True)
class Training:
    """How a student was trained.

    Attributes:
        method: with its learning rate.
        steps: optimiser steps.
        seconds: by phase (rollout, teacher, update), without evaluations.
        curve: validation accuracy, from step 0 on.
    """

    method: Method
    steps: int
    seconds: Mapping[str, float]
    curve: tuple[Point, ...]

    @property
    def total_seconds(self) -> float:
        """Seconds over all phases."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class System:
    """One of the models compared.

    Attributes:
        name, label: its key in results.json, and how tables call it.
        folder: Hugging Face folder.
        parameters: how many.
        evaluation: on the test split.
        training: None for the teacher and for the student before.
    """

    name: str
    label: str
    folder: Path
    parameters: int
    evaluation: Evaluation
    training: Training | None


@dataclass(frozen=True)
class Outcome:
    """All that was found.

    Attributes:
        settings, seed: what was run.
        teacher, before, supervised, on_policy: the four models.
        difference: on-policy minus supervised on the same test problems, in percentage points, by decoding.
        examples, references: the test problems and their worked answers.
        seconds: of everything this process did, evaluations included.
    """

    settings: Settings
    seed: int
    teacher: System
    before: System
    supervised: System
    on_policy: System
    difference: Mapping[str, PairedDifference]
    examples: Sequence[Example]
    references: tuple[str, ...]
    seconds: float

    @property
    def systems(self) -> tuple[System, ...]:
        """In the order of the table."""
        return (self.teacher, self.before, self.supervised, self.on_policy)


def compare(settings: Settings, output: Path, seed: int, console: Console) -> Outcome:
    """Trains both students, then evaluates the four models.

    Args:
        settings: what to compare.
        output: the two runs go to `output`/supervised_kd and `output`/on_policy_gkd, the completions to `output`/test.
        seed: of everything.
        console: for a line per stage.

    Raises:
        UserError, Interrupted: as `run.run`.
    """
    started = time.perf_counter()
    torch.set_num_threads(min(torch.get_num_threads(), MOST_THREADS))
    transformers_logging.disable_progress_bar()  # of loading a file of 3 MB
    trainings: dict[str, Training] = {}
    for number, method in enumerate((settings.supervised, settings.on_policy), 1):
        console.print(f"\n[bold]{number}/3[/] {method.label}, {settings.steps} steps")
        config = _going_on(configuration(settings, method, output / method.name, seed), console)
        trainings[method.name] = _training(method, config, run(config, console=Console(quiet=True)))
    console.print(f"\n[bold]3/3[/] all four models on {settings.test_size:,} test problems")
    task = load_task("arithmetic", train_size=settings.train_size, test_size=settings.test_size)
    systems = _test_systems(settings, output, trainings, task, seed, console)
    supervised, on_policy = systems[2:]
    examples = task.examples("test")
    return Outcome(
        settings,
        seed,
        *systems,
        difference={
            decoding: paired_bootstrap(
                _accuracy(on_policy, decoding), _accuracy(supervised, decoding), len(examples), settings.resamples
            )
            for decoding in DECODINGS
        },
        examples=examples,
        references=tuple(str(task.reference(example)) for example in examples),
        seconds=time.perf_counter() - started,
    )


def _going_on(config: Config, console: Console) -> Config:
    """The run, made to go on with the one in its folder where that is the same; any other it replaces, and says so.

    Raises:
        UserError: the run in the folder has lost its configuration.
    """
    if not holds_run(config.output):
        return config
    of_the_call = {"output", "resume", "overwrite"}
    saved = config_io.load_yaml(config.output / "config.yaml")
    there = {key: value for key, value in saved.items() if key not in of_the_call}
    differing = differences(there, config.model_dump(mode="json", exclude=of_the_call))
    if not differing:
        return config.model_copy(update={"resume": True})
    text = f"the run in {config.output} is another one ({differing}): starting anew"
    console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return config


def _training(method: Method, config: Config, result: RunResult) -> Training:
    """From the run's folder: a run that went on has earlier steps than those of this process."""
    seconds: dict[str, float] = {}
    accuracy: dict[int, Mapping[str, float]] = {0: _values(result.before)}
    records = read_metrics(config.output / "metrics.jsonl")
    for record in records:
        for phase, spent in record["seconds"].items():
            if phase in ("rollout", "teacher", "update"):
                seconds[phase] = seconds.get(phase, 0.0) + spent
        if "evaluation" in record:
            accuracy[record["step"]] = {d: record["evaluation"][f"accuracy {d}"] for d in DECODINGS}
    steps = records[-1]["step"]
    accuracy[steps] = _values(result.after)
    return Training(method, steps, seconds, tuple(Point(*point) for point in accuracy.items()))


def _values(evaluation: Evaluation | None) -> dict[str, float]:
    assert evaluation is not None  # eval.final names a split, and a run that goes on has the same `eval` as before
    return {row.decoding: row.value for row in evaluation.rows if row.value is not None}


def _test_systems(
    settings: Settings, output: Path, trainings: Mapping[str, Training], task: Task, seed: int, console: Console
) -> tuple[System, System, System, System]:
    supervised, on_policy = settings.supervised, settings.on_policy
    folders = {
        ("teacher", "teacher"): settings.teacher,
        ("student_before", "student before"): settings.student,
        (supervised.name, supervised.label): output / supervised.name / "model",
        (on_policy.name, on_policy.label): output / on_policy.name / "model",
    }
    systems = []
    columns = (TextColumn("{task.description:14}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        for (name, label), folder in folders.items():
            model = load.load(str(folder), ModelConfig(dtype="float32"), torch.device("cpu"))
            evaluation = _test(model, task, settings, seed, bar, label)
            save(evaluation, output / "test" / name, {"split": "test", "seed": seed})
            parameters = sum(p.numel() for p in model.module.parameters())
            systems.append(System(name, label, folder, parameters, evaluation, trainings.get(name)))
    teacher, before, first, second = systems
    return teacher, before, first, second


def _test(model: LanguageModel, task: Task, settings: Settings, seed: int, bar: Progress, label: str) -> Evaluation:
    prompts = encode_split(task, "test", Encoding(model.tokenizer, False, task.generation.max_prompt_tokens))
    row = bar.add_task(label, total=len(prompts) * len(TEMPERATURES))
    return evaluate(
        model,
        task,
        prompts,
        temperatures=TEMPERATURES,
        seed=seed,
        batch_rows=250,
        bootstrap=settings.resamples,
        progress=lambda done, total: bar.update(row, completed=done, total=total),
    )


def _accuracy(system: System, decoding: str) -> Resample:
    marks = np.array([c.mark for c in system.evaluation.completions if c.decoding == decoding], dtype=np.float64)
    return lambda chosen: 100 * float(marks[chosen].mean())
