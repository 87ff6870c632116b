"""The elementwise part of the losses as Triton kernels: one program for each token, one launch for each chunk.

A program walks over its row of the vocabulary in blocks and holds nothing of length V. How often it reads the two rows:

    pass 1  both log-sum-exps. Sums of p * x need no second look: they are kept relative to the running maxima and
            rescaled when one rises. So the Kullback-Leibler divergences and all statistics are known after this pass.
    pass 2  value and sum of the derivative, for the divergences whose terms are not linear in the log-probabilities:
            both log-sum-exps have to be known before the first term. The two Kullback-Leibler divergences skip it.
    pass 3  the derivative, which overwrites the student's row. Only when gradients are wanted.

Everything is computed in float32. Nothing waits for the device: the kernels take whatever weights they are given, and
skip rows of weight 0 unless their statistics are wanted. The matrix products around them do not: they take these rows
along, since to find the others the host would have to wait.
"""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tutelage import divergences
from tutelage.divergences import Divergence
from tutelage.fused.triton_terms import terms, times
from tutelage.types import LMHead

# 4096 elements on 16 warps are 8 for each thread: loads of 16 bytes in half precision, and with the seven running sums
# of pass 1 still so few registers that a thread spills 16 bytes at most (compiled for Hopper by Triton 3.9). A
# multiprocessor works on few rows at once, so that what pass 1 has read is still in the L2 cache for the passes after it:
# two rows of 128k tokens in bfloat16 take 0.5 MB.
_MAX_BLOCK = 4096
_ELEMENTS_PER_WARP = 256

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


# --- what is launched from outside ------------------------------------------------------------------------------------


def supports(divergence: Divergence) -> bool:
    """Whether the kernel has a branch for this divergence; `adaptive_kl` and user-registered ones run in PyTorch."""
    return _function(divergence) in _KINDS


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on any device, instead of compiling them for a GPU."""
    return not isinstance(_score_kernel, triton.JITFunction)


def score_(
    projected_cV: Tensor,
    teacher_projected_cV: Tensor,
    student_head: LMHead,
    teacher_head: LMHead,
    divergence: Divergence,
    temperature: float,
    weights_c: Tensor,
    want_grad: bool,
    want_stats: bool,
) -> tuple[Tensor, Tensor | None]:
    """Token divergences of a chunk; with `want_grad`, their derivatives overwrite the student's projection.

    Args:
        projected_cV, teacher_projected_cV: hidden @ weight.T + bias of both models, [c, V], each in bfloat16, float16 or
            float32. Rows may be further apart than V.
        student_head, teacher_head: only scale and soft-cap are read.
        divergence: one that `supports` accepts.
        temperature: divides both models' logits.
        weights_c: [c]; only whether a weight is 0 matters.
        want_grad: overwrite `projected_cV` with d value / d projection, but for the constant factor scale / temperature;
            0 in rows of weight 0.
        want_stats: also return the statistics.

    Returns:
        Values [c], float32, unweighted (0 in rows of weight 0 unless `want_stats`), and statistics [5, c] or None: the
        student's entropy, agreement, forward and reverse KL, the teacher's entropy, as in `TokenStats`.

    Raises:
        ValueError: the shapes differ, a row is not contiguous, or a dtype is not one of the above.
    """
    _check_rows(teacher_projected_cV, weights_c)
    if teacher_projected_cV.shape != projected_cV.shape:
        raise ValueError(f"{tuple(projected_cV.shape)} logits against {tuple(teacher_projected_cV.shape)}")
    teacher = _Rows(teacher_projected_cV, teacher_projected_cV.stride(0), *_finish(teacher_head, temperature))
    student_finish = _finish(student_head, temperature)
    return _launch(projected_cV, student_finish, teacher, divergence, weights_c, want_grad, want_stats)


def nll_(
    projected_cV: Tensor, head: LMHead, targets_c: Tensor, weights_c: Tensor, want_grad: bool, want_stats: bool
) -> tuple[Tensor, Tensor | None]:
    """Negative log-likelihoods of a chunk's targets [c]; with `want_grad`, their derivatives overwrite the projection.

    Arguments, results and errors are those of `score_`; the statistics are [2, c]: the student's entropy, agreement.
    """
    if targets_c.shape != weights_c.shape:
        raise ValueError(f"one target per weight: targets {tuple(targets_c.shape)}, weights {tuple(weights_c.shape)}")
    teacher = _Rows(targets_c, targets_c.stride(0), None, None)
    divergence = divergences.parse("forward_kl")  # from a teacher that is certain of the target
    values, stats = _launch(projected_cV, _finish(head, 1.0), teacher, divergence, weights_c, want_grad, want_stats)
    return values, None if stats is None else stats[:2]


class _Rows(NamedTuple):
    """What the student is compared with: the teacher's rows and how to finish them (see `_finish`), or targets."""

    tensor: Tensor
    stride: int
    inner: float | None
    outer: float | None


def _launch(
    projected: Tensor,
    student_finish: tuple[float | None, float],
    teacher: _Rows,
    divergence: Divergence,
    weights: Tensor,
    want_grad: bool,
    want_stats: bool,
) -> tuple[Tensor, Tensor | None]:
    _check_rows(projected, weights)
    tokens, vocab = projected.shape
    values = projected.new_empty(tokens, dtype=torch.float32)
    stats = values.new_empty(5, tokens) if want_stats else None
    if tokens == 0:
        return values, stats
    kind, teacher_weight = _kind(divergence)
    block = max(32, min(_MAX_BLOCK, triton.next_power_of_2(vocab)))
    with torch.cuda.device_of(projected):
        _score_kernel[(tokens,)](
            projected,
            weights.contiguous(),
            values,
            stats,
            projected.stride(0),
            vocab,
            *student_finish,
            *teacher,
            teacher_weight,
            KIND=kind,
            WANT_GRAD=want_grad,
            WANT_STATS=want_stats,
            BLOCK=block,
            num_warps=max(1, block // _ELEMENTS_PER_WARP),
            enable_fp_fusion=True,  # the default differs between versions of Triton
        )
    return values, stats


_KINDS = {
    divergences.forward_kl: "forward_kl",
    divergences.reverse_kl: "reverse_kl",
    divergences.jsd: "jsd",
    divergences.total_variation: "total_variation",
    divergences.skew_forward_kl: "skew_forward_kl",
    divergences.skew_reverse_kl: "skew_reverse_kl",
}


def _function(divergence: Divergence) -> divergences.DivergenceFn:
    value = divergence.value
    return value.func if isinstance(value, partial) else value


def _kind(divergence: Divergence) -> tuple[str, float]:
    """The branch of `triton_terms.terms`, and the teacher's weight in the divergence's mixture."""
    # The signature of a partial shows what was filled in as defaults.
    arguments = {name: argument.default for name, argument in signature(divergence.value).parameters.items()}
    match _KINDS[_function(divergence)], arguments:
        case "jsd", {"beta": beta, "rescale": rescale}:
            return "rescaled_jsd" if rescale else "jsd", beta
        case kind, {"alpha": alpha}:
            return kind, 1 - alpha if kind == "skew_reverse_kl" else alpha
        case kind, _:
            return kind, 0.0


def _finish(head: LMHead, temperature: float) -> tuple[float | None, float]:
    """(inner, outer): logits are outer * tanh(inner * projected), or outer * projected where inner is None."""
    if head.softcap is None:
        return None, head.scale / temperature
    return head.scale / head.softcap, head.softcap / temperature


def _check_rows(rows: Tensor, weights: Tensor) -> None:
    if rows.dim() != 2 or weights.shape != rows.shape[:1]:
        raise ValueError(f"one row per weight: logits {tuple(rows.shape)}, weights {tuple(weights.shape)}")
    if rows.dtype not in DTYPES or (rows.shape[1] > 1 and rows.stride(1) != 1):
        raise ValueError(f"rows must be contiguous, in half or single precision, not {rows.dtype} {rows.stride()}")


# --- one block of one row ---------------------------------------------------------------------------------------------
#
# A model is the tuple (pointer to its row, inner, outer), see `_finish`, or (pointer to a target, None, None) for one that
# is certain of the target. A scale is (maximum, log of the sum of exponentials relative to it).


@triton.jit
def _logits(model: tl.tuple, start: tl.tensor, vocab: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Finished logits [BLOCK]; -inf, that is probability 0, past the end of the row."""
    row, inner, outer = model
    offsets = start + tl.arange(0, BLOCK)
    if outer is None:
        logits = tl.where(offsets == tl.load(row), 0.0, float("-inf"))
    else:
        logits = tl.load(row + offsets, mask=offsets < vocab, other=float("-inf")).to(tl.float32)
        if inner is not None:
            # tanh through exp, within 1e-7 of it; Triton has no tanh of its own.
            decay = tl.exp(-2.0 * inner * tl.abs(logits))
            size = (1.0 - decay) / (1.0 + decay)
            logits = tl.where(offsets < vocab, tl.where(logits < 0, -size, size), float("-inf"))
        logits = logits * outer
    return logits


@triton.jit
def _store_grad(
    model: tl.tuple, start: tl.tensor, vocab: tl.tensor, grad: tl.tensor, logits: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """Overwrites a block with the derivative in the projection, but for a constant, given that in its logits."""
    row, inner, outer = model
    if inner is not None:
        tanh = logits / outer
        grad = times(grad, 1.0 - tanh * tanh)  # rows of weight 0 have no derivative, but may hold NaN
    offsets = start + tl.arange(0, BLOCK)
    tl.store(row + offsets, grad.to(row.dtype.element_ty), mask=offsets < vocab)


@triton.jit
def _clear(row: tl.tensor, vocab: tl.tensor, BLOCK: tl.constexpr) -> None:
    zeros = tl.full([BLOCK], 0.0, row.dtype.element_ty)
    for start in range(0, vocab, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        tl.store(row + offsets, zeros, mask=offsets < vocab)


@triton.jit
def _shift(top: tl.tensor) -> tl.tensor:
    """What exponents are relative to: the running maximum, or 0 as long as that is -inf."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def _moved(total: tl.tensor, weight: tl.tensor, step: tl.tensor, fade: tl.tensor) -> tl.tensor:
    """The sum of w * x after every x fell by `step` and every w by the factor `fade`; `weight` is the old sum of w."""
    # Weights that fade to 0 take infinite terms with them, as in a sum whose probabilities were 0 from the start.
    return tl.where(fade == 0, 0.0, (total - step * weight) * fade)


# --- one row ----------------------------------------------------------------------------------------------------------


@triton.jit
def _scan(
    student: tl.tuple,
    teacher: tl.tuple,
    vocab: tl.tensor,
    FORWARD: tl.constexpr,
    REVERSE: tl.constexpr,
    STATS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tuple:
    """Pass 1: both models' scales, then the five statistics; those not asked for mean nothing.

    Sums stay vectors, one part for each element of a block, and are reduced once, at the end; only the maxima are
    needed in every block. They rise rarely after the first blocks, so rescaling is behind a branch.
    """
    q_sum = tl.full([BLOCK], 0.0, tl.float32)
    p_sum, forward, reverse, q_dot, p_dot, both_top = q_sum, q_sum, q_sum, q_sum, q_sum, q_sum
    s_top, t_top, s_shift, t_shift = float("-inf"), float("-inf"), 0.0, 0.0
    for start in range(0, vocab, BLOCK):
        s, t = _logits(student, start, vocab, BLOCK), _logits(teacher, start, vocab, BLOCK)
        s_peak, t_peak = tl.maximum(s_top, tl.max(s, 0)), tl.maximum(t_top, tl.max(t, 0))
        if (s_peak > s_top) | (t_peak > t_top):
            s_step, t_step = _shift(s_peak) - s_shift, _shift(t_peak) - t_shift
            s_fade, t_fade = tl.exp(s_top - _shift(s_peak)), tl.exp(t_top - _shift(t_peak))
            forward = _moved(forward, p_sum, t_step - s_step, t_fade)
            reverse = _moved(reverse, q_sum, s_step - t_step, s_fade)
            q_dot, p_dot = _moved(q_dot, q_sum, s_step, s_fade), _moved(p_dot, p_sum, t_step, t_fade)
            q_sum, p_sum = q_sum * s_fade, p_sum * t_fade
            both_top = both_top * 0.0
            s_top, t_top, s_shift, t_shift = s_peak, t_peak, _shift(s_peak), _shift(t_peak)
        x, y = s - s_shift, t - t_shift
        q, p = tl.exp(x), tl.exp(y)
        q_sum, p_sum = q_sum + q, p_sum + p
        if FORWARD:
            forward += times(p, y - x)
        if REVERSE:
            reverse += times(q, x - y)
        if STATS:
            q_dot, p_dot = q_dot + times(q, x), p_dot + times(p, y)
            both_top = tl.where((s == s_top) & (t == t_top), 1.0, both_top)
    q_total, p_total = tl.sum(q_sum, 0), tl.sum(p_sum, 0)
    q_log, p_log = tl.log(q_total), tl.log(p_total)
    student_entropy, teacher_entropy = q_log - tl.sum(q_dot, 0) / q_total, p_log - tl.sum(p_dot, 0) / p_total
    forward_kl = tl.sum(forward, 0) / p_total + q_log - p_log
    reverse_kl = tl.sum(reverse, 0) / q_total + p_log - q_log
    agreement = tl.max(both_top, 0)
    return (s_shift, q_log), (t_shift, p_log), student_entropy, agreement, forward_kl, reverse_kl, teacher_entropy


@triton.jit
def _score_kernel(
    projected: tl.tensor, weights: tl.tensor, values: tl.tensor, stats: tl.tensor, stride: tl.tensor, vocab: tl.tensor,
    student_inner: tl.tensor, student_outer: tl.tensor,
    teacher_rows: tl.tensor, teacher_stride: tl.tensor, teacher_inner: tl.tensor, teacher_outer: tl.tensor,
    teacher_weight: tl.tensor,
    KIND: tl.constexpr, WANT_GRAD: tl.constexpr, WANT_STATS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """One token."""
    token = tl.program_id(0).to(tl.int64)  # token * stride may pass 2^31
    student = projected + token * stride, student_inner, student_outer
    teacher = teacher_rows + token * teacher_stride, teacher_inner, teacher_outer
    counts = tl.load(weights + token) != 0
    if not WANT_STATS and not counts:
        tl.store(values + token, 0.0)
        if WANT_GRAD:
            _clear(student[0], vocab, BLOCK)
        return
    FORWARD: tl.constexpr = WANT_STATS or KIND == "forward_kl"
    REVERSE: tl.constexpr = WANT_STATS or KIND == "reverse_kl"
    q_scale, p_scale, student_entropy, agreement, forward_kl, reverse_kl, teacher_entropy = _scan(
        student, teacher, vocab, FORWARD, REVERSE, WANT_STATS, BLOCK
    )
    if WANT_STATS:
        found = student_entropy, agreement, forward_kl, reverse_kl, teacher_entropy
        for i in tl.static_range(5):
            tl.store(stats + i * tl.num_programs(0).to(tl.int64) + token, found[i])
    if KIND == "forward_kl":
        value, grad_sum = forward_kl, -1.0
    elif KIND == "reverse_kl":
        value, grad_sum = reverse_kl, reverse_kl
    else:
        value_sum = tl.full([BLOCK], 0.0, tl.float32)
        g_sum = value_sum
        for start in range(0, vocab, BLOCK):
            s, t = _logits(student, start, vocab, BLOCK), _logits(teacher, start, vocab, BLOCK)
            part, g, _ = terms(t - p_scale[0] - p_scale[1], s - q_scale[0] - q_scale[1], teacher_weight, KIND)
            value_sum, g_sum = value_sum + part, g_sum + g
        value, grad_sum = tl.sum(value_sum, 0), tl.sum(g_sum, 0)
    tl.store(values + token, value)
    if WANT_GRAD:
        for start in range(0, vocab, BLOCK):
            s, t = _logits(student, start, vocab, BLOCK), _logits(teacher, start, vocab, BLOCK)
            _, g, q = terms(t - p_scale[0] - p_scale[1], s - q_scale[0] - q_scale[1], teacher_weight, KIND)
            _store_grad(student, start, vocab, tl.where(counts, g - q * grad_sum, 0.0), s, BLOCK)
