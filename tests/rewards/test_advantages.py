from __future__ import annotations

import pytest

from tutelage.rewards.advantages import Baseline, advantages

REWARDS = [1.0, 0.0, 0.5, 4.0, 4.0, 1.0]  # two groups of three


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("leave_one_out", [0.75, -0.75, 0.0, 1.5, 1.5, -3.0]),
        ("group", [0.5, -0.5, 0.0, 1.0, 1.0, -2.0]),
        ("none", REWARDS),
    ],
)
def test_by_hand(baseline: Baseline, expected: list[float]) -> None:
    assert advantages(REWARDS, 3, baseline) == pytest.approx(expected, abs=1e-15)


def test_group_is_leave_one_out_but_for_a_factor() -> None:
    others = advantages(REWARDS, 3, "leave_one_out")
    assert advantages(REWARDS, 3, "group") == pytest.approx([2 / 3 * a for a in others], abs=1e-15)


def test_single_samples_are_compared_with_the_rest_of_the_batch() -> None:
    assert advantages([1.0, 0.0, 2.0], 1, "leave_one_out") == pytest.approx([0.0, -1.5, 1.5], abs=1e-15)
    assert advantages([1.0, 0.0, 2.0], 3, "leave_one_out") == advantages([1.0, 0.0, 2.0], 1, "leave_one_out")


@pytest.mark.parametrize("baseline", ["leave_one_out", "group"])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e17])
def test_equal_rewards_cancel_exactly(baseline: Baseline, reward: float) -> None:
    assert advantages([reward] * 7 + [0.0, 1.0] * 3 + [1.0], 7, baseline)[:7] == [0.0] * 7


@pytest.mark.parametrize(("size", "group", "baseline"), [(1, 1, "leave_one_out"), (4, 1, "group"), (4, 3, "group")])
def test_a_sequence_needs_others(size: int, group: int, baseline: Baseline) -> None:
    with pytest.raises(ValueError, match=f"{size} rewards in groups of {group}"):
        advantages([1.0] * size, group, baseline)
