"""The models of a comparison that no run trained: initial students and teachers, each tested once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tutelage.compare import fingerprints
from tutelage.compare.cell import Job
from tutelage.compare.plan import Cell
from tutelage.compare.records import EvaluationProtocol
from tutelage.compare.summary import Reference
from tutelage.rewards.options import RLConfig
from tutelage.train.config import TRAINING_KEYS, Config, EvalConfig, TaskConfig

Role = Literal["initial", "teacher"]
Key = tuple[str, ...]
ROLES: dict[Role, str] = {"initial": "initial student", "teacher": "teacher"}
# Options of tasks that, as TRAINING_KEYS, say how much of the training split a run may see, and nothing of the test.
_TRAINING_OPTIONS = {"train_size"}


def common_rewards(cells: Sequence[Cell]) -> dict[str, RLConfig]:
    """Task -> the reward that all cells on it that measure one share, only measured; a model has one line in the tables, so that tasks
    with several rewards have none here."""
    found: dict[str, set[tuple[str, str]]] = {}
    for cell in cells:
        rl = cell.config.rl
        if rl.reward is not None and cell.config.eval.reward:
            found.setdefault(_task_key(cell.config), set()).add((rl.reward, rl.scorer_label))
    return {
        task: RLConfig(reward=reward, scorer_label=label, alpha=1)
        for task, several in found.items()
        if len(several) == 1
        for reward, label in several
    }


def jobs(
    cells: Sequence[Cell], rewards: Mapping[str, RLConfig], output: Path, protocol: EvaluationProtocol, threads: int
) -> dict[Key, Job]:
    """A job for each initial student and each teacher of the runs.

    Args:
        cells: the runs.
        rewards: what `common_rewards` finds.
        output: the comparison's folder.
        protocol: how to test.
        threads: of each job.
    """
    found: dict[Key, Job] = {}
    # Not the teacher that these runs have, which is no single model: the first of it, and called so.
    firsts = {key("teacher", cell.config, rewards) for cell in cells if cell.config.other_teachers}
    for role, label in ROLES.items():
        # A student ends where its teacher does, too: runs with a teacher first.
        for cell in sorted(cells, key=lambda cell: cell.config.teacher is None):
            if role == "initial" or cell.config.teacher is not None:
                of_model = key(role, cell.config, rewards)
                name = f"first {label}" if of_model in firsts else label
                if role == "initial" and cell.config.student_model.init == "config":
                    name += f", seed {cell.config.seed}"
                config = cell.config.model_copy(
                    update={"rl": reward_of(cell.config, rewards), "eval": _rewarded(cell.config)}
                )
                job = Job(name, output / "references" / of_model[-1], config, role, protocol, threads)
                found.setdefault(of_model, job)
    return found


def reward_of(config: Config, rewards: Mapping[str, RLConfig]) -> RLConfig:
    """What the models on this configuration's task are rewarded by; `rewards` as `common_rewards` finds them."""
    return rewards.get(_task_key(config), RLConfig())


def key(role: Role, config: Config, rewards: Mapping[str, RLConfig]) -> Key:
    """(role, model, address): runs that start from one student, or have one teacher, share its evaluation on the test split.

    All of the task is in the address, data by its content too, but for how much of the training split a run may see. Fresh weights
    are drawn by the seed: every seed has its own student.
    """
    model, options = config.student, config.student_model.model_dump(mode="json", exclude_defaults=True)
    if role == "teacher":
        model, options = config.teacher, config.teacher_model.model_dump(mode="json", exclude_defaults=True)
    elif config.student_model.init == "teacher_layers":
        model = config.teacher
    about: list[Any] = [
        role,
        model,
        options,
        fingerprints.of_model(model),
        _tested_task(config.task),
        fingerprints.of_data(config.task),
        config.rollout.max_new_tokens,
    ]
    if role == "initial" and config.student_model.init == "config":
        about.append(config.seed)
    reward = reward_of(config, rewards)
    if reward.reward is not None:
        about.append([reward.reward, reward.scorer_label, fingerprints.of_reward(reward.reward)])
    return role, str(model), hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _task_key(config: Config) -> str:
    return json.dumps([_tested_task(config.task), fingerprints.of_data(config.task)], sort_keys=True)


def _rewarded(config: Config) -> EvalConfig:
    """The run's section `eval`, whose own run may measure no reward where others of its comparison do."""
    return config.eval.model_copy(update={"reward": True})


def _tested_task(task: TaskConfig) -> dict[str, Any]:
    """The keys of a task that are not at their defaults, without those that shape training alone."""
    keys = task.model_dump(mode="json", exclude_defaults=True, exclude=set(TRAINING_KEYS))
    options = {name: value for name, value in keys.get("options", {}).items() if name not in _TRAINING_OPTIONS}
    return {**keys, "options": options}


def tested(of_model: Key, job: Job) -> Reference:
    """What a finished job found."""
    assert job.test_record is not None
    return Reference(job.label, of_model[1], job.test_record)


def named(references: Sequence[Reference]) -> list[Reference]:
    """With the model in the name where several have one role."""
    names = [reference.name for reference in references]
    return [
        reference if names.count(reference.name) == 1
        else Reference(f"{reference.name} {reference.model}", reference.model, reference.test)
        for reference in references
    ]  # fmt: skip
