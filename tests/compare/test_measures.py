from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.compare.conftest import run_record
from tutelage.compare import measures, plan
from tutelage.compare.config import ComparisonRecipe
from tutelage.compare.records import Score
from tutelage.errors import UserError

MakeRecipe = Callable[..., ComparisonRecipe]
GRID = {"train.learning_rate": [0.001, 0.01, 0.1]}


def test_a_task_without_a_metric_compares_nothing(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    task = {"name": "jsonl", "data": str(tmp_path), "options": {"metric": "none"}}
    recipe = make_recipe(base={"student": "a", "teacher": "b", "task": task})
    cells = [plan.make_cell(recipe, variant, {}, 0) for variant in plan.expand(recipe)]
    with pytest.raises(
        UserError, match=r"method kd: the jsonl task has metric none.*task\.options\.metric to exact_match"
    ):
        measures.check_tasks(cells)
    recipe = make_recipe(base={"student": "a", "teacher": "b", "task": {**task, "options": {}}})
    measures.check_tasks([plan.make_cell(recipe, plan.expand(recipe)[0], {}, 0)], [("exact_match", "greedy")])


@pytest.mark.parametrize(
    ("files", "options", "missing", "ways"),
    [
        (["train"], {}, "validation", "task.options.validation_data or task.options.validation_fraction"),
        (["train"], {"validation_fraction": 0.5}, "test", "task.options.test_data"),
        (["train", "validation"], {}, "test", "task.options.test_data"),
    ],
)
def test_a_comparison_needs_three_splits(
    files: list[str], options: dict[str, float], missing: str, ways: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    rows = "".join(f'{{"prompt": "{number}", "completion": "b"}}\n' for number in range(20))
    for split in files:
        (tmp_path / f"{split}.jsonl").write_text(rows)
    data = str(tmp_path if len(files) > 1 else tmp_path / "train.jsonl")
    task = {"name": "jsonl", "data": data, "options": options}
    recipe = make_recipe(base={"student": "a", "teacher": "b", "task": task})
    cells = [plan.make_cell(recipe, variant, {}, 0) for variant in plan.expand(recipe)]
    with pytest.raises(UserError) as caught:
        measures.check_tasks(cells)
    assert str(caught.value) == (
        f"method kd: {data} has no {missing} split, and a comparison needs all three: it trains on train, chooses hyperparameters on "
        f"validation and tests once on test. Under base, set {ways}, or task.data to a folder with train.jsonl, validation.jsonl, "
        "test.jsonl"
    )


@pytest.mark.parametrize("measure", ["reverse_kl", "completion_length", "acuracy"])
def test_only_a_metric_of_the_task_selects(measure: str, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(select_by=f"{measure}, greedy")
    cells = [plan.make_cell(recipe, plan.expand(recipe)[0], {}, 0)]
    with pytest.raises(UserError, match=f"select_by={measure}, greedy: .* is none; .*known are accuracy, "):
        measures.check_tasks(cells, recipe.selection)
    measures.check_tasks(cells, [("accuracy", "greedy"), ("step_accuracy", "greedy")])


def cells_of(recipe: ComparisonRecipe) -> list[plan.Cell]:
    return [plan.make_cell(recipe, variant, point, 0) for variant in plan.expand(recipe) for point in variant.grid]


def test_the_reward_selects_where_every_searched_method_measures_one(make_recipe: MakeRecipe) -> None:
    rl = {"name": "rl", "method": "rl_gkd", "rl": {"reward": "accuracy"}}
    recipe = make_recipe(
        select_by="reward, greedy", methods=[rl, {"name": "kd", "method": "supervised_kd"}], search=GRID
    )
    searched = cells_of(recipe)
    measures.check_tasks(searched, recipe.selection)
    measures.check_selection(searched[:3], recipe.selection)
    measures.check_selection(searched, [("accuracy", "greedy")])
    with pytest.raises(
        UserError,
        match=r"select_by=reward, greedy: method kd measures no reward; set its rl\.reward \(with rl\.alpha 1",
    ):
        measures.check_selection(searched, recipe.selection)
    silent = make_recipe(select_by="reward, greedy", methods=[{**rl, "eval.reward": False}], search=GRID)
    with pytest.raises(UserError, match=r"method rl measures no reward; .*eval\.reward must be true"):
        measures.check_selection(cells_of(silent), silent.selection)


def test_a_reward_is_not_averaged_with_percentages(make_recipe: MakeRecipe) -> None:
    rl = {"name": "rl", "method": "rl_gkd", "rl": {"reward": "accuracy"}}
    recipe = make_recipe(select_by=["accuracy, greedy", "reward, greedy"], methods=[rl], search=GRID)
    with pytest.raises(
        UserError, match="select_by=reward, greedy beside a metric of the task: a reward has a unit of its own"
    ):
        measures.check_selection(cells_of(recipe), recipe.selection)


def test_runs_that_did_not_measure_what_selects_are_named(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(select_by="reward, greedy")
    measured = run_record([0.0, 1.0])
    reward = Score(metric="reward", decoding="greedy", value=0.5)
    finished = {"a": measured, "b": measured.model_copy(update={"scores": (*measured.scores, reward)})}
    with pytest.raises(UserError, match=r"select_by=reward, greedy: .* earlier version .* again: \S+/compare/runs/a$"):
        measures.check_measured(finished, recipe)
    measures.check_measured({"b": finished["b"]}, recipe)
    measures.check_measured(finished, make_recipe(select_by="accuracy, greedy"))


def needs_hint(prompt: str, completion: str, reference: str | None, example: Any) -> float:
    return float(len(example["hint"]))


def test_a_reward_meets_a_row_of_every_split_before_anything_is_trained(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    for split in ("train", "validation", "test"):
        hint = {} if split == "test" else {"hint": "h"}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b", **hint}) + "\n")
    rl = {"name": "rl", "method": "rl_gkd", "rl": {"reward": f"{__name__}:needs_hint"}}
    base = {"student": "a", "teacher": "b", "task": {"name": "jsonl", "data": str(tmp_path)}}
    with pytest.raises(
        UserError,
        match=r"method rl: the reward \S+:needs_hint raised KeyError: 'hint', for the completion 'b' of the prompt 'a'",
    ):
        measures.check_tasks(cells_of(make_recipe(base=base, methods=[rl])))
    measures.check_tasks(cells_of(make_recipe(base=base, methods=[{**rl, "eval.reward": False}])))
