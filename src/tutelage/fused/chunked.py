"""The losses in token chunks, with the gradient in closed form in the same pass.

Two sizes matter. A *chunk* is as many tokens as the memory budget allows: large matrix products, the projected logits
of both models in the dtype of the matrix work. A *tile* is a few rows of a chunk: everything elementwise (softmax,
divergence, its derivative) happens there in fp32, in the processor's cache, and the derivative in the logits overwrites
the student's projection. On 2 CPU cores at V = 49,152 an elementwise pass over a tile takes a tenth of the time of the
same pass over a whole chunk.

Work per token: one student and one teacher projection, one product for the gradient of the hidden states and one for
the gradient of the head's weight when it is trained. `backward` only scales what `forward` found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tutelage.divergences import Distribution, Divergence, expect_, parse
from tutelage.errors import UserError
from tutelage.fused.base import (
    DEFAULT_BUDGET_BYTES,
    TokenStats,
    check_temperature,
    check_tokens,
    finish_logits,
    matmul_input,
    project,
    shared_rows,
    softmax_dtype,
)
from tutelage.types import LMHead

_TILE_BUFFERS = 8  # [tile, V] tensors alive at once in the elementwise part
_CPU_TILE_BYTES = 4 * 2**20  # a tile's buffers should stay in the last-level cache


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
    student_head, teacher_head = shared_rows(student_head, teacher_head)
    teacher_bias = None if teacher_head.bias is None else teacher_head.bias.detach()
    teacher_head = replace(teacher_head, weight=teacher_head.weight.detach(), bias=teacher_bias)
    hidden = matmul_input(teacher_hidden.detach())
    loss = _DivergenceLoss(parse(divergence), hidden, teacher_head, temperature)
    return _weighted_sum(loss, student_hidden, student_head, weights, budget_bytes, return_stats)


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
    return _weighted_sum(_NLLLoss(targets), student_hidden, student_head, weights, budget_bytes, return_stats)


# --- what a loss does to one tile of logits ---------------------------------------------------------------------------


class _Tile(NamedTuple):
    """Results of t tokens."""

    values: Tensor  # [t]
    logit_grad: Tensor | None  # [t, V]: derivative of each token's value in its own logits (after temperature)
    stats: list[Tensor]  # each [t]


class _TokenLoss(Protocol):
    """A loss that is a sum over tokens of a function of the student's logits."""

    stat_names: ClassVar[tuple[str, ...]]  # fields of TokenStats, the values first

    @property
    def temperature(self) -> float:
        """Divides the student's logits."""

    @property
    def bytes_per_token(self) -> int:
        """Size of one row of `signal`."""

    def select(self, index: Tensor) -> Self:
        """The loss of these tokens only."""

    def signal(self, rows: slice) -> Tensor:
        """What the student is compared with on a chunk: one row per token."""

    def tile(self, logits: Tensor, signal: Tensor, want_grad: bool, want_stats: bool) -> _Tile:
        """Values and derivative at the student's logits [t, V], given the rows of `signal` for the same tokens."""


@dataclass(frozen=True)
class _DivergenceLoss:
    stat_names: ClassVar[tuple[str, ...]] = (
        "divergence",
        "student_entropy",
        "agreement",
        "forward_kl",
        "reverse_kl",
        "teacher_entropy",
    )
    divergence: Divergence
    teacher_hidden: Tensor
    teacher_head: LMHead
    temperature: float

    @property
    def bytes_per_token(self) -> int:
        return self.teacher_head.vocab_size * self.teacher_hidden.element_size()

    def select(self, index: Tensor) -> Self:
        return replace(self, teacher_hidden=self.teacher_hidden[index])

    def signal(self, rows: slice) -> Tensor:
        return project(self.teacher_hidden[rows], self.teacher_head)

    def tile(self, logits: Tensor, signal: Tensor, want_grad: bool, want_stats: bool) -> _Tile:
        teacher_logits = finish_logits(signal, self.teacher_head, self.temperature).to(logits.dtype)
        teacher = Distribution.of(teacher_logits.log_softmax(-1))
        student = Distribution.of(logits.log_softmax(-1))
        logit_grad = None
        if want_grad:
            values, logit_grad = self.divergence.score(teacher, student)
            logit_grad.addcmul_(student.p, logit_grad.sum(-1, keepdim=True), value=-1)
        else:
            values = self.divergence.value(teacher.logp, student.logp)
        return _Tile(values, logit_grad, self._stats(teacher, student) if want_stats else [])

    @staticmethod
    def _stats(teacher: Distribution, student: Distribution) -> list[Tensor]:
        log_ratio = teacher.logp - student.logp
        return [
            -expect_(student.p, student.logp.clone()),
            (_is_max(teacher.logp) & _is_max(student.logp)).any(-1).to(student.p.dtype),
            expect_(teacher.p, log_ratio.clone()),
            -expect_(student.p, log_ratio),
            -expect_(teacher.p, teacher.logp.clone()),
        ]


@dataclass(frozen=True)
class _NLLLoss:
    stat_names: ClassVar[tuple[str, ...]] = ("divergence", "student_entropy", "agreement")
    targets: Tensor
    temperature: float = 1.0
    bytes_per_token: int = 8

    def select(self, index: Tensor) -> Self:
        return replace(self, targets=self.targets[index])

    def signal(self, rows: slice) -> Tensor:
        return self.targets[rows, None]

    def tile(self, logits: Tensor, signal: Tensor, want_grad: bool, want_stats: bool) -> _Tile:
        logp = logits.log_softmax(-1)
        target_logp = logp.gather(1, signal)
        stats = []
        if want_stats:
            is_max = target_logp == logp.amax(-1, keepdim=True)
            stats = [-expect_(logp.exp(), logp.clone()), is_max.squeeze(1).to(logp.dtype)]
        logit_grad = None
        if want_grad:
            logit_grad = logp.exp_()
            logit_grad.scatter_add_(1, signal, torch.full_like(target_logp, -1.0))
        return _Tile(-target_logp.squeeze(1), logit_grad, stats)


def _is_max(logp: Tensor) -> Tensor:
    return logp == logp.amax(-1, keepdim=True)


# --- the pass over the tokens -----------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """How many tokens a chunk and a tile have."""

    chunk: int
    tile: int


def plan(tokens: int, vocab: int, bytes_per_token: int, dtype: torch.dtype, device: str, budget_bytes: int) -> _Plan:
    """Chunk and tile sizes for `tokens` tokens; `bytes_per_token` is what a chunk holds for each. One token at least."""
    if budget_bytes <= 0:
        raise UserError(f"the loss's memory budget is {budget_bytes} bytes; it must be above 0")
    tile_bytes = budget_bytes // 2 if device != "cpu" else min(budget_bytes // 2, _CPU_TILE_BYTES)
    tile = tile_bytes // (vocab * softmax_dtype(dtype).itemsize * _TILE_BUFFERS)
    most = max(1, (budget_bytes - tile_bytes) // bytes_per_token)
    chunk = math.ceil(tokens / math.ceil(tokens / most)) if tokens else 1  # equal chunks: no small one at the end
    return _Plan(chunk, max(1, min(tile, chunk)))


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


class _Wants(NamedTuple):
    """Which gradients are needed."""

    hidden: bool
    weight: bool
    bias: bool


class _Gradients:
    """The gradients of the weighted sum, gathered chunk by chunk."""

    def __init__(self, wants: _Wants, hidden: Tensor, head: LMHead, weights: Tensor) -> None:
        self._wants, self._inputs, self._head, self._weights = wants, hidden, head, weights
        self.hidden = torch.zeros_like(hidden) if wants.hidden else None
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None

    def add(self, rows: slice, logit_grad: Tensor) -> None:
        """Adds a chunk's `logit_grad` [c, V], the derivative of each token's unweighted value in the projection.

        Token weights multiply the [c, H] side of each product: V / H times less work than on the logits, and small
        weights do not underflow in half precision.
        """
        token_weights = self._weights[rows, None]
        if self.hidden is not None:
            self.hidden[rows] = (logit_grad @ self._head.weight) * token_weights
        if self._wants.weight:
            weighted = (self._inputs[rows] * token_weights).to(logit_grad.dtype)
            self.weight = _accumulate(self.weight, logit_grad.T @ weighted)
        if self._wants.bias:
            self.bias = _accumulate(self.bias, logit_grad.T @ self._weights[rows].to(logit_grad.dtype))

    def finish(self, head: LMHead) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of hidden states and of `head`'s weight and bias in its dtypes; None for the ones not wanted."""
        weight, bias = head.weight, head.bias
        weight_grad = bias_grad = None
        if self._wants.weight:
            weight_grad = torch.zeros_like(weight) if self.weight is None else self.weight.to(weight.dtype)
        if bias is not None and self._wants.bias:
            bias_grad = torch.zeros_like(bias) if self.bias is None else self.bias.to(bias.dtype)
        return self.hidden, weight_grad, bias_grad


def _accumulate(total: Tensor | None, part: Tensor) -> Tensor:
    # A single chunk never needs the fp32 copy.
    return part if total is None else total.to(softmax_dtype(part.dtype)).add_(part)


@dataclass(frozen=True)
class _Pass:
    """Everything about one evaluation that is not a differentiable input."""

    loss: _TokenLoss
    scale: float
    softcap: float | None
    wants: _Wants
    budget_bytes: int
    want_stats: bool

    @torch.no_grad()
    def run(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, weights: Tensor) -> tuple[Any, ...]:
        """Weighted sum, statistics [K, N] (unset unless wanted) and the three gradients."""
        master = LMHead(weight, bias, self.scale, self.softcap)
        head = replace(master, weight=weight.to(hidden.dtype))  # once, not per chunk
        tokens, vocab = len(hidden), head.vocab_size
        bytes_per_token = vocab * hidden.element_size() + self.loss.bytes_per_token
        sizes = plan(tokens, vocab, bytes_per_token, hidden.dtype, hidden.device.type, self.budget_bytes)
        # d logits / d projection, but for the soft-cap, is one constant: it rides on the token weights.
        gradients = _Gradients(self.wants, hidden, head, weights * (self.scale / self.loss.temperature))
        total, stats = weights.new_zeros(()), weights.new_empty(len(self.loss.stat_names), tokens)
        for rows in _slices(tokens, sizes.chunk):
            projected = project(hidden[rows], head)
            signal = self.loss.signal(rows)
            for tile in _slices(len(projected), sizes.tile):
                result = self._tile(projected[tile], signal[tile], head)
                total += result.values @ weights[rows][tile]
                if self.want_stats:
                    stats[:, rows][:, tile] = torch.stack([result.values, *result.stats])
            del signal
            if any(self.wants):
                gradients.add(rows, projected)
        return total, stats, *gradients.finish(master)

    def _tile(self, projected: Tensor, signal: Tensor, head: LMHead) -> _Tile:
        """One tile; the derivative in `projected`, but for a constant factor, overwrites it."""
        logits = finish_logits(projected, head, self.loss.temperature)
        result = self.loss.tile(logits, signal, any(self.wants), self.want_stats)
        if result.logit_grad is not None:
            if head.softcap is not None:
                tanh = logits * (self.loss.temperature / head.softcap)
                result.logit_grad.mul_(tanh.square_().neg_().add_(1.0))
            projected.copy_(result.logit_grad)
        return result


class _LinearLoss(torch.autograd.Function):
    """Carries the gradients from the forward pass to the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, weights: Tensor, run: _Pass
    ) -> tuple[Tensor, Tensor]:
        total, stats, *gradients = run.run(hidden, weight, bias, weights)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(stats)
        return total, stats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        if grad_total.item() != 1.0:  # the usual case spares a pass over [V, H]
            gradients = [None if gradient is None else gradient * grad_total for gradient in gradients]
        return *gradients, None, None


def _weighted_sum(
    loss: _TokenLoss, hidden: Tensor, head: LMHead, weights: Tensor, budget_bytes: int, return_stats: bool
) -> Tensor | tuple[Tensor, TokenStats]:
    """The weighted sum, with statistics when wanted. Tokens of weight 0 reach neither the sum nor the gradient."""
    hidden = matmul_input(hidden)
    weights = weights.detach().to(softmax_dtype(hidden.dtype))
    is_active = weights != 0
    if bool(is_active.all()):
        total, stats = _apply(loss, hidden, head, weights, budget_bytes, return_stats)
    else:
        active, idle = is_active.nonzero().squeeze(1), (~is_active).nonzero().squeeze(1)
        total, active_stats = _apply(
            loss.select(active), hidden[active], head, weights[active], budget_bytes, return_stats
        )
        if return_stats:
            with torch.no_grad():
                _, idle_stats = _apply(loss.select(idle), hidden[idle], head, weights[idle], budget_bytes, True)
            stats = weights.new_empty(len(loss.stat_names), len(weights))
            stats[:, active], stats[:, idle] = active_stats, idle_stats
    return (total, TokenStats(**dict(zip(loss.stat_names, stats, strict=True)))) if return_stats else total


def _apply(
    loss: _TokenLoss, hidden: Tensor, head: LMHead, weights: Tensor, budget_bytes: int, want_stats: bool
) -> tuple[Tensor, Tensor]:
    """One pass, recorded for autograd only when a gradient is needed."""
    inputs = (hidden, head.weight, head.bias)
    wants = _Wants(*(torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in inputs))
    run = _Pass(loss, head.scale, head.softcap, wants, budget_bytes, want_stats)
    with torch.autocast(hidden.device.type, enabled=False):  # dtypes are chosen here, not by autocast
        if any(wants):
            return _LinearLoss.apply(*inputs, weights, run)
        total, stats, *_ = run.run(*inputs, weights)
        return total, stats
