"""Which kernel a loss gets, and the whole loss with the kernels inside against the reference."""

import pytest
import torch

from tests.fused.interpreter import DEVICE, DIVERGENCES, INF, WITHOUT_KERNEL, load_kernels, random
from tests.fused.watch import Watch
from tutelage.divergences import Divergence
from tutelage.errors import UserError
from tutelage.fused import linear_divergence, linear_nll, linear_sampled, linear_topk, teacher_sampled, teacher_topk
from tutelage.types import LMHead

triton = pytest.importorskip("triton")
kernels = load_kernels()

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


@pytest.mark.parametrize("value", [float("nan"), INF])
@pytest.mark.parametrize("softcap", [None, 6.0])
@pytest.mark.parametrize("return_stats", [False, True])
@pytest.mark.parametrize("loss", ["jsd(0.3)", "nll"])
def test_tokens_of_weight_zero_may_hold_anything(loss, return_stats, softcap, value):
    """Neither model's hidden states there reach the gradients: those of the other tokens alone, by the reference."""
    student, teacher = random(7, 8, seed=0), random(7, 5, seed=1)
    weights = torch.tensor([0.5, 0.0, 1.0, 2.0, 0.0, 0.25, 1.0], device=DEVICE)
    student[weights == 0] = teacher[weights == 0] = value
    teacher_head = LMHead(random(37, 5, seed=4, size=0.5), softcap=softcap)

    def gradients(implementation, rows):
        hidden = student[rows].clone().requires_grad_()
        weight, bias = random(37, 8, seed=2, size=0.5).requires_grad_(), random(37, seed=3).requires_grad_()
        inputs, options = (hidden, LMHead(weight, bias, softcap=softcap)), {"implementation": implementation}
        options |= {"budget_bytes": 37 * 4 * 2 * 3, "return_stats": return_stats}
        if loss == "nll":
            result = linear_nll(*inputs, torch.arange(7, device=DEVICE)[rows], weights[rows], **options)
        else:
            result = linear_divergence(*inputs, teacher[rows], teacher_head, loss, weights[rows], **options)
        total = result[0] if return_stats else result
        return total.detach(), *torch.autograd.grad(total, (hidden, weight, bias))

    total, hidden, *head = gradients("triton", slice(None))
    wanted_total, wanted_hidden, *wanted_head = gradients("reference", weights != 0)
    torch.testing.assert_close([total, *head], [wanted_total, *wanted_head], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(hidden[weights != 0], wanted_hidden, rtol=1e-4, atol=1e-6)
    assert hidden[weights == 0].eq(0).all()


@pytest.mark.parametrize("return_stats", [False, True])
@pytest.mark.parametrize("loss", ["jsd(0.3)", "forward_kl", "nll"])
def test_the_host_waits_for_nothing(loss, return_stats):
    """PyTorch's path does, for the weights: the watch can see it. Backward, too, waits for nothing on CUDA."""
    weights = torch.tensor([0.5, 0.0, 1.0, 2.0, 0.0], device=DEVICE)

    def waits(implementation):
        hidden, weight = random(5, 8, seed=0).requires_grad_(), random(37, 8, seed=1, size=0.5).requires_grad_()
        inputs, options = (hidden, LMHead(weight, softcap=5.0)), {"implementation": implementation}
        options |= {"budget_bytes": 37 * 4 * 2 * 2, "return_stats": return_stats}
        teacher = (random(5, 4, seed=2), LMHead(random(37, 4, seed=3)))
        targets = torch.arange(5, device=DEVICE)
        with Watch() as watch:
            if loss == "nll":
                result = linear_nll(*inputs, targets, weights, **options)
            else:
                result = linear_divergence(*inputs, *teacher, loss, weights, **options)
            if DEVICE == "cuda":
                (result[0] if return_stats else result).backward()
        return watch.waits

    assert waits("triton") == []
    assert {"aten._local_scalar_dense", "aten.nonzero"} <= set(waits("chunked"))


def test_what_has_no_kernel_is_refused_when_asked_for():
    hidden, weight = random(2, 4, seed=0), random(6, 4, seed=1)
    own = Divergence("l2", lambda p, q: (p.exp() - q.exp()).square().sum(-1))
    cases = [(torch.float32, own, "divergence l2"), (torch.float64, "forward_kl", "float64")]
    cases += [(torch.float32, spelling, "divergence adaptive_kl") for spelling in WITHOUT_KERNEL]
    for dtype, divergence, seen in cases:
        model = (hidden.to(dtype), LMHead(weight.to(dtype)))
        with pytest.raises(UserError, match=f"there is no kernel for .*{seen}"):
            linear_divergence(*model, *model, divergence, torch.ones(2, device=DEVICE), implementation="triton")


def test_weaker_signals_have_no_kernel():
    model, targets = (random(2, 4, seed=0), LMHead(random(6, 4, seed=1))), torch.tensor([0, 5], device=DEVICE)
    rest = ("forward_kl", torch.ones(2, device=DEVICE))
    with pytest.raises(UserError, match="there is no kernel for TopKLoss"):
        linear_topk(*model, teacher_topk(*model, 2), *rest, implementation="triton")
    with pytest.raises(UserError, match="there is no kernel for SampledLoss"):
        linear_sampled(*model, teacher_sampled(*model, targets), targets, *rest, implementation="triton")


@pytest.mark.skipif(DEVICE == "cuda", reason="compiles there")
def test_a_cpu_without_the_interpreter_is_refused(monkeypatch):
    assert kernels.is_interpreted()
    monkeypatch.setattr(kernels, "_score_kernel", triton.JITFunction(kernels._score_kernel.fn))
    model, weights = (random(2, 4, seed=0), LMHead(random(6, 4, seed=1))), torch.ones(2)
    with pytest.raises(UserError, match=r"hidden states are on cpu; .* TRITON_INTERPRET=1"):
        linear_divergence(*model, *model, "forward_kl", weights, implementation="triton")
    assert linear_divergence(*model, *model, "forward_kl", weights).item() == pytest.approx(0, abs=1e-6)
