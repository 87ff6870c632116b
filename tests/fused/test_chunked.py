"""What chunking must not change, and what it must save."""

import math
from functools import partial

import pytest
import torch

from tests.fused.watch import Watch
from tutelage import divergences
from tutelage.divergences import Divergence
from tutelage.errors import UserError
from tutelage.fused import (
    base,
    chunked,
    linear_divergence,
    linear_nll,
    linear_sampled,
    linear_topk,
    teacher_sampled,
    teacher_topk,
)
from tutelage.types import LMHead

TOKENS, VOCAB, SIZE = 64, 501, 16


def random(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Problem:
    """One student, one teacher and some tokens; leaves require gradients."""

    def __init__(self, dtype=torch.float64, size=SIZE, tokens=TOKENS, vocab=VOCAB):
        self.hidden = random(tokens, size, seed=1, dtype=dtype).requires_grad_()
        self.weight = random(vocab, size, seed=2, dtype=dtype).requires_grad_()
        self.teacher_hidden = random(tokens, 2 * size, seed=3, dtype=dtype)
        self.teacher_head = LMHead(random(vocab, 2 * size, seed=4, dtype=dtype) / 2)
        self.token_weights = random(tokens, seed=5).abs() + 0.1

    def loss(self, divergence="jsd(0.5)", order=slice(None), **options):
        return linear_divergence(
            self.hidden[order],
            LMHead(self.weight),
            self.teacher_hidden[order],
            self.teacher_head,
            divergence,
            self.token_weights[order],
            **options,
        )

    def gradients(self, **options):
        return torch.autograd.grad(self.loss(**options), (self.hidden, self.weight))


def exact_twin(half):
    """The same numbers in float64."""
    exact = Problem()
    for name in ("hidden", "weight", "teacher_hidden"):
        setattr(exact, name, getattr(half, name).detach().double().requires_grad_(name != "teacher_hidden"))
    exact.teacher_head = LMHead(half.teacher_head.weight.double())
    return exact


@pytest.mark.parametrize("budget_bytes", [1, 100_000, 300_000, 2**30])
def test_budget_does_not_change_the_result(budget_bytes):
    problem = Problem()
    expected = problem.loss(implementation="reference").item()
    assert problem.loss(budget_bytes=budget_bytes).item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(
        problem.gradients(budget_bytes=budget_bytes),
        problem.gradients(implementation="reference"),
        rtol=1e-10,
        atol=1e-13,
    )


def test_order_of_tokens_does_not_change_the_result():
    problem = Problem()
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(0))
    assert problem.loss(order=order, budget_bytes=100_000).item() == pytest.approx(problem.loss().item(), rel=1e-12)
    torch.testing.assert_close(problem.gradients(order=order, budget_bytes=100_000), problem.gradients())


def test_parts_add_up_to_the_whole():
    """Micro-batches: the weighted sums and gradients of two halves are those of the whole."""
    problem = Problem()
    halves = [slice(0, 23), slice(23, TOKENS)]
    assert sum(problem.loss(order=half).item() for half in halves) == pytest.approx(problem.loss().item(), rel=1e-12)
    first, second = (problem.gradients(order=half)[1] for half in halves)
    torch.testing.assert_close(first + second, problem.gradients()[1])


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd(0.5)", "jsd(0.9, rescale)", "adaptive_kl(0.5)"])
@pytest.mark.parametrize("has_idle", [False, True])
@pytest.mark.parametrize("size", [4, 32])  # the excess of bfloat16's sum: 1/16 and 1/2 of the budget
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_stays_under_the_budget(dtype, size, has_idle, divergence, monkeypatch):
    """All live memory together: the budget and the head's gradient, for however many tokens."""
    budget, vocab, item = 2**19, 4096, dtype.itemsize
    monkeypatch.setattr(chunked, "_SUM_BYTES", 2**16)  # several blocks, as of a real head
    sum_excess = vocab * size * (4 - item)
    most = budget + vocab * size * item + max(0, sum_excess - budget // 4)
    # [c, H]: both models' hidden states as oneDNN lays them out, and the rows of the two products for the gradients.
    of_chunk = budget // 2 // (2 * vocab * item) * (size + 2 * size + 2 * size) * 4
    # [N, Hs]: the gradient. A few numbers: statistics, weights, indices. Idle tokens: what is copied to leave them out.
    of_token = size * item + 10 * 4 + has_idle * ((size + 2 * size) * item + 2 * 8)
    for tokens in (32, 64, 160):
        problem = Problem(dtype, size, tokens, vocab)
        if has_idle:
            problem.token_weights[::4] = 0
        with Watch() as watch:
            problem.loss(divergence, budget_bytes=budget, return_stats=True)[0].backward()
        assert most // 2 < watch.peak <= most + of_chunk + tokens * of_token
    with Watch() as watch:
        problem.loss(implementation="reference").backward()
    assert watch.peak > 2 * tokens * vocab * 4 > most  # the watch does see what the twin holds


def test_matrix_products_are_the_floor():
    problem = Problem()
    with Watch() as full:
        problem.loss(return_stats=True)[0].backward()
    problem.weight.requires_grad_(False)
    with Watch() as frozen:
        problem.loss().backward()
    with Watch() as value_only, torch.no_grad():
        problem.loss(return_stats=True)
    assert (full.products, frozen.products, value_only.products) == (4, 3, 2)


def test_frozen_and_tied_heads():
    problem = Problem()
    expected = problem.gradients()
    problem.weight.requires_grad_(False)
    (frozen,) = torch.autograd.grad(problem.loss(), problem.hidden)
    torch.testing.assert_close(frozen, expected[0])

    table = problem.weight.detach().clone().requires_grad_()
    tokens = torch.arange(TOKENS) % VOCAB
    results = []
    for implementation in ("reference", "chunked"):
        hidden = torch.tanh(table[tokens])
        head, teacher = LMHead(table), (problem.teacher_hidden, problem.teacher_head)
        loss = linear_divergence(
            hidden, head, *teacher, "forward_kl", problem.token_weights, implementation=implementation
        )
        results.append(torch.autograd.grad(loss, table)[0])
    torch.testing.assert_close(*results)


def test_nothing_to_differentiate():
    problem = Problem()
    expected = problem.loss().item()
    with torch.no_grad():
        loss = problem.loss()
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(expected, rel=1e-14)
    with torch.no_grad():
        nll = linear_nll(problem.hidden, LMHead(problem.weight), torch.arange(TOKENS), problem.token_weights)
    assert not nll.requires_grad


def test_backward_scales_and_accumulates():
    problem = Problem()
    expected = problem.gradients()
    loss = problem.loss()
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)
    (3 * loss).backward()
    torch.testing.assert_close(problem.hidden.grad, 5 * expected[0])
    torch.testing.assert_close(problem.weight.grad, 5 * expected[1])


def test_statistics_carry_no_gradient():
    _, stats = Problem().loss(return_stats=True)
    assert not any(getattr(stats, name).requires_grad for name in ("divergence", "forward_kl", "agreement"))


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd(0.5)"])
def test_bfloat16_within_its_rounding_of_float64(divergence):
    """bfloat16 rounds to 8 bits: logits of size ~10 are off by up to 2^-9 * 10 = 0.02, and gradients by a few percent."""
    half = Problem(torch.bfloat16)
    exact = exact_twin(half)
    loss = half.loss(divergence=divergence, budget_bytes=100_000)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.loss(divergence=divergence).item(), rel=5e-3)
    pairs = zip(half.gradients(divergence=divergence), exact.gradients(divergence=divergence), strict=True)
    for approximate, gradient in pairs:
        assert approximate.dtype == torch.bfloat16
        assert (approximate.double() - gradient).norm() / gradient.norm() < 0.02


@pytest.mark.parametrize("tokens", [1, 23, TOKENS])
def test_float32_within_its_rounding_of_float64(tokens):
    """Through blocks of 64 or more of the 501 rows of the heads, which is all of them for a single token."""
    single, order = Problem(torch.float32), slice(0, tokens)
    exact = exact_twin(single)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "BLOCK_BYTES", 12 * 64 * 4)  # chunks have up to 12 tokens
        patch.setattr(base, "_LEAST_ROWS", 64)
        loss = single.loss(order=order, budget_bytes=100_000)
        gradients = single.gradients(order=order, budget_bytes=100_000)
    assert loss.item() == pytest.approx(exact.loss(order=order).item(), rel=1e-5)
    for approximate, gradient in zip(gradients, exact.gradients(order=order), strict=True):
        assert approximate.dtype == torch.float32
        assert (approximate.double() - gradient).norm() / gradient.norm() < 1e-5


@pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()), reason="takes MKL and oneDNN"
)
def test_float32_projections_of_both_models_go_to_onednn(monkeypatch):
    seen, blocks = [], base.project_in_blocks
    monkeypatch.setattr(base, "project_in_blocks", lambda *a: seen.append(tuple(a[-1].shape)) or blocks(*a))
    Problem(torch.float32).loss(budget_bytes=100_000)
    assert seen == [(11, VOCAB)] * 10 + [(9, VOCAB)] * 2
    seen.clear()
    Problem(torch.float64).loss(budget_bytes=100_000)
    monkeypatch.setattr(base, "BLOCK_BYTES", 9 * 512 * 4)  # of the last chunk only
    Problem(torch.float32).loss(budget_bytes=100_000)
    assert seen == [(9, VOCAB)] * 2


def test_float16_is_evaluated_and_taken_from_the_teacher_but_not_trained():
    half, exact = Problem(torch.float16), exact_twin(Problem(torch.float16))
    for problem in (half, Problem(torch.float32)):
        with (
            pytest.raises(UserError, match=r"hidden states are float16.* use bfloat16 or float32"),
            torch.autocast("cpu", dtype=torch.float16, enabled=problem is not half),
        ):
            problem.loss()
    with torch.no_grad():
        assert half.loss().item() == pytest.approx(exact.loss().item(), rel=1e-3)
    for gradient in half.gradients(implementation="reference"):
        assert gradient.dtype == torch.float16
    mixed = Problem(torch.float32)
    mixed.teacher_hidden, mixed.teacher_head = half.teacher_hidden, half.teacher_head
    for gradient, wanted in zip(mixed.gradients(), Problem().gradients(), strict=True):
        assert (gradient.double() - wanted).norm() / wanted.norm() < 0.01


def test_small_weights_do_not_underflow_in_bfloat16():
    """Weights of 2^-40, far below float16's range: the gradients are those of weights of 1, scaled."""
    problem = Problem(torch.bfloat16)
    problem.token_weights = torch.ones(TOKENS, dtype=torch.float64)
    expected = problem.gradients(budget_bytes=100_000)
    problem.token_weights *= 2.0**-40
    for gradient, wanted in zip(problem.gradients(budget_bytes=100_000), expected, strict=True):
        torch.testing.assert_close(gradient.double() * 2.0**40, wanted.double(), rtol=0, atol=0)


def test_many_chunks_do_not_lose_the_bfloat16_weight_gradient():
    """1,024 equal parts: a bfloat16 sum would stop growing at about 256 of them."""
    weight = random(8, SIZE, seed=1, dtype=torch.bfloat16).requires_grad_()
    teacher = LMHead(random(8, SIZE, seed=2, dtype=torch.bfloat16))
    hidden = random(1, SIZE, seed=3, dtype=torch.bfloat16)

    def gradient(tokens):
        inputs = (hidden.expand(tokens, -1), LMHead(weight), hidden.expand(tokens, -1), teacher)
        loss = linear_divergence(*inputs, "forward_kl", torch.ones(tokens), budget_bytes=1)
        return torch.autograd.grad(loss, weight)[0].double()

    torch.testing.assert_close(gradient(1024), 1024 * gradient(1), rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 7, 500, 501])
def test_blocks_of_the_float32_sum_make_one_gradient(monkeypatch, rows):
    problem = Problem(torch.bfloat16)
    budget = 100_000  # several chunks
    whole = problem.gradients(budget_bytes=budget)
    monkeypatch.setattr(chunked, "_SUM_BYTES", rows * SIZE * 4)
    finish, blocks = chunked._ProductSum.finish, []

    def spy(product_sum, like):
        blocks.append(len(product_sum._blocks))
        return finish(product_sum, like)

    monkeypatch.setattr(chunked._ProductSum, "finish", spy)
    parts = problem.gradients(budget_bytes=budget)
    assert blocks == [math.ceil(VOCAB / rows)]
    for one, other in zip(whole, parts, strict=True):  # products of other heights may round otherwise
        torch.testing.assert_close(one, other, rtol=0, atol=float(one.abs().max()) * 2**-7)


def test_equal_models_have_zero_divergence_in_bfloat16():
    problem = Problem(torch.bfloat16)
    inputs = (problem.hidden, LMHead(problem.weight))
    total, stats = linear_divergence(*inputs, *inputs, "jsd(0.5)", problem.token_weights, return_stats=True)
    assert abs(total.item()) < 2e-5
    assert stats.forward_kl.abs().max() == 0
    assert stats.reverse_kl.abs().max() == 0
    assert stats.agreement.min() == 1


def test_autocast_runs_products_in_bfloat16_and_keeps_master_weights():
    problem, half = Problem(torch.float32), Problem(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = problem.loss()
        hidden_grad, weight_grad = torch.autograd.grad(loss, (problem.hidden, problem.weight))
    assert loss.item() == pytest.approx(half.loss().item(), rel=1e-6)
    assert hidden_grad.dtype == weight_grad.dtype == torch.float32
    torch.testing.assert_close(weight_grad, half.gradients()[1].float(), rtol=0.01, atol=1e-3)


def test_registered_divergence_through_autograd():
    squared = Divergence("squared_hellinger", lambda t, s: 1 - ((t + s) / 2).exp().sum(-1))
    problem = Problem()
    torch.testing.assert_close(
        problem.gradients(divergence=squared, budget_bytes=100_000),
        problem.gradients(divergence=squared, implementation="reference"),
    )


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
@pytest.mark.parametrize(
    ("wrong", "shape"),
    [
        (lambda t, s: (t.exp() * (t - s)).sum(-1, keepdim=True), r"\(\d+, 1\)"),
        (lambda t, s: (t.exp() * (t - s)).sum(), r"\(\)"),
        (lambda t, s: t.exp() * (t - s), r"\(\d+, 501\)"),
    ],
)
def test_a_divergence_of_the_wrong_shape_is_refused(wrong, shape, implementation):
    """Times the weights [N] it would broadcast to a sum that looks right."""
    message = rf"divergence mine gave values of shape {shape} .* shape \(\d+, 501\); .* shape \(\d+,\)"
    closed = Divergence("mine", divergences.forward_kl, lambda t, s: (wrong(t.logp, s.logp), -t.p))
    cases = [Divergence("mine", wrong)] + [closed] * (implementation == "chunked")
    for divergence in cases:
        with pytest.raises(UserError, match=message):
            Problem().loss(divergence=divergence, implementation=implementation)
    with pytest.raises(UserError, match=message), torch.no_grad():
        Problem().loss(divergence=cases[0], implementation=implementation)


def test_closed_form_runs_on_tiles_only():
    """The divergence is called once a tile, never on all tokens."""
    seen = []
    jsd = divergences.parse("jsd(0.5)")

    def closed_form(teacher, student):
        seen.append(len(student.logp))
        return jsd.closed_form(teacher, student)

    Problem().loss(divergence=Divergence("spy", jsd.value, closed_form), budget_bytes=400_000)
    assert sum(seen) == TOKENS
    assert max(seen) == 400_000 // 2 // (VOCAB * 8 * 13)


@pytest.mark.parametrize(
    ("tokens", "budget_bytes", "expected"),
    [(0, 1000, (1, 1)), (10, 1, (1, 1)), (100, 80_000, (34, 6)), (100, 2**40, (100, 100))],
)
def test_plan(tokens, budget_bytes, expected):
    # 1000 bytes of projections a token; the tile takes 125 * 4 bytes * 13 buffers = 6500 bytes a token.
    assert chunked.plan(tokens, 125, 1000, torch.bfloat16, "cpu", budget_bytes) == expected


@pytest.mark.parametrize(("threads", "rows"), [(1, 2), (2, 2), (8, 8), (64, 16)])
def test_a_tile_has_a_row_for_every_thread(monkeypatch, threads, rows):
    """12 MB are 2 rows of 151,936 logits; 64 threads would get more rows than half of the budget holds."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert chunked.plan(1024, 151_936, 1, torch.float32, "cpu", 256 * 2**20).tile == rows


def test_budget_must_be_positive():
    with pytest.raises(UserError, match="memory budget is 0 bytes"):
        Problem().loss(budget_bytes=0)


def test_an_unknown_implementation_is_a_users_error():
    hidden, head, weights = random(2, 4, seed=1), LMHead(random(6, 4, seed=2)), torch.ones(2)
    topk, targets = teacher_topk(hidden, head, 2), torch.tensor([0, 5])
    sampled = teacher_sampled(hidden, head, targets)
    losses = (
        partial(linear_divergence, hidden, head, hidden, head, "forward_kl", weights),
        partial(linear_nll, hidden, head, targets, weights),
        partial(linear_topk, hidden, head, topk, "forward_kl", weights),
        partial(linear_sampled, hidden, head, sampled, targets, "forward_kl", weights),
    )
    for loss in losses:
        with pytest.raises(UserError, match=r"did you mean 'triton'\? known are auto, chunked, triton, reference"):
            loss(implementation="tritn")
