import json

import pytest

from tutelage.errors import UserError
from tutelage.tasks.instructions import Instructions


def test_scores(tmp_path):
    rows = [{"prompt": "Name a colour.", "completion": "red"}, {"prompt": "Say hi.", "completion": "hello to you"}]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Instructions(data=str(path))
    assert [task.prompt(row) for row in task.examples("train")] == ["Name a colour.", "Say hi."]
    scores = task.score(["red", "hello"], rows)
    # "hello" against "hello to you": P = 1, R = 1/3, F = 1/2.
    assert scores.values["rougeL"] == pytest.approx(75.0)
    assert scores.values["exact_match"] == 50.0
    assert scores.per_example == pytest.approx((1.0, 0.5))
    assert scores.resample([1, 1]) == pytest.approx(50.0)
    assert task.metric == "rougeL"


def test_needs_data():
    with pytest.raises(UserError, match="the instructions task needs data"):
        Instructions()
