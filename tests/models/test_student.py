"""The loss over hidden states against the same loss over the model's own logits: values and parameter gradients."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import FAMILIES, build_model, fixed_rollouts, own_logits
from tutelage import divergences, estimators
from tutelage.data.batching import collate, policy_weights, token_weights
from tutelage.errors import UserError
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


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("spelling", [None, "jsd(0.9)"])
@pytest.mark.parametrize("family", ["gemma2", "t5"])
def test_a_policy_gradient_joins_at_temperature_one(family, spelling):
    """Weights of either sign, and 0; the divergence has a temperature of its own."""
    student, teacher = build_model(family, seed=1), build_model(family, seed=2, hidden=24)
    rollouts, advantages = fixed_rollouts(), [0.7, -1.3, 0.0, 2.0, -0.1]
    micro = collate(rollouts, token_weights(rollouts, "sequence"), student, policy_weights(rollouts, advantages))
    divergence = None if spelling is None else divergences.parse(spelling)
    signal = None if divergence is None else LocalTeacher(teacher).score(micro)
    ours = Student(student, divergence, temperature=1.5)(micro, signal).loss

    logits, teacher_logits = own_logits(student, micro), own_logits(teacher, micro).detach()
    nll = -logits.log_softmax(-1).gather(1, micro.targets_N[:, None]).squeeze(1)
    tokens = nll
    if divergence is not None:
        tokens = divergence.value((teacher_logits / 1.5).log_softmax(-1), (logits / 1.5).log_softmax(-1))
    sequences = [nll[micro.row_N == row].sum() for row in range(len(rollouts))]
    policy = sum(a * s for a, s in zip(advantages, sequences, strict=True)) / len(rollouts)
    reference = (tokens * micro.weights_N).sum() + policy
    assert abs(policy.item()) > 0.1
    torch.testing.assert_close(ours, reference, rtol=1e-11, atol=1e-12)
    parameters = list(student.module.parameters())
    pairs = zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(reference, parameters), strict=True)
    assert all(torch.allclose(one, two, rtol=1e-9, atol=1e-11) for one, two in pairs)


def test_parameters_are_the_models_own():
    model = build_model("t5")
    assert {id(p) for p in Student(model, None).parameters()} == {id(p) for p in model.module.parameters()}


def own_rollouts():
    """The fixed sequences, as if the student had written them."""
    return [replace(rollout, source="student", policy_version=0) for rollout in fixed_rollouts()]


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("signal", ["topk(5)", "sampled"])
@pytest.mark.parametrize("family", ["gemma2", "t5"])
def test_weaker_signals_are_those_of_the_full_logits(family, signal):
    student, teacher = build_model(family, seed=1), build_model(family, seed=2, hidden=24)
    rollouts = own_rollouts()
    micro = collate(rollouts, token_weights(rollouts, "sequence"), student)
    objective = Student(student, divergences.parse("reverse_kl"), temperature=1.5)
    ours = objective(micro, LocalTeacher(teacher, signal, temperature=1.5).score(micro))

    logp = (own_logits(student, micro) / 1.5).log_softmax(-1)
    teacher_logp = (own_logits(teacher, micro).detach() / 1.5).log_softmax(-1)
    if signal == "sampled":
        chosen = micro.targets_N[:, None]
        tokens = estimators.k2(logp.gather(1, chosen), teacher_logp.gather(1, chosen)).squeeze(1)
    else:
        ids = teacher_logp.topk(5, dim=-1).indices
        tokens = divergences.reverse_kl(estimators.coarsen(teacher_logp, ids), estimators.coarsen(logp, ids))
    reference = (tokens * micro.weights_N).sum()
    assert reference.item() > 0.01
    torch.testing.assert_close(ours.loss, reference, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(ours.stats.divergence, tokens.detach(), rtol=1e-10, atol=1e-12)
    parameters = list(student.module.parameters())
    pairs = zip(torch.autograd.grad(ours.loss, parameters), torch.autograd.grad(reference, parameters), strict=True)
    assert all(torch.allclose(one, two, rtol=1e-9, atol=1e-11) for one, two in pairs)


def test_sampled_signals_are_refused_off_policy_and_for_other_divergences():
    student = build_model("llama")
    teacher = LocalTeacher(student, "sampled")
    rollouts = fixed_rollouts()
    micro = collate(rollouts, token_weights(rollouts, "token"), student)
    with pytest.raises(UserError, match="is from the dataset"):
        Student(student, divergences.parse("reverse_kl"))(micro, teacher.score(micro))
    rollouts = own_rollouts()
    micro = collate(rollouts, token_weights(rollouts, "token"), student)
    with pytest.raises(UserError, match="supports forward_kl and reverse_kl"):
        Student(student, divergences.parse("jsd(0.5)"))(micro, teacher.score(micro))
