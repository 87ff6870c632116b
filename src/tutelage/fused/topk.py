"""The divergence from a teacher's top-k signal: chunked, and its slow twin from full logits.

The coarsened student is the softmax of K + 1 logits: the K tokens' own, and the logsumexp of all others. So with h the
derivative in these K + 1 logits (g - Q sum(g), g from `Divergence.score`), the derivative in the full logits is h_k for
a token of the top k, and h_tail times the token's probability *within the tail* for any other. The same in terms of
the full softmax q: g_k - q_k G and q_v (g_tail / Q_tail - G) with G = sum(g); but this form is 0/0 where Q_tail
underflows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from tutelage.divergences import Distribution, Divergence, expect_, forward_kl, parse, reverse_kl
from tutelage.errors import UserError
from tutelage.estimators import coarsen
from tutelage.fused.base import TokenStats, check_temperature, check_tokens, full_logp, is_max
from tutelage.fused.chunked import weighted_sum
from tutelage.fused.kernels import Elementwise
from tutelage.fused.losses import Tile
from tutelage.types import LMHead, TopK


@dataclass(frozen=True)
class TopKLoss:
    """A divergence on K + 1 outcomes."""

    stat_names: ClassVar[tuple[str, ...]] = (
        "divergence",
        "student_entropy",
        "agreement",
        "forward_kl",
        "reverse_kl",
    )
    divergence: Divergence
    topk: TopK
    bytes_per_token: int = 8

    @property
    def temperature(self) -> float:
        """Divides the student's logits."""
        return self.topk.temperature

    def select(self, index: Tensor) -> Self:
        """The loss of these tokens only."""
        return replace(self, topk=self.topk.select(index))

    def signals(self, chunks: Sequence[slice]) -> Iterator[Tensor]:
        """The tokens' places in `topk` [c]."""
        return (torch.arange(rows.start, rows.stop, device=self.topk.logp_NK.device) for rows in chunks)

    def tile(self, logits: Tensor, signal: Tensor, want_grad: bool, want_stats: bool) -> Tile:
        """Values, derivative and statistics of [t, V] logits."""
        topk = self.topk.select(signal)
        teacher = _teacher(topk, logits.dtype)
        top = logits.gather(1, topk.token_ids_NK)
        tail = logits.scatter(1, topk.token_ids_NK, -math.inf)
        log_tail = tail.logsumexp(-1, keepdim=True)
        student = Distribution.of(torch.cat([top, log_tail], dim=1).log_softmax(-1))
        if not (want_grad or want_stats):
            return Tile(self.divergence(teacher.logp, student.logp), None, [])

        is_best = is_max(torch.cat([top, tail.amax(-1, keepdim=True)], dim=1)) if want_stats else None
        # Where the tail is empty, -inf - -inf would be NaN; exp(-inf - 0) is the 0 that is meant.
        log_within = tail.sub_(log_tail.masked_fill(torch.isneginf(log_tail), 0.0))
        within = log_within.exp()
        stats = [] if is_best is None else _stats(teacher, student, is_best, -expect_(within, log_within))
        if not want_grad:
            return Tile(self.divergence(teacher.logp, student.logp), None, stats)
        values, coarse_grad = self.divergence.score(teacher, student)
        coarse_grad = coarse_grad - student.p * coarse_grad.sum(-1, keepdim=True)
        logit_grad = within.mul_(coarse_grad[:, -1:]).scatter_(1, topk.token_ids_NK, coarse_grad[:, :-1])
        return Tile(values, logit_grad, stats)


def linear_topk(
    student_hidden: Tensor,
    student_head: LMHead,
    topk: TopK,
    divergence: Divergence | str,
    weights: Tensor,
    budget_bytes: int,
    return_stats: bool,
    elementwise: Elementwise = "auto",
) -> Tensor | tuple[Tensor, TokenStats]:
    """The chunked implementation of `tutelage.fused.linear_topk`."""
    student_head = _checked_head(student_hidden, student_head, topk, weights)
    loss = TopKLoss(parse(divergence), topk)
    return weighted_sum(loss, student_hidden, student_head, weights, budget_bytes, return_stats, elementwise)


def reference_topk(
    student_hidden: Tensor,
    student_head: LMHead,
    topk: TopK,
    divergence: Divergence | str,
    weights: Tensor,
    budget_bytes: int,
    return_stats: bool,
) -> Tensor | tuple[Tensor, TokenStats]:
    """The slow twin: full logits, `estimators.coarsen`, plain autograd."""
    student_head = _checked_head(student_hidden, student_head, topk, weights)
    divergence = parse(divergence)

    active = weights.nonzero().squeeze(1)
    chosen = topk.select(active)
    logp = full_logp(student_hidden[active], student_head, topk.temperature)
    values = divergence(_teacher(chosen, logp.dtype).logp, coarsen(logp, chosen.token_ids_NK))
    total = (values * weights[active].to(values.dtype)).sum()
    if not return_stats:
        return total
    with torch.no_grad():
        logp = full_logp(student_hidden, student_head, topk.temperature)
        teacher, coarse = _teacher(topk, logp.dtype).logp, coarsen(logp, topk.token_ids_NK)
        is_best = is_max(logp).gather(1, topk.token_ids_NK)
        return total, TokenStats(
            divergence=divergence(teacher, coarse),
            student_entropy=torch.special.entr(logp.exp()).sum(-1),
            agreement=(is_best & is_max(teacher[:, :-1])).any(-1).to(logp.dtype),
            forward_kl=forward_kl(teacher, coarse),
            reverse_kl=reverse_kl(teacher, coarse),
        )


def _checked_head(student_hidden: Tensor, student_head: LMHead, topk: TopK, weights: Tensor) -> LMHead:
    """The student's head over the shared vocabulary. Raises ValueError or UserError where the inputs do not fit."""
    check_tokens(weights, student_hidden=student_hidden, token_ids=topk.token_ids_NK, tail_logp=topk.tail_logp_N)
    check_temperature(topk.temperature)
    return shared_head(student_head, topk.vocab_size)


def shared_head(student_head: LMHead, vocab_size: int) -> LMHead:
    """The student's head cut to the vocabulary of a signal. Raises UserError when the head is the shorter one."""
    if student_head.vocab_size < vocab_size:
        raise UserError(
            f"the teacher's signal is over {vocab_size} tokens, but the student's head has {student_head.vocab_size} rows; take "
            "the signal over the shared vocabulary (height= of teacher_topk and teacher_sampled)"
        )
    return student_head.rows(vocab_size)


def _teacher(topk: TopK, dtype: torch.dtype) -> Distribution:
    """The teacher's K + 1 outcomes."""
    return Distribution.of(torch.cat([topk.logp_NK, topk.tail_logp_N[:, None]], dim=1).to(dtype))


def _stats(teacher: Distribution, student: Distribution, is_best: Tensor, tail_entropy: Tensor) -> list[Tensor]:
    """Statistics in the order of `stat_names`, without the values; `tail_entropy` [t] is of the student's tail."""
    coarse_entropy = -expect_(student.p, student.logp.clone())
    return [
        coarse_entropy + student.p[:, -1] * tail_entropy,
        (is_best[:, :-1] & is_max(teacher.logp[:, :-1])).any(-1).to(student.p.dtype),
        forward_kl(teacher.logp, student.logp),
        reverse_kl(teacher.logp, student.logp),
    ]
