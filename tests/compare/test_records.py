from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.compare.conftest import run_record
from tutelage.compare import plan, records
from tutelage.compare.config import ComparisonRecipe
from tutelage.compare.records import RunRecord, Score
from tutelage.errors import UserError
from tutelage.eval.results import Evaluation, Row
from tutelage.eval.signals import Estimate, TeacherDivergence
from tutelage.eval.statistics import Interval
from tutelage.train.metrics import TRAINING_PHASES


def evaluation(value: float) -> Evaluation:
    interval = Interval(value - 1, value + 1)
    values = {"accuracy": value, "valid_format": 80.0}
    row = Row("T=1", 4, 1, "accuracy", value, interval, values, {}, 3.0, {"stop": 1.0, "length": 0.0}, None, None, 1.5)
    estimate = Estimate(0.5, None)
    divergence = TeacherDivergence(estimate, Estimate(float("inf"), None), *[estimate] * 4, sequences=4, tokens=12)
    return Evaluation("tiny", "sums", (row,), (), {"T=1": divergence})


def line(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "tokens": 10 * step,
        "seconds": {"rollout": 0.75, "reward": 0.25, "update": 0.5, "evaluate": 99.0},
        **more,
    }


def test_a_record_from_evaluations_and_metrics(make_recipe: Callable[..., ComparisonRecipe]) -> None:
    recipe = make_recipe()
    config = plan.make_cell(recipe, plan.expand(recipe)[0], {}, 0).config
    metrics = [line(1), line(2, evaluation={"accuracy T=1": 15.0, "reward": 3.0}), line(3)]
    record = records.run_record(config, evaluation(10.0), evaluation(20.0), metrics, threads=2)
    assert (record.steps, record.tokens, record.threads) == (3, 60, 2)
    # Evaluations are nobody's training.
    assert record.seconds == dict.fromkeys(TRAINING_PHASES, 0.0) | {"rollout": 2.25, "reward": 0.75, "update": 1.5}
    assert record.total_seconds == 4.5
    curve = [(point.step, point.seconds, point.tokens, point.scores[0].value) for point in record.curve]
    assert curve == [(0, 0.0, 0, 10.0), (2, 3.0, 30, 15.0), (3, 4.5, 60, 20.0)]
    scores = {(score.metric, score.decoding): score for score in record.scores}
    assert scores["accuracy", "T=1"] == Score(
        metric="accuracy", decoding="T=1", value=20.0, low=19.0, high=21.0, headline=True
    )
    assert scores["valid_format", "T=1"].headline is False
    assert ("reward", "T=1") not in scores
    assert (scores["forward_kl", "T=1"].value, scores["reverse_kl", "T=1"].value) == (0.5, float("inf"))


def test_a_reward_is_among_the_scores() -> None:
    found = evaluation(10.0)
    rewarded = dataclasses.replace(found.rows[0], reward=Estimate(0.25, Interval(0.125, 0.5)))
    scores = {
        (score.metric, score.decoding): score
        for score in records.scores_of(dataclasses.replace(found, rows=(rewarded,)))
    }
    assert scores["reward", "T=1"] == Score(metric="reward", decoding="T=1", value=0.25, low=0.125, high=0.5)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert records.read(RunRecord, path) is None
    record = run_record([1.0, float("inf")])
    records.write(record, path)
    assert records.read(RunRecord, path) == record
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("change", [lambda seconds: seconds.pop("returns"), lambda seconds: seconds.update(later=1.0)])
def test_a_record_with_other_phases_is_of_another_version(change: Callable[[Any], None], tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    records.write(run_record([1.0, 2.0]), path)
    content = json.loads(path.read_text())
    change(content["seconds"])
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"record\.json is damaged or of another version; delete it"):
        records.read(RunRecord, path)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"steps": 3')
    with pytest.raises(UserError, match=r"record\.json is damaged or of another version; delete it"):
        records.read(RunRecord, path)
