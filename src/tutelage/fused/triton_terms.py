"""The divergences of the Triton kernels: what one element of a row adds to the value and to the derivative.

In float32, on blocks of log-probabilities. Triton's interpreter has no libdevice, so log1p and expm1 are made here, by a
logarithm that undoes the rounding of 1 + x and of exp(x).
Source: N. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, 2002, problem 1.5 and section 1.14.1.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def times(p: tl.tensor, x: tl.tensor) -> tl.tensor:
    """p * x, where 0 times anything is 0."""
    return tl.where(p == 0, 0.0, p * x)


@triton.jit
def _log1p(x: tl.tensor) -> tl.tensor:
    """log(1 + x) for finite x > -1, accurate near 0."""
    total = 1.0 + x
    return tl.where(total == 1, x, tl.log(total) * (x / (total - 1.0)))


@triton.jit
def _expm1(x: tl.tensor) -> tl.tensor:
    """exp(x) - 1 for |x| < 87, accurate near 0."""
    power = tl.exp(x)
    return tl.where(power == 1, x, (power - 1.0) * (x / tl.log(power)))


@triton.jit
def _log_ratios(logp: tl.tensor, logq: tl.tensor, w: tl.tensor, KIND: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """log p/m and log q/m for the mixture m = wp + (1-w)q; NaN where p and q are 0."""
    gap = logp - logq
    if KIND == "rescaled_jsd":
        # `divergences._rescaled_jsd_terms` says why. Mirrored where w > 1/2.
        gap = tl.clamp(tl.where(w > 0.5, -gap, gap), -79.0, 79.0, propagate_nan=tl.PropagateNan.ALL)
        likely = -_log1p(tl.minimum(w, 1.0 - w) * _expm1(gap))
        log_pm, log_qm = tl.where(w > 0.5, likely, likely + gap), tl.where(w > 0.5, likely + gap, likely)
    else:
        # The log-ratio of the larger of p and q to m is the logarithm of a number between 1 and 1/w or 1/(1-w): nothing
        # underflows, and no two large logarithms are subtracted.
        smaller = tl.exp(-tl.abs(gap))
        log_ratio = -tl.log(tl.where(gap > 0, w + (1.0 - w) * smaller, w * smaller + (1.0 - w)))
        log_pm, log_qm = tl.where(gap > 0, log_ratio, log_ratio + gap), tl.where(gap > 0, log_ratio - gap, log_ratio)
    return log_pm, log_qm


@triton.jit
def terms(logp: tl.tensor, logq: tl.tensor, w: tl.tensor, KIND: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Each element's part of the value, derivative g in its log q, and q; the derivative in the logits is g - q sum(g).

    Multiples of q in g cancel there, and are left out.
    """
    p, q = tl.exp(logp), tl.exp(logq)
    if KIND == "forward_kl":
        return times(p, logp - logq), -p, q
    elif KIND == "reverse_kl":
        value = times(q, logq - logp)
        return value, value, q
    elif KIND == "total_variation":
        sign = tl.where(q > p, 1.0, tl.where(q < p, -1.0, 0.0))
        return 0.5 * tl.abs(q - p), 0.5 * q * sign, q
    else:
        log_pm, log_qm = _log_ratios(logp, logq, w, KIND)
        from_teacher, from_student = times(p, log_pm), times(q, log_qm)
        if KIND == "skew_forward_kl":
            return from_teacher, times(q, (w - 1.0) * tl.exp(log_pm)), q
        elif KIND == "skew_reverse_kl":
            return from_student, from_student - (1.0 - w) * times(q, tl.exp(log_qm)), q
        else:
            # Divided by the w of this precision, not by that of the caller: 1 - w may be another number.
            factor = 1.0 / (w * (1.0 - w)) if KIND == "rescaled_jsd" else 1.0
            from_student = (1.0 - w) * factor * from_student
            return w * factor * from_teacher + from_student, from_student, q
