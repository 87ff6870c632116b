import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tutelage.errors import MissingSplitError, UserError
from tutelage.tasks.hashing import content_hash
from tutelage.tasks.rows import DataSource, column, read_file, text


def check(row):
    text(row, "prompt", "prompt_column", "prompt")
    text(row, "completion", "completion_column", "completion")


def source(data, **options) -> DataSource:
    return DataSource(str(data), check, key=lambda row: str(row["prompt"]), **options)


def lines(*rows) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def pair(i: int) -> dict[str, str]:
    return {"prompt": f"p{i}", "completion": f"c{i}"}


def test_the_three_formats_give_the_same_rows(tmp_path):
    rows = [pair(1), {"prompt": "größer", "completion": "ja"}]
    (tmp_path / "a.jsonl").write_text("\ufeff" + lines(rows[0], "", rows[1]), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    for name in ("a.jsonl", "b.json", "c.parquet"):
        assert list(source(tmp_path / name).split("train").values) == rows
    assert read_file(tmp_path / "a.jsonl").where(1).endswith("a.jsonl, line 3")
    assert read_file(tmp_path / "c.parquet").where(1).endswith("c.parquet, row 2")


def test_folder_and_named_files(tmp_path):
    for i, split in enumerate(("train", "validation", "test")):
        (tmp_path / f"{split}.jsonl").write_text(lines(pair(i)))
    data = source(tmp_path)
    assert [data.split(split).values for split in ("train", "validation", "test")] == [[pair(0)], [pair(1)], [pair(2)]]
    swapped = source(tmp_path / "train.jsonl", test_data=str(tmp_path / "validation.jsonl"))
    assert swapped.split("test").values == [pair(1)]


def test_carving_keeps_equal_keys_together_and_order(tmp_path):
    rows = [pair(i % 50) for i in range(100)]
    (tmp_path / "train.jsonl").write_text(lines(*rows))
    data = source(tmp_path, validation_fraction=0.3)
    held_out = [row for row in rows if content_hash(row["prompt"]) < 0.3]
    assert data.split("validation").values == held_out
    assert data.split("train").values == [row for row in rows if row not in held_out]
    assert 0 < len(held_out) < 100


def test_drop_empty(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(pair(1), {"prompt": "p", "completion": " "}, pair(2)))
    kept = source(tmp_path / "a.jsonl", drop_empty=True).split("train")
    assert kept.values == [pair(1), pair(2)]
    assert kept.where(1).endswith("line 3")
    (tmp_path / "b.jsonl").write_text(lines({"prompt": "p", "completion": ""}))
    with pytest.raises(UserError, match=r"every row of .*b\.jsonl has an empty prompt or completion"):
        source(tmp_path / "b.jsonl", drop_empty=True).split("train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines(pair(1), '{"prompt": "p",'), r"a\.jsonl, line 2: not valid JSON \(.* at column \d+\)"),
        (lines(pair(1), '{"prompt": "1", "completion":'), r"line 2: not valid JSON \(Expecting value at column 30\)"),
        (lines(pair(1), "", "[1, 2]"), r"a\.jsonl, line 3: an array; each line must be one JSON object"),
        (lines("null"), r"a\.jsonl, line 1: null; each line must be one JSON object"),
        (
            lines({"question": "q", "answer": "a"}),
            "line 1: no column 'prompt'; it has 'question', 'answer'; set --task.options.prompt_column",
        ),
        (lines({}), "line 1: no column 'prompt'; it has none"),
        (
            lines({"messages": []}),
            "it has 'messages'; set --task.options.messages_column messages where these are chats, or --task.options.prompt_column",
        ),
        (
            lines({"prompt": "p"}),
            "no column 'completion'; it has 'prompt'; set --task.options.completion_column to the right one; data without "
            "references is for the jsonl task, with --task.options.completion_column null --task.options.metric none$",
        ),
        (
            lines(pair(1), {"prompt": " \n", "completion": "c"}),
            "line 2: column 'prompt' is empty; the prompt needs text",
        ),
        (lines({"prompt": "p", "completion": ""}), "line 1: column 'completion' is empty; the completion needs text"),
        (lines({"prompt": "p", "completion": 5}), "column 'completion' is a number; the completion must be a string"),
        (lines({"prompt": None, "completion": "c"}), "column 'prompt' is null; the prompt must be a string"),
        ("\n\n", r"a\.jsonl has no rows; the task needs at least one"),
        ("", r"a\.jsonl has no rows"),
    ],
)
def test_bad_jsonl(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        source(tmp_path / "a.jsonl").split("train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"prompt": 1,]', r"a\.json, line 1: not valid JSON"),
        ("a.json", b'{"prompt": "p"}', r"a\.json: an object; a \.json file must hold one array of objects"),
        ("a.json", b'[{"prompt": "p"}, 3]', r"a\.json, row 2: a number"),
        ("a.parquet", b"not parquet at all", r"a\.parquet is not a readable Parquet file"),
        ("a.jsonl", b'{"prompt": "\xff"}', r"a\.jsonl is not UTF-8 text"),
        ("a.csv", b"prompt,completion", r"a\.csv is not a \.jsonl, \.json or \.parquet file"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        source(tmp_path / name).split("train")


def test_missing_files_name_what_exists(tmp_path):
    (tmp_path / "training.jsonl").write_text(lines(pair(1)))
    with pytest.raises(UserError, match=r"^task\.data is .*train\.jsonl, which does not exist; .* has training\.jsonl"):
        source(tmp_path / "train.jsonl").split("train")
    with pytest.raises(UserError, match=r"there is no folder .*nowhere either"):
        source(tmp_path / "nowhere" / "train.jsonl").split("train")
    with pytest.raises(
        UserError, match=r"has no train\.jsonl or train\.json or train\.parquet; it has training\.jsonl"
    ):
        source(tmp_path).split("train")
    with pytest.raises(UserError, match=r"^task\.options\.test_data is .*, a folder; it must be a file"):
        source(tmp_path, test_data=str(tmp_path)).split("test")


def test_missing_files_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chat.jsonl").touch()
    with pytest.raises(
        UserError, match=rf"^task\.data is rows\.jsonl, which does not exist; the folder {tmp_path} has chat\.jsonl$"
    ):
        source("rows.jsonl").split("train")
    with pytest.raises(
        UserError, match=rf"the folder {tmp_path} has no train\.jsonl or .*; it has chat\.jsonl; set --task\.data"
    ):
        source(".").split("train")


def test_missing_splits_name_the_option(tmp_path):
    (tmp_path / "train.jsonl").write_text(lines(pair(1)))
    validation = (
        r"validation split is missing: .* it has train\.jsonl; set --task\.options\.validation_data to a file, or "
        r"--task\.options\.validation_fraction \(0\.05, say\)"
    )
    with pytest.raises(UserError, match=validation):
        source(tmp_path).split("validation")
    with pytest.raises(UserError, match=r"gives the train split only; set --task\.options\.test_data to a file$"):
        source(tmp_path / "train.jsonl").split("test")
    with pytest.raises(UserError, match="split is 'dev'; it must be one of"):
        source(tmp_path).split("dev")


@pytest.mark.parametrize("offered", ["file in the folder", "option", "fraction"])
def test_a_missing_test_split_points_to_the_validation_split(tmp_path, offered):
    (tmp_path / "train.jsonl").write_text(lines(pair(1)))
    damaged = tmp_path / ("validation.jsonl" if offered == "file in the folder" else "held_out.jsonl")
    damaged.write_text("{")  # the message is about the test split all the same
    options = {"option": {"validation_data": str(damaged)}, "fraction": {"validation_fraction": 0.5}}.get(offered, {})
    data = tmp_path if offered == "file in the folder" else tmp_path / "train.jsonl"
    with pytest.raises(
        MissingSplitError, match=r"test_data to a file, or take the validation split \(.* --split validation,"
    ):
        source(data, **options).split("test")


def test_contradictions(tmp_path):
    (tmp_path / "train.jsonl").write_text(lines(pair(1)))
    with pytest.raises(UserError, match=r"validation_fraction is 1\.5; it must be between 0 and 1"):
        source(tmp_path, validation_fraction=1.5)
    with pytest.raises(UserError, match="validation_fraction and validation_data are both set"):
        source(tmp_path, validation_fraction=0.5, validation_data="x.jsonl")
    with pytest.raises(UserError, match=r"puts 0 of the 1 rows of .* into validation"):
        source(tmp_path, validation_fraction=1e-9).split("train")
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(UserError, match=r"has both train\.jsonl and train\.json"):
        source(tmp_path).split("train")


def test_hub(monkeypatch):
    import datasets

    asked = []

    def load(name, config, revision):
        asked.append((name, config, revision))
        rows = datasets.Dataset.from_list([pair(1), {"prompt": "p", "completion": ""}])
        return datasets.DatasetDict(dict.fromkeys(("train", *name.split("/")[1:]), rows))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(source("someone/something", data_config="main", drop_empty=True).split("train").values) == [pair(1)]
    source("someone/something@refs/convert/parquet", drop_empty=True).split("train")
    assert asked == [("someone/something", "main", None), ("someone/something", None, "refs/convert/parquet")]
    with pytest.raises(UserError, match=r"someone/something \(train\), row 2: column 'completion' is empty"):
        source("someone/something").split("train")
    with pytest.raises(UserError, match=r"has no test split; set --task\.options\.test_data to a file$"):
        source("someone/something").split("test")
    with pytest.raises(
        UserError, match=r"the data set with/validation has no test split; .* or take the validation split"
    ):
        source("with/validation").split("test")


def test_hub_offline(monkeypatch):
    import datasets

    def load(name, config, revision):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load)
    message = (
        r"^task\.data is 'someone/something', which is no file or folder in /.*, and loading it .* failed "
        r"\(ConnectionError: no route\); set task\.data to the path"
    )
    with pytest.raises(UserError, match=message):
        source("someone/something").split("train")


def test_hub_rows_made_by_a_script(monkeypatch):
    import datasets

    def load(name, config, revision):
        raise RuntimeError("Dataset scripts are no longer supported, but found something.py")

    monkeypatch.setattr(datasets, "load_dataset", load)
    message = r"found something\.py\).*where a script made the rows, someone/something@refs/convert/parquet has them"
    with pytest.raises(UserError, match=message):
        source("someone/something").split("train")


def test_column_returns_any_value():
    assert column({"a": None, "b": [1]}, "b", "b_column") == [1]
