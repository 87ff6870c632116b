"""The projection that all chunked losses share."""

from __future__ import annotations

import pytest
import torch

from tests.fused.watch import Watch
from tutelage.fused import (
    base,
    linear_divergence,
    linear_nll,
    linear_sampled,
    linear_topk,
    teacher_sampled,
    teacher_topk,
)
from tutelage.types import LMHead


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN is what it tests")
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("tokens", "vocab"), [(1, 3), (5, 64), (7, 141), (40, 141)])
def test_blocks_of_the_head_give_the_plain_product(tokens, vocab, with_bias, monkeypatch):
    """In float32, into the first rows of a larger buffer, against float64; 1,280 bytes are 64 rows for 5 tokens, 8 are the least."""
    monkeypatch.setattr(base, "BLOCK_BYTES", 1280)
    monkeypatch.setattr(base, "_LEAST_ROWS", 8)
    hidden, weight = random(tokens, 19, seed=1), random(vocab, 19, seed=2)
    bias = random(vocab, seed=3) if with_bias else None
    exact = hidden.double() @ weight.double().T
    if bias is not None:
        exact += bias.double()
    room = torch.full((tokens + 2, vocab), 7.0)
    given = base.project_in_blocks(hidden, weight, bias, out=room[:tokens])
    assert given.data_ptr() == room.data_ptr()
    torch.testing.assert_close(room[:tokens].double(), exact, rtol=1e-5, atol=1e-5)
    assert (room[tokens:] == 7.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_projection_is_the_same_with_and_without_room_for_it(dtype):
    """A strided view of hidden states and a head of more rows than the shared vocabulary, in every dtype of a CPU."""
    hidden = random(9, 40, seed=1).to(dtype)[:, ::2]
    head = LMHead(random(4_200, 20, seed=2).to(dtype), random(4_200, seed=3).to(dtype)).rows(4_111)
    out = torch.empty(9, 4_111, dtype=dtype)
    assert base.project(hidden, head, out=out).data_ptr() == out.data_ptr()
    torch.testing.assert_close(out, base.project(hidden, head))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN is what it tests")
def test_blocks_hold_no_more_than_their_bytes(monkeypatch):
    monkeypatch.setattr(base, "BLOCK_BYTES", 40 * 16 * 4)
    monkeypatch.setattr(base, "_LEAST_ROWS", 8)
    hidden, weight, out = random(40, 3, seed=1), random(141, 3, seed=2), torch.empty(40, 141)
    with Watch() as watch:
        base.project_in_blocks(hidden, weight, None, out)
    assert watch.largest == 40 * 16  # the head, 423, is smaller
    torch.testing.assert_close(out, hidden @ weight.T)


def test_only_float32_goes_to_onednn_and_only_where_its_blocks_are_small():
    is_mkl = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    assert base._goes_to_onednn(torch.ones(2, 2)) is is_mkl
    assert base._goes_to_onednn(torch.ones(2048, 2)) is is_mkl  # 512 rows are 4 MiB
    assert not base._goes_to_onednn(torch.ones(2049, 2))
    assert not base._goes_to_onednn(torch.ones(0, 2))
    assert not base._goes_to_onednn(torch.ones(2, 2, dtype=torch.float64))
    assert not base._goes_to_onednn(torch.ones(2, 2, dtype=torch.bfloat16))


def test_a_weight_or_a_layer_is_no_head():
    """Both have a shape that would do, and neither says whether logits are scaled or capped."""
    hidden, layer = random(2, 4, seed=1), torch.nn.Linear(4, 6)
    head, targets, weights = LMHead(layer.weight), torch.tensor([0, 5]), torch.ones(2)
    topk, sampled = teacher_topk(hidden, head, 2), teacher_sampled(hidden, head, targets)
    losses = (
        lambda wrong: linear_divergence(hidden, wrong, hidden, head, "forward_kl", weights),
        lambda wrong: linear_divergence(hidden, head, hidden, wrong, "forward_kl", weights),
        lambda wrong: linear_nll(hidden, wrong, targets, weights),
        lambda wrong: linear_topk(hidden, wrong, topk, "forward_kl", weights),
        lambda wrong: linear_sampled(hidden, wrong, sampled, targets, "forward_kl", weights),
    )
    for number, loss in enumerate(losses):
        name = "teacher_head" if number == 1 else "student_head"
        for wrong in (layer.weight, layer):
            expected = rf"{name} is a {type(wrong).__name__}; the loss takes a tutelage\.LMHead: LMHead\(model\.lm_head\.weight\)"
            with pytest.raises(TypeError, match=expected):
                loss(wrong)
        assert loss(head).isfinite()
