"""Sequences that the current student did not write alone, weighted as if it had."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor

from tutelage.fused import DEFAULT_BUDGET_BYTES, teacher_sampled
from tutelage.models.language_model import LanguageModel
from tutelage.train.prepass import read_tokens
from tutelage.types import MicroBatch, Rollout


class ImportanceWeights:
    """Factors min(prod of q(y_m) / b(y_m) over the tokens m before a token, clip), for the weight of each token.

    q is the current student, b what wrote the sequence: the student of an earlier step, or its mixture with the teacher. The
    divergence at a token depends on those before it alone, so that a ratio of the token itself would add variance and nothing
    else. Without clipping, weighted sums over sequences of one length are, in expectation, those over the current student's own.

    Args:
        student: read without dropout.
        clip: largest factor, at least 1.
        temperature: that the sequences were sampled at, without top-k or top-p.
        token_budget: most padded tokens of a forward pass.
        budget_bytes: of the vocabulary-wide buffers.
        mixed: whether the teacher takes part in writing, so that the newest sequences too are weighed.

    Source: Precup et al., ICML 2000 (per-decision importance sampling); Ionides, JCGS 2008 (truncation).
    """

    def __init__(
        self,
        student: LanguageModel,
        clip: float,
        temperature: float,
        token_budget: int,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
        mixed: bool = False,
    ) -> None:
        self._student, self._clip, self._temperature, self._mixed = student, clip, temperature, mixed
        self._token_budget, self._budget_bytes = token_budget, budget_bytes

    def __call__(self, rollouts: Sequence[Rollout], step: int) -> list[list[float]]:
        """The factors of a step's sequences: of every completion token, and one more for what comes behind the last.

        They are 1 for sequences that the student did not write, or wrote alone at `step`.
        """
        factors = [[1.0] * (len(r.completion_ids) + 1) for r in rollouts]
        weighed = [
            i for i, r in enumerate(rollouts) if r.source == "student" and (self._mixed or r.policy_version < step)
        ]
        now = read_tokens(self._student, [rollouts[i] for i in weighed], self._token_budget, self._logp)
        highest = math.log(self._clip)
        for i, logp in zip(weighed, now, strict=True):
            behaviour = rollouts[i].behaviour_logprobs
            assert behaviour is not None  # every engine reports them
            log_ratios = [current - then for current, then in zip(logp, behaviour, strict=True)]
            factors[i] = [math.exp(min(ratio, highest)) for ratio in accumulate(log_ratios, initial=0.0)]
        return factors

    def _logp(self, micro: MicroBatch) -> Tensor:
        """The current student's log-probability of every completion token: [N]."""
        hidden_NH, head = self._student.hidden(micro), self._student.head
        return teacher_sampled(hidden_NH, head, micro.targets_N, self._temperature, self._budget_bytes).logp_N


def weighed(weights: Sequence[Sequence[float]], factors: Sequence[Sequence[float]]) -> list[list[float]]:
    """Token weights times the factors of `ImportanceWeights`, whose last one of a sequence belongs to no token."""
    return [[w * f for w, f in zip(row, fs[:-1], strict=True)] for row, fs in zip(weights, factors, strict=True)]
