import json

import pytest

from tutelage.errors import UserError
from tutelage.tasks.summarization import Summarization

MAIL = {
    "body": "The meeting moves to Friday at noon.",
    "subject": "meeting moved",
    "annotations": ["new time for the meeting"],
}
COLUMNS = {"document_column": "body", "summary_column": "subject"}


def write(tmp_path, *rows) -> str:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path)


def test_columns_and_prefix(tmp_path):
    task = Summarization(data=write(tmp_path, MAIL), **COLUMNS)
    (example,) = task.examples("train")
    assert task.prompt(example) == "summarize: The meeting moves to Friday at noon."
    assert task.reference(example) == "meeting moved"
    assert task.metric == "rouge2"


def test_best_of_several_references(tmp_path):
    data = write(tmp_path, MAIL)
    completion = ["new time for meeting"]
    alone = Summarization(data=data, **COLUMNS).score(completion, [MAIL])
    several = Summarization(data=data, references_column="annotations", **COLUMNS).score(completion, [MAIL])
    assert alone.values["rouge2"] == 0.0
    # Bigrams "new time", "time for" of 3 written and 4 in the annotation: P = 2/3, R = 1/2.
    assert several.values["rouge2"] == pytest.approx(100 * 4 / 7)
    assert several.per_example == pytest.approx((4 / 7,))
    task = Summarization(data=data, references_column="annotations", **COLUMNS)
    assert task.rewards["rouge2"](completion[0], MAIL) == pytest.approx(4 / 7)


def test_rows_without_further_references(tmp_path):
    task = Summarization(data=write(tmp_path, MAIL), references_column="annotations", **COLUMNS)
    assert task.references({"body": "b", "subject": "s"}) == ["s"]
    assert task.references({"body": "b", "subject": "s", "annotations": None}) == ["s"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "line 1: no column 'body'; it has 'text'; set --task.options.document_column"),
        ({"body": "a", "subject": " "}, "column 'subject' is empty"),
        ({**MAIL, "annotations": "one"}, "column 'annotations' must be an array of strings"),
        ({**MAIL, "annotations": ["one", 2]}, "column 'annotations', reference 2 is a number"),
    ],
)
def test_bad_rows(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        Summarization(data=write(tmp_path, row), references_column="annotations", **COLUMNS).examples("train")
