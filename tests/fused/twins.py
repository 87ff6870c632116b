"""Compares a chunked loss of a teacher's signal with its full-logits twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import pytest
import torch
from torch import Tensor


def evaluate(
    loss: Callable[..., Any], inputs: dict[str, Any], **options: Any
) -> tuple[Tensor, Any, tuple[Tensor, ...]]:
    """Value, statistics and the gradients of hidden states and head; the value is the same without statistics."""
    total, stats = loss(**inputs, return_stats=True, **options)
    assert loss(**inputs, **options).item() == pytest.approx(total.item(), rel=1e-12)
    return total.detach(), stats, torch.autograd.grad(total, (inputs["student_hidden"], inputs["student_head"].weight))


def assert_twins(loss: Callable[..., Any], inputs: dict[str, Any], budget_bytes: int, **options: Any) -> Any:
    """Chunks under the budget give what full logits give, in float64; returns what the chunks gave."""
    expected = evaluate(loss, inputs, implementation="reference", **options)
    actual = evaluate(loss, inputs, budget_bytes=budget_bytes, **options)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(actual[2], expected[2], rtol=1e-10, atol=1e-13)
    for one, two in zip(astuple(actual[1]), astuple(expected[1]), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-13)
    return actual
