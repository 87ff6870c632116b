"""The sampled-token loss against its full-logits twin; that its expected gradient is right is proven in conformance."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.fused import twins
from tutelage import estimators
from tutelage.errors import UserError
from tutelage.fused import linear_sampled
from tutelage.types import LMHead, SampledToken

TOKENS, VOCAB = 7, 37
BUDGET = 2 * 3 * VOCAB * 16  # a few tokens a chunk
evaluate = partial(twins.evaluate, linear_sampled)
assert_twins = partial(twins.assert_twins, linear_sampled, budget_bytes=BUDGET)


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(**head):
    return {
        "student_hidden": random(TOKENS, 4, seed=3).requires_grad_(),
        "student_head": LMHead(random(VOCAB, 4, seed=4).requires_grad_(), **head),
        "signal": SampledToken(-random(TOKENS, seed=5).abs() - 1, VOCAB, temperature=0.8),
        "targets": torch.arange(TOKENS) * 5 % VOCAB,
        "weights": torch.linspace(0.1, 1.3, TOKENS, dtype=torch.float64),
    }


@pytest.mark.parametrize("head", [{}, {"bias": random(VOCAB, seed=6), "scale": 0.7, "softcap": 1.5}])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
def test_chunked_equals_reference(divergence, head):
    assert_twins(problem(**head), divergence=divergence)


@pytest.mark.parametrize("weights", [[0.0] * TOKENS, [0, 1, 0, 0.5, 2, 0, 0]])
def test_zero_weights(weights):
    _, _, (hidden_grad, _) = assert_twins(
        problem() | {"weights": torch.tensor(weights, dtype=torch.float64)}, divergence="reverse_kl"
    )
    assert hidden_grad[torch.tensor(weights) == 0].abs().sum() == 0


@pytest.mark.parametrize(("divergence", "estimator"), [("reverse_kl", estimators.k2), ("forward_kl", estimators.k3)])
def test_values_from_the_definition(divergence, estimator):
    inputs = problem()
    logits = inputs["student_head"].logits(inputs["student_hidden"]) / 0.8
    student_logp = logits.log_softmax(-1).gather(1, inputs["targets"][:, None]).squeeze(1)
    teacher_logp = inputs["signal"].logp_N
    total, stats = linear_sampled(**inputs, divergence=divergence, return_stats=True)
    assert total.item() == pytest.approx((estimator(student_logp, teacher_logp) @ inputs["weights"]).item(), rel=1e-12)
    torch.testing.assert_close(stats.divergence, estimator(student_logp, teacher_logp).detach())
    torch.testing.assert_close(stats.k1, estimators.k1(student_logp, teacher_logp).detach())
    torch.testing.assert_close(stats.k3, estimators.k3(student_logp, teacher_logp).detach())
    assert stats.agreement.tolist() == (logits.argmax(-1) == inputs["targets"]).double().tolist()
    assert (stats.forward_kl, stats.reverse_kl, stats.teacher_entropy) == (None, None, None)
    named = {"reverse_kl": "k2", "forward_kl": "k3"}[divergence]
    assert linear_sampled(**inputs, divergence=named).item() == total.item()


def test_a_token_that_the_teacher_excludes_is_infinitely_bad():
    inputs = problem()
    logp = inputs["signal"].logp_N.clone()
    logp[2] = -math.inf
    total = linear_sampled(**inputs | {"signal": replace(inputs["signal"], logp_N=logp)}, divergence="reverse_kl")
    assert total.item() == math.inf


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_bad_input(implementation):
    inputs = problem()
    for divergence, message in [
        ("k1", "k1 as a loss has the gradient 0"),
        ("jsd(0.5)", "supports forward_kl and reverse_kl"),
        ("total_variation", "hidden or topk"),
        ("skew_reverse_kl(0.1)", "hidden or topk"),
    ]:
        with pytest.raises(UserError, match=message):
            linear_sampled(**inputs, divergence=divergence, implementation=implementation)
    with pytest.raises(ValueError, match="one weight per token"):
        linear_sampled(**inputs | {"targets": torch.arange(3)}, divergence="k2", implementation=implementation)
    signal = replace(inputs["signal"], temperature=0)
    with pytest.raises(UserError, match="temperature 0"):
        linear_sampled(**inputs | {"signal": signal}, divergence="k2", implementation=implementation)
