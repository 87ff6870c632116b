"""Earlier sequences of the student, weighted as if the current one had written them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch

from tutelage.data.batching import micro_batches
from tutelage.fused import DEFAULT_BUDGET_BYTES, teacher_sampled
from tutelage.models.language_model import LanguageModel
from tutelage.types import Rollout


class ImportanceWeights:
    """Multiplies a token's weight by min(prod of q(y_m) / b(y_m) over the tokens m before it, clip).

    q is the current student, b the one that wrote the sequence. The divergence at a token depends on those before it alone, so
    that a ratio of the token itself would add variance and nothing else. Without clipping, weighted sums over sequences of one
    length are, in expectation, those over the current student's own.

    Args:
        student: read without dropout.
        clip: largest factor, at least 1.
        temperature: that the sequences were sampled at, without top-k or top-p.
        token_budget: most padded tokens of a forward pass.
        budget_bytes: of the vocabulary-wide buffers.

    Source: Precup et al., ICML 2000 (per-decision importance sampling); Ionides, JCGS 2008 (truncation).
    """

    def __init__(
        self,
        student: LanguageModel,
        clip: float,
        temperature: float,
        token_budget: int,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
    ) -> None:
        self._student, self._clip, self._temperature = student, clip, temperature
        self._token_budget, self._budget_bytes = token_budget, budget_bytes

    def __call__(self, rollouts: Sequence[Rollout], weights: Sequence[Sequence[float]], step: int) -> list[list[float]]:
        """The weights of a step's sequences; those that the student did not write before `step` keep theirs."""
        earlier = [i for i, r in enumerate(rollouts) if r.source == "student" and r.policy_version < step]
        weighted = [list(row) for row in weights]
        for i, logp in zip(earlier, self._logp([rollouts[i] for i in earlier]), strict=True):
            behaviour = rollouts[i].behaviour_logprobs
            assert behaviour is not None  # every engine reports them
            log_ratios = [now - then for now, then in zip(logp, behaviour, strict=True)]
            before = accumulate(log_ratios[:-1], initial=0.0)
            highest = math.log(self._clip)
            weighted[i] = [w * math.exp(min(ratio, highest)) for w, ratio in zip(weights[i], before, strict=True)]
        return weighted

    @torch.no_grad()
    def _logp(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        """The current student's log-probability of every completion token."""
        self._student.module.eval()
        found: dict[tuple[int, int], list[float]] = {}
        ones = [[1.0] * len(r.completion_ids) for r in rollouts]
        for micro in micro_batches(rollouts, ones, self._student, self._token_budget):
            hidden_NH, head = self._student.hidden(micro), self._student.head
            signal = teacher_sampled(hidden_NH, head, micro.targets_N, self._temperature, self._budget_bytes)
            rows = signal.logp_N.split([len(r.completion_ids) for r in micro.rollouts])
            found.update(((r.prompt_id, r.sample), row.tolist()) for r, row in zip(micro.rollouts, rows, strict=True))
        return [found[r.prompt_id, r.sample] for r in rollouts]
