"""The divergence from a teacher's view of the sampled tokens: chunked, and its slow twin from full logits.

A token's loss is a function of log q(y), so with c its slope (`estimators.Estimator`), the derivative in the logits is
c times (one-hot(y) - q).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from tutelage import estimators
from tutelage.divergences import Divergence, expect_
from tutelage.estimators import Estimator
from tutelage.fused.base import TokenStats, check_temperature, check_tokens, full_logp
from tutelage.fused.chunked import weighted_sum
from tutelage.fused.kernels import Elementwise
from tutelage.fused.losses import Tile
from tutelage.fused.topk import shared_head
from tutelage.types import LMHead, SampledToken


@dataclass(frozen=True)
class SampledStats(TokenStats):
    """`TokenStats` of sampled tokens: no divergence is known, two unbiased estimates of KL(student||teacher) are.

    Attributes:
        divergence: the token's own loss: k2 for reverse_kl, k3 for forward_kl. Its gradient is meaningful; of the two
            values only k3 estimates a divergence, and that is KL(student||teacher).
        agreement: 1 where the token is a most likely one of the student, else 0.
        forward_kl, reverse_kl, teacher_entropy: None.
        k1, k3: `estimators.k1` and `estimators.k3`, [N].
    """

    k1: Tensor | None = None
    k3: Tensor | None = None


@dataclass(frozen=True)
class SampledLoss:
    """An estimator on the sampled tokens."""

    # `reverse_kl` carries k1, its estimate, from which `linear_sampled` derives k3.
    stat_names: ClassVar[tuple[str, ...]] = ("divergence", "student_entropy", "agreement", "reverse_kl")
    estimator: Estimator
    sampled: SampledToken
    targets: Tensor
    bytes_per_token: int = 8

    @property
    def temperature(self) -> float:
        """Divides the student's logits."""
        return self.sampled.temperature

    def select(self, index: Tensor) -> Self:
        """The loss of these tokens only."""
        return replace(self, sampled=self.sampled.select(index), targets=self.targets[index])

    def signals(self, chunks: Sequence[slice]) -> Iterator[Tensor]:
        """The tokens' places in `sampled` [c]."""
        return (torch.arange(rows.start, rows.stop, device=self.targets.device) for rows in chunks)

    def tile(self, logits: Tensor, signal: Tensor, want_grad: bool, want_stats: bool) -> Tile:
        """Values, derivative and statistics of [t, V] logits."""
        targets, teacher_logp = self.targets[signal, None], self.sampled.logp_N[signal].to(logits.dtype)
        logp = logits.log_softmax(-1)
        student_logp = logp.gather(1, targets).squeeze(1)
        stats = []
        if want_stats:
            is_max = student_logp == logp.amax(-1)
            stats = [
                -expect_(logp.exp(), logp.clone()),
                is_max.to(logp.dtype),
                estimators.k1(student_logp, teacher_logp),
            ]
        logit_grad = None
        if want_grad:
            slope = self.estimator.slope(student_logp, teacher_logp)[:, None]
            logit_grad = logp.exp_().mul_(-slope).scatter_add_(1, targets, slope)
        return Tile(self.estimator.value(student_logp, teacher_logp), logit_grad, stats)


def linear_sampled(
    student_hidden: Tensor,
    student_head: LMHead,
    sampled: SampledToken,
    targets: Tensor,
    divergence: Divergence | Estimator | str,
    weights: Tensor,
    budget_bytes: int,
    return_stats: bool,
    elementwise: Elementwise = "auto",
) -> Tensor | tuple[Tensor, SampledStats]:
    """The chunked implementation of `tutelage.fused.linear_sampled`."""
    student_head = _checked_head(student_hidden, student_head, sampled, targets, weights)
    loss = SampledLoss(estimators.as_loss(divergence), sampled, targets)
    result = weighted_sum(loss, student_hidden, student_head, weights, budget_bytes, return_stats, elementwise)
    if isinstance(result, Tensor):
        return result
    total, stats = result
    assert stats.reverse_kl is not None
    return total, _stats(stats.divergence, stats.student_entropy, stats.agreement, stats.reverse_kl)


def reference_sampled(
    student_hidden: Tensor,
    student_head: LMHead,
    sampled: SampledToken,
    targets: Tensor,
    divergence: Divergence | Estimator | str,
    weights: Tensor,
    budget_bytes: int,
    return_stats: bool,
) -> Tensor | tuple[Tensor, SampledStats]:
    """The slow twin: full logits, plain autograd."""
    student_head = _checked_head(student_hidden, student_head, sampled, targets, weights)
    estimator = estimators.as_loss(divergence)

    active = weights.nonzero().squeeze(1)
    logp = full_logp(student_hidden[active], student_head, sampled.temperature)
    teacher_logp = sampled.logp_N.to(logp.dtype)
    values = estimator.value(logp.gather(1, targets[active, None]).squeeze(1), teacher_logp[active])
    total = (values * weights[active].to(values.dtype)).sum()
    if not return_stats:
        return total
    with torch.no_grad():
        logp = full_logp(student_hidden, student_head, sampled.temperature)
        chosen = logp.gather(1, targets[:, None]).squeeze(1)
        entropy = torch.special.entr(logp.exp()).sum(-1)
        agreement = (chosen == logp.amax(-1)).to(logp.dtype)
        k1 = estimators.k1(chosen, teacher_logp)
        return total, _stats(estimator.value(chosen, teacher_logp), entropy, agreement, k1)


def _checked_head(
    student_hidden: Tensor, student_head: LMHead, sampled: SampledToken, targets: Tensor, weights: Tensor
) -> LMHead:
    """The student's head over the shared vocabulary. Raises ValueError or UserError where the inputs do not fit."""
    check_tokens(weights, student_hidden=student_hidden, targets=targets, logp=sampled.logp_N)
    check_temperature(sampled.temperature)
    return shared_head(student_head, sampled.vocab_size)


def _stats(divergence: Tensor, student_entropy: Tensor, agreement: Tensor, k1: Tensor) -> SampledStats:
    # k3 is a function of the difference of the log-probabilities, which k1 is.
    k3 = estimators.k3(k1, torch.zeros_like(k1))
    return SampledStats(divergence, student_entropy, agreement, k1=k1, k3=k3)
