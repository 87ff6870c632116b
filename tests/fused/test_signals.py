"""What a teacher's hidden states are condensed to, against its full log-probabilities; the match on the signal's type."""

import math

import pytest
import torch

from tutelage.errors import UserError
from tutelage.fused import base, divergence_loss, teacher_sampled, teacher_topk
from tutelage.types import LMHead

TOKENS, VOCAB = 7, 37


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HIDDEN, HEAD = random(TOKENS, 6, seed=1), LMHead(random(VOCAB, 6, seed=2), random(VOCAB, seed=3), 0.7, 2.0)
LOGP = (HEAD.logits(HIDDEN) / 0.8).log_softmax(-1)
BUDGETS = [1, 4 * 3 * VOCAB * 8, 2**28]  # one token, three, all


@pytest.mark.parametrize("budget_bytes", BUDGETS)
@pytest.mark.parametrize("k", [1, 5, VOCAB])
def test_topk(k, budget_bytes):
    signal = teacher_topk(HIDDEN, HEAD, k, 0.8, budget_bytes)
    expected, ids = LOGP.topk(k, dim=-1)
    assert torch.equal(signal.token_ids_NK, ids)
    torch.testing.assert_close(signal.logp_NK, expected, rtol=1e-12, atol=1e-13)
    tail = LOGP.exp().scatter(1, ids, 0.0).sum(-1).log()
    torch.testing.assert_close(signal.tail_logp_N, tail, rtol=1e-12, atol=1e-13)
    assert (signal.vocab_size, signal.temperature) == (VOCAB, 0.8)
    assert (signal.tail_logp_N == -math.inf).all() == (k == VOCAB)


def test_the_tail_does_not_cancel():
    """A teacher sure of one token: 1 - p is 0 in float32, the tail's own mass is not."""
    logits = torch.tensor([[50.0, 0.0, 1.0]])
    tail = teacher_topk(logits, LMHead(torch.eye(3)), 1).tail_logp_N
    assert tail.item() == pytest.approx(math.log(1 + math.e) - 50, rel=1e-6)


@pytest.mark.parametrize("budget_bytes", BUDGETS)
def test_sampled(budget_bytes):
    targets = torch.arange(TOKENS) * 5 % VOCAB
    signal = teacher_sampled(HIDDEN, HEAD, targets, 0.8, budget_bytes)
    torch.testing.assert_close(signal.logp_N, LOGP[torch.arange(TOKENS), targets], rtol=1e-12, atol=1e-13)
    assert (signal.vocab_size, signal.temperature) == (VOCAB, 0.8)


def test_height_cuts_the_vocabulary():
    logp = HEAD.rows(30).logits(HIDDEN).log_softmax(-1)
    topk = teacher_topk(HIDDEN, HEAD, 4, height=30)
    torch.testing.assert_close(topk.logp_NK, logp.topk(4).values, rtol=1e-12, atol=1e-13)
    sampled = teacher_sampled(HIDDEN, HEAD, torch.full((TOKENS,), 29), height=30)
    torch.testing.assert_close(sampled.logp_N, logp[:, 29], rtol=1e-12, atol=1e-13)
    assert topk.vocab_size == sampled.vocab_size == 30


def test_bfloat16_states_give_float32_signals():
    head = LMHead(HEAD.weight.bfloat16())
    assert teacher_topk(HIDDEN.bfloat16(), head, 4).logp_NK.dtype == torch.float32
    assert (
        teacher_sampled(HIDDEN.bfloat16(), head, torch.zeros(TOKENS, dtype=torch.int64)).logp_N.dtype == torch.float32
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_tokens(dtype):
    hidden = HIDDEN[:0].to(dtype)
    assert teacher_topk(hidden, HEAD, 4).token_ids_NK.shape == (0, 4)
    assert teacher_sampled(hidden, HEAD, torch.empty(0, dtype=torch.int64)).logp_N.shape == (0,)


def test_autocast_converts_the_head_once_and_projects_into_one_buffer(monkeypatch):
    """Three chunks, through a head that changes nothing after the projection, so that the buffer is what callers overwrite."""
    given, project = [], base.project

    def spy(hidden, head, out):
        given.append((head.weight.dtype, head.weight.data_ptr(), out.data_ptr(), len(hidden)))
        return project(hidden, head, out)

    monkeypatch.setattr(base, "project", spy)
    hidden, head, budget = HIDDEN.float(), LMHead(HEAD.weight.float()), 4 * 3 * VOCAB * 4
    expected = teacher_topk(hidden.bfloat16(), LMHead(head.weight.bfloat16()), 5, budget_bytes=budget)
    given.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        signal = teacher_topk(hidden, head, 5, budget_bytes=budget)
    assert [row[-1] for row in given] == [3, 3, 1]
    assert len({row[:-1] for row in given}) == 1
    assert given[0][0] == torch.bfloat16
    assert torch.equal(signal.token_ids_NK, expected.token_ids_NK)
    torch.testing.assert_close(signal.logp_NK, expected.logp_NK, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(signal.tail_logp_N, expected.tail_logp_N, rtol=1e-6, atol=1e-6)
    exact = teacher_topk(HIDDEN, LMHead(HEAD.weight), 5)  # float64, in one chunk
    in_chunks = teacher_topk(HIDDEN, LMHead(HEAD.weight), 5, budget_bytes=2 * budget)
    torch.testing.assert_close(in_chunks.logp_NK, exact.logp_NK, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(in_chunks.tail_logp_N, exact.tail_logp_N, rtol=1e-12, atol=1e-13)


def test_bad_input():
    for k in (0, 38):
        with pytest.raises(UserError, match=rf"topk\({k}\): k must be between 1 and the 37 tokens"):
            teacher_topk(HIDDEN, HEAD, k)
    with pytest.raises(UserError, match="temperature 0"):
        teacher_topk(HIDDEN, HEAD, 4, temperature=0)
    with pytest.raises(UserError, match="memory budget is 0 bytes"):
        teacher_sampled(HIDDEN, HEAD, torch.zeros(TOKENS, dtype=torch.int64), budget_bytes=0)


def test_a_signal_of_another_temperature_is_refused():
    signal, targets = teacher_topk(HIDDEN, HEAD, 4, temperature=2.0), torch.zeros(TOKENS, dtype=torch.int64)
    with pytest.raises(UserError, match=r"taken at temperature 2.0, but the loss has temperature 1.0"):
        divergence_loss(HIDDEN, HEAD, signal, targets, "forward_kl", torch.ones(TOKENS))
