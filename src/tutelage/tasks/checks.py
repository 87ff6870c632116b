"""Whether a task that somebody wrote is one: its members, and what they answer for one example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set, Sized
from typing import Any, cast

from tutelage.errors import UserError
from tutelage.tasks.base import Example, Generation, Scores, Task

_VALUES: dict[str, type] = {"name": str, "metric": str, "generation": Generation}
_METHODS = ("examples", "prompt", "reference", "score")
_NEEDED = (
    "give a task's name, a mapping such as {'name': 'jsonl', 'data': 'rows.jsonl'}, or an object with the members of "
    f"tutelage.tasks.Task: {', '.join((*_VALUES, *_METHODS))}"
)


def checked_task(task: object) -> Task:
    """`task` itself, if it has the members of the protocol `Task`.

    Raises:
        UserError: it is a class, lacks members (names them), or one is of another type.
    """
    if isinstance(task, type):
        raise UserError(f"task is the class {task.__name__} itself; give an object of it, task={task.__name__}(...)")
    kind = type(task).__name__
    missing = [name for name in (*_VALUES, *_METHODS) if not hasattr(task, name)]
    if missing:
        raise UserError(f"task is of type {kind}, which has no {', '.join(missing)}; {_NEEDED}")
    for name, wanted in _VALUES.items():
        value = getattr(task, name)
        if not isinstance(value, wanted):
            raise UserError(f"{name} of the task {kind} is {_seen(value)}; it must be a {_full_name(wanted)}")
    for name in _METHODS:
        if not callable(getattr(task, name)):
            raise UserError(f"{name} of the task {kind} is {_seen(getattr(task, name))}; it must be a method")
    return cast(Task, task)


def first_example(task: Task, split: str) -> Example | None:
    """The first example of a split; None of an empty one.

    Raises:
        UserError: the task has no such split, or its examples have no length and no order.
    """
    examples: object = task.examples(split)
    if not isinstance(examples, Sized) or isinstance(examples, Mapping | Set):
        raise _wrong(task, f"examples({split!r})", examples, "a sequence, such as a list")
    indexed = cast(Sequence[Example], examples)
    return indexed[0] if len(indexed) else None


def check_texts(task: Task, example: Example) -> None:
    """Raises UserError when the prompt or the reference of an example is nothing that can be encoded."""
    prompt: object = task.prompt(example)
    if not isinstance(prompt, str) and not _is_chat(prompt):
        raise _wrong(task, "prompt(example)", prompt, "a string, or a list of messages {'role': ..., 'content': ...}")
    reference: object = task.reference(example)
    if reference is not None and not isinstance(reference, str):
        raise _wrong(task, "reference(example)", reference, "a string, or None where the data has none")


def check_scores(task: Task, example: Example) -> None:
    """Raises UserError when the mark of an empty completion is nothing that an evaluation can read."""
    scores: object = task.score([""], [example])
    if not isinstance(scores, Scores):
        needed = "a tutelage.tasks.Scores(values={metric: number}, per_example=(...), resample=...)"
        raise _wrong(task, "score(completions, examples)", scores, needed)
    values: object = scores.values
    if not isinstance(values, Mapping) or (values and task.metric not in values):
        needed = f"a mapping with the task's metric {task.metric!r}, or an empty one without a metric"
        raise _wrong(task, "score(completions, examples).values", values, needed)
    marks: object = scores.per_example
    if marks is not None and not (isinstance(marks, Sequence) and len(marks) == 1):
        raise _wrong(
            task,
            "score(completions, examples).per_example",
            marks,
            "a tuple of one number for each completion, or None",
        )
    if scores.resample is not None and not callable(scores.resample):
        needed = "a function from indices of examples to the metric over them, or None"
        raise _wrong(task, "score(completions, examples).resample", scores.resample, needed)


def _is_chat(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and all(
        isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in prompt
    )


def _wrong(task: Task, call: str, value: Any, needed: str) -> UserError:
    return UserError(f"{call} of the task {type(task).__name__} gave {_seen(value)}; it must give {needed}")


def _seen(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 100 else f'{text[:100]}...'} of type {type(value).__name__}"


def _full_name(kind: type) -> str:
    return "string" if kind is str else f"tutelage.tasks.{kind.__name__}, as in {kind.__name__}(max_new_tokens=64)"
