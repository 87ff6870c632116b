"""Losses taken straight from hidden states and language-model heads, without ever holding [tokens, vocabulary]."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from tutelage.divergences import Divergence
from tutelage.fused import chunked, reference
from tutelage.fused.base import DEFAULT_BUDGET_BYTES, TokenStats
from tutelage.types import LMHead

__all__ = ["DEFAULT_BUDGET_BYTES", "Implementation", "TokenStats", "linear_divergence", "linear_nll"]

Implementation = Literal["auto", "chunked", "reference"]
_MODULES = {"auto": chunked, "chunked": chunked, "reference": reference}


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
        budget_bytes: memory for logits and what is derived from them. The gradients themselves ([N, Hs], [V, Hs]) are
            not counted. At least one token is held at a time, whatever the budget.
        return_stats: also return `TokenStats`, which are of the same tempered distributions and cost no projection.
        implementation: "auto" takes the fastest, "reference" holds the full logits.

    Returns:
        Scalar, float32 (float64 for float64 hidden states); with `return_stats`, (scalar, TokenStats).

    Raises:
        UserError: the divergence does not parse, the temperature or the budget is not positive.
        ValueError: hidden states and weights disagree on N.

    Matrix products run in the dtype of the hidden states (autocast's where it is on), softmax and all sums in float32
    or float64.
    """
    return _MODULES[implementation].linear_divergence(
        student_hidden,
        student_head,
        teacher_hidden,
        teacher_head,
        divergence,
        weights,
        temperature,
        budget_bytes,
        return_stats,
    )


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
    """
    module = _MODULES[implementation]
    return module.linear_nll(student_hidden, student_head, targets, weights, budget_bytes, return_stats)
