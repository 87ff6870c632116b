"""The losses from full logits and plain autograd: slow, [N, V] in memory, obviously right. The twin of `chunked`."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.divergences import Divergence, forward_kl, parse, reverse_kl
from tutelage.fused.base import (
    DEFAULT_BUDGET_BYTES,
    TokenStats,
    check_temperature,
    check_tokens,
    full_logp,
    is_max,
    shared_rows,
    softmax_dtype,
)
from tutelage.types import LMHead


def linear_divergence(
    student_hidden: Tensor,
    student_head: LMHead,
    teacher_hidden: Tensor,
    teacher_head: LMHead,
    divergence: Divergence | str,
    weights: Tensor,
    temperature: float = 1.0,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, TokenStats]:
    """Weighted sum of token divergences between two heads: see `tutelage.fused.linear_divergence`."""
    check_tokens(weights, student_hidden=student_hidden, teacher_hidden=teacher_hidden)
    check_temperature(temperature)
    divergence = parse(divergence)
    student_head, teacher_head = shared_rows(student_head, teacher_head)
    with torch.no_grad():
        teacher_logp = full_logp(teacher_hidden, teacher_head, temperature)

    active = weights != 0
    student_logp = full_logp(student_hidden[active], student_head, temperature)
    total = _weighted_sum(divergence(teacher_logp[active], student_logp), weights[active])
    if not return_stats:
        return total
    with torch.no_grad():
        student_logp = full_logp(student_hidden, student_head, temperature)
        agree = is_max(student_logp) & is_max(teacher_logp)
        return total, TokenStats(
            divergence=divergence(teacher_logp, student_logp),
            student_entropy=_entropy(student_logp),
            agreement=agree.any(-1).to(student_logp.dtype),
            forward_kl=forward_kl(teacher_logp, student_logp),
            reverse_kl=reverse_kl(teacher_logp, student_logp),
            teacher_entropy=_entropy(teacher_logp),
        )


def linear_nll(
    student_hidden: Tensor,
    student_head: LMHead,
    targets: Tensor,
    weights: Tensor,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, TokenStats]:
    """Weighted sum of negative log-likelihoods: see `tutelage.fused.linear_nll`."""
    check_tokens(weights, student_hidden=student_hidden, targets=targets)
    active = weights != 0
    student_logp = full_logp(student_hidden[active], student_head, 1.0)
    total = _weighted_sum(-student_logp.gather(1, targets[active, None]).squeeze(1), weights[active])
    if not return_stats:
        return total
    with torch.no_grad():
        student_logp = full_logp(student_hidden, student_head, 1.0)
        return total, TokenStats(
            divergence=-student_logp.gather(1, targets[:, None]).squeeze(1),
            student_entropy=_entropy(student_logp),
            agreement=is_max(student_logp).gather(1, targets[:, None]).squeeze(1).to(student_logp.dtype),
        )


def _weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights.to(softmax_dtype(values.dtype))).sum()


def _entropy(logp: Tensor) -> Tensor:
    return torch.special.entr(logp.exp()).sum(-1)
