"""Whether finished students can be tested: found out from configurations and tokenizers, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tutelage.compare.cell import outline_of_student, read_test
from tutelage.compare.plan import Cell
from tutelage.compare.records import EvaluationProtocol
from tutelage.errors import UserError
from tutelage.models import load
from tutelage.models.language_model import LanguageModel
from tutelage.tasks import Task, load_task
from tutelage.tasks.encode import encode_split, longest_prompt
from tutelage.train.checks import check_positions
from tutelage.train.config import Config
from tutelage.train.prompts import encoding_of, sampling_of


def check_tests(cells: Sequence[Cell], protocol: EvaluationProtocol) -> None:
    """Encodes the test split as the tests will, once for each task and student, and checks that it can be decoded.

    A run that is tested already vouches for all that are decoded alike: where everything is finished, nothing is done.

    Args:
        cells: the runs that may be tested.
        protocol: how.

    Raises:
        UserError: names the method and what a test of it would stop at: a prompt that is empty or over the limit, no prompt at all,
            a completion past a model's last position, a task that beam search cannot decode, or a model whose configuration or
            tokenizer cannot be loaded.
    """
    alike = _grouped(cells, _decoded_by)
    untested = [several[0] for several in alike if not any(read_test(cell.folder, protocol) for cell in several)]
    for several in _grouped(untested, _encoded_by):
        with _naming_the_method(several[0]):
            config = several[0].config
            task = load_task(config.task.name, data=config.task.data, **config.task.options)
            student = outline_of_student(config)
            longest = _longest(config, task, student, protocol)
        for cell in several:
            with _naming_the_method(cell):
                _check_positions(cell.config, task, student, longest)


def _longest(config: Config, task: Task, student: LanguageModel, protocol: EvaluationProtocol) -> int:
    """Tokens of the longest prompt of the test split, all of which is encoded and checked."""
    if protocol.num_beams > 1 and task.generation.continuation is not None:
        raise UserError(
            f"num_beams={protocol.num_beams}: the {task.name} task forces text during decoding (its calculator), which beam search "
            "cannot; set num_beams=1, or switch the task's calculator off"
        )
    prompts = encode_split(task, "test", encoding_of(config, student, task), protocol.limit, show_progress=False)
    if not prompts:
        raise UserError(
            "there is nothing to test: the test split has no prompts, or all were left out as too long; raise task.max_prompt_tokens, "
            "or give other data"
        )
    return longest_prompt(prompts)


def _check_positions(config: Config, task: Task, student: LanguageModel, longest: int) -> None:
    """Of the models that are tested: the student and the teacher, the first where there are several."""
    teacher = [] if config.teacher is None else [load.outline(config.teacher, config.teacher_model)]
    for model in (student, *teacher):
        check_positions(model, longest, sampling_of(config, task))


def _encoded_by(config: Config) -> dict[str, Any]:
    """What the prompts of a run hang on: the task and the student's tokenizer."""
    keys = {"task", "student", "student_model"}
    if config.student_model.init == "teacher_layers":
        keys |= {"teacher", "teacher_model"}
    return config.model_dump(mode="json", include=keys)


def _decoded_by(config: Config) -> dict[str, Any]:
    """What decides whether the student and the teacher of a run can complete its prompts."""
    keys = config.model_dump(mode="json", include={"task", "student", "student_model", "teacher", "teacher_model"})
    return {**keys, "max_new_tokens": config.rollout.max_new_tokens}


def _grouped(cells: Sequence[Cell], about: Callable[[Config], dict[str, Any]]) -> list[list[Cell]]:
    """The runs that are equal in `about`, in their order."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(json.dumps(about(cell.config)), []).append(cell)
    return list(groups.values())


@contextmanager
def _naming_the_method(cell: Cell) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"method {cell.variant}: {error}") from error
