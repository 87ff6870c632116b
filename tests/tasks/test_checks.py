from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from tutelage.errors import UserError
from tutelage.tasks import Generation, Scores
from tutelage.tasks.checks import check_scores, check_texts, checked_task, first_example


class Echo:
    """A whole task; tests replace one member of it."""

    def __init__(self, **changed: Any) -> None:
        self.name, self.metric, self.generation = "echo", "accuracy", Generation(max_new_tokens=8)
        self.__dict__.update(changed)

    def examples(self, split: str) -> Sequence[Any]:
        return [{"text": split}]

    def prompt(self, example: Any) -> Any:
        return example["text"]

    def reference(self, example: Any) -> Any:
        return None

    def score(self, completions: Any, examples: Any) -> Any:
        return Scores({"accuracy": 0.0}, (0.0,), lambda indices: 0.0)


def check_all(task: Any) -> None:
    checked = checked_task(task)
    example = first_example(checked, "train")
    assert example is not None
    check_texts(checked, example)
    check_scores(checked, example)


CHAT = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"prompt": lambda example: CHAT, "reference": lambda example: "a"},
        {"score": lambda completions, examples: Scores({}, None, None)},
        {"score": lambda completions, examples: Scores({"accuracy": 1.0, "other": 2.0}, None, None)},
    ],
)
def test_what_is_a_task(changed: dict[str, Any]) -> None:
    task = Echo(**changed)
    check_all(task)
    assert checked_task(task) is task


def gives(value: Any) -> Callable[..., Any]:
    return lambda *arguments: value


RESAMPLED: Any = [0.5]  # what a function is needed for
MEMBERS: list[tuple[Any, str]] = [
    (object(), "task is of type object, which has no name, metric, generation, examples, prompt, reference, score; give a task's name"),
    (SimpleNamespace(name="a", metric="b", examples=len, prompt=len, score=len), "SimpleNamespace, which has no generation, reference;"),
    (Echo, "task is the class Echo itself; give an object of it, task=Echo(...)"),
    (Echo(generation={"max_new_tokens": 8}),
     "generation of the task Echo is {'max_new_tokens': 8} of type dict; it must be a tutelage.tasks.Generation, as in Generation("),
    (Echo(metric=None), "metric of the task Echo is None of type NoneType; it must be a string"),
    (Echo(prompt="Add:"), "prompt of the task Echo is 'Add:' of type str; it must be a method"),
]  # fmt: skip
ANSWERS: list[tuple[Any, str]] = [
    (Echo(examples=gives(iter([{}]))), "examples('train') of the task Echo gave <list_iterator"),
    (Echo(examples=gives({"train": []})), "gave {'train': []} of type dict; it must give a sequence, such as a list"),
    (Echo(prompt=gives(["a"])), "prompt(example) of the task Echo gave ['a'] of type list; it must give a string, or a list of messages"),
    (Echo(reference=gives(42)), "reference(example) of the task Echo gave 42 of type int; it must give a string, or None where"),
    (Echo(score=gives({"accuracy": 1.0})),
     "score(completions, examples) of the task Echo gave {'accuracy': 1.0} of type dict; it must give a tutelage.tasks.Scores(values="),
    (Echo(score=gives(Scores({"exact": 1.0}, None, None))), "values of the task Echo gave {'exact': 1.0} of type dict; it must give a "
     "mapping with the task's metric 'accuracy'"),
    (Echo(score=gives(Scores({}, (1.0, 2.0), None))), "per_example of the task Echo gave (1.0, 2.0) of type tuple; it must give a tuple"),
    (Echo(score=gives(Scores({}, None, RESAMPLED))), "resample of the task Echo gave [0.5] of type list; it must give a function"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "message"), [*MEMBERS, *ANSWERS])
def test_what_is_none(task: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check_all(task)


def test_a_split_without_examples() -> None:
    assert first_example(checked_task(Echo(examples=gives([]))), "train") is None


def test_long_values_are_cut() -> None:
    with pytest.raises(UserError, match=r"gave \['xxx.{95}\.\.\. of type list"):
        check_all(Echo(reference=gives(["x" * 1000])))
