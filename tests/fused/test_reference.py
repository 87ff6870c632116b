"""The reference against formulas written out with `LMHead.logits`."""

import pytest
import torch

from tutelage import divergences
from tutelage.errors import UserError
from tutelage.fused import linear_divergence, reference
from tutelage.types import LMHead


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STUDENT = LMHead(random(11, 4, seed=1), random(11, seed=2), scale=0.5, softcap=2.0)
TEACHER = LMHead(random(13, 6, seed=3), None, scale=1.2, softcap=3.0)


def test_value_and_gradients_from_the_definition():
    student_hidden, teacher_hidden = random(5, 4, seed=4).requires_grad_(), random(5, 6, seed=5).requires_grad_()
    weights = torch.tensor([0.5, 0.0, 1.0, 2.0, 0.1])
    total, stats = reference.linear_divergence(
        student_hidden, STUDENT, teacher_hidden, TEACHER, "reverse_kl", weights, temperature=0.7, return_stats=True
    )
    student_logp = (STUDENT.logits(student_hidden) / 0.7).log_softmax(-1)
    teacher_logp = (TEACHER.logits(teacher_hidden)[:, :11] / 0.7).log_softmax(-1)
    per_token = divergences.reverse_kl(teacher_logp, student_logp)
    expected = (per_token * weights).sum()
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(total, student_hidden), torch.autograd.grad(expected, student_hidden, retain_graph=True)
    )
    torch.testing.assert_close(stats.divergence, per_token.detach())
    torch.testing.assert_close(stats.reverse_kl, per_token.detach())
    torch.testing.assert_close(stats.forward_kl, divergences.forward_kl(teacher_logp, student_logp).detach())
    torch.testing.assert_close(stats.student_entropy, -(student_logp.exp() * student_logp).sum(-1).detach())
    torch.testing.assert_close(stats.teacher_entropy, -(teacher_logp.exp() * teacher_logp).sum(-1).detach())
    assert stats.agreement.tolist() == (student_logp.argmax(-1) == teacher_logp.argmax(-1)).double().tolist()


def test_no_gradient_for_the_teacher():
    student_hidden, teacher_hidden = random(2, 4).requires_grad_(), random(2, 6).requires_grad_()
    for implementation in ("reference", "chunked"):
        total = linear_divergence(
            student_hidden, STUDENT, teacher_hidden, TEACHER, "jsd(0.5)", torch.ones(2), implementation=implementation
        )
        assert torch.autograd.grad(total, teacher_hidden, allow_unused=True) == (None,)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_bad_input(implementation):
    inputs = (random(2, 4), STUDENT, random(2, 6), TEACHER)
    with pytest.raises(UserError, match="temperature 0"):
        linear_divergence(*inputs, "jsd(0.5)", torch.ones(2), temperature=0, implementation=implementation)
    with pytest.raises(UserError, match="forward_kl"):
        linear_divergence(*inputs, "forward", torch.ones(2), implementation=implementation)
    with pytest.raises(ValueError, match="one weight per token"):
        linear_divergence(*inputs, "jsd(0.5)", torch.ones(3), implementation=implementation)
    with pytest.raises(ValueError, match="teacher_hidden"):
        linear_divergence(
            random(2, 4), STUDENT, random(3, 6), TEACHER, "jsd(0.5)", torch.ones(2), implementation=implementation
        )
