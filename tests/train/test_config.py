from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tutelage.cli_options import parse
from tutelage.errors import UserError
from tutelage.train import config_io
from tutelage.train.config import Config, Recipe, identity


def config(**raw: Any) -> Config:
    return config_io.build({"student": "s", "teacher": "t", **raw})


def test_configurations_are_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        config().train.steps = 5  # type: ignore[misc]


FREE: list[dict[str, Any]] = [
    {"output": "elsewhere"},
    {"resume": True},
    {"log.progress": False},
    {"eval.every": 5},
    {"eval.samples_per_prompt": 4},
    {"train.checkpoint_every": 7},
    {"train.device": "cpu"},
]
BOUND: list[dict[str, Any]] = [
    {"seed": 1},
    {"train.steps": 5},
    {"loss.temperature": 2.0},
    {"teacher": "u"},
    {"task.options": {"a": 1}},
    {"task.train_fraction": 0.5},
    {"other_teachers": ["u"]},
    {"rollout.top_k": 5},
]


@pytest.mark.parametrize("free", FREE)
def test_identity_ignores_what_cannot_change_the_trajectory(free: dict[str, Any]) -> None:
    assert identity(config(**free)) == identity(config())


@pytest.mark.parametrize("bound", BOUND)
def test_identity_holds_what_can(bound: dict[str, Any]) -> None:
    assert identity(config(**bound)) != identity(config())


def test_several_samples_need_a_temperature_above_0() -> None:
    assert config().eval.samples_per_prompt == 1
    assert config(**{"eval.samples_per_prompt": 4}).eval.samples_per_prompt == 4
    with pytest.raises(
        UserError, match=r"eval\.samples_per_prompt=4 needs a temperature above 0.*add one to eval\.temp"
    ):
        config(**{"eval.samples_per_prompt": 4, "eval.temperatures": [0.0]})
    with pytest.raises(UserError, match=r"eval\.samples_per_prompt"):
        config(**{"eval.samples_per_prompt": 0})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -1}, "seed: saw -1, needs greater than or equal to 0"),
        ({"seed": 2**64}, f"seed: saw {2**64}, needs less than {2**64}"),
        ({"train.betas": [0.9, 1]}, "train.betas: saw 1, needs less than 1"),
        ({"train.betas": [-0.1, 0.9]}, "train.betas: saw -0.1, needs greater than or equal to 0"),
        ({"eval.temperatures": [0.5, -1]}, "eval.temperatures: saw -1, needs greater than or equal to 0"),
        ({"eval.temperatures": []}, "eval.temperatures is empty; give at least one, 0 for greedy decoding"),
    ],
)
def test_numbers_that_would_fail_later(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        config(**wrong)
    assert str(error.value) == message


def test_the_least_of_these_numbers() -> None:
    made = config(**{"seed": 0, "train.betas": [0, 0.0], "eval.temperatures": [0]})
    assert (made.seed, made.train.betas, made.eval.temperatures) == (0, (0.0, 0.0), (0.0,))


def test_these_numbers_on_the_command_line() -> None:
    """Limits of the members of a tuple are for the section to check: the option's parser takes any numbers."""
    options = ["--train.betas", "0.9", "1", "--eval.temperatures", "-1", "0.7"]
    _, given = parse(Recipe, options, prog="tutelage train", description="")
    assert given == {"train": {"betas": (0.9, 1.0)}, "eval": {"temperatures": (-1.0, 0.7)}}
    with pytest.raises(
        UserError, match=r"train\.betas: saw 1\.0, needs less than 1\n  eval\.temperatures: saw -1\.0, needs"
    ):
        config(**given)


def test_teacher_layers_need_no_student() -> None:
    thinned = config_io.build({"teacher": "t", "student_model": {"init": "teacher_layers", "layers": 4}})
    assert thinned.student is None
    assert thinned.student_model.layers == 4


@pytest.mark.parametrize("name", ["data", "name", "use_chat", "train_fraction", "options"])
def test_keys_of_the_section_are_no_options_of_the_task(name: str) -> None:
    with pytest.raises(UserError, match=rf"^task\.options\.{name} is no option of a task; use task\.{name}$"):
        config(**{f"task.options.{name}": "x"})
    assert config(**{"task.options.max_prompt_tokens": 5}).task.options == {"max_prompt_tokens": 5}
