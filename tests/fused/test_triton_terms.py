"""The kernel's JSD divided by b(1-b) near the limits of b, against float64 autograd through Equation 1."""

import pytest
import torch

from tests.fused.interpreter import DEVICE, INF, load_kernels, random
from tutelage.divergences import jsd, parse
from tutelage.types import LMHead

pytest.importorskip("triton")

pytestmark = pytest.mark.filterwarnings("ignore:.*(divide by zero|invalid value|overflow):RuntimeWarning")

kernels = load_kernels()
HEAD = LMHead(torch.empty(0, 0), None)
BETAS = [1e-5, 1e-3, 0.01, 0.5, 0.99, 0.999]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(kernels, "_MAX_BLOCK", 64)


def score(student, teacher, beta):
    """Values and the derivative in the student's logits."""
    grad, weights = student.clone(), torch.ones(len(student), device=DEVICE)
    divergence = parse(f"jsd({beta}, rescale)")
    values, _ = kernels.score_(grad, teacher, HEAD, HEAD, divergence, 1.0, weights, True, False)
    return values, grad


def expected(student, teacher, beta):
    leaf = student.double().requires_grad_()
    values = jsd(teacher.double().log_softmax(-1), leaf.log_softmax(-1), beta) / (beta * (1 - beta))
    return values.detach(), *torch.autograd.grad(values.sum(), leaf)


@pytest.mark.parametrize("distance", [0.003, 0.03, 3.0])
@pytest.mark.parametrize("beta", BETAS)
def test_error_near_the_limits(beta, distance):
    """Values to 2e-6 or 5e-9, 1e-4 of the gradient (Euclidean norm); float32 rounds the logits' differences."""
    teacher = random(3, 500, seed=1)
    student = teacher + random(3, 500, seed=2, size=distance)
    (values, grad), (exact_values, exact_grad) = score(student, teacher, beta), expected(student, teacher, beta)
    torch.testing.assert_close(values.double(), exact_values, rtol=2e-6, atol=5e-9)
    assert (grad.double() - exact_grad).norm() < 1e-4 * exact_grad.norm()


@pytest.mark.parametrize("beta", BETAS)
def test_equal_models_and_logits_of_minus_infinity(beta):
    """Rows: equal models; a token only the teacher can say, one only the student can, and many that neither can."""
    student, teacher = random(2, 100, seed=1), random(2, 100, seed=1)
    teacher[1] = random(100, seed=2)
    student[1, 40] = teacher[1, 60] = -INF
    student[1, 70:] = teacher[1, 70:] = -INF
    (values, grad), (exact_values, exact_grad) = score(student, teacher, beta), expected(student[1:], teacher[1:], beta)
    assert values[0].item() == 0
    assert grad[0].abs().max() == 0
    torch.testing.assert_close(values[1:].double(), exact_values, rtol=2e-6, atol=0)
    assert grad.isfinite().all()
    assert (grad[1:].double() - exact_grad).norm() < 1e-4 * exact_grad.norm()
