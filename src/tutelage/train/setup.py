"""Makes the parts of a run out of its configuration; every check of the input happens here, before any long work."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tutelage.data.prompts import PromptStream
from tutelage.errors import UserError
from tutelage.models.language_model import LanguageModel
from tutelage.models.student import Student
from tutelage.rewards.load import check_sampling, load_reward
from tutelage.rewards.rewarder import Rewarder
from tutelage.rollout.base import Sampling
from tutelage.rollout.log import RolloutLog
from tutelage.rollout.native import NativeEngine
from tutelage.sources import DatasetSource, EngineSource, FirstDraw, Mixture, Replay, Source, replay_share
from tutelage.tasks import Task, load_task
from tutelage.tasks.encode import Encoding, fingerprint, longest_prompt
from tutelage.teacher.local import LocalTeacher
from tutelage.train import config_io
from tutelage.train.checkpoint import Checkpoints, check_identity, require_space
from tutelage.train.checks import (
    check_draws,
    check_implementation,
    check_mixture,
    check_positions,
    check_signal,
    check_task,
)
from tutelage.train.config import Config, identity
from tutelage.train.importance import ImportanceWeights
from tutelage.train.loop import Parts
from tutelage.train.methods import Objective, resolve
from tutelage.train.models import load_models, scorer_of
from tutelage.train.optim import Optimizer, trainable_bytes
from tutelage.train.prompts import encoding_of, held_out_prompts, sampling_of, training_streams
from tutelage.train.returns import SequenceReturns
from tutelage.types import Prompt

_RECORD = "run.json"
_DATA = "data.json"
_OURS = (
    "checkpoints",
    "rollouts",
    "evaluation",
    "model",
    "config.yaml",
    "marks",
    "metrics.jsonl",
    "report.html",
    "tensorboard",
    _RECORD,
    _DATA,
)
_FAILED_STEPS = "failed-step-*.json"


def prepare(
    config: Config,
    *,
    student: LanguageModel | None = None,
    teacher: LanguageModel | None = None,
    task: Task | None = None,
) -> tuple[Parts, Task]:
    """Loads, checks and connects everything.

    Args:
        config: the run.
        student, teacher, task: live objects in place of what the configuration names.

    Raises:
        UserError: anything wrong with the configuration, the data, the models or the output folder.
    """
    objective = resolve(config)
    check_mixture(config, objective)
    check_output(config)
    if task is None:
        task = load_task(config.task.name, data=config.task.data, **config.task.options)
    else:
        check_task(config, task)
    check_draws(config, objective, sampling_of(config, task))
    torch.manual_seed(config.seed)
    device = pick_device(config.train.device)
    check_implementation(config, objective, device)
    check_sampling(config.rl, sampling_of(config, task))
    reward = load_reward(config.rl, task, device)
    student, teachers = load_models(config, objective, student, teacher, device)
    if teachers:
        check_signal(config, objective, student, sampling_of(config, task))
    scorer = scorer_of(config, objective, teachers)
    join_ends([student, *teachers], encoding_of(config, student, task))
    streams = training_streams(config, objective, [student, *teachers], task)
    prompts = streams[0].prompts
    check_data(config, prompts)
    held_out = held_out_prompts(config, student, task)
    longest = longest_prompt(held_out)  # these may be longer than those of the training split
    for model in (student, *teachers):
        check_positions(model, longest, sampling_of(config, task))
    require_space(config.output, _bytes_to_write(config, student))
    prepare_output(config, prompts)
    parts = connect(config, objective, student, teachers[0] if teachers else None, task, streams, scorer)
    parts.held_out = held_out
    if objective.importance_clip is not None:
        parts.importance = ImportanceWeights(
            student,
            objective.importance_clip,
            sampling_of(config, task).temperature,
            config.train.micro_batch_tokens,
            config.loss.budget_mb * 2**20,
            mixed=objective.teacher_share > 0,
        )
    if objective.sequence_level:
        assert parts.teacher is not None  # methods.resolve has seen to the divergence
        parts.returns = SequenceReturns(parts.student, parts.teacher, config.train.micro_batch_tokens)
    if reward is not None:
        parts.rewarder = Rewarder(reward, task, student.tokenizer, config.rollout.samples_per_prompt)
    return parts, task


def join_ends(models: Sequence[LanguageModel], encoding: Encoding) -> None:
    """Makes student and teachers end a completion at the same tokens: those of any of them, and of the chat template."""
    ends = encoding.end_ids.union(*(model.eos_ids for model in models))
    for model in models:
        model.end_at(ends)


def connect(
    config: Config,
    objective: Objective,
    student: LanguageModel,
    teacher: LanguageModel | None,
    task: Task,
    streams: tuple[PromptStream, PromptStream],
    scorer: LocalTeacher | None,
) -> Parts:
    """Sources, loss, optimiser and log around loaded models.

    `teacher` writes sequences, `scorer` marks them; `streams` are those of `training_streams`.
    """
    sampling = sampling_of(config, task)
    log = RolloutLog(config.output / "rollouts")
    fixed: Source = DatasetSource()
    if objective.fixed_data == "teacher":
        assert teacher is not None
        greedy = Sampling(sampling.max_new_tokens, temperature=config.rollout.teacher_temperature)
        writer = NativeEngine(teacher, config.rollout.batch_rows)
        fixed = FirstDraw(EngineSource(writer, greedy, config.seed, "teacher"), log)
    engine: NativeEngine | None = None
    on_policy: Source | None = None
    if objective.student_data_fraction > 0:
        engine = NativeEngine(
            student, config.rollout.batch_rows, teacher=teacher, teacher_share=objective.teacher_share
        )
        on_policy = EngineSource(engine, sampling, config.seed, "student")
        if objective.replay:
            schedule = config.rollout.replay_schedule or "rising"
            share = partial(replay_share, steps=config.train.steps, schedule=schedule)
            on_policy = Replay(on_policy, log, objective.replay, share, config.fraction_unit, config.seed)
    budget_bytes = config.loss.budget_mb * 2**20
    marks = (config.loss.temperature, budget_bytes, config.loss.implementation)
    module = Student(student, objective.divergence, *marks)
    return Parts(
        student=module,
        teacher=scorer,
        engine=engine,
        source=Mixture(
            streams[0],
            config.train.batch_size,
            on_policy,
            fixed,
            objective.student_data_fraction,
            config.fraction_unit,
            config.seed,
            log,
            config.rollout.samples_per_prompt,
            streams[1],
        ),
        optimizer=Optimizer(module, config.train),
        checkpoints=Checkpoints(config.output / "checkpoints", config),
        log=log,
        output=config.output,
    )


def pick_device(name: str | None) -> torch.device:
    """The device asked for, or the GPU when there is one. Raises UserError for one that is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        known = "cpu, cuda, cuda:0, ... or mps"
        raise UserError(f"the device is {name}, which torch does not know; use {known}, or drop the option") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"the device is {name}, but torch sees no CUDA device; drop the option to use the CPU")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise UserError(f"the device is {name}, but torch sees {count} CUDA devices; use cuda:0 to cuda:{count - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"the device is {name}, but torch sees none; drop the option to use the CPU")
    return device


def holds_run(folder: Path) -> bool:
    """Whether a run in `folder` has come as far as a sequence to train on; one that failed before has nothing to lose."""
    log = folder / "rollouts" / "rollouts.jsonl"
    return (log.exists() and log.stat().st_size > 0) or any(folder.glob("checkpoints/step-*"))


def make_writable(folder: Path) -> None:
    """Makes an output folder. Raises UserError when it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write-probe"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to the output folder {folder}: {error.strerror}; choose another output"
        ) from error


def check_output(config: Config) -> None:
    """Makes the run's folder, or checks that the run in it is the one to resume; an earlier run stays as it is.

    Raises:
        UserError: it cannot be written, holds a run already, or holds another run than the one to resume.
    """
    folder = config.output
    make_writable(folder)
    if not holds_run(folder):
        return
    if config.resume:
        check_identity(_read_record(folder, _RECORD, "its configuration"), config, f"the run in {folder}")
    elif not config.overwrite:
        raise UserError(
            f"{folder} already holds a run: go on with it (resume), delete it (overwrite), or choose another output"
        )


def check_data(config: Config, prompts: Sequence[Prompt]) -> None:
    """Raises UserError when the run to resume was started with other training examples than these."""
    folder = config.output
    if not (config.resume and holds_run(folder)):
        return
    saved = _read_record(folder, _DATA, "the fingerprint of its training data")
    if saved != _data_record(prompts):
        source = f"the {config.task.name} task" if config.task.data is None else f"task.data={config.task.data}"
        raise UserError(
            f"the run in {folder} was started with other training data: {saved.get('examples')} examples there, {len(prompts)} of "
            f"{source} now, not the same tokens. Give the data it was started with to resume, choose another output, or start "
            "over (overwrite)"
        )


def prepare_output(config: Config, prompts: Sequence[Prompt]) -> None:
    """Takes possession of a folder that `check_output` has passed: records the run, without the remains of an earlier one.

    Args:
        config: the run.
        prompts: those it trains on.
    """
    folder = config.output
    record = folder / _RECORD
    if config.overwrite and not config.resume and (record.exists() or holds_run(folder)):
        for path in (*(folder / name for name in _OURS), *folder.glob(_FAILED_STEPS)):
            _remove(path)
    for name, content in ((_DATA, _data_record(prompts)), (_RECORD, identity(config))):
        partial = folder / f".{name}"
        partial.write_text(json.dumps(content, indent=1))
        os.replace(partial, folder / name)
    config_io.save(config, folder / "config.yaml")


def _data_record(prompts: Sequence[Prompt]) -> dict[str, Any]:
    return {"examples": len(prompts), "sha256": fingerprint(prompts)}


def _read_record(folder: Path, name: str, what: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((folder / name).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"the run in {folder} cannot be resumed: {name}, {what}, is missing or damaged; start over (overwrite), or "
            "choose another output"
        ) from error
    return record


def _bytes_to_write(config: Config, student: LanguageModel) -> int:
    """What the run still puts on the disk: the checkpoints it keeps, the one being written, the finished student."""
    there = sum(1 for _ in config.output.glob("checkpoints/step-*")) if config.resume else 0
    copies = max(1, config.train.keep_checkpoints + 1 - there)
    weights = sum(p.numel() * p.element_size() for p in student.module.parameters())
    return copies * trainable_bytes(student.module.parameters()) + weights


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
