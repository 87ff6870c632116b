from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.compare.conftest import raw_recipe
from tutelage.compare import plan
from tutelage.compare.config import ComparisonRecipe, points, read
from tutelage.errors import UserError
from tutelage.train.methods import resolve

RECIPES = Path(__file__).parents[2] / "recipes" / "compare"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "^seed is set by the comparison; drop it, and use seeds"),
        ({"sedes": [1]}, r"^unknown key sedes; did you mean seeds\?"),
        ({"methodz": []}, r"^unknown key methodz; did you mean methods\?"),
        ({"train": {"steps": 3}}, r"^unknown key train; did you mean base\.train\?"),
        ({"learning_rat": 1.0}, r"^unknown key learning_rat; did you mean base\.train\.learning_rate\?"),
        ({"base": {"train": {"stepz": 3}}}, r"base: unknown key train\.stepz; did you mean train\.steps\?"),
        ({"base": {"seed": 3}}, "base: seed is set by the comparison; drop it, and use seeds"),
        ({"base": {"eval.limit": 3}}, r"base: eval\.limit is set by the comparison; drop it, and use validation_limit"),
        ({"methods": [{"name": "a", "divergense": "jsd(0.5)"}]}, r"methods, entry 1 \(a\): unknown key divergense; did you"),
        ({"methods": [{"name": "a", "output": "x"}]}, "method a: output is set by the comparison"),
        ({"methods": [{"method": "gkd"}]}, "methods, entry 1: name: "),
        ({"methods": ["gkd"]}, "methods, entry 1: saw 'gkd', needs a mapping"),
        ({"methods": []}, r"methods: saw \[\], needs a list of methods"),
        (
            {"methods": [{"name": "a", "fractions": [0.5], "student_data_fraction": 1.0}]},
            "method a has both fractions and student_data_fraction; keep one",
        ),
        ({"search": {"train.learning_rat": [1.0]}}, r"search: unknown key train\.learning_rat; did you mean train\.learning"),
        ({"search": {"seed": [1, 2]}}, "search: seed is set by the comparison"),
        ({"search": {"train.steps": []}}, r"search: train\.steps has no values"),
        ({"search": [{"train.steps": 1}, {"seed": 2}]}, "search: seed is set"),
        ({"search": [{"train.steps": 1}, {"train.batch_size": 2}]}, "search: its points name different keys"),
        ({"select_by": "accuracy"}, 'select_by=accuracy: needs a metric and a decoding, as in "accuracy, greedy"'),
        ({"select_by": "accuracy, gredy"}, "select_by=accuracy, gredy: validation is not decoded so; did you mean 'greedy'"),
        ({"test_temperatures": [0, -0.5]}, r"test_temperatures=\[0\.0, -0\.5\]: a temperature is 0 \(greedy\) or above"),
        ({"test_temperatures": [float("nan")]}, r"test_temperatures=\[nan\]: a temperature is 0 \(greedy\) or above"),
        ({"test_temperatures": [1.0, 1]}, r"test_temperatures=\[1\.0, 1\.0\] has a temperature twice; give each once"),
        ({"temperatures": [-1]}, r"^temperatures=\[-1\.0\]: a temperature is 0 \(greedy\) or above"),
        ({"temperatures": [0, 0]}, r"^temperatures=\[0\.0, 0\.0\] has a temperature twice"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\] has a seed twice"),
        ({"methods": [{"name": "a", "seeds": [2, 2]}]}, r"seeds of method a=\[2, 2\] has a seed twice"),
    ],
)  # fmt: skip
def test_errors_name_the_place_and_the_fix(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read(raw_recipe(tmp_path, **changes))


def test_an_unknown_key_comes_before_the_methods_that_are_missing_for_it() -> None:
    with pytest.raises(UserError, match=r"^unknown key methodz; did you mean methods\?"):
        read({"methodz": [{"name": "gkd", "method": "gkd"}]})


def test_options_replace_keys_of_the_recipe(tmp_path: Path) -> None:
    raw = raw_recipe(tmp_path, base={"train.steps": 4, "student": "a", "teacher": "b"})
    recipe = read(raw, {"jobs": 7, "base": {"train": {"steps": 9}}})
    assert (recipe.jobs, recipe.base.train.steps, recipe.base.student) == (7, 9, "a")


def test_points_of_a_grid_and_of_a_list() -> None:
    assert points({}) == ({},)
    assert points({"a": [1, 2], "b": [3]}) == ({"a": 1, "b": 3}, {"a": 2, "b": 3})
    assert points([{"a": 1, "b": 0.1}, {"a": 2, "b": 0.2}]) == ({"a": 1, "b": 0.1}, {"a": 2, "b": 0.2})


def test_decodings_and_selection(make_recipe: Callable[..., ComparisonRecipe]) -> None:
    recipe = make_recipe(temperatures=[0.0, 0.5], select_by=["accuracy, greedy", "accuracy,T=0.5"])
    assert recipe.decodings == ("greedy", "T=0.5")
    assert recipe.selection == (("accuracy", "greedy"), ("accuracy", "T=0.5"))


def test_the_arithmetic_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES.parents[1])
    recipe = read(RECIPES / "arithmetic.yaml")
    variants = plan.expand(recipe)
    assert [variant.name for variant in variants] == ["supervised KD", "on-policy GKD"]
    cells = plan.search_cells(recipe, variants)
    assert len({cell.folder for cell in cells}) == 2 * 2
    gkd = cells[-1].config
    assert gkd.task.options == {"train_size": 10000, "validation_size": 200, "test_size": 500}
    assert (gkd.train.matrix_learning_rate, gkd.train.learning_rate, gkd.divergence) == (0.02, 0.001, "forward_kl")


def test_the_recipe_of_all_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES.parents[1])
    recipe = read(RECIPES / "baselines.yaml")
    variants = plan.expand(recipe)
    assert len({cell.folder for cell in plan.search_cells(recipe, variants)}) == 8 * 2
    objectives = {}
    for variant in variants:
        cell = plan.make_cell(recipe, variant, {}, 0)
        found = resolve(cell.config)
        divergence = None if found.divergence is None else found.divergence.name
        objectives[variant.name] = (divergence, found.student_data_fraction, found.fixed_data, cell.left_out)
    assert objectives == {
        "SFT": (None, 0.0, "dataset", ("teacher", "teacher_model")),
        "SeqKD": (None, 0.0, "teacher", ()),
        "supervised KD": ("forward_kl", 0.0, "dataset", ()),
        "on-policy KD": ("forward_kl", 1.0, "dataset", ("task.fixed_examples",)),
        "ImitKD": ("forward_kl", 0.5, "dataset", ()),
        "f-distill": ("total_variation", 0.5, "dataset", ()),
        "on-policy GKD": ("jsd(0.5)", 1.0, "dataset", ("task.fixed_examples",)),
        "mixed GKD": ("jsd(0.5)", 0.5, "dataset", ()),
    }


def test_the_multi30k_recipe_needs_its_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = read(RECIPES.parent / "reproduce" / "multi30k_all.yaml", {"base": {"task": {"data": "here"}}})
    variants = plan.expand(recipe)
    assert [len(variant.grid) for variant in variants] == [2] * 3
    with pytest.raises(UserError, match=r"no model folder at 'runs/multi30k-student/model' \(.*\): train it first"):
        plan.search_cells(recipe, variants)
    for model in ("student", "teacher"):
        (tmp_path / f"runs/multi30k-{model}/model").mkdir(parents=True)
    assert len(plan.search_cells(recipe, variants)) == 3 * 2
