"""Importance weights of sequences that the student did not write alone, against its own full logits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.conftest import EOS, build_model, fixed_rollouts, own_logits
from tutelage.data.batching import collate, token_weights
from tutelage.models.language_model import LanguageModel
from tutelage.train.importance import ImportanceWeights, weighed
from tutelage.types import Rollout


def logp(model: LanguageModel, rollout: Rollout, temperature: float) -> list[float]:
    micro = collate([rollout], token_weights([rollout], "token"), model)
    with torch.no_grad():
        full = (own_logits(model, micro) / temperature).log_softmax(-1)
    found: list[float] = full.gather(1, micro.targets_N[:, None])[:, 0].tolist()
    return found


def written_by(model: LanguageModel, rollout: Rollout, version: int, temperature: float) -> Rollout:
    behaviour = tuple(logp(model, rollout, temperature))
    return replace(rollout, behaviour_logprobs=behaviour, policy_version=version, source="student")


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_factors_are_ratios_of_the_tokens_before(family: str) -> None:
    student, earlier = build_model(family), build_model(family, seed=3)
    given, new, *old = fixed_rollouts()
    batch = [
        given,
        written_by(student, new, 7, 0.8),
        *(written_by(earlier, rollout, version, 0.8) for version, rollout in enumerate(old)),
    ]
    found = ImportanceWeights(student, 2.0, 0.8, token_budget=20)(batch, step=7)
    ones = [[1.0] * (len(rollout.completion_ids) + 1) for rollout in batch]
    assert found[:2] == ones[:2]  # of the data set, and of the current student
    for rollout, factors in zip(batch[2:], found[2:], strict=True):
        assert rollout.behaviour_logprobs is not None
        ratios = [
            math.exp(now - b) for now, b in zip(logp(student, rollout, 0.8), rollout.behaviour_logprobs, strict=True)
        ]
        expected = [min(math.prod(ratios[:n]), 2.0) for n in range(len(ratios) + 1)]
        assert factors == pytest.approx(expected, rel=1e-6)
    reached = [factor for factors in found[2:] for factor in factors]
    assert min(reached) < 0.5
    assert max(reached) == pytest.approx(2.0)


@pytest.mark.usefixtures("exact")
def test_of_a_mixture_the_newest_sequences_are_weighed_too() -> None:
    student, mixture = build_model("llama"), build_model("llama", seed=3)
    given, *new = fixed_rollouts()
    batch = [given, *(written_by(mixture, rollout, 7, 1.0) for rollout in new)]
    alone, mixed = (
        ImportanceWeights(student, 9.0, 1.0, token_budget=200, mixed=mixed)(batch, step=7) for mixed in (False, True)
    )
    assert alone == [[1.0] * (len(rollout.completion_ids) + 1) for rollout in batch]
    earlier = [given, *(written_by(mixture, rollout, 0, 1.0) for rollout in new)]
    assert mixed == ImportanceWeights(student, 9.0, 1.0, token_budget=200)(earlier, step=7)
    assert mixed[0] == alone[0]  # of the data set
    assert all(one[1:] != other[1:] for one, other in zip(mixed[1:], alone[1:], strict=True))


def test_weights_take_the_factor_of_their_token() -> None:
    assert weighed([[1.0, 2.0], [3.0]], [[1.0, 0.5, 9.0], [4.0, 9.0]]) == [[1.0, 1.0], [12.0]]


@pytest.mark.usefixtures("exact")
def test_expectations_are_the_current_students() -> None:
    """Over all first tokens, enumerated: the mean over the earlier student's draws is that over the current one's."""
    student, earlier = build_model("llama"), build_model("llama", seed=3)
    written = [
        written_by(earlier, Rollout((5, 6, 7), (token, EOS), None, "stop", 0, token, 0, "student"), 0, 1.0)
        for token in range(64)
    ]
    weighted = ImportanceWeights(student, 1e9, 1.0, token_budget=200)(written, step=1)
    anything = [math.sin(token) for token in range(64)]  # stands for the divergence at the second token
    drawn = [math.exp(r.behaviour_logprobs[0]) for r in written if r.behaviour_logprobs is not None]
    now = [math.exp(logp(student, r, 1.0)[0]) for r in written]
    assert sum(now) == pytest.approx(1.0)
    found = sum(b * row[1] * d for b, row, d in zip(drawn, weighted, anything, strict=True))
    assert found == pytest.approx(sum(q * d for q, d in zip(now, anything, strict=True)), rel=1e-6)
    assert abs(found - sum(b * d for b, d in zip(drawn, anything, strict=True))) > 0.05
    assert [row[0] for row in weighted] == [1.0] * 64


def test_dropout_is_off_while_the_student_reads() -> None:
    student = build_model("gpt2", dropout=0.5, dtype=torch.float32)
    batch = [written_by(student, rollout, 0, 1.0) for rollout in fixed_rollouts()]
    student.module.train()
    for factors in ImportanceWeights(student, 10.0, 1.0, token_budget=1000)(batch, step=1):
        assert factors == pytest.approx([1.0] * len(factors), rel=1e-4)
