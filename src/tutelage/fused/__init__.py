"""Losses taken straight from hidden states and language-model heads, without ever holding [tokens, vocabulary]."""

from __future__ import annotations

from typing import Literal, get_args, overload

from torch import Tensor

from tutelage.divergences import Divergence
from tutelage.errors import UserError, nearest
from tutelage.estimators import Estimator
from tutelage.fused import chunked, reference, sampled, topk
from tutelage.fused.base import DEFAULT_BUDGET_BYTES, TokenStats, check_heads
from tutelage.fused.kernels import Elementwise
from tutelage.fused.sampled import SampledStats
from tutelage.fused.signals import teacher_sampled, teacher_topk
from tutelage.types import HiddenStates, LMHead, SampledToken, Signal, TopK

__all__ = [
    "DEFAULT_BUDGET_BYTES",
    "Implementation",
    "SampledStats",
    "TokenStats",
    "divergence_loss",
    "linear_divergence",
    "linear_nll",
    "linear_sampled",
    "linear_topk",
    "teacher_sampled",
    "teacher_topk",
]

Implementation = Literal["auto", "chunked", "triton", "reference"]
_ELEMENTWISE: dict[Implementation, Elementwise] = {"auto": "auto", "chunked": "torch", "triton": "triton"}


def _elementwise(implementation: Implementation) -> Elementwise | None:
    """What a chunked implementation uses; None for "reference". Raises UserError for any other word."""
    if implementation == "reference":
        return None
    if implementation not in _ELEMENTWISE:
        raise UserError(
            f"unknown implementation {implementation!r}: {nearest(implementation, get_args(Implementation))}"
        )
    return _ELEMENTWISE[implementation]


@overload
def linear_divergence(
    student_hidden: Tensor,
    student_head: LMHead,
    teacher_hidden: Tensor,
    teacher_head: LMHead,
    divergence: Divergence | str,
    weights: Tensor,
    temperature: float = ...,
    budget_bytes: int = ...,
    return_stats: Literal[False] = ...,
    implementation: Implementation = ...,
) -> Tensor: ...
@overload
def linear_divergence(
    student_hidden: Tensor,
    student_head: LMHead,
    teacher_hidden: Tensor,
    teacher_head: LMHead,
    divergence: Divergence | str,
    weights: Tensor,
    temperature: float = ...,
    budget_bytes: int = ...,
    *,
    return_stats: Literal[True],
    implementation: Implementation = ...,
) -> tuple[Tensor, TokenStats]: ...
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
    implementation: Implementation = "auto",
) -> Tensor | tuple[Tensor, TokenStats]:
    """Weighted sum over tokens of D(teacher || student), with gradients for the student's hidden states and head.

    Args:
        student_hidden, teacher_hidden: last hidden states [N, Hs] and [N, Ht]; no gradient reaches the teacher.
        student_head, teacher_head: where their heights differ, the first min(Vs, Vt) rows are compared: the rows beyond
            are padding of the vocabulary.
        divergence: a `Divergence` or its spelling, such as "jsd(0.9)".
        weights: [N]. Tokens of weight 0 contribute nothing and are computed only for `return_stats`.
        temperature: divides the logits of both models, after scale and soft-cap.
        budget_bytes: memory for logits and what is derived from them; one token is held at least. Not counted are
            - the gradients, [N, Hs] and [V, Hs];
            - where some weights are 0, copies of the hidden states of all other tokens, [N, Hs] and [N, Ht], and a
              second gradient of the student's (Triton's kernels copy nothing);
            - what else has the head's [V, Hs]: its copy in autocast's dtype; the float32 sum of its gradient in half
              precision, of which at most a quarter of the budget is counted, and on CUDA one chunk's product on its way
              there; the product of gradient and grad_total in the backward pass, on CUDA and wherever grad_total is not
              1; a second gradient where the student's head has more rows than the teacher's, by autograd's slice;
            - what the head's weight was made from: with low-rank adapters (LoRA) on the head, W + BA is a tensor [V, Hs]
              of its own, and has a full gradient though only A and B are trained.
        return_stats: also return `TokenStats`, which are of the same tempered distributions and cost no projection.
        implementation: "auto" takes Triton's kernels on CUDA where there is one for the loss (there is none for
            `adaptive_kl` and registered divergences), "chunked" never, "triton" always; "reference" holds the full logits.

    Returns:
        Scalar, float32 (float64 for float64 hidden states); with `return_stats`, (scalar, TokenStats).

    Raises:
        UserError: the divergence does not parse or does not give one value per token, the temperature or the budget is not
            positive, the implementation is unknown, "triton" is asked for and has no kernel for the divergence, the dtype
            or the device, or gradients are wanted in float16 (but from "reference").
        TypeError: a head is no `LMHead`.
        ValueError: hidden states and weights disagree on N.

    Matrix products run in the dtype of the hidden states (autocast's where it is on), softmax and all sums in float32
    or float64.
    """
    check_heads(student_head=student_head, teacher_head=teacher_head)
    models = (student_hidden, student_head, teacher_hidden, teacher_head)
    arguments = (*models, divergence, weights, temperature, budget_bytes, return_stats)
    elementwise = _elementwise(implementation)
    if elementwise is None:
        return reference.linear_divergence(*arguments)
    return chunked.linear_divergence(*arguments, elementwise)


@overload
def linear_nll(
    student_hidden: Tensor,
    student_head: LMHead,
    targets: Tensor,
    weights: Tensor,
    budget_bytes: int = ...,
    return_stats: Literal[False] = ...,
    implementation: Implementation = ...,
) -> Tensor: ...
@overload
def linear_nll(
    student_hidden: Tensor,
    student_head: LMHead,
    targets: Tensor,
    weights: Tensor,
    budget_bytes: int = ...,
    *,
    return_stats: Literal[True],
    implementation: Implementation = ...,
) -> tuple[Tensor, TokenStats]: ...
def linear_nll(
    student_hidden: Tensor,
    student_head: LMHead,
    targets: Tensor,
    weights: Tensor,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    return_stats: bool = False,
    implementation: Implementation = "auto",
) -> Tensor | tuple[Tensor, TokenStats]:
    """Weighted sum of the targets' negative log-likelihoods: the loss of supervised fine-tuning and SeqKD.

    Args:
        student_hidden: last hidden states [N, Hs].
        student_head: all its rows count; cut a padded vocabulary with `LMHead.rows`.
        targets: [N] int64.
        weights, budget_bytes, return_stats, implementation: as in `linear_divergence`.

    Returns:
        Scalar, float32 (float64 for float64 hidden states); with `return_stats`, (scalar, TokenStats).

    Raises:
        UserError, TypeError: as in `linear_divergence`.
        ValueError: hidden states, targets and weights disagree on N.
    """
    check_heads(student_head=student_head)
    arguments = (student_hidden, student_head, targets, weights, budget_bytes, return_stats)
    elementwise = _elementwise(implementation)
    if elementwise is None:
        return reference.linear_nll(*arguments)
    return chunked.linear_nll(*arguments, elementwise)


@overload
def linear_topk(
    student_hidden: Tensor,
    student_head: LMHead,
    signal: TopK,
    divergence: Divergence | str,
    weights: Tensor,
    budget_bytes: int = ...,
    return_stats: Literal[False] = ...,
    implementation: Implementation = ...,
) -> Tensor: ...
@overload
def linear_topk(
    student_hidden: Tensor,
    student_head: LMHead,
    signal: TopK,
    divergence: Divergence | str,
    weights: Tensor,
    budget_bytes: int = ...,
    *,
    return_stats: Literal[True],
    implementation: Implementation = ...,
) -> tuple[Tensor, TokenStats]: ...
def linear_topk(
    student_hidden: Tensor,
    student_head: LMHead,
    signal: TopK,
    divergence: Divergence | str,
    weights: Tensor,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    return_stats: bool = False,
    implementation: Implementation = "auto",
) -> Tensor | tuple[Tensor, TokenStats]:
    """Weighted sum over tokens of D(teacher || student) on the teacher's top K tokens and one outcome for all others.

    Exact at K = V. By the data-processing inequality a lower bound of every f-divergence, at least 0 up to rounding: that
    is all divergences of the package but `adaptive_kl`, and not all registered ones.

    Args:
        student_hidden: last hidden states [N, Hs].
        student_head: its first `signal.vocab_size` rows count; the rows beyond are padding of the vocabulary.
        signal: from `teacher_topk` or a served teacher. Its temperature divides the student's logits too.
        divergence, weights, budget_bytes: as in `linear_divergence`.
        implementation: as there, but "triton" always raises: this loss has no kernel.
        return_stats: also return `TokenStats`. There `forward_kl` and `reverse_kl` are those of the K + 1 outcomes, lower
            bounds of the full ones; `student_entropy` is of the whole vocabulary; `agreement` compares the most likely
            tokens of the whole vocabulary; `teacher_entropy`, which the top K do not determine, is None.

    Returns:
        Scalar, float32 (float64 for float64 hidden states); with `return_stats`, (scalar, TokenStats).

    Raises:
        UserError: the signal is over more tokens than the student's head has rows, or as in `linear_divergence`.
        TypeError: as there.
        ValueError: hidden states, signal and weights disagree on N.
    """
    check_heads(student_head=student_head)
    arguments = (student_hidden, student_head, signal, divergence, weights, budget_bytes, return_stats)
    elementwise = _elementwise(implementation)
    if elementwise is None:
        return topk.reference_topk(*arguments)
    return topk.linear_topk(*arguments, elementwise)


@overload
def linear_sampled(
    student_hidden: Tensor,
    student_head: LMHead,
    signal: SampledToken,
    targets: Tensor,
    divergence: Divergence | Estimator | str,
    weights: Tensor,
    budget_bytes: int = ...,
    return_stats: Literal[False] = ...,
    implementation: Implementation = ...,
) -> Tensor: ...
@overload
def linear_sampled(
    student_hidden: Tensor,
    student_head: LMHead,
    signal: SampledToken,
    targets: Tensor,
    divergence: Divergence | Estimator | str,
    weights: Tensor,
    budget_bytes: int = ...,
    *,
    return_stats: Literal[True],
    implementation: Implementation = ...,
) -> tuple[Tensor, SampledStats]: ...
def linear_sampled(
    student_hidden: Tensor,
    student_head: LMHead,
    signal: SampledToken,
    targets: Tensor,
    divergence: Divergence | Estimator | str,
    weights: Tensor,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    return_stats: bool = False,
    implementation: Implementation = "auto",
) -> Tensor | tuple[Tensor, SampledStats]:
    """Weighted sum of an estimator on sampled tokens whose gradient is, in expectation, that of a KL divergence.

    Only for tokens that the student itself drew from the distribution compared here: see `estimators.check_on_policy`.

    Args:
        student_hidden: last hidden states [N, Hs].
        student_head: its first `signal.vocab_size` rows count; the rows beyond are padding of the vocabulary.
        signal: the teacher's log-probabilities of `targets`. Its temperature divides the student's logits too.
        targets: the sampled tokens [N], int64.
        divergence: "reverse_kl" (the gradient of k2) or "forward_kl" (that of k3), or the estimator: "k2", "k3".
        weights, budget_bytes: as in `linear_divergence`.
        implementation: as there, but "triton" always raises: this loss has no kernel.
        return_stats: also return `SampledStats`, with k1 and k3, the unbiased estimates of KL(student||teacher).

    Returns:
        Scalar, float32 (float64 for float64 hidden states); with `return_stats`, (scalar, SampledStats).

    Raises:
        UserError: sampled tokens cannot estimate this divergence, the estimator is k1 (its gradient is 0), or as in
            `linear_topk`.
        TypeError: as there.
        ValueError: hidden states, signal, targets and weights disagree on N.
    """
    check_heads(student_head=student_head)
    arguments = (student_hidden, student_head, signal, targets, divergence, weights, budget_bytes, return_stats)
    elementwise = _elementwise(implementation)
    if elementwise is None:
        return sampled.reference_sampled(*arguments)
    return sampled.linear_sampled(*arguments, elementwise)


def divergence_loss(
    student_hidden: Tensor,
    student_head: LMHead,
    signal: Signal,
    targets: Tensor,
    divergence: Divergence | str,
    weights: Tensor,
    temperature: float = 1.0,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    implementation: Implementation = "auto",
) -> tuple[Tensor, TokenStats]:
    """The divergence from whatever signal the teacher gave, with statistics.

    Args:
        student_hidden, student_head, divergence, weights, budget_bytes, implementation: as in `linear_divergence`.
        signal: its type decides which loss this is: `linear_divergence`, `linear_topk` or `linear_sampled`.
        targets: the completion tokens [N]; only `SampledToken` needs them.
        temperature: divides both models' logits; a `TopK` or `SampledToken` must have been taken at this one.

    Raises:
        UserError: the signal does not support the divergence, or was taken at another temperature.
    """
    if not isinstance(signal, HiddenStates) and signal.temperature != temperature:
        raise UserError(
            f"the teacher's signal was taken at temperature {signal.temperature}, but the loss has temperature {temperature}; "
            "give the teacher the loss.temperature of the run"
        )
    student, rest = (student_hidden, student_head), (divergence, weights)
    match signal:
        case HiddenStates():
            return linear_divergence(
                *student,
                signal.hidden_NH,
                signal.head,
                *rest,
                temperature,
                budget_bytes,
                return_stats=True,
                implementation=implementation,
            )
        case TopK():
            return linear_topk(*student, signal, *rest, budget_bytes, return_stats=True, implementation=implementation)
        case SampledToken():
            return linear_sampled(
                *student, signal, targets, *rest, budget_bytes, return_stats=True, implementation=implementation
            )
