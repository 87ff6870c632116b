from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tutelage.errors import UserError
from tutelage.rewards.base import FunctionReward, Sample

SAMPLES = [Sample("1 + 2 =", "3", "3", {"result": 3}), Sample("1 + 3 =", "5" * 300, None, {"result": 4})]


def test_a_function_gets_prompt_completion_reference_and_row() -> None:
    seen = []

    def reward(prompt: str, completion: str, reference: str | None, example: Any) -> float:
        seen.append((prompt, completion, reference, example))
        return float(len(completion))

    assert FunctionReward("f", reward)(SAMPLES) == [1.0, 300.0]
    assert seen == [("1 + 2 =", "3", "3", {"result": 3}), ("1 + 3 =", "5" * 300, None, {"result": 4})]


@pytest.mark.parametrize("value", [1, True, np.float32(1), np.int64(1), Fraction(1)])
def test_numbers_of_every_kind(value: Any) -> None:
    [reward] = FunctionReward("f", lambda *_: value)(SAMPLES[:1])
    assert type(reward) is float
    assert reward == 1.0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "returned nan, but a reward is finite"),
        (-math.inf, "returned -inf, but a reward is finite"),
        (None, "returned None of type NoneType, but a reward is a number"),
        ("0.5", "returned '0.5' of type str, but a reward is a number"),
    ],
)
def test_other_values_name_the_sample(value: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        FunctionReward("pkg:f", lambda *_: value)(SAMPLES[:1])
    assert f"the reward pkg:f {message}, for the completion '3' of the prompt '1 + 2 ='" in str(raised.value)
    assert "correct the reward; a run that had begun its steps goes on" in str(raised.value)


def test_what_a_function_raises_names_the_sample_and_keeps_its_cause() -> None:
    def reward(prompt: str, completion: str, reference: str | None, example: Any) -> float:
        return 1.0 / len(reference)  # type: ignore[arg-type]

    with pytest.raises(UserError, match=r"the reward f raised TypeError: .* of the prompt '1 \+ 3 ='") as raised:
        FunctionReward("f", reward)(SAMPLES)
    assert isinstance(raised.value.__cause__, TypeError)
    assert f"completion '{'5' * 200}...'" in str(raised.value)  # long texts are cut
