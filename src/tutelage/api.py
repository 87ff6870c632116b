"""The Python entry: `tutelage.distill`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.errors import UserError
from tutelage.models.language_model import LanguageModel
from tutelage.models.options import ModelConfig, StudentConfig
from tutelage.tasks.base import Task
from tutelage.tasks.checks import checked_task
from tutelage.train import config_io

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tutelage.run import RunResult

    Model = str | Path | LanguageModel | tuple[PreTrainedModel, PreTrainedTokenizerBase]


def distill(
    *,
    student: Model | None = None,
    teacher: Model | None = None,
    task: str | Mapping[str, Any] | Task,
    method: str = "gkd",
    divergence: str | None = None,
    student_data_fraction: float | None = None,
    **options: Any,
) -> RunResult:
    """Trains a student under a teacher.

    Args:
        student: folder or hub name, or a model already loaded, with its tokenizer; its weights are trained in place.
            None with student_model={"init": "teacher_layers", "layers": n}.
        teacher: likewise; None for method="sft".
        task: a task's name, a mapping of `task` keys such as {"name": "jsonl", "data": "rows.jsonl"}, or a `Task` of one's own.
        method: a preset of `train.methods.METHODS`.
        divergence: spelling of the divergence, "jsd(0.9)"; None: the method's.
        student_data_fraction: lambda, the share of steps on the student's own sequences; None: the method's.
        options: every other key of the configuration: a whole section (train={"steps": 200}) or the last part of a key
            that no other key shares (steps=200, learning_rate=1e-4).

    Returns:
        What the run came to, with the trained student.

    Raises:
        UserError: an option is unknown, ambiguous or in conflict with another; or anything `tutelage train` rejects.

    Source: Agarwal et al., ICLR 2024 (arXiv 2306.13649), Algorithm 1.
    """
    from tutelage.run import run

    student_name, live_student = _name_and_model(student, "student")
    teacher_name, live_teacher = _name_and_model(teacher, "teacher")
    live_task = None if isinstance(task, str | Mapping) else checked_task(task)
    config = config_io.from_flat(
        student=student_name,
        teacher=teacher_name,
        task=task if isinstance(task, Mapping) else {"name": task if live_task is None else live_task.name},
        method=method,
        divergence=divergence,
        student_data_fraction=student_data_fraction,
        **options,
    )
    if live_student is not None and config.student_model != StudentConfig():
        raise UserError(
            "student_model says how a student is loaded, but a loaded one was given; apply it before, or pass a path"
        )
    if live_teacher is not None and config.teacher_model != ModelConfig():
        raise UserError(
            "teacher_model says how a teacher is loaded, but a loaded one was given; apply it before, or pass a path"
        )
    return run(config, student=live_student, teacher=live_teacher, task=live_task)


def _name_and_model(given: Model | None, role: str) -> tuple[str | None, LanguageModel | None]:
    """What stands in the configuration for a model, and the model itself where it is loaded already."""
    match given:
        case None:
            return None, None
        case str() | Path():
            return str(given), None
        case LanguageModel():
            return given.name, given
        case (module, tokenizer):
            name = module.name_or_path or role
            return name, LanguageModel(module, tokenizer, name)
    raise UserError(f"{role} is of type {type(given).__name__}; give a path, a hub name or a pair (model, tokenizer)")
