"""Held-out distance from the teacher: divergences, entropies and agreement a token, with intervals over sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tutelage.data.batching import micro_batches, token_weights
from tutelage.eval.statistics import Interval, bootstrap_interval
from tutelage.fused import linear_divergence
from tutelage.models.language_model import LanguageModel
from tutelage.models.modes import without_dropout
from tutelage.teacher.base import TeacherModel
from tutelage.teacher.local import LocalTeacher
from tutelage.types import MicroBatch, Prompt, Rollout

# Columns of the table of sums over a sequence's tokens; the fields of `TeacherDivergence` that carry an estimate.
_MEASURES = ("forward_kl", "reverse_kl", "jsd", "student_entropy", "teacher_entropy", "agreement")


@dataclass(frozen=True)
class Estimate:
    """A mean, over tokens or over completions.

    Attributes:
        value: the mean.
        interval: 95% bootstrap interval, over sequences, which keep their tokens together, or over prompts, which keep their completions
            together; None without resamples.
    """

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class TeacherDivergence:
    """Distance of a student from its teacher on a set of sequences; means over tokens, nats where not said otherwise.

    Attributes:
        forward_kl: KL(teacher||student).
        reverse_kl: KL(student||teacher).
        jsd: JSD(0.5), the paper's Eq. 1.
        student_entropy, teacher_entropy: of the next-token distributions.
        agreement: share of positions where the most likely tokens are the same.
        sequences, tokens: what was measured.
    """

    forward_kl: Estimate
    reverse_kl: Estimate
    jsd: Estimate
    student_entropy: Estimate
    teacher_entropy: Estimate
    agreement: Estimate
    sequences: int
    tokens: int


def reference_rollouts(prompts: Sequence[Prompt]) -> list[Rollout]:
    """The prompts' ground-truth completions as sequences to measure on.

    Raises:
        ValueError: a prompt has no reference.
    """
    missing = [prompt.id for prompt in prompts if prompt.reference_ids is None]
    if missing:
        raise ValueError(f"{len(missing)} prompts have no reference, the first has id {missing[0]}")
    return [
        Rollout(
            prompt_ids=prompt.token_ids,
            completion_ids=prompt.reference_ids or (),
            behaviour_logprobs=None,
            finish_reason="data",
            policy_version=-1,
            prompt_id=prompt.id,
            sample=0,
            source="dataset",
        )
        for prompt in prompts
    ]


def teacher_divergence(
    student: LanguageModel,
    teacher: TeacherModel,
    rollouts: Sequence[Rollout],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    token_budget: int = 8192,
) -> TeacherDivergence:
    """Measures how far the student is from the teacher on sequences, whoever wrote them.

    Args:
        student, teacher: of one family, over the same vocabulary (`models.vocabulary.agree`).
        rollouts: sequences; their completion tokens are measured, given prompt and preceding tokens.
        bootstrap: resamples behind the 95% intervals; 0: none. Sequences of one prompt are drawn together.
        seed: of the bootstrap.
        token_budget: most padded tokens in one forward pass.

    Raises:
        ValueError: no sequences.
    """
    if not rollouts:
        raise ValueError("the divergence from the teacher needs at least one sequence")
    place = {prompt_id: i for i, prompt_id in enumerate(dict.fromkeys(r.prompt_id for r in rollouts))}
    sums = np.zeros((len(place), len(_MEASURES)))
    tokens = np.zeros(len(place))
    with without_dropout(student.module, teacher.module):
        for micro in micro_batches(rollouts, token_weights(rollouts, "token"), student, token_budget):
            prompts = np.array([place[rollout.prompt_id] for rollout in micro.rollouts])
            prompt_of_token = prompts[micro.row_N.cpu().numpy()]
            np.add.at(sums, prompt_of_token, _measure(student, LocalTeacher(teacher), micro))
            np.add.at(tokens, prompt_of_token, 1)

    def estimate(column: int) -> Estimate:
        def resample(chosen: np.ndarray) -> float:
            return float(sums[chosen, column].sum() / tokens[chosen].sum())

        interval = bootstrap_interval(resample, len(place), bootstrap, seed=seed) if bootstrap else None
        return Estimate(resample(np.arange(len(place))), interval)

    measured = {name: estimate(column) for column, name in enumerate(_MEASURES)}
    return TeacherDivergence(**measured, sequences=len(rollouts), tokens=int(tokens.sum()))


@torch.no_grad()
def _measure(student: LanguageModel, teacher: LocalTeacher, micro: MicroBatch) -> np.ndarray:
    """The measures of every completion token: [N, len(_MEASURES)], float64."""
    signal = teacher.hidden_states(micro)
    _, stats = linear_divergence(
        student.hidden(micro),
        student.head,
        signal.hidden_NH,
        signal.head,
        "jsd(0.5)",
        micro.weights_N,
        return_stats=True,
    )
    # Optional only for the negative log-likelihood, which has no teacher.
    assert stats.forward_kl is not None
    assert stats.reverse_kl is not None
    assert stats.teacher_entropy is not None
    columns = [
        stats.forward_kl,
        stats.reverse_kl,
        stats.divergence,
        stats.student_entropy,
        stats.teacher_entropy,
        stats.agreement,
    ]
    return torch.stack(columns, dim=1).double().cpu().numpy()
