"""A teacher's hidden states condensed to what a weaker signal keeps, chunk by chunk: its [N, V] logits never exist."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tutelage.errors import UserError
from tutelage.fused.base import (
    DEFAULT_BUDGET_BYTES,
    check_temperature,
    finish_logits,
    matmul_input,
    project_chunks,
    slices,
    softmax_dtype,
)
from tutelage.types import LMHead, SampledToken, TopK

_BUFFERS = 4  # [chunk, V] tensors alive at once


@torch.no_grad()
def teacher_topk(
    hidden: Tensor,
    head: LMHead,
    k: int,
    temperature: float = 1.0,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    height: int | None = None,
) -> TopK:
    """The teacher's `k` most probable tokens with the exact mass of the others.

    Args:
        hidden: the teacher's last hidden states [N, H].
        head: its head.
        k: tokens kept, most probable first.
        temperature: divides the logits, after scale and soft-cap.
        budget_bytes: memory for logits; one token is held at least.
        height: rows of the shared vocabulary; None: all of the head.

    Raises:
        UserError: k is not in 1..height, or the temperature or the budget is not positive.
    """
    head = head if height is None else head.rows(height)
    if not 1 <= k <= head.vocab_size:
        raise UserError(
            f"topk({k}): k must be between 1 and the {head.vocab_size} tokens of the shared vocabulary; change teacher_signal"
        )
    ids, logp, tail_logp = [], [], []
    for logits in _logit_chunks(hidden, head, temperature, budget_bytes):
        top, chunk_ids = logits.topk(k, dim=-1)
        tail = logits.scatter_(1, chunk_ids, -math.inf).logsumexp(-1)
        log_total = torch.logaddexp(tail, top.logsumexp(-1))
        ids.append(chunk_ids)
        logp.append(top - log_total[:, None])
        tail_logp.append(tail - log_total)
    return TopK(torch.cat(ids), torch.cat(logp), torch.cat(tail_logp), head.vocab_size, temperature)


@torch.no_grad()
def teacher_sampled(
    hidden: Tensor,
    head: LMHead,
    targets: Tensor,
    temperature: float = 1.0,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    height: int | None = None,
) -> SampledToken:
    """The teacher's log-probability of every token of `targets` [N]; the other arguments are those of `teacher_topk`."""
    head = head if height is None else head.rows(height)
    logp, start = [], 0
    for logits in _logit_chunks(hidden, head, temperature, budget_bytes):
        chunk = targets[start : start + len(logits), None]
        logp.append(logits.gather(1, chunk).squeeze(1) - logits.logsumexp(-1))
        start += len(logits)
    return SampledToken(torch.cat(logp), head.vocab_size, temperature)


def _logit_chunks(hidden: Tensor, head: LMHead, temperature: float, budget_bytes: int) -> Iterator[Tensor]:
    """Logits [c, V] in the dtype of the softmax, for all tokens in turn; one chunk, of 0 tokens, where there are none.

    A chunk is the caller's to overwrite, and may be overwritten by the next one.
    """
    check_temperature(temperature)
    if budget_bytes <= 0:
        raise UserError(f"the loss's memory budget is {budget_bytes} bytes; it must be above 0")
    hidden = matmul_input(hidden)
    row_bytes = head.vocab_size * softmax_dtype(hidden.dtype).itemsize
    chunks = list(slices(len(hidden), max(1, budget_bytes // (row_bytes * _BUFFERS)))) or [slice(0, 0)]
    for projected in project_chunks(hidden, head, chunks):
        yield finish_logits(projected, head, temperature)
