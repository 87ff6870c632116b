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
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tutelage.divergences import Divergence, parse
from tutelage.errors import UserError
from tutelage.fused.base import (
    BLOCK_BYTES,
    DEFAULT_BUDGET_BYTES,
    TokenStats,
    check_temperature,
    check_tokens,
    finish_logits,
    matmul_input,
    project,
    shared_rows,
    slices,
    softmax_dtype,
)
from tutelage.fused.kernels import Elementwise, Kernel, find_kernel
from tutelage.fused.losses import DivergenceLoss, NLLLoss, Tile, TokenLoss
from tutelage.types import LMHead

_TILE_BUFFERS = 13  # the most [tile, V] tensors alive at once in the elementwise part, soft-cap and statistics included
_PRODUCT_BYTES = 4 * 2**20  # of some rows of the head's gradient before they join the float32 sum
_SUM_BYTES = 128 * 2**20  # of a block of that sum: malloc gives memory of more than 32 MB back at once
# Measured on two cores with the eight tensors that most losses have: fewer rows pay for calls and barriers, more leave the cache.
_CPU_TILE_BYTES, _CACHED_BUFFERS = 12 * 2**20, 8


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
    elementwise: Elementwise = "auto",
) -> Tensor | tuple[Tensor, TokenStats]:
    """Weighted sum of token divergences between two heads: see `tutelage.fused.linear_divergence`."""
    check_tokens(weights, student_hidden=student_hidden, teacher_hidden=teacher_hidden)
    check_temperature(temperature)
    student_head, teacher_head = shared_rows(student_head, teacher_head)
    teacher_bias = None if teacher_head.bias is None else teacher_head.bias.detach()
    teacher_head = replace(teacher_head, weight=teacher_head.weight.detach(), bias=teacher_bias)
    hidden = matmul_input(teacher_hidden.detach())
    loss = DivergenceLoss(parse(divergence), hidden, teacher_head, temperature)
    return weighted_sum(loss, student_hidden, student_head, weights, budget_bytes, return_stats, elementwise)


def linear_nll(
    student_hidden: Tensor,
    student_head: LMHead,
    targets: Tensor,
    weights: Tensor,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    return_stats: bool = False,
    elementwise: Elementwise = "auto",
) -> Tensor | tuple[Tensor, TokenStats]:
    """Weighted sum of negative log-likelihoods: see `tutelage.fused.linear_nll`."""
    check_tokens(weights, student_hidden=student_hidden, targets=targets)
    loss = NLLLoss(targets)
    return weighted_sum(loss, student_hidden, student_head, weights, budget_bytes, return_stats, elementwise)


# --- the pass over the tokens -----------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """How many tokens a chunk and a tile have."""

    chunk: int
    tile: int


def plan(
    tokens: int, vocab: int, bytes_per_token: int, dtype: torch.dtype | None, device: str, budget_bytes: int
) -> _Plan:
    """Chunk and tile sizes for `tokens` tokens; one token at least.

    Args:
        tokens, vocab: N and V.
        bytes_per_token: what a chunk holds for each token.
        dtype: of the hidden states; None where a kernel needs no room for tiles.
        device: type of the device.
        budget_bytes: for a chunk and a tile together.

    Raises:
        UserError: the budget is not positive.
    """
    if budget_bytes <= 0:
        raise UserError(f"the loss's memory budget is {budget_bytes} bytes; it must be above 0")
    tile, tile_bytes = 1, 0
    if dtype is not None:
        row_bytes = vocab * softmax_dtype(dtype).itemsize
        tile = budget_bytes // 2 // (row_bytes * _TILE_BUFFERS)
        if device == "cpu":  # a row for every thread at least: sums over the vocabulary are spread by rows
            tile = min(tile, max(_CPU_TILE_BYTES // (row_bytes * _CACHED_BUFFERS), torch.get_num_threads()))
        tile = max(1, tile)
        tile_bytes = tile * row_bytes * _TILE_BUFFERS
        if (
            device == "cpu"
        ):  # oneDNN's blocks of the projections, before there are tiles: each twice, as it is laid out anew
            tile_bytes = max(tile_bytes, min(2 * BLOCK_BYTES, budget_bytes // 2))
    most = max(1, (budget_bytes - tile_bytes) // bytes_per_token)
    chunk = math.ceil(tokens / math.ceil(tokens / most)) if tokens else 1  # equal chunks: no small one at the end
    return _Plan(chunk, min(tile, chunk))


class _Wants(NamedTuple):
    """Which gradients are needed."""

    hidden: bool
    weight: bool
    bias: bool


class _Gradients:
    """The gradients of the weighted sum, gathered chunk by chunk; that of the head's weight becomes of `weight_dtype`."""

    def __init__(
        self, wants: _Wants, hidden: Tensor, head: LMHead, weights: Tensor, weight_dtype: torch.dtype, is_single: bool
    ) -> None:
        self._wants, self._inputs, self._head, self._weights = wants, hidden, head, weights
        self.hidden = torch.zeros_like(hidden) if wants.hidden else None
        self.weight = _ProductSum(weight_dtype, is_single) if wants.weight else None
        self.bias: Tensor | None = None

    def add(self, rows: slice, logit_grad: Tensor) -> None:
        """Adds a chunk's `logit_grad` [c, V], the derivative of each token's unweighted value in the projection.

        Token weights multiply the [c, H] side of each product: V / H times less work than on the logits. The factors are
        rounded to the products' dtype: small weights do not underflow in bfloat16, but would in float16 (see `_apply`).
        """
        token_weights = self._weights[rows, None]
        if self.hidden is not None:
            self.hidden[rows] = (logit_grad @ self._head.weight) * token_weights
        if self.weight is not None:
            # Kernels leave tokens of weight 0 in the chunk, whose hidden states may be NaN or infinite: 0 times that is NaN.
            weighted = torch.where(token_weights != 0, self._inputs[rows] * token_weights, 0.0).to(logit_grad.dtype)
            self.weight.add(logit_grad.T, weighted)
        if self._wants.bias:
            bias = (logit_grad.T @ self._weights[rows].to(logit_grad.dtype)).to(softmax_dtype(logit_grad.dtype))
            self.bias = bias if self.bias is None else self.bias.add_(bias)

    def finish(self, head: LMHead) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of hidden states and of `head`'s weight and bias in its dtypes; None for the ones not wanted."""
        bias, bias_grad = head.bias, None
        weight_grad = None if self.weight is None else self.weight.finish(head.weight)
        if bias is not None and self._wants.bias:
            bias_grad = torch.zeros_like(bias) if self.bias is None else self.bias.to(bias.dtype)
        return self.hidden, weight_grad, bias_grad


class _ProductSum:
    """The sum over chunks of products [V, c] @ [c, H], in float32 or float64; that of a single chunk in its factors' dtype.

    Args:
        dtype: what the sum is rounded to at last. Where that takes other memory, the sum is kept in blocks of rows, each of
            which goes when it has been rounded: it is never there twice.
        is_single: whether one chunk is all.
    """

    def __init__(self, dtype: torch.dtype, is_single: bool) -> None:
        self._dtype, self._is_single = dtype, is_single
        self._blocks: list[Tensor] = []

    def add(self, left: Tensor, right: Tensor) -> None:
        """One more product."""
        sum_dtype = softmax_dtype(left.dtype)
        if self._is_single or left.dtype == sum_dtype:
            self._blocks = [self._blocks[0].addmm_(left, right)] if self._blocks else [left @ right]
            return
        is_first = not self._blocks
        if is_first:
            size = (
                len(left) if self._dtype == sum_dtype else max(1, _SUM_BYTES // (right.shape[1] * sum_dtype.itemsize))
            )
            shapes = [(rows.stop - rows.start, right.shape[1]) for rows in slices(len(left), size)]
            self._blocks = [right.new_empty(shape, dtype=sum_dtype) for shape in shapes]
        # On a CPU no product of half-precision factors adds to a float32 matrix; a few rows at a time, its result is read back
        # from the cache. A GPU needs larger products to be busy.
        most = len(left) if left.is_cuda else max(1, _PRODUCT_BYTES // (right.shape[1] * left.element_size()))
        for block, factor in zip(self._blocks, left.split([len(block) for block in self._blocks]), strict=True):
            for rows in slices(len(block), most):
                product = factor[rows] @ right
                if is_first:  # spares a pass that sets zeros and one that reads them
                    block[rows] = product
                else:
                    block[rows] += product

    def finish(self, like: Tensor) -> Tensor:
        """The sum, rounded to the dtype of `like`; 0 in its shape without any product. Can be asked for once."""
        if not self._blocks:
            return torch.zeros_like(like)
        if len(self._blocks) == 1:
            return self._blocks.pop().to(like.dtype)
        rounded, start = torch.empty_like(like), 0
        while self._blocks:
            block = self._blocks.pop(0)
            rounded[start : start + len(block)] = block
            start += len(block)
        return rounded


@dataclass(frozen=True)
class _Pass:
    """Everything about one evaluation that is not a differentiable input."""

    loss: TokenLoss
    scale: float
    softcap: float | None
    wants: _Wants
    budget_bytes: int
    want_stats: bool
    kernel: Kernel | None

    @torch.no_grad()
    def run(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, weights: Tensor) -> tuple[Any, ...]:
        """Weighted sum, statistics [K, N] (unset unless wanted) and the three gradients."""
        master = LMHead(weight, bias, self.scale, self.softcap)
        head = replace(master, weight=weight.to(hidden.dtype))  # once, not per chunk
        tokens, vocab = len(hidden), head.vocab_size
        bytes_per_token = vocab * hidden.element_size() + self.loss.bytes_per_token
        tile_dtype = None if self.kernel is not None else hidden.dtype
        budget = self.budget_bytes - self._sum_excess(master, hidden.dtype)
        sizes = plan(tokens, vocab, bytes_per_token, tile_dtype, hidden.device.type, budget)
        chunks = list(slices(tokens, sizes.chunk))
        # d logits / d projection, but for the soft-cap, is one constant: it rides on the token weights.
        factors = weights * (self.scale / self.loss.temperature)
        gradients = _Gradients(self.wants, hidden, head, factors, weight.dtype, is_single=len(chunks) == 1)
        buffer = hidden.new_empty(min(tokens, sizes.chunk), vocab)
        total, stats = weights.new_zeros(()), weights.new_empty(len(self.loss.stat_names), tokens)
        projected = signal = buffer  # of the chunk at hand; none when there are no tokens
        for rows, signal in zip(chunks, self.loss.signals(chunks), strict=True):
            projected = project(hidden[rows], head, out=buffer[: rows.stop - rows.start])
            if self.kernel is not None:
                values, extra = self.kernel(projected, signal, head, weights[rows], any(self.wants), self.want_stats)
            else:
                values, extra = self._tiles(projected, signal, head, sizes.tile)
            total += torch.where(weights[rows] != 0, values * weights[rows], 0.0).sum()  # idle tokens may be infinite
            if extra is not None:
                stats[0, rows], stats[1:, rows] = values, extra
            if any(self.wants):
                gradients.add(rows, projected)
        del buffer, projected, signal  # before the gradients are rounded to their dtypes, which takes memory too
        return total, stats, *gradients.finish(master)

    def _sum_excess(self, head: LMHead, dtype: torch.dtype) -> int:
        """What a float32 sum of the head's gradient takes beyond the rounded gradient: of the budget, as far as a quarter of it goes."""
        if not self.wants.weight:
            return 0
        beyond = softmax_dtype(dtype).itemsize - head.weight.element_size()
        return min(max(0, beyond) * head.weight.numel(), self.budget_bytes // 4)

    def _tiles(self, projected: Tensor, signal: Tensor, head: LMHead, size: int) -> tuple[Tensor, Tensor | None]:
        """Values [c] and statistics [K - 1, c]; the derivatives, but for a constant factor, overwrite `projected`."""
        results = [self._tile(projected[rows], signal[rows], head) for rows in slices(len(projected), size)]
        values = torch.cat([result.values for result in results])
        if not self.want_stats:
            return values, None
        return values, torch.cat([torch.stack(result.stats) for result in results], dim=1)

    def _tile(self, projected: Tensor, signal: Tensor, head: LMHead) -> Tile:
        """One tile of `_tiles`; keeps nothing of size [t, V]."""
        logits = finish_logits(projected, head, self.loss.temperature)
        tanh = None
        if head.softcap is not None and any(self.wants):
            tanh = logits * (self.loss.temperature / head.softcap)
        values, logit_grad, stats = self.loss.tile(logits, signal, any(self.wants), self.want_stats)
        if logit_grad is not None:
            if tanh is not None:
                logit_grad.mul_(tanh.square_().neg_().add_(1.0))
            projected.copy_(logit_grad)
        return Tile(values, None, stats)


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
        # The usual factor 1 spares a pass over [V, H]; on a GPU that pass is cheaper than waiting to see the factor.
        if grad_total.is_cuda or grad_total.item() != 1.0:
            gradients = [None if gradient is None else gradient * grad_total for gradient in gradients]
        return *gradients, None, None


def weighted_sum(
    loss: TokenLoss,
    hidden: Tensor,
    head: LMHead,
    weights: Tensor,
    budget_bytes: int,
    return_stats: bool,
    elementwise: Elementwise = "auto",
) -> Tensor | tuple[Tensor, TokenStats]:
    """The weighted sum, with statistics when wanted. Tokens of weight 0 reach neither the sum nor the gradient."""
    hidden = matmul_input(hidden)
    weights = weights.detach().to(softmax_dtype(hidden.dtype))
    kernel = find_kernel(loss, hidden, elementwise)
    rest = (budget_bytes, return_stats, kernel)
    is_active = weights != 0
    # The kernels leave tokens of weight 0 alone, and counting them would make the host wait for the device.
    if kernel is not None or bool(is_active.all()):
        total, stats = _apply(loss, hidden, head, weights, *rest)
    else:
        active, idle = is_active.nonzero().squeeze(1), (~is_active).nonzero().squeeze(1)
        total, active_stats = _apply(loss.select(active), hidden[active], head, weights[active], *rest)
        if return_stats:
            with torch.no_grad():
                _, idle_stats = _apply(loss.select(idle), hidden[idle], head, weights[idle], *rest)
            stats = weights.new_empty(len(loss.stat_names), len(weights))
            stats[:, active], stats[:, idle] = active_stats, idle_stats
    return (total, TokenStats(**dict(zip(loss.stat_names, stats, strict=True)))) if return_stats else total


def _apply(
    loss: TokenLoss,
    hidden: Tensor,
    head: LMHead,
    weights: Tensor,
    budget_bytes: int,
    want_stats: bool,
    kernel: Kernel | None,
) -> tuple[Tensor, Tensor]:
    """One pass, recorded for autograd only when a gradient is needed.

    Raises:
        UserError: a gradient is needed in float16. It is found before the factor of a gradient scaler arrives, which is
            meant to keep it from underflowing.
    """
    inputs = (hidden, head.weight, head.bias)
    wants = _Wants(*(torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in inputs))
    if any(wants) and hidden.dtype == torch.float16:
        raise UserError(
            "the student's hidden states are float16, in which the gradients of this loss underflow before a gradient scaler "
            'sees them; use bfloat16 or float32 (of the model, or of autocast), or implementation="reference"'
        )
    run = _Pass(loss, head.scale, head.softcap, wants, budget_bytes, want_stats, kernel)
    with torch.autocast(hidden.device.type, enabled=False):  # dtypes are chosen here, not by autocast
        if any(wants):
            return _LinearLoss.apply(*inputs, weights, run)
        total, stats, *_ = run.run(*inputs, weights)
        return total, stats
