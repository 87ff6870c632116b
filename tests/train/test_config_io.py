from __future__ import annotations

from pathlib import Path

import pytest

from tutelage.errors import UserError
from tutelage.train import config_io
from tutelage.train.config import Config, Recipe

MODELS = {"student": "s", "teacher": "t"}


def test_keys_are_dotted_and_reach_into_nested_sections() -> None:
    keys = config_io.keys()
    assert {"student", "train.steps", "student_model.lora.rank", "task.options"} <= keys.keys()
    assert "train" not in keys
    assert keys["train.steps"].description == "Optimiser steps."


def test_every_key_has_a_help_text() -> None:
    assert [key for key, info in config_io.keys().items() if not info.description] == []


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"train": {"step": 5}}, "unknown key train.step; did you mean train.steps?"),
        ({"trian": {"steps": 5}}, "unknown key trian; did you mean train"),
        ({"methd": "gkd"}, "unknown key methd; did you mean method?"),
        ({"train": {"lr": 1e-3}}, "unknown key train.lr; did you mean train.learning_rate?"),
        ({"log": {"zzzz": 1}}, "unknown key log.zzzz; known are log.trackers, log.project, log.progress, log.samples"),
        ({"train.steps": "many"}, "train.steps: saw 'many', needs a valid integer"),
        ({"train.steps": 0}, "train.steps: saw 0, needs greater than or equal to 1"),
        ({"train": None}, "train: saw None, needs a section"),
        ({"eval.temperatures": ["hot"]}, "eval.temperatures: saw 'hot', needs a valid number"),
        ({"fixed_data": "web"}, "fixed_data: saw 'web', needs 'dataset' or 'teacher'"),
        ({"student_data_fraction": 1.5}, "student_data_fraction: saw 1.5, needs less than or equal to 1"),
        ({"divergence": "jsd(1)"}, "outside (0, 1)"),
        ({"divergence": "jsd(0)"}, "forward_kl"),
        ({"divergence": "foward_kl"}, "forward_kl"),
        (
            {"train.warmup_steps": 10, "train.steps": 10},
            "train.warmup_steps is 10, but the run has only train.steps=10",
        ),
        ({"student": None}, "no student given: set --student"),
        ({"teacher": None}, "method=gkd needs a teacher: set --teacher"),
        ({"method": "gdk"}, "did you mean 'gkd'?"),
        ({"method": "sft", "divergence": "forward_kl"}, "takes no divergence"),
        ({"student_model.init": "teacher_layers"}, "needs student_model.layers"),
        ({"train.steps": 5, "train": {"steps": 6}}, "train.steps is given twice"),
    ],
)
def test_bad_input_names_key_and_remedy(raw: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        config_io.build({**MODELS, **raw})
    assert message in str(caught.value)


def test_all_problems_come_in_one_error() -> None:
    with pytest.raises(UserError) as caught:
        config_io.build({"student_model.lora.target_modules": 3, "train": {"steps": "x", "batch_sise": 2}})
    lines = str(caught.value).splitlines()
    assert lines[0] == "the configuration has 3 problems:"
    assert lines[1].startswith("  student_model.lora.target_modules: saw 3, needs ")
    assert lines[2].startswith("  train.steps: saw 'x', needs a valid integer")
    assert lines[3] == "  unknown key train.batch_sise; did you mean train.batch_size?"


def test_recipe_may_be_partial() -> None:
    assert config_io.validate(Recipe, {"train": {"warmup_steps": 5000}}).train.warmup_steps == 5000


def test_yaml_is_read_with_exponents_and_survives_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "student: s\nteacher: t\ntrain: {learning_rate: 3e-4, betas: [0.8, 0.9]}\ntask: {options: {a: 1}}\n"
    )
    config = config_io.build(config_io.load_yaml(path))
    assert config.train.learning_rate == 3e-4
    assert config.train.betas == (0.8, 0.9)
    config_io.save(config, path)
    assert config_io.build(config_io.load_yaml(path)) == config


def test_empty_yaml_is_an_empty_recipe(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n")
    assert config_io.load_yaml(path) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"student: s\ntrain: {steps: 5\n", "line 3"),
        (b"- a\n- b\n", "holds a list"),
        (b"student: \xff\n", "not UTF-8"),
    ],
)
def test_bad_yaml_names_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        config_io.load_yaml(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_missing_yaml(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the recipe .*none\.yaml: No such file"):
        config_io.load_yaml(tmp_path / "none.yaml")


def test_deep_merge_replaces_values_and_keeps_neighbours() -> None:
    base = {"a": {"b": 1, "c": [1]}, "d": 1}
    assert config_io.deep_merge(base, {"a": {"c": [2, 3]}, "e": {"f": 1}}) == {
        "a": {"b": 1, "c": [2, 3]},
        "d": 1,
        "e": {"f": 1},
    }
    assert base == {"a": {"b": 1, "c": [1]}, "d": 1}


def test_initials_stand_for_the_one_key_that_has_them() -> None:
    known = ["steps", "train.batch_size", "train.learning_rate", "loss.learned_ratio", "train.beam_search"]
    assert config_io.abbreviated("train.lr", known) == "train.learning_rate"
    assert config_io.abbreviated("loss.lr", known) == "loss.learned_ratio"
    assert config_io.abbreviated("lr", known) is None  # either
    assert config_io.abbreviated("train.bs", known) is None  # either
    assert config_io.abbreviated("s", known) is None  # one word has no initials
    assert config_io.abbreviated("train.lr", [*known, "train.lr"]) is None  # a key of its own


def test_flat_arguments_find_their_section() -> None:
    options = {"train.batch_size": 4}
    config = config_io.from_flat(**MODELS, steps=7, train={"clip_norm": None}, rank=8, output=Path("out"), **options)
    assert isinstance(config, Config)
    assert (config.train.steps, config.train.batch_size, config.train.clip_norm) == (7, 4, None)
    assert config.student_model.lora.rank == 8
    assert config.output == Path("out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.5}, "temperature could be rollout.temperature or loss.temperature"),
        ({"dropout": 0.1}, "student_model.dropout or student_model.lora.dropout"),
        ({"stepz": 5}, "unknown key stepz; did you mean train.steps?"),
        ({"lr": 5}, "unknown key lr; did you mean train.learning_rate?"),
        ({"steps": 5, "train": {"steps": 6}}, "train.steps is given twice"),
        ({"steps": 5, "train.steps": 6}, "train.steps is given twice"),
    ],
)
def test_flat_arguments_that_fit_nowhere_or_twice(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        config_io.from_flat(**MODELS, **arguments)
    assert message in str(caught.value)
