import json

import pytest

from tutelage.errors import UserError
from tutelage.tasks.jsonl import Jsonl

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
]


def write(tmp_path, *rows) -> str:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_plain_columns(tmp_path):
    task = Jsonl(data=write(tmp_path, {"q": "2 + 2?", "a": "4"}), prompt_column="q", completion_column="a")
    (example,) = task.examples("train")
    assert (task.prompt(example), task.reference(example)) == ("2 + 2?", "4")
    assert task.score([" 4"], [example]).values == {"exact_match": 100.0}


def test_chat_messages(tmp_path):
    task = Jsonl(data=write(tmp_path, {"chat": CHAT}), messages_column="chat")
    (example,) = task.examples("train")
    assert (task.prompt(example), task.reference(example)) == (CHAT[:2], "4")


def test_some_training_rows_may_have_no_completion(tmp_path):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": None}]
    data = write(tmp_path, *rows)
    task = Jsonl(data=data)
    assert [task.reference(example) for example in task.examples("train")] == ["b", None]
    with pytest.raises(
        UserError, match=r"row 2 of the train split has a null completion, but a reward .* compares with it"
    ):
        _ = task.rewards
    with pytest.raises(
        UserError, match="row 2 of the test split has a null completion, but metric exact_match compares"
    ):
        Jsonl(data=data, test_data=data).examples("test")
    assert len(Jsonl(data=data, test_data=data, metric="none").examples("test")) == 2


def test_a_held_out_row_without_a_completion_is_not_rewarded(tmp_path):
    data = write(tmp_path, {"prompt": "a", "completion": "b"})
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text('{"prompt": "c", "completion": null}\n')
    task = Jsonl(data=data, validation_data=str(held_out), metric="none")
    (example,) = task.examples("validation")
    for reward in ("rougeL", "bleu", "exact_match"):
        with pytest.raises(UserError, match=r"this row has a null completion, .* \(eval\.reward=false\)"):
            task.rewards[reward]("None", example)


def test_prompts_alone(tmp_path):
    task = Jsonl(data=write(tmp_path, {"prompt": "p"}), completion_column=None, metric="none")
    (example,) = task.examples("train")
    assert task.reference(example) is None
    assert task.score(["x"], [example]).values == {}
    assert task.rewards == {}


@pytest.mark.parametrize("metric", ["exact_match", "rouge2", "rougeL", "bleu"])
def test_metrics(tmp_path, metric):
    rows = [
        {"prompt": "p", "completion": "the cat sat on the mat"},
        {"prompt": "p", "completion": "dogs bark at night ."},
    ]
    task = Jsonl(data=write(tmp_path, *rows), metric=metric)
    scores = task.score([row["completion"] for row in rows], rows)
    assert scores.values[metric] == pytest.approx(100.0)
    assert scores.resample([0, 0]) == pytest.approx(100.0)
    assert task.score(["x", "y"], rows).values[metric] < 1
    assert task.rewards[metric](rows[0]["completion"], rows[0]) == pytest.approx(1.0)
    assert task.rewards[metric](rows[0]["completion"], rows[1]) < 0.1


def test_carving_chats(tmp_path):
    rows = [{"chat": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]} for i in range(40)]
    task = Jsonl(data=write(tmp_path, *rows), messages_column="chat", validation_fraction=0.5)
    train, validation = task.examples("train"), task.examples("validation")
    assert len(train) + len(validation) == 40
    assert not [row for row in train if row in validation]


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (CHAT[:2], "line 1: column 'chat' ends with a message of 'user'; the last message is the reference"),
        (CHAT[2:], "column 'chat' has one message; it needs a prompt"),
        ([], "column 'chat' is empty; it must be an array of messages"),
        ("hello", "column 'chat' is a string; it must be an array of messages"),
        ([{"from": "user"}], "message 1 must be an object with role and content"),
        ([CHAT[0], {"role": "assistant", "content": ""}], "message 2, content is empty"),
    ],
)
def test_bad_chats(tmp_path, chat, message):
    with pytest.raises(UserError, match=message):
        Jsonl(data=write(tmp_path, {"chat": chat}), messages_column="chat").examples("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the jsonl task needs data"),
        ({"data": "x.jsonl", "metric": "rouge"}, "metric is 'rouge'; it must be one of exact_match, rouge2"),
        (
            {"data": "x.jsonl", "completion_column": None},
            "metric 'exact_match' has nothing to compare with; set metric to none",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        Jsonl(**options)
