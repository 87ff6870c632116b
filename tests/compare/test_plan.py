from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.compare.conftest import BASE, run_record
from tutelage.compare import measures, plan
from tutelage.compare.config import ComparisonRecipe
from tutelage.compare.plan import Choice
from tutelage.compare.records import RunRecord
from tutelage.errors import UserError

MakeRecipe = Callable[..., ComparisonRecipe]
GRID = {"train.learning_rate": [0.001, 0.01, 0.1]}


def test_divergences_and_fractions_spell_out_a_method(make_recipe: MakeRecipe) -> None:
    entry = {
        "name": "gkd",
        "label": "GKD",
        "method": "gkd",
        "divergences": ["forward_kl", "jsd(0.1)"],
        "fractions": [0.5, 1],
    }
    variants = plan.expand(make_recipe(methods=[{"name": "kd", "method": "supervised_kd"}, entry]))
    assert [variant.name for variant in variants] == [
        "kd", "gkd forward_kl 0.5", "gkd forward_kl 1", "gkd jsd(0.1) 0.5", "gkd jsd(0.1) 1",
    ]  # fmt: skip
    assert variants[3].label == "GKD, jsd(0.1), fraction 0.5"
    assert (variants[3].keys["divergence"], variants[3].keys["student_data_fraction"]) == ("jsd(0.1)", 0.5)
    assert variants[3].keys["train"] == {"steps": 4, "device": "cpu"}


def test_the_runs_of_search_and_comparison(make_recipe: MakeRecipe) -> None:
    methods = [
        {"name": "kd", "method": "supervised_kd", "search": {}},
        {"name": "gkd", "method": "gkd", "train": {"batch_size": 8}, "search": {**GRID, "train.steps": [4, 5]}},
        {"name": "other", "method": "gkd"},
        {"name": "many", "method": "gkd", "search": {}, "seeds": [3, 1, 2]},
    ]
    recipe = make_recipe(methods=methods, search=GRID, search_seeds=[0, 7])
    variants = plan.expand(recipe)
    cells = plan.search_cells(recipe, variants)
    # kd has nothing to choose; gkd 3 x 2 points, other 3; two seeds each.
    assert [sum(cell.variant == name for cell in cells) for name in ("kd", "gkd", "other")] == [0, 12, 6]
    assert len({cell.folder for cell in cells}) == 18
    config = cells[3].config
    assert cells[3].label == "gkd (learning_rate 0.001, steps 5), seed 7"
    assert (config.train.learning_rate, config.train.steps, config.seed, config.train.batch_size) == (0.001, 5, 7, 8)
    assert (config.eval.final, config.eval.limit, config.eval.temperatures) == ("validation", 200, (0.0,))
    finals = plan.final_cells(recipe, variants[2], {"train.learning_rate": 0.01})
    assert [cell.config.seed for cell in finals] == [0, 1]
    assert finals[0].folder in {cell.folder for cell in cells}
    assert finals[1].folder not in {cell.folder for cell in cells}
    assert [cell.config.seed for cell in plan.final_cells(recipe, variants[3], {})] == [3, 1, 2]  # its own


def test_a_folder_is_named_by_what_shapes_the_run(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    def folder(**changes: object) -> str:
        recipe = make_recipe(**changes)
        return plan.make_cell(recipe, plan.expand(recipe)[1], {}, 0).folder.name

    same = folder()
    assert folder(test_limit=5, resamples=7, jobs=2, test_temperatures=[0.5]) == same
    assert (
        folder(methods=[{"name": "x", "method": "sft", "teacher": None}, {"name": "renamed", "method": "gkd"}]) == same
    )
    others = [folder(validation_limit=3), folder(temperatures=[1.0])]
    others.append(folder(methods=[{"name": "a"}, {"name": "gkd", "train.batch_size": 5}]))
    others.append(folder(methods=[{"name": "a"}, {"name": "gkd", "eval.teacher_divergence": False}]))
    assert len({same, *others}) == 5
    assert folder(methods=[{"name": "a"}, {"name": "gkd", "eval.reward": False}]) == same
    rl = {"name": "rl", "method": "rl_gkd", "rl": {"reward": "accuracy"}}
    measured, silent = (folder(methods=[{"name": "a"}, {**rl, "eval.reward": reward}]) for reward in (True, False))
    assert measured == folder(methods=[{"name": "a"}, rl]) != silent


@pytest.mark.parametrize("role", ["student", "teacher", "other_teachers"])
def test_a_model_trained_anew_is_another_model(make_recipe: MakeRecipe, tmp_path: Path, role: str) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    found = []
    for content in (b"old", b"new", b"old"):
        weights.write_bytes(content)
        folder = str(weights.parent)
        models = {"student": "hub/one", "teacher": "hub/two", role: (folder,) if role == "other_teachers" else folder}
        recipe = make_recipe(base=models)
        found.append(plan.make_cell(recipe, plan.expand(recipe)[0], {}, 0).folder.name)
    assert found[0] == found[2] != found[1]


def test_addresses_stay_what_they_were(make_recipe: MakeRecipe) -> None:
    """A version that names runs anew trains all of them anew."""
    recipe = make_recipe(methods=[{"name": "sft", "method": "sft", "teacher": None}, {"name": "gkd", "method": "gkd"}])
    names = [plan.make_cell(recipe, variant, {}, 0).folder.name for variant in plan.expand(recipe)]
    assert names == ["4549fd319f9bc507", "d65da4cc6737feaa"]


def test_other_content_behind_the_same_name_is_another_run(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"

    def folder(content: str) -> str:
        rows.write_text(content)
        recipe = make_recipe(base={"student": "a", "teacher": "b", "task.data": str(rows)})
        return plan.make_cell(recipe, plan.expand(recipe)[0], {}, 0).folder.name

    assert folder("one") == folder("one") != folder("other")


def test_what_the_base_gives_in_vain_is_left_out(make_recipe: MakeRecipe) -> None:
    teaching = {"teacher_model.dtype": "float32", "loss.teacher_temperature": 0.5, "divergence": "reverse_kl"}
    others = {"other_teachers": ["another"], "teacher_weights": [0.5, 0.5]}
    methods = [{"name": "plain", "method": "sft"}, {"name": "gkd", "method": "gkd"}]
    recipe = make_recipe(base={**BASE, **teaching, **others}, methods=methods)
    cells = [plan.make_cell(recipe, variant, {}, seed) for variant in plan.expand(recipe) for seed in (0, 1)]
    plain, gkd = cells[0], cells[2]
    assert set(plain.left_out) == {
        "divergence", "loss.teacher_temperature", "teacher_weights", "other_teachers", "teacher", "teacher_model",
    }  # fmt: skip
    assert (plain.config.teacher, plain.config.train.steps) == (None, 4)
    assert gkd.left_out == ()
    assert (gkd.config.teacher, gkd.config.loss.teacher_temperature, gkd.config.divergence) == (
        "tiny-teacher", 0.5, "reverse_kl",
    )  # fmt: skip
    assert plan.notes(cells) == [
        f"plain is without {', '.join(plain.left_out)} of the base, which would have no effect on it."
    ]
    bare = make_recipe(methods=[{"name": "bare", "method": "sft", "teacher": None}])
    assert plain.folder.name == plan.make_cell(bare, plan.expand(bare)[0], {}, 0).folder.name


@pytest.mark.parametrize(
    ("entry", "point", "message"),
    [
        ({"teacher": "mine"}, {}, "method plain: teacher=mine has no effect: method=sft has no teacher"),
        ({"loss.temperature": 2.0}, {}, r"method plain: loss\.temperature=2\.0 has no effect"),
        ({"divergences": ["reverse_kl"]}, {}, "method plain reverse_kl: method=sft .* takes no divergence"),
        (
            {"method": "seqkd", "other_teachers": ["b"]},
            {},
            "method plain: other_teachers=b with fixed_data=teacher: .* none of them writes",
        ),
        ({}, {"loss.temperature": 2.0}, r"method plain: loss\.temperature=2\.0 has no effect"),
    ],
)
def test_what_a_method_is_given_in_vain_is_an_error(
    entry: dict[str, Any], point: dict[str, Any], message: str, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe(methods=[{"name": "plain", "method": "sft", **entry}])
    with pytest.raises(UserError, match=message):
        plan.make_cell(recipe, plan.expand(recipe)[0], point, 0)


def test_wrong_plans(make_recipe: MakeRecipe) -> None:
    with pytest.raises(UserError, match="two are called 'gkd'"):
        plan.expand(make_recipe(methods=[{"name": "gkd"}, {"name": "gkd"}]))
    with pytest.raises(UserError, match="baseline=kdd is none of the methods; did you mean 'kd'"):
        plan.expand(make_recipe(baseline="kdd"))
    recipe = make_recipe(methods=[{"name": "gkd", "task.options.levell": "easy"}])
    with pytest.raises(UserError, match="method gkd: the arithmetic task has no option 'levell'"):
        measures.check_tasks([plan.make_cell(recipe, plan.expand(recipe)[0], {}, 0)])


def choose(recipe: ComparisonRecipe, values: dict[float, list[float]]) -> Choice | None:
    """The choice where the runs of a rate's search seeds end with these values; those left out have failed."""
    variant = plan.expand(recipe)[0]
    records: dict[str, RunRecord] = {}
    for rate, several in values.items():
        for seed, value in zip(recipe.search_seeds, several, strict=False):
            cell = plan.make_cell(recipe, variant, {"train.learning_rate": rate}, seed)
            records[cell.folder.name] = run_record([0.0, value])
    return plan.choose(recipe, variant, records)


def test_the_best_mean_over_seeds_is_chosen(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(search=GRID, search_seeds=[0, 1], select_by="accuracy, greedy")
    choice = choose(recipe, {0.001: [10, 20], 0.01: [17, 18], 0.1: [34, 0]})
    assert choice is not None
    assert (choice.point, choice.score, choice.edges) == ({"train.learning_rate": 0.01}, 17.5, ())
    assert [score for _, score in choice.tried] == [15.0, 17.5, 17.0]


def test_a_choice_at_the_edge_says_so(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(search=GRID, search_seeds=[0])
    choice = choose(recipe, {0.001: [10], 0.01: [17], 0.1: [34]})
    assert choice is not None
    assert choice.edges == ("train.learning_rate",)


def test_a_point_with_a_failed_run_is_not_chosen(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(search=GRID, search_seeds=[0, 1])
    choice = choose(recipe, {0.001: [10, 11], 0.01: [12, 13], 0.1: [99]})
    assert choice is not None
    assert choice.point == {"train.learning_rate": 0.01}
    assert choice.tried[2] == ({"train.learning_rate": 0.1}, None)
    assert choose(recipe, {}) is None


@pytest.mark.parametrize(
    ("rates", "best", "at_edge"),
    [(["1e-4", "3e-4", 1e-3], 1e-3, True), (["5e-5", 0.0001, 0.0003], 0.0001, False), (["1e-4", "3e-4", 1e-3], 3e-4, False)],
)  # fmt: skip
def test_numbers_that_yaml_takes_for_text_are_numbers(
    rates: list[Any], best: float, at_edge: bool, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe(search={"train.learning_rate": rates}, search_seeds=[0])
    choice = choose(recipe, {float(rate): [20.0 if float(rate) == best else 10.0] for rate in rates})
    assert choice is not None
    assert choice.point == {"train.learning_rate": best}
    assert choice.edges == (("train.learning_rate",) if at_edge else ())
    assert [point["train.learning_rate"] for point, _ in choice.tried] == [float(rate) for rate in rates]


def test_a_value_of_a_grid_is_read_as_a_run_reads_it(make_recipe: MakeRecipe) -> None:
    mixed = {
        "train.steps": ["8"],
        "train.clip_norm": [None],
        "train.betas": [[0.9, "0.95"]],
        "task.options.size": ["1e-4"],
    }
    (variant,) = plan.expand(make_recipe(methods=[{"name": "gkd"}], search=mixed))
    assert variant.grid == (
        {"train.steps": 8, "train.clip_norm": None, "train.betas": (0.9, 0.95), "task.options.size": "1e-4"},
    )
    wrong = make_recipe(methods=[{"name": "gkd"}], search={"train.learning_rate": ["fast"]})
    with pytest.raises(UserError, match=r"method gkd: train\.learning_rate: saw 'fast', needs a valid number"):
        plan.expand(wrong)


def test_edges_are_of_numbers_that_vary() -> None:
    grid = [{"a": 1, "b": "x", "c": 2}, {"a": 2, "b": "y", "c": 2}, {"a": 3, "b": "z", "c": 2}]
    assert [plan.edges(point, grid) for point in grid] == [("a",), (), ("a",)]
    switch = [{"on": False}, {"on": True}]
    assert [plan.edges(point, switch) for point in switch] == [(), ()]
