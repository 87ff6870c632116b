"""Which kernel a loss gets, and the whole loss with the kernels inside against the reference."""

import pytest
import torch

from tests.fused.interpreter import DEVICE, DIVERGENCES, INF, load_kernels, random
from tutelage.divergences import Divergence
from tutelage.errors import UserError
from tutelage.fused import linear_divergence, linear_nll
from tutelage.types import LMHead

pytest.importorskip("triton")
load_kernels()

pytestmark = pytest.mark.filterwarnings("ignore:.*(divide by zero|invalid value|overflow):RuntimeWarning")


def whole_loss(implementation, divergence, dtype=torch.float32, budget_bytes=37 * 4 * 2 * 3):
    """Value, gradients of hidden states, head and bias, statistics; the budget makes chunks of three tokens."""
    hidden, teacher_hidden = random(7, 8, seed=0, dtype=dtype), random(7, 5, seed=1, dtype=dtype)
    weight, bias = random(37, 8, seed=2, size=0.5, dtype=dtype), random(37, seed=3, dtype=dtype)
    student = LMHead(weight.requires_grad_(), bias.requires_grad_(), scale=0.5, softcap=6.0)
    teacher = LMHead(random(40, 5, seed=4, size=0.5, dtype=dtype))
    weights = torch.tensor([0.5, 0.0, 1.0, 2.0, 0.0, 0.25, 1.0], device=DEVICE)
    value, stats = linear_divergence(
        hidden.requires_grad_(),
        student,
        teacher_hidden,
        teacher,
        divergence,
        weights,
        temperature=1.5,
        budget_bytes=budget_bytes,
        return_stats=True,
        implementation=implementation,
    )
    value.backward()
    return {"value": value.detach(), **vars(stats)}, [
        hidden.grad,
        weight.grad,
        bias.grad,
    ]


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_whole_loss_is_that_of_the_reference(divergence):
    found, found_grads = whole_loss("triton", divergence)
    wanted, wanted_grads = whole_loss("reference", divergence)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=2e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
    for gradient, wanted_gradient in zip(found_grads, wanted_grads, strict=True):
        torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-6)


def test_the_whole_negative_log_likelihood_is_that_of_the_reference():
    results = []
    for implementation in ("triton", "reference"):
        hidden, weight = random(5, 8, seed=0).requires_grad_(), random(37, 8, seed=1, size=0.5).requires_grad_()
        targets, weights = (
            torch.tensor([0, 36, 5, 5, 9], device=DEVICE),
            torch.tensor([1.0, 0, 2, 0.5, 1], device=DEVICE),
        )
        value, stats = linear_nll(
            hidden, LMHead(weight), targets, weights, budget_bytes=600, return_stats=True, implementation=implementation
        )
        value.backward()
        results.append(
            [value.detach(), stats.divergence, stats.student_entropy, stats.agreement, hidden.grad, weight.grad]
        )
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-6)


def test_an_infinite_token_of_weight_zero_leaves_the_sum_finite():
    hidden, weight = random(2, 4, seed=0).requires_grad_(), random(6, 4, seed=1).requires_grad_()
    teacher_bias = torch.tensor([0, 0, 0, 0, 0, -INF], device=DEVICE)  # reverse KL is infinite for both tokens
    weights = torch.zeros(2, device=DEVICE)
    value, stats = linear_divergence(
        hidden,
        LMHead(weight),
        hidden,
        LMHead(weight, teacher_bias),
        "reverse_kl",
        weights,
        return_stats=True,
        implementation="triton",
    )
    value.backward()
    assert value == 0
    assert stats.divergence.isposinf().all()
    assert hidden.grad.eq(0).all()
    assert weight.grad.eq(0).all()


def test_what_has_no_kernel_is_refused_when_asked_for():
    hidden, weight = random(2, 4, seed=0), random(6, 4, seed=1)
    own = Divergence("l2", lambda p, q: (p.exp() - q.exp()).square().sum(-1))
    for dtype, divergence, seen in ((torch.float32, own, "divergence l2"), (torch.float64, "forward_kl", "float64")):
        model = (hidden.to(dtype), LMHead(weight.to(dtype)))
        with pytest.raises(UserError, match=seen):
            linear_divergence(*model, *model, divergence, torch.ones(2, device=DEVICE), implementation="triton")
