"""Heads and micro-batches."""

import math

import pytest
import torch

from tests.conftest import build_model, fixed_rollouts
from tutelage.data.batching import collate, token_weights
from tutelage.types import LMHead

WEIGHT = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
BIAS = torch.tensor([0.5, 0.0, -1.0])
HIDDEN = torch.tensor([1.0, -1.0])


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (LMHead(WEIGHT), [1.0, -2.0, 0.0]),
        (LMHead(WEIGHT, BIAS), [1.5, -2.0, -1.0]),
        (LMHead(WEIGHT, BIAS, scale=0.5), [0.75, -1.0, -0.5]),
        (LMHead(WEIGHT, BIAS, 0.5, softcap=2.0), [2 * math.tanh(z / 2) for z in (0.75, -1.0, -0.5)]),
    ],
)
def test_logits_by_hand(head, expected):
    assert head.logits(HIDDEN).tolist() == pytest.approx(expected)
    assert torch.allclose(head.logits(HIDDEN.expand(2, 4, 2))[1, 3], torch.tensor(expected))


def test_logits_keep_the_dtype_of_the_hidden_states():
    assert LMHead(WEIGHT.bfloat16(), None, 0.5, 2.0).logits(HIDDEN.bfloat16()).dtype == torch.bfloat16


def test_rows_cut_weight_and_bias_and_let_gradients_through():
    weight = WEIGHT.clone().requires_grad_()
    head = LMHead(weight, BIAS, 0.5, 2.0)
    cut = head.rows(2)
    assert (head.vocab_size, cut.vocab_size, cut.scale, cut.softcap) == (3, 2, 0.5, 2.0)
    assert torch.equal(cut.logits(HIDDEN), head.logits(HIDDEN)[:2])
    assert head.rows(3) is head
    cut.weight.sum().backward()
    assert weight.grad.tolist() == [[1, 1], [1, 1], [0, 0]]


def test_micro_batches_move_whole():
    rollouts = fixed_rollouts()
    for family in ("llama", "t5"):
        micro = collate(rollouts, token_weights(rollouts, "token"), build_model(family))
        moved = micro.to(torch.device("meta"))
        for name, value in vars(micro).items():
            if isinstance(value, torch.Tensor):
                assert getattr(moved, name).device.type == "meta", name
                assert value.device.type == "cpu"
            else:
                assert getattr(moved, name) is value
