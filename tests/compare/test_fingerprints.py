from __future__ import annotations

import os
from itertools import count
from pathlib import Path

import pytest

from tutelage.compare import fingerprints
from tutelage.errors import UserError
from tutelage.train.config import TaskConfig

TIMES = count(10**18)


def write(path: Path, content: str) -> str:
    """Writes a file, with a time of its own: two within one tick of the clock look like one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    now = next(TIMES)
    os.utime(path, ns=(now, now))
    return str(path)


def test_models() -> None:
    assert fingerprints.of_model(None) is fingerprints.of_model("hub/model") is None
    with pytest.raises(
        UserError, match=rf"no model folder at '\./nowhere' \(looked up from {Path.cwd()}\): train it first"
    ):
        fingerprints.of_model("./nowhere")
    with pytest.raises(UserError, match=r"no model folder at '/no/such/model': train it first"):
        fingerprints.of_model("/no/such/model")


@pytest.mark.parametrize("name", ["model", "owner/model", "owner/model/q4.gguf"])
def test_names_of_the_hub_have_no_hash(name: str) -> None:
    assert fingerprints.of_model(name) is None


@pytest.mark.parametrize(
    "name", ["owner/model/more", "q4.gguf", "folder/q4.gguf", "a/b/c/q4.gguf", "./owner/model/q4.gguf"]
)
def test_what_must_be_local_and_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match=f"no model folder at {name!r}"):
        fingerprints.of_model(name)


def test_a_model_is_its_weights_and_its_configuration(tmp_path: Path) -> None:
    for name in ("config.json", "model-1.safetensors", "model-2.safetensors"):
        write(tmp_path / name, name)
    before = fingerprints.of_model(str(tmp_path))
    write(tmp_path / "run.log", "other")
    assert fingerprints.of_model(str(tmp_path)) == before
    found = {before}
    for name in ("config.json", "model-1.safetensors", "model-2.safetensors"):
        write(tmp_path / name, name.upper())
        found.add(fingerprints.of_model(str(tmp_path)))
        write(tmp_path / name, name)
    assert len(found) == 4
    assert fingerprints.of_model(str(tmp_path)) == before
    assert fingerprints.of_model(str(tmp_path / "model-1.safetensors")) is not None


def test_weights_retrained_behind_the_first_mebibyte_are_another_model(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    found = set()
    for trained in (b"\0", b"\1"):
        weights.write_bytes(bytes(2**20 + 2**19) + trained * 2**10)
        now = next(TIMES)
        os.utime(weights, ns=(now, now))
        found.add(fingerprints.of_model(str(tmp_path)))
    assert len(found) == 2


def test_of_a_large_file_every_stretch_of_a_stride_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_END_BYTES", 4), ("_STRIDE", 8), ("_SAMPLE_BYTES", 2)):
        monkeypatch.setattr(fingerprints, name, value)
    task = TaskConfig(data=str(tmp_path / "rows.jsonl"))

    def of(content: str) -> str:
        write(tmp_path / "rows.jsonl", content)
        return fingerprints.of_data(task)["task.data"]

    whole = "." * 40
    before = of(whole)
    for start in range(33):
        assert of(whole[:start] + "x" * 8 + whole[start + 8 :]) != before
    unseen = [start for start in range(40) if of(whole[:start] + "x" + whole[start + 1 :]) == before]
    # Ends of 4; samples of 2 at 4, 12, 20 and 28.
    assert unseen == [*range(6, 12), *range(14, 20), *range(22, 28), *range(30, 36)]


def test_what_lies_elsewhere_or_nowhere_has_no_hash(tmp_path: Path) -> None:
    assert fingerprints.of_data(TaskConfig(name="arithmetic", options={"level": "easy"})) == {}
    missing = {"validation_data": str(tmp_path / "missing.jsonl"), "test_data": None}
    assert fingerprints.of_data(TaskConfig(data="hub/data", options=missing)) == {}
    for reward in (None, "accuracy", f"scorer:{tmp_path / 'missing'}"):
        assert fingerprints.of_reward(reward) == {}


def test_data_by_the_key_that_names_it(tmp_path: Path) -> None:
    train, test = tmp_path / "rows.jsonl", tmp_path / "test.jsonl"
    task = TaskConfig(data=write(train, "ab"), options={"test_data": write(test, "ab"), "prompt_column": str(train)})
    before = fingerprints.of_data(task)
    assert before.keys() == {"task.data", "task.options.test_data"}
    write(test, "ba")
    after = fingerprints.of_data(task)
    assert after["task.data"] == before["task.data"]
    assert after["task.options.test_data"] != before["task.options.test_data"]
    write(test, "ab")
    assert fingerprints.of_data(task) == before


def test_a_folder_is_the_splits_in_it(tmp_path: Path) -> None:
    task = TaskConfig(data=str(tmp_path))
    write(tmp_path / "train.jsonl", "ab")
    before = fingerprints.of_data(task)
    write(tmp_path / "notes.jsonl", "c")
    assert fingerprints.of_data(task) == before
    write(tmp_path / "validation.parquet", "c")
    assert fingerprints.of_data(task) != before


@pytest.mark.parametrize(
    ("content", "same"),
    [
        ("ab|cd", True),
        ("ab/cd", True),
        ("aa|cd", False),
        ("ab|cc", False),
        ("ab||cd", False),
        ("abcd", False),
        ("ab", False),
    ],
)
def test_of_a_large_file_beginning_end_and_size_count(
    content: str, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "_END_BYTES", 2)
    monkeypatch.setattr(fingerprints, "_SAMPLE_BYTES", 0)
    task = TaskConfig(data=write(tmp_path / "rows.jsonl", "ab|cd"))
    before = fingerprints.of_data(task)
    write(tmp_path / "rows.jsonl", content)
    assert (fingerprints.of_data(task) == before) is same


def test_a_file_of_two_ends_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "_END_BYTES", 2)
    found = set()
    for content in ("abcd", "xbcd", "axcd", "abxd", "abcx", "abc", "xbc", "axc", "abx"):
        task = TaskConfig(data=write(tmp_path / "rows.jsonl", content))
        found.add(fingerprints.of_data(task)["task.data"])
    assert len(found) == 9


def test_a_scorer_is_every_file_of_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "scorer" / "model.safetensors", "weights")
    write(tmp_path / "scorer" / "tokenizer.json", "words")
    reward = f"scorer:{tmp_path / 'scorer'}"
    before = fingerprints.of_reward(reward)
    write(tmp_path / "scorer" / "tokenizer.json", "other")
    assert before.keys() == {"rl.reward"} == fingerprints.of_reward(reward).keys()
    assert fingerprints.of_reward(reward) != before


def test_a_function_is_the_files_that_name_and_define_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    defined = "def mark(prompt, completion, reference, example):\n    return 1.0\n"
    write(tmp_path / "fingerprinted_definition.py", defined)
    write(tmp_path / "fingerprinted_name.py", "from fingerprinted_definition import mark\n")
    found = [fingerprints.of_reward("fingerprinted_name:mark")]
    write(tmp_path / "fingerprinted_definition.py", defined.replace("1.0", "2.0"))
    found.append(fingerprints.of_reward("fingerprinted_name:mark"))
    write(tmp_path / "fingerprinted_name.py", "from fingerprinted_definition import mark  # again\n")
    found.append(fingerprints.of_reward("fingerprinted_name:mark"))
    assert len({each["rl.reward"] for each in found}) == 3
    with pytest.raises(UserError, match="has no function 'mak'; did you mean 'mark'"):
        fingerprints.of_reward("fingerprinted_name:mak")
