"""The gradient through the student's sampling: a token answers for the divergence at the tokens that follow from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from tutelage.models.student import Student
from tutelage.teacher.base import TeacherScorer
from tutelage.train.prepass import read_tokens
from tutelage.types import MicroBatch, Rollout


class SequenceReturns:
    """Policy weights that make the token-level divergence one of whole sequences.

    With D_t the exact divergence between the two next-token distributions at token t, a function of the tokens before it,

        grad E_q[sum_t w_t D_t] = E_q[sum_t w_t grad D_t + sum_t A_t grad log q(y_t)],    A_t = sum of w_m D_m over m > t.

    GKD keeps the first sum, the loss's own gradient; this adds the second. For reverse KL and equal weights the whole is the
    gradient of KL(Q||P) of sequences. The weights w are constants: that 1 / L_y depends on the sequence is not differentiated.

    From A_t goes a baseline that does not depend on the sequence: the mean of A_t at the same position of the batch's other
    sequences, 0 behind their ends. A sequence alone has none.

    Of sequences that the student did not write alone, w_m is to hold the importance factor f_m of `ImportanceWeights`: the
    ratios of all tokens before m, which the terms of A_t need; the baseline is multiplied by f_{t+1}, the ratios up to t. Without
    clipping, expectations are those over the current student's own sequences.

    Args:
        student: read without dropout; its divergence is the D_t.
        teacher: gives the signal, of hidden states or top-k.
        token_budget: most padded tokens of a forward pass.

    Source: policy gradient theorem (Sutton et al., NIPS 1999); Gu et al., MiniLLM, ICLR 2024 (arXiv 2306.08543), section 2.2, where
    w_t grad D_t is the single-step part and A_t the return of long sequences.
    """

    def __init__(self, student: Student, teacher: TeacherScorer, token_budget: int) -> None:
        self._student, self._teacher, self._token_budget = student, teacher, token_budget

    def __call__(
        self,
        rollouts: Sequence[Rollout],
        weights: Sequence[Sequence[float]],
        factors: Sequence[Sequence[float]] | None = None,
    ) -> list[list[float]]:
        """The policy weight of every completion token, -(A_t - baseline); 0 where the student did not write the sequence.

        Args:
            rollouts: a step's sequences.
            weights: w, importance factors included.
            factors: those of `ImportanceWeights`; None: the current student wrote its sequences alone.
        """
        policy = [[0.0] * len(r.completion_ids) for r in rollouts]
        own = [i for i, r in enumerate(rollouts) if r.source == "student"]
        marks = read_tokens(self._student.model, [rollouts[i] for i in own], self._token_budget, self._divergence)
        to_go = _to_go([weights[i] for i in own], marks)
        for i, ahead, baseline in zip(own, to_go, _leave_one_out(to_go), strict=True):
            length = len(rollouts[i].completion_ids)
            factor = np.ones(length) if factors is None else np.array(factors[i][1:])
            policy[i] = (factor * baseline[:length] - ahead[:length]).tolist()
        return policy

    def _divergence(self, micro: MicroBatch) -> Tensor:
        """D of every completion token: [N]."""
        return self._student(micro, self._teacher.score(micro)).stats.divergence


def _to_go(weights: Sequence[Sequence[float]], marks: Sequence[Sequence[float]]) -> np.ndarray:
    """A of every token, 0 behind the end of a sequence: [sequences, longest]."""
    to_go = np.zeros((len(marks), max(map(len, marks), default=0)))
    for row, ws, ds in zip(to_go, weights, marks, strict=True):
        costs = [w * d if w else 0.0 for w, d in zip(ws, ds, strict=True)]  # tokens without weight may be infinite
        row[: len(costs) - 1] = np.cumsum(costs[:0:-1])[::-1]
    return to_go


def _leave_one_out(to_go: np.ndarray) -> np.ndarray:
    """The mean over the other sequences at every position; 0 where there is no other. [sequences, longest]."""
    return (to_go.sum(axis=0) - to_go) / max(1, len(to_go) - 1)
