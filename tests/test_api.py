from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tutelage
from tutelage import run
from tutelage.errors import UserError
from tutelage.tasks import load_task


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """The configurations and live objects that reach the run."""
    seen: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(run, "run", lambda config, **live: seen.append((config, live)))
    return seen


def test_names_and_options_become_a_configuration(calls: list[tuple[Any, dict[str, Any]]]) -> None:
    tutelage.distill(
        student=Path("models/s"), teacher="org/t", task="gsm8k", data="rows", divergence="jsd(0.9)", steps=5,
        rollout={"temperature": 0.5},
    )  # fmt: skip
    config, live = calls[0]
    assert (config.student, config.teacher) == ("models/s", "org/t")
    assert (config.task.name, config.task.data) == ("gsm8k", "rows")
    assert (config.method, config.divergence, config.student_data_fraction) == ("gkd", "jsd(0.9)", None)
    assert (config.train.steps, config.rollout.temperature) == (5, 0.5)
    assert live == {"student": None, "teacher": None, "task": None}


def test_a_task_may_be_a_mapping_or_live(calls: list[tuple[Any, dict[str, Any]]]) -> None:
    task = load_task("arithmetic")
    tutelage.distill(student="s", task={"name": "jsonl", "options": {"a": 1}}, method="sft")
    tutelage.distill(student="s", task=task, method="sft")
    assert calls[0][0].task.options == {"a": 1}
    assert calls[1][0].task.name == "arithmetic"
    assert calls[1][1]["task"] is task


def test_a_pair_becomes_a_model(calls: list[tuple[Any, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        name_or_path = ""

    class Live:
        def __init__(self, module: Any, tokenizer: Any, name: str) -> None:
            self.made_of = (module, tokenizer, name)

    monkeypatch.setattr("tutelage.api.LanguageModel", Live)
    module = Module()
    tutelage.distill(student=(module, "tokenizer"), teacher="t", task="gsm8k")  # type: ignore[arg-type]
    config, live = calls[0]
    assert config.student == "student"
    assert live["student"].made_of == (module, "tokenizer", "student")
    with pytest.raises(UserError, match="a loaded one was given"):
        tutelage.distill(student=(module, "tokenizer"), teacher="t", task="gsm8k", gradient_checkpointing=True)  # type: ignore[arg-type]


def test_what_is_no_task_is_refused() -> None:
    with pytest.raises(UserError, match="task is of type object, which has no name, metric, generation"):
        tutelage.distill(student="s", teacher="t", task=object())  # type: ignore[arg-type]


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(UserError, match="teacher is of type int; give a path, a hub name or a pair"):
        tutelage.distill(student="s", teacher=3, task="gsm8k")  # type: ignore[arg-type]
