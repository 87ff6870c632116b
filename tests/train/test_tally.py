from __future__ import annotations

import math

import pytest
import torch

from tests.conftest import fixed_rollouts
from tutelage.fused import TokenStats
from tutelage.models.student import StudentOutput
from tutelage.train.tally import Tally
from tutelage.types import FinishReason, Rollout, SourceName


def rollout(length: int, reason: FinishReason, source: SourceName) -> Rollout:
    return Rollout((5,), (7,) * length, None, reason, 0, 0, 0, source)


def output(loss: float, *tokens: float) -> StudentOutput:
    """Statistics that tell one from another: multiples of `tokens`."""
    t = torch.tensor(tokens)
    return StudentOutput(torch.tensor(loss), TokenStats(t, 2 * t, 3 * t, 4 * t, 5 * t, 6 * t))


ROLLOUTS = [rollout(3, "stop", "student"), rollout(1, "length", "student"), rollout(4, "data", "dataset")]


def test_losses_add_up_and_statistics_are_means_over_all_tokens() -> None:
    tally = Tally(ROLLOUTS)
    tally.add(output(0.25, 1.0, 2.0, 3.0))
    tally.add(output(0.5, 4.0, 5.0, 6.0, 7.0, 8.0))
    assert tally.loss.item() == 0.75
    record = tally.record(torch.tensor(1.5))
    assert record == {
        "loss": 0.75, "divergence": 4.5, "student_entropy": 9.0, "agreement": 13.5, "forward_kl": 18.0,
        "reverse_kl": 22.5, "teacher_entropy": 27.0, "grad_norm": 1.5, "completion_length": pytest.approx(8 / 3),
        "finish": {"stop": 1 / 3, "length": 1 / 3, "data": 1 / 3}, "student_share": 2 / 3, "tokens": 8, "sequences": 3,
        "finite": True,
    }  # fmt: skip


def test_the_loss_keeps_no_graph() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    tally = Tally(ROLLOUTS)
    tally.add(StudentOutput(weight * 3, TokenStats(*[torch.zeros(8)] * 3)))
    assert not tally.loss.requires_grad


def test_without_a_teacher_its_statistics_are_left_out() -> None:
    tally = Tally(fixed_rollouts(((2, 2),)))
    tally.add(StudentOutput(torch.tensor(1.0), TokenStats(*[torch.ones(2)] * 3)))
    record = tally.record(torch.tensor(1.0))
    assert {"forward_kl", "reverse_kl", "teacher_entropy"}.isdisjoint(record)
    assert record["finish"] == {"stop": 0.0, "length": 0.0, "data": 1.0}


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_not_finite_is_told(loss: float, norm: float) -> None:
    tally = Tally(ROLLOUTS)
    tally.add(output(1.0, 1.0))
    tally.add(output(loss, 1.0))
    assert tally.record(torch.tensor(norm))["finite"] is False
