"""Tasks: examples, prompts, references and metrics under one interface, chosen by name."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

from tutelage.errors import UserError, nearest
from tutelage.tasks.base import Example, Generation, Message, Scores, Task
from tutelage.tasks.rows import SUFFIXES

__all__ = ["TASKS", "Example", "Generation", "Message", "Scores", "Task", "load_task", "task_options"]

# name -> (module, class); modules are imported when asked for, with the libraries of their metrics.
TASKS: dict[str, tuple[str, str]] = {
    "arithmetic": ("arithmetic", "Arithmetic"),
    "gsm8k": ("gsm8k", "GSM8K"),
    "translation": ("translation", "Translation"),
    "summarization": ("summarization", "Summarization"),
    "instructions": ("instructions", "Instructions"),
    "jsonl": ("jsonl", "Jsonl"),
}


def load_task(name: str, *, data: str | None = None, **options: Any) -> Task:
    """Builds a task.

    Args:
        name: one of `TASKS`.
        data: a file, a folder or a hub data set; None: the task's own default.
        options: keyword arguments of the task's class.

    Raises:
        UserError: the name or an option is unknown (names the nearest), or an option's value is wrong.
    """
    known = task_options(name)
    for option in options:
        if option not in known:
            raise UserError(f"the {name} task has no option {option!r}; {nearest(option, known)}")
    if data is not None:
        options["data"] = data
    task: Task = _task_class(name)(**options)
    return task


def task_options(name: str) -> list[str]:
    """The names of a task's options. Raises UserError for an unknown task."""
    return [option for option in inspect.signature(_task_class(name)).parameters if option != "data"]


def _task_class(name: str) -> Any:
    if name not in TASKS:
        if "/" in name or name.lower().endswith(SUFFIXES) or Path(name).exists():
            raise UserError(
                f"there is no task {name!r}, which looks like data: give it as task.data, with task.name=jsonl or another task that "
                f"reads it; known are {', '.join(TASKS)}"
            )
        raise UserError(f"there is no task {name!r}; {nearest(name, TASKS)}")
    module, cls = TASKS[name]
    return getattr(import_module(f"tutelage.tasks.{module}"), cls)
