"""The models of a run: loaded, fit for one another, and the teachers joined into what marks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tutelage.errors import UserError
from tutelage.models import load, vocabulary
from tutelage.models.language_model import LanguageModel
from tutelage.teacher.local import LocalTeacher
from tutelage.teacher.mixture import mix
from tutelage.train.checks import check_pair
from tutelage.train.config import Config
from tutelage.train.methods import Objective
from tutelage.train.metrics import announce


def load_models(
    config: Config,
    objective: Objective,
    student: LanguageModel | None,
    teacher: LanguageModel | None,
    device: torch.device,
) -> tuple[LanguageModel, list[LanguageModel]]:
    """The student and the teachers, each live or loaded, fit for one another; no teachers where the objective needs none.

    All lie on `device`: live ones are moved there, in place.

    Raises:
        UserError: a model cannot be loaded or moved, or a teacher has another vocabulary or family than the student.
    """
    show = config.log.progress
    if student is not None:
        _place(student, "student", device, show)
    if teacher is not None and objective.needs_teacher:
        _place(teacher, "teacher", device, show)
    if teacher is None and (objective.needs_teacher or config.student_model.init == "teacher_layers"):
        assert config.teacher is not None  # methods.resolve has seen to it
        announce(f"loading teacher {config.teacher}", show)
        teacher = load.load_teacher(config.teacher, config.teacher_model, device)
    if student is None:
        announce(f"loading student {config.student or 'out of layers of the teacher'}", show)
        student = load.load_student(config.student, config.student_model, teacher, device)
    if teacher is None or not objective.needs_teacher:
        # Without a teacher the student must still have a row for every token of its tokenizer.
        vocabulary.agree(student, teacher or student)
        return student, []
    teachers = [teacher]
    for name in config.other_teachers:
        announce(f"loading teacher {name}", show)
        teachers.append(load.load_teacher(name, config.teacher_model, device))
    for each in teachers:
        vocabulary.agree(student, each)
        check_pair(student, each)
        each.module.eval()  # a live one may come in training mode, and would mark with dropout
    return student, teachers


def _place(model: LanguageModel, role: str, device: torch.device, show: bool) -> None:
    """Moves a live model to the run's device, where it does not lie there already.

    Raises:
        UserError: it lies elsewhere for good, being quantised or spread over several devices.
    """
    device = torch.empty(0, device=device).device  # with its index: "cuda" is the current one
    found = sorted({str(parameter.device) for parameter in model.module.parameters()})
    if found == [str(device)]:
        return
    quantised = model.config.to_dict().get("quantization_config") is not None
    if quantised or len(found) > 1:
        raise UserError(
            f"the {role} ({model.name}) lies on {' and '.join(found)}, the run is on {device}, and a model that is "
            f"{'quantised' if quantised else 'spread over several devices'} cannot be moved: load it on {device}, or set "
            "train.device to where it lies"
        )
    announce(f"moving {role} {model.name} from {found[0]} to {device}", show)
    model.module.to(device)


def scorer_of(config: Config, objective: Objective, teachers: Sequence[LanguageModel]) -> LocalTeacher | None:
    """What marks the sequences: the teacher, or several as one; None where nothing is marked.

    Raises:
        UserError: the teachers cannot be mixed.
    """
    if not teachers or objective.divergence is None:
        return None
    loss = config.loss
    teacher = mix(teachers, config.teacher_weights)
    return LocalTeacher(
        teacher, config.teacher_signal, loss.temperature, loss.budget_mb * 2**20, loss.teacher_temperature
    )
