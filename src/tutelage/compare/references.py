"""The models of a comparison that no run trained: initial students and teachers, each tested once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tutelage.compare import fingerprints
from tutelage.compare.cell import Job
from tutelage.compare.plan import Cell
from tutelage.compare.records import EvaluationProtocol
from tutelage.compare.summary import Reference
from tutelage.rewards.options import RLConfig
from tutelage.train.config import TRAINING_KEYS, Config, TaskConfig

Role = Literal["initial", "teacher"]
Key = tuple[str, ...]
ROLES: dict[Role, str] = {"initial": "initial student", "teacher": "teacher"}
# Options of tasks that, as TRAINING_KEYS, say how much of the training split a run may see, and nothing of the test.
_TRAINING_OPTIONS = {"train_size"}


def common_reward(cells: Sequence[Cell]) -> RLConfig:
    """The reward that all cells with one share, only measured; none where there is none, or several: a model has one line in the tables."""
    found = {
        (cell.config.rl.reward, cell.config.rl.scorer_label) for cell in cells if cell.config.rl.reward is not None
    }
    if len(found) != 1:
        return RLConfig()
    reward, label = found.pop()
    return RLConfig(reward=reward, scorer_label=label, alpha=1)


def jobs(
    cells: Sequence[Cell], reward: RLConfig, output: Path, protocol: EvaluationProtocol, threads: int
) -> dict[Key, Job]:
    """A job for each initial student and each teacher of the runs.

    Args:
        cells: the runs.
        reward: what `common_reward` finds.
        output: the comparison's folder.
        protocol: how to test.
        threads: of each job.
    """
    found: dict[Key, Job] = {}
    # Not the teacher that these runs have, which is no single model: the first of it, and called so.
    firsts = {key("teacher", cell.config, reward) for cell in cells if cell.config.other_teachers}
    for role, label in ROLES.items():
        # A student ends where its teacher does, too: runs with a teacher first.
        for cell in sorted(cells, key=lambda cell: cell.config.teacher is None):
            if role == "initial" or cell.config.teacher is not None:
                of_model = key(role, cell.config, reward)
                name = f"first {label}" if of_model in firsts else label
                if role == "initial" and cell.config.student_model.init == "config":
                    name += f", seed {cell.config.seed}"
                config = cell.config.model_copy(update={"rl": reward})
                job = Job(name, output / "references" / of_model[-1], config, role, protocol, threads)
                found.setdefault(of_model, job)
    return found


def key(role: Role, config: Config, reward: RLConfig) -> Key:
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
    if reward.reward is not None:
        about.append([reward.reward, reward.scorer_label, fingerprints.of_reward(reward.reward)])
    return role, str(model), hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


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
