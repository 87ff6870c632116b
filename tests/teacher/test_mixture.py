"""Several teachers as one, against the weighted mean of their full logits."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.conftest import build_model, fixed_rollouts, own_logits
from tutelage.data.batching import collate, token_weights
from tutelage.divergences import parse
from tutelage.errors import UserError
from tutelage.models.language_model import LanguageModel
from tutelage.models.student import Student
from tutelage.teacher.local import LocalTeacher
from tutelage.teacher.mixture import TeacherMixture, mix
from tutelage.types import MicroBatch

WEIGHTS = (0.7, 0.3)
HEIGHT = 63  # of the shared vocabulary: below both heads, above every token of the sequences


def pool(student: str) -> tuple[LanguageModel, list[LanguageModel], MicroBatch]:
    """A student, two teachers of other widths with heads of other heights, a scale (t5) and a bias (bart), and sequences."""
    second = {"llama": "gpt2", "t5": "bart"}[student]
    teachers = [build_model(student, seed=1, hidden=8), build_model(second, seed=2, hidden=24, vocab=70)]
    model, rollouts = build_model(student), fixed_rollouts()
    for each in (model, *teachers):
        each.vocab_size = HEIGHT
    return model, teachers, collate(rollouts, token_weights(rollouts, "token"), model)


def mean_logits(teachers: Sequence[LanguageModel], weights: Sequence[float], micro: MicroBatch) -> Tensor:
    with torch.no_grad():
        logits = [w * own_logits(teacher, micro)[:, :HEIGHT] for w, teacher in zip(weights, teachers, strict=True)]
    return torch.stack(logits).sum(0)


def coarsened(logp_NV: Tensor, ids_NK: Tensor) -> Tensor:
    """The K tokens and one outcome for all others."""
    rest = torch.ones_like(logp_NV, dtype=torch.bool).scatter(1, ids_NK, False)
    tail = logp_NV.masked_fill(~rest, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logp_NV.gather(1, ids_NK), tail], dim=1)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("signal", ["hidden", "topk(5)"])
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_loss_and_gradient_are_those_of_the_mean_of_the_logits(family: str, signal: str) -> None:
    student, teachers, micro = pool(family)
    divergence, temperature = parse("jsd(0.3)"), 1.4
    scorer = LocalTeacher(TeacherMixture(teachers, WEIGHTS), signal, temperature)
    found = Student(student, divergence, temperature)(micro, scorer.score(micro)).loss

    p = (mean_logits(teachers, WEIGHTS, micro) / temperature).log_softmax(-1)
    q = (own_logits(student, micro)[:, :HEIGHT] / temperature).log_softmax(-1)
    if signal == "topk(5)":
        p, q = (coarsened(each, p.topk(5).indices) for each in (p, q))
    expected = (micro.weights_N.double() * divergence.value(p, q)).sum()

    assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    parameters = list(student.module.parameters())
    for ours, theirs in zip(*(torch.autograd.grad(loss, parameters) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_weights_are_equal_unless_given(family: str) -> None:
    _, teachers, micro = pool(family)
    for weights, expected in ((None, (0.5, 0.5)), (WEIGHTS, WEIGHTS)):
        states = LocalTeacher(TeacherMixture(teachers, weights)).hidden_states(micro)
        assert states.hidden_NH.shape[1] == 8 + 24
        assert states.head.vocab_size == HEIGHT
        torch.testing.assert_close(
            states.head.logits(states.hidden_NH), mean_logits(teachers, expected, micro), rtol=1e-11, atol=1e-11
        )


@pytest.mark.usefixtures("exact")
def test_the_mixture_has_the_teachers_own_temperature() -> None:
    _, teachers, micro = pool("t5")
    options = {"temperature": 1.6, "own_temperature": 0.7}
    expected = (mean_logits(teachers, WEIGHTS, micro) / 0.7).log_softmax(-1)
    topk = LocalTeacher(TeacherMixture(teachers, WEIGHTS), "topk(4)", **options).score(micro)
    sampled = LocalTeacher(TeacherMixture(teachers, WEIGHTS), "sampled", **options).score(micro)
    torch.testing.assert_close(topk.logp_NK, expected.topk(4).values, rtol=1e-10, atol=1e-11)
    own = expected.gather(1, micro.targets_N[:, None])[:, 0]
    torch.testing.assert_close(sampled.logp_N, own, rtol=1e-10, atol=1e-11)


def test_teachers_mark_without_dropout_and_go_on_so() -> None:
    teachers = [build_model("llama", seed=seed, dropout=0.5) for seed in (1, 2)]
    mixture = TeacherMixture(teachers)
    assert not mixture.module.training
    mixture.module.train(mixture.module.training)
    assert not any(module.training for teacher in teachers for module in teacher.module.modules())


def test_a_capped_head_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"other_teachers: tiny-gemma2 caps its logits .* cannot be averaged"):
        TeacherMixture([build_model("llama"), build_model("gemma2")])


def test_a_single_teacher_stays_as_it_is() -> None:
    teacher = build_model("gemma2")
    assert mix([teacher]) is teacher
