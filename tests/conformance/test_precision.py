"""Holds the error bounds that docs/design.md states: float32 and bfloat16 against float64, on the same inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tutelage.fused import linear_divergence
from tutelage.types import LMHead

VOCAB = 3000
# Relative error of the value, and of the gradients in the Euclidean norm.
BOUNDS = {torch.float32: (2e-6, 1e-4), torch.bfloat16: (2e-3, 3e-2)}
DIVERGENCES = [
    "forward_kl",
    "reverse_kl",
    "jsd(0.1)",
    "jsd(0.9, rescale)",
    "skew_forward_kl(0.1)",
    "skew_reverse_kl(0.1)",
    "adaptive_kl(0.5)",
]


def results(divergence: str, inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Value, gradient of the hidden states, gradient of the head, in float64."""
    student_hidden, teacher_hidden, student_head, teacher_head = (x.to(dtype).clone() for x in inputs)
    weights = torch.full((len(student_hidden),), 1 / len(student_hidden), dtype=torch.float64)
    student_hidden.requires_grad_()
    student_head.requires_grad_()
    value = linear_divergence(
        student_hidden,
        LMHead(student_head),
        teacher_hidden,
        LMHead(teacher_head),
        divergence,
        weights,
        budget_bytes=VOCAB * 500,  # several chunks: their sums are part of what is measured
    )
    value.backward()
    assert student_hidden.grad is not None
    assert student_head.grad is not None
    return [x.double() for x in (value.detach(), student_hidden.grad, student_head.grad)]


def errors(divergence: str, dtype: torch.dtype) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(24, 64), (24, 96), (VOCAB, 64), (VOCAB, 96)]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    inputs[2] *= 3 / 64**0.5  # logits with a standard deviation of 3, as a trained model's
    inputs[3] *= 3 / 96**0.5
    inputs = [x.to(torch.bfloat16).double() for x in inputs]  # the rounding of the inputs is not the loss's error
    exact, rounded = results(divergence, inputs, torch.float64), results(divergence, inputs, dtype)
    return [float((b - a).norm() / a.norm()) for a, b in zip(exact, rounded, strict=True)]


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_errors_stay_under_the_stated_bounds(divergence: str, dtype: torch.dtype) -> None:
    value_bound, gradient_bound = BOUNDS[dtype]
    value, hidden, head = errors(divergence, dtype)
    assert value < value_bound
    assert hidden < gradient_bound
    assert head < gradient_bound


def test_total_variation_jumps_where_the_models_are_equal() -> None:
    # Its derivative is a sign: rounding flips it for tokens to which both models give the same probability.
    value, hidden, head = errors("total_variation", torch.bfloat16)
    assert value < 2e-3
    assert 3e-3 < hidden < 1e-1
    assert 3e-3 < head < 1e-1
