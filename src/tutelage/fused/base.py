"""What the implementations of the fused losses share: statistics, shapes, logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.errors import UserError
from tutelage.types import LMHead

DEFAULT_BUDGET_BYTES = 256 * 2**20
BLOCK_BYTES = 4 * 2**20  # of logits: they stay in the cache between a block's product and its copy
_LEAST_ROWS = 512  # of the head in a block
_BLOCK_DTYPE = torch.float32  # oneDNN has no float64, and half precision goes to it anyway


@dataclass(frozen=True)
class TokenStats:
    """Detached statistics of every token, each [N] in float32 (float64 for float64 inputs), in nats.

    All of them are of the distributions the loss compares: after scale, soft-cap and temperature, over the shared rows.

    Attributes:
        divergence: the token's own loss before its weight (for `linear_nll`, its negative log-likelihood).
        student_entropy: entropy of the student's distribution.
        agreement: 1 where a most likely token of the student is also one of the teacher's (for `linear_nll`: is the
            target), else 0.
        forward_kl, reverse_kl: KL(teacher||student) and KL(student||teacher); None for `linear_nll`.
        teacher_entropy: entropy of the teacher's distribution; None for `linear_nll`.
    """

    divergence: Tensor
    student_entropy: Tensor
    agreement: Tensor
    forward_kl: Tensor | None = None
    reverse_kl: Tensor | None = None
    teacher_entropy: Tensor | None = None


def softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of softmax, losses and accumulations for inputs of `dtype`: float64 stays, all else is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def matmul_input(hidden: Tensor) -> Tensor:
    """`hidden` in the dtype its projection runs in: autocast's where autocast is on, else its own."""
    device = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden


def project(hidden: Tensor, head: LMHead, out: Tensor | None = None) -> Tensor:
    """`hidden` [N, H] -> hidden @ weight.T + bias, [N, V], in the dtype of `hidden`, into `out` if given; see `finish_logits`."""
    weight = head.weight.to(hidden.dtype)
    bias = None if head.bias is None else head.bias.to(hidden.dtype)
    if out is not None and _goes_to_onednn(hidden):
        return project_in_blocks(hidden, weight, bias, out)
    if bias is None:
        return torch.mm(hidden, weight.T, out=out)
    return torch.addmm(bias, hidden, weight.T, out=out)


def _goes_to_onednn(hidden: Tensor) -> bool:
    """Whether `project_in_blocks` takes the place of a plain product: in float32 on a CPU where that goes to MKL.

    Not where the least block of so many tokens would pass `BLOCK_BYTES`: the loss's budget has room for two of these, a block
    and its copy, and no more. That they are faster was measured on one AMD processor only; elsewhere MKL may well be ahead.
    """
    if hidden.dtype != _BLOCK_DTYPE or hidden.device.type != "cpu":
        return False
    fits = 0 < len(hidden) * hidden.element_size() * _LEAST_ROWS <= BLOCK_BYTES
    return fits and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


def project_in_blocks(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """`project` into `out`, by oneDNN and for some rows of the head at a time.

    On an AMD EPYC, the only processor it was measured on, it takes 0.65 to 0.85 times what MKL's plain product takes,
    the less the shorter the chunk (`benchmarks/loss_projection.py`).

    Args:
        hidden: [N, H], float32 on a CPU, N > 0.
        weight: [V, H].
        bias: [V], or None.
        out: [N, V].
    """
    packed = hidden.to_mkldnn()
    size = max(_LEAST_ROWS, BLOCK_BYTES // (len(hidden) * hidden.element_size()))
    for start in range(0, len(weight), size):
        rows = slice(start, start + size)
        block = F.linear(packed, weight[rows], None if bias is None else bias[rows])
        out[:, rows] = block.to_dense()
    return out


def project_chunks(hidden: Tensor, head: LMHead, chunks: Sequence[slice]) -> Iterator[Tensor]:
    """`project` for each chunk of tokens in turn, [c, V], every one into the same memory: fresh memory costs page faults."""
    longest = max((rows.stop - rows.start for rows in chunks), default=0)
    room = hidden.new_empty(longest, head.vocab_size)
    head = replace(head, weight=head.weight.to(room.dtype))  # once, not per chunk
    for rows in chunks:
        yield project(hidden[rows], head, out=room[: rows.stop - rows.start])


def finish_logits(projected: Tensor, head: LMHead, temperature: float) -> Tensor:
    """The head's scale and soft-cap, then the temperature, on the output of `project`, in the dtype of the softmax.

    `head.logits` does the same in the dtype of the hidden states; bfloat16 would cost precision here.
    """
    logits = projected.to(softmax_dtype(projected.dtype))
    if head.scale != 1.0:
        logits = logits * head.scale
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    return logits if temperature == 1.0 else logits / temperature


def full_logp(hidden: Tensor, head: LMHead, temperature: float) -> Tensor:
    """Log-probabilities [N, V] of all tokens at once, differentiable by autograd: for the slow twins only."""
    return finish_logits(project(matmul_input(hidden), head), head, temperature).log_softmax(-1)


def is_max(logp: Tensor) -> Tensor:
    """Where an entry of [..., V] is (one of) the largest of its row."""
    return logp == logp.amax(-1, keepdim=True)


def slices(length: int, size: int) -> Iterator[slice]:
    """Consecutive slices of `size`, the last one shorter, that cover `length`."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def shared_rows(student_head: LMHead, teacher_head: LMHead) -> tuple[LMHead, LMHead]:
    """Both heads cut to the height of the smaller; the rows beyond are padding of the vocabulary."""
    height = min(student_head.vocab_size, teacher_head.vocab_size)
    return student_head.rows(height), teacher_head.rows(height)


def check_heads(**heads: object) -> None:
    """Raises TypeError unless every named head is an `LMHead`: of a weight or a layer alone, scale and soft-cap would be lost unseen."""
    for name, head in heads.items():
        if not isinstance(head, LMHead):
            raise TypeError(
                f"{name} is a {type(head).__name__}; the loss takes a tutelage.LMHead: LMHead(model.lm_head.weight), with the bias, scale "
                "and softcap that some models have, or tutelage.models.language_model.LanguageModel(model, tokenizer, name).head, which "
                "knows them"
            )


def check_tokens(weights: Tensor, **per_token: Tensor) -> None:
    """Raises ValueError unless `weights` is [N] and every named tensor has N rows."""
    if weights.dim() != 1 or any(tensor.shape[:1] != weights.shape for tensor in per_token.values()):
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in per_token.items())
        raise ValueError(f"one weight per token: weights have shape {tuple(weights.shape)}, but {shapes}")


def check_temperature(temperature: float) -> None:
    """Raises UserError unless the temperature is positive."""
    if not temperature > 0:
        raise UserError(f"loss temperature {temperature} must be above 0; 1 is the paper's setting")
