"""Policy weights of single batches, by hand; that they are the right ones is proved in conformance/test_sequence_level.py."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.conftest import build_model, fixed_rollouts, own_logits
from tutelage import divergences
from tutelage.data.batching import collate, token_weights
from tutelage.models.language_model import LanguageModel
from tutelage.models.student import Student
from tutelage.teacher.local import LocalTeacher
from tutelage.train.returns import SequenceReturns
from tutelage.types import Rollout

JSD = divergences.parse("jsd(0.5)")


def own(rollouts: list[Rollout]) -> list[Rollout]:
    return [replace(rollout, source="student", policy_version=0) for rollout in rollouts]


@torch.no_grad()
def marks(student: LanguageModel, teacher: LanguageModel, rollout: Rollout, temperature: float) -> list[float]:
    """The divergence at every token, by full logits."""
    micro = collate([rollout], [[1.0] * len(rollout.completion_ids)], student)
    logq, logp = ((own_logits(model, micro) / temperature).log_softmax(-1) for model in (student, teacher))
    found: list[float] = JSD.value(logp, logq).tolist()
    return found


def returns(
    student: LanguageModel, teacher: LanguageModel, temperature: float = 1.0, budget: int = 20
) -> SequenceReturns:
    scorer = LocalTeacher(teacher, "hidden", temperature)
    return SequenceReturns(Student(student, JSD, temperature), scorer, budget)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_token_answers_for_those_behind_it_against_the_other_sequences(family: str) -> None:
    student, teacher = build_model(family), build_model(family, seed=3, hidden=32)
    given, *written = fixed_rollouts()
    batch = [*own(written[:2]), given, *own(written[2:])]  # completions of 1, 6, (4), 5 and 3 tokens
    weights = token_weights(batch, "sequence")
    factors = [[0.5 + 0.1 * t for t in range(len(row) + 1)] for row in weights]
    found = returns(student, teacher, 1.3)(batch, weights, factors)
    costs = [
        [w * d for w, d in zip(row, marks(student, teacher, rollout, 1.3), strict=True)]
        for row, rollout in zip(weights, batch, strict=True)
    ]
    for i, row in enumerate(found):
        others = [costs[j] for j in range(5) if j not in (i, 2)]
        expected = [
            factors[i][t + 1] * sum(sum(other[t + 1 :]) for other in others) / 3 - sum(costs[i][t + 1 :])
            for t in range(len(row))
        ]
        assert row == pytest.approx([0.0] * 4 if i == 2 else expected, abs=1e-12)
    assert min(abs(value) for i, row in enumerate(found) if i != 2 for value in row[:3]) > 1e-4


@pytest.mark.usefixtures("exact")
def test_a_sequence_alone_has_no_baseline() -> None:
    student, teacher = build_model("llama"), build_model("llama", seed=3)
    batch = [fixed_rollouts()[0], *own(fixed_rollouts()[3:4])]
    row = returns(student, teacher)(batch, [[0.1] * 4, [0.2] * 5])[1]
    d = marks(student, teacher, batch[1], 1.0)
    assert row == pytest.approx([-0.2 * sum(d[t + 1 :]) for t in range(5)], rel=1e-9)
    assert row[-1] == 0


def test_of_fixed_data_there_is_none() -> None:
    student, teacher = build_model("llama"), build_model("llama", seed=3)
    batch = fixed_rollouts()
    assert returns(student, teacher)(batch, token_weights(batch, "token")) == [
        [0.0] * len(r.completion_ids) for r in batch
    ]


def test_an_infinite_divergence_at_a_token_without_weight_counts_nothing() -> None:
    student, teacher = build_model("llama"), build_model("llama", seed=3)
    batch = own(fixed_rollouts(((3, 4), (3, 4))))
    scorer = LocalTeacher(teacher, "hidden")
    forbidding = divergences.Divergence("late", lambda p, q: torch.tensor([1.0, 2.0, math.inf, math.inf] * 2).to(p))
    late = SequenceReturns(Student(student, forbidding, implementation="reference"), scorer, 10**9)
    found = late(batch, [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert found == [[-1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]


def test_dropout_is_off_while_the_student_reads() -> None:
    student, teacher = build_model("gpt2", dropout=0.5), build_model("gpt2", seed=3)
    batch = own(fixed_rollouts())
    weights = token_weights(batch, "token")
    student.module.train()
    assert returns(student, teacher)(batch, weights) == returns(student, teacher)(batch, weights)
