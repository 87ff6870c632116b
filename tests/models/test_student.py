"""The loss over hidden states against the same loss over the model's own logits: values and parameter gradients."""

import pytest
import torch

from tests.conftest import FAMILIES, build_model, fixed_rollouts, own_logits
from tutelage import divergences
from tutelage.data.batching import collate, token_weights
from tutelage.models.student import Student
from tutelage.teacher.local import LocalTeacher


def losses(family, spelling, temperature=1.0):
    """(our loss, the reference loss, statistics, the student's module)."""
    student, teacher = build_model(family, seed=1), build_model(family, seed=2, hidden=24)
    rollouts = fixed_rollouts()
    micro = collate(rollouts, token_weights(rollouts, "sequence"), student)
    divergence = None if spelling is None else divergences.parse(spelling)
    signal = None if divergence is None else LocalTeacher(teacher).score(micro)
    ours = Student(student, divergence, temperature)(micro, signal)

    logp = (own_logits(student, micro) / temperature).log_softmax(-1)
    if divergence is None:
        tokens = -logp.gather(1, micro.targets_N[:, None]).squeeze(1)
    else:
        tokens = divergence.value((own_logits(teacher, micro).detach() / temperature).log_softmax(-1), logp)
    return ours, (tokens * micro.weights_N).sum(), tokens, student.module


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(
    ("spelling", "temperature"), [(None, 1.0), ("jsd(0.9)", 1.0), ("forward_kl", 2.0), ("reverse_kl", 1.0)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_full_logits(family, spelling, temperature):
    ours, reference, tokens, module = losses(family, spelling, temperature)
    assert reference.item() > 0.01
    torch.testing.assert_close(ours.loss, reference, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(ours.stats.divergence, tokens.detach(), rtol=1e-10, atol=1e-12)
    parameters = dict(module.named_parameters())
    mine = torch.autograd.grad(ours.loss, list(parameters.values()))
    theirs = torch.autograd.grad(reference, list(parameters.values()))
    for name, our_grad, their_grad in zip(parameters, mine, theirs, strict=True):
        assert torch.allclose(our_grad, their_grad, rtol=1e-9, atol=1e-11), name


def test_a_divergence_needs_a_signal():
    student = build_model("llama")
    rollouts = fixed_rollouts()
    micro = collate(rollouts, token_weights(rollouts, "token"), student)
    with pytest.raises(AssertionError, match="needs the teacher's signal"):
        Student(student, divergences.parse("forward_kl"))(micro, None)


def test_parameters_are_the_models_own():
    model = build_model("t5")
    assert {id(p) for p in Student(model, None).parameters()} == {id(p) for p in model.module.parameters()}
