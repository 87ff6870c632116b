from __future__ import annotations

import torch

from tests.conftest import build_model, fixed_rollouts
from tutelage.train.prepass import read_tokens
from tutelage.types import MicroBatch


def test_values_come_back_in_the_order_of_the_sequences_without_gradients() -> None:
    student = build_model("gpt2", dropout=0.5)
    student.module.train()
    rollouts = fixed_rollouts()
    rows = []

    def tokens(micro: MicroBatch) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        rows.append(len(micro.rollouts))
        return micro.targets_N.double()

    found = read_tokens(student, rollouts, 20, tokens)
    assert found == [list(rollout.completion_ids) for rollout in rollouts]
    assert len(rows) > 1
    assert sum(rows) == len(rollouts)
    assert not student.module.training
    assert read_tokens(student, [], 20, tokens) == []
