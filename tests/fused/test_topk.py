"""The top-k loss against its full-logits twin, and where masses vanish; enumeration is in conformance."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.fused import twins
from tests.fused.watch import Watch
from tutelage.divergences import Divergence, parse
from tutelage.errors import UserError
from tutelage.estimators import tail_logp
from tutelage.fused import linear_divergence, linear_topk, teacher_topk
from tutelage.types import LMHead, TopK

TOKENS, VOCAB = 7, 37
DIVERGENCES = [
    "forward_kl",
    "reverse_kl",
    "jsd(0.1)",
    "jsd(0.9)",
    "jsd(0.001, rescale)",
    "jsd(0.9, rescale)",
    "total_variation",
    "skew_forward_kl(0.1)",
    "skew_reverse_kl(0.1)",
    "adaptive_kl(0.5)",
]
BUDGET = 2 * 3 * VOCAB * 16  # a few tokens a chunk
evaluate = partial(twins.evaluate, linear_topk)
assert_twins = partial(twins.assert_twins, linear_topk, budget_bytes=BUDGET)


def random(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def problem(dtype=torch.float64, k=5, temperature=0.8, **head):
    """Student of 4 and teacher of 6 dimensions."""
    teacher = random(TOKENS, 6, seed=1, dtype=dtype), LMHead(random(VOCAB, 6, seed=2, dtype=dtype))
    return {
        "student_hidden": random(TOKENS, 4, seed=3, dtype=dtype).requires_grad_(),
        "student_head": LMHead(random(VOCAB, 4, seed=4, dtype=dtype).requires_grad_(), **head),
        "signal": teacher_topk(*teacher, k, temperature),
        "weights": torch.linspace(0.1, 1.3, TOKENS, dtype=torch.float64),
    }


@pytest.mark.parametrize("head", [{}, {"bias": random(VOCAB, seed=5), "scale": 0.7, "softcap": 1.5}])
@pytest.mark.parametrize("k", [1, 5, VOCAB])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd(0.9)", "total_variation"])
def test_chunked_equals_reference(divergence, k, head):
    _, stats, _ = assert_twins(problem(k=k, **head), divergence=divergence)
    assert stats.teacher_entropy is None


@pytest.mark.parametrize("weights", [[0.0] * TOKENS, [0, 1, 0, 0.5, 2, 0, 0]])
def test_zero_weights(weights):
    _, _, (hidden_grad, _) = assert_twins(
        problem() | {"weights": torch.tensor(weights, dtype=torch.float64)}, divergence="jsd(0.5)"
    )
    assert hidden_grad[torch.tensor(weights) == 0].abs().sum() == 0


def test_no_tokens():
    inputs = problem()
    empty = {name: inputs[name][:0] for name in ("student_hidden", "weights")}
    inputs |= empty | {"signal": inputs["signal"].select(slice(0, 0))}
    assert linear_topk(**inputs, divergence="forward_kl").item() == 0


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd(0.5)", "total_variation", "skew_reverse_kl(0.1)"])
def test_a_students_tail_below_the_smallest_float(divergence):
    """Mass exp(-300), which float32 rounds to 0: the gradient is finite, and follows the teacher where the divergence does.

    Logits of size 300 are themselves rounded to 3e-5.
    """
    logits = torch.full((1, 5), -300.0)
    logits[0, :2] = torch.tensor([0.2, -0.4])
    logits.requires_grad_()
    teacher = torch.tensor([[0.4, 0.3, 0.2, 0.06, 0.04]]).log()
    identity = LMHead(torch.eye(5))
    signal = teacher_topk(teacher, identity, 2)
    total = linear_topk(logits, identity, signal, divergence, torch.ones(1))
    (gradient,) = torch.autograd.grad(total, logits)
    assert gradient.isfinite().all()
    assert gradient.sum().item() == pytest.approx(0.0, abs=1e-4)
    if divergence == "forward_kl":
        # Q - P on the three outcomes; the tail's is spread evenly over three equal logits.
        top = logits.detach()[0, :2].softmax(-1) - torch.tensor([0.4, 0.3])
        assert gradient[0].tolist() == pytest.approx([*top.tolist(), -0.1, -0.1, -0.1], rel=1e-4)


def test_known_value():
    """P = (0.6, 0.3, 0.1), Q = (0.2, 0.5, 0.3), K = 1: outcomes (0.6, 0.4) and (0.2, 0.8)."""
    identity = LMHead(torch.eye(3, dtype=torch.float64))
    p, q = (torch.tensor([row], dtype=torch.float64).log() for row in ((0.6, 0.3, 0.1), (0.2, 0.5, 0.3)))
    signal = teacher_topk(p, identity, 1)
    forward = 0.6 * math.log(3) + 0.4 * math.log(0.5)
    reverse = 0.2 * math.log(1 / 3) + 0.8 * math.log(2)
    total, stats = linear_topk(q, identity, signal, "forward_kl", torch.tensor([2.0]), return_stats=True)
    assert total.item() == pytest.approx(2 * forward, rel=1e-12)
    assert stats.forward_kl.item() == pytest.approx(forward, rel=1e-12)
    assert stats.reverse_kl.item() == pytest.approx(reverse, rel=1e-12)
    assert stats.student_entropy.item() == pytest.approx(-(q.exp() * q).sum().item(), rel=1e-12)
    assert stats.agreement.item() == 0
    assert linear_topk(q, identity, signal, "total_variation", torch.ones(1)).item() == pytest.approx(0.4, rel=1e-12)


def test_equal_models_have_zero_divergence_in_float32():
    inputs = problem(torch.float32, temperature=1.0)
    inputs["signal"] = teacher_topk(inputs["student_hidden"], inputs["student_head"], 5)
    _, stats, gradients = evaluate(inputs, divergence="reverse_kl")
    assert stats.divergence.abs().max() < 1e-6
    assert stats.agreement.min() == 1
    assert max(gradient.abs().max() for gradient in gradients) < 1e-5


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd(0.5)"])
def test_bfloat16_within_its_rounding_of_float64(divergence):
    half = problem(torch.bfloat16)
    exact = half | {
        "student_hidden": half["student_hidden"].detach().double().requires_grad_(),
        "student_head": LMHead(half["student_head"].weight.detach().double().requires_grad_()),
    }
    total, _, gradients = evaluate(half, divergence=divergence, budget_bytes=BUDGET)
    expected, _, expected_gradients = evaluate(exact, divergence=divergence)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(expected.item(), rel=5e-3)
    for one, two in zip(gradients, expected_gradients, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.double() - two).norm() / two.norm() < 0.02


def test_no_tensor_over_all_tokens_and_the_vocabulary():
    tokens, vocab = 64, 501
    hidden, head = random(tokens, 8, seed=1), LMHead(random(vocab, 8, seed=2))
    with Watch() as watch:
        signal = teacher_topk(hidden, head, 16, budget_bytes=100_000)
        linear_topk(hidden.requires_grad_(), head, signal, "jsd(0.5)", torch.ones(tokens), 100_000).backward()
    assert watch.largest <= 100_000 // 8 < tokens * vocab


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_bad_input(implementation):
    inputs = problem()
    run = {"divergence": "jsd(0.5)", "implementation": implementation}
    with pytest.raises(ValueError, match="one weight per token"):
        linear_topk(**inputs | {"weights": torch.ones(3)}, **run)
    with pytest.raises(UserError, match="temperature 0"):
        linear_topk(**inputs | {"signal": replace(inputs["signal"], temperature=0)}, **run)
    with pytest.raises(UserError, match="unknown divergence"):
        linear_topk(**inputs, divergence="kl", implementation=implementation)
    kept = Divergence("kept", lambda t, s: (t.exp() * (t - s)).sum(-1, keepdim=True))
    with pytest.raises(UserError, match=r"divergence kept gave values of shape \(\d, 1\) .* shape \(\d,\)"):
        linear_topk(**inputs, divergence=kept, implementation=implementation)


def test_a_served_signal_is_as_good_as_its_rounding():
    """The tail from 1 - sum of float32 log-probabilities instead of from the logits."""
    inputs = problem()
    exact: TopK = inputs["signal"]
    reported = exact.logp_NK.float()
    served = replace(exact, logp_NK=reported, tail_logp_N=tail_logp(reported, VOCAB))
    expected = linear_topk(**inputs, divergence="jsd(0.5)").item()
    assert linear_topk(**inputs | {"signal": served}, divergence="jsd(0.5)").item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_tokens_that_only_the_student_cannot_say(divergence):
    """One in the teacher's top 5, one in its tail: forward KL is infinite where the first one is of the five."""
    bias = random(VOCAB, seed=5)
    inputs = problem(bias=bias)
    ids = inputs["signal"].token_ids_NK
    bias[ids[0, 0]] = -math.inf
    bias[next(token for token in range(VOCAB) if token not in ids)] = -math.inf
    _, stats, gradients = assert_twins(inputs, divergence=divergence)
    is_hit = (ids == ids[0, 0]).any(1)
    assert stats.forward_kl.isposinf().tolist() == is_hit.tolist()
    assert 0 < is_hit.sum() < TOKENS
    assert stats.divergence[~is_hit].isfinite().all()
    assert stats.divergence.isfinite().all() or divergence in ("forward_kl", "adaptive_kl(0.5)")
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_served_sum_rounded_to_one_leaves_every_divergence_finite(divergence, implementation):
    """Float32 log-probabilities of a teacher sure of its token: the tail of 1e-7 is gone from them, the student's is not."""
    served = torch.tensor([[0.0, -20.0]])
    ids = torch.tensor([[3, 1]])
    signal = TopK(ids, served, tail_logp(served, 9), vocab_size=9, temperature=1.0)
    logits, identity = random(1, 9, seed=1, dtype=torch.float32).requires_grad_(), LMHead(torch.eye(9))
    inputs = {"signal": signal, "divergence": divergence, "weights": torch.ones(1), "implementation": implementation}
    total = linear_topk(logits, identity, **inputs)
    (gradient,) = torch.autograd.grad(total, logits)
    # By hand in float64: the mass that is missing from 1 in float32 is 2**-23.
    p = torch.tensor([1.0, math.exp(-20), 2**-23], dtype=torch.float64).log()
    leaf = logits.detach().double().requires_grad_()
    q = leaf.log_softmax(-1)[0]
    rest = torch.stack([x for token, x in enumerate(q) if token not in (3, 1)]).logsumexp(0)
    expected = parse(divergence).value(p, torch.stack([q[3], q[1], rest]))
    assert total.item() == pytest.approx(expected.item(), rel=2e-6)
    torch.testing.assert_close(gradient.double(), *torch.autograd.grad(expected, leaf), rtol=2e-5, atol=1e-6)


def test_agreement_looks_at_the_whole_vocabulary():
    """The student's most likely token: the teacher's, another of its top 2, one of its tail."""
    identity = LMHead(torch.eye(4))
    teacher = torch.tensor([3.0, 2.0, 1.0, 0.0]).expand(3, 4)
    student = torch.tensor([[9.0, 1, 1, 1], [1, 9, 1, 1], [1, 1, 9, 1]])
    signal = teacher_topk(teacher, identity, 2)
    for implementation in ("chunked", "reference"):
        _, stats = linear_topk(
            student, identity, signal, "jsd(0.5)", torch.ones(3), return_stats=True, implementation=implementation
        )
        assert stats.agreement.tolist() == [1, 0, 0]


def test_the_whole_vocabulary_is_the_exact_loss():
    inputs = problem(k=VOCAB, temperature=1.0)
    teacher = random(TOKENS, 6, seed=1), LMHead(random(VOCAB, 6, seed=2))
    student = inputs["student_hidden"], inputs["student_head"]
    exact = linear_divergence(*student, *teacher, "skew_forward_kl(0.1)", inputs["weights"])
    total = linear_topk(**inputs, divergence="skew_forward_kl(0.1)")
    assert total.item() == pytest.approx(exact.item(), rel=1e-12)
    leaves = (student[0], student[1].weight)
    torch.testing.assert_close(torch.autograd.grad(total, leaves), torch.autograd.grad(exact, leaves))
