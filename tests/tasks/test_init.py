import json

import pytest

from tutelage.errors import UserError
from tutelage.tasks import TASKS, Task, load_task, task_options


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_loads_and_keeps_the_protocol(name, tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps({}) + "\n")
    task = load_task(name, data=None if name == "arithmetic" else str(tmp_path))
    assert isinstance(task, Task)
    assert task.name == name


def test_options_reach_the_task():
    task = load_task("arithmetic", train_size=7, steps=(2, 2))
    assert len(task.examples("train")) == 7
    assert all(example["answer"].count("=") == 2 for example in task.examples("train"))


def test_task_options():
    assert task_options("arithmetic") == [
        "seed", "level", "steps", "largest_operand", "train_size", "validation_size", "test_size"
    ]  # fmt: skip


def test_a_folder_is_no_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json").mkdir()
    with pytest.raises(UserError, match="there is no task 'json', which looks like data"):
        load_task("json")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("arithmetik", {}, "there is no task 'arithmetik'; did you mean 'arithmetic'"),
        ("zzz", {}, "there is no task 'zzz'; known are arithmetic, gsm8k"),
        (
            "rows.jsonl",
            {},
            r"there is no task 'rows\.jsonl', which looks like data: give it as task\.data, with task\.name=jsonl",
        ),
        ("openai/gsm8k", {}, "there is no task 'openai/gsm8k', which looks like data"),
        ("arithmetic", {"trainsize": 3}, "the arithmetic task has no option 'trainsize'; did you mean 'train_size'"),
        ("jsonl", {"prompt_colum": "q"}, "the jsonl task has no option 'prompt_colum'; did you mean 'prompt_column'"),
    ],
)
def test_unknown_names(name, options, message):
    with pytest.raises(UserError, match=message):
        load_task(name, **options)
