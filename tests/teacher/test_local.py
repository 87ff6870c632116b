"""The teacher in the same process."""

import pytest
import torch

from tests.conftest import build_model, fixed_rollouts, own_logits
from tutelage.data.batching import collate, token_weights
from tutelage.divergences import forward_kl, parse
from tutelage.errors import UserError
from tutelage.models.student import Student
from tutelage.teacher.local import LocalTeacher


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", ["gemma2", "t5"])
def test_the_signal_gives_the_teachers_own_logits(family):
    teacher, rollouts = build_model(family), fixed_rollouts()
    micro = collate(rollouts, token_weights(rollouts, "token"), teacher)
    signal = LocalTeacher(teacher).score(micro)
    with torch.no_grad():
        torch.testing.assert_close(
            signal.head.logits(signal.hidden_NH), own_logits(teacher, micro), rtol=1e-12, atol=1e-12
        )
    assert signal.hidden_NH.shape == (len(micro.targets_N), 16)
    assert not signal.hidden_NH.requires_grad


def test_the_head_is_cut_to_the_shared_vocabulary():
    teacher, rollouts = build_model("llama"), fixed_rollouts()
    micro = collate(rollouts, token_weights(rollouts, "token"), teacher)
    teacher.vocab_size = 60
    assert LocalTeacher(teacher).score(micro).head.vocab_size == 60


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", ["gemma2", "t5"])
def test_weaker_signals_are_of_the_teachers_own_logits(family):
    teacher, rollouts = build_model(family), fixed_rollouts()
    micro = collate(rollouts, token_weights(rollouts, "token"), teacher)
    teacher.vocab_size = 63
    with torch.no_grad():
        logp = (own_logits(teacher, micro)[:, :63] / 0.7).log_softmax(-1)
    topk = LocalTeacher(teacher, "topk(4)", temperature=0.7, budget_bytes=5000).score(micro)
    expected, ids = logp.topk(4, dim=-1)
    assert torch.equal(topk.token_ids_NK, ids)
    torch.testing.assert_close(topk.logp_NK, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(topk.tail_logp_N.exp(), 1 - expected.exp().sum(-1), rtol=1e-9, atol=1e-12)
    sampled = LocalTeacher(teacher, "sampled", temperature=0.7).score(micro)
    own = logp.gather(1, micro.targets_N[:, None]).squeeze(1)
    torch.testing.assert_close(sampled.logp_N, own, rtol=1e-11, atol=1e-12)
    assert topk.vocab_size == sampled.vocab_size == 63
    assert topk.temperature == sampled.temperature == 0.7


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", ["gemma2", "t5", "bart"])  # a soft-cap, a scale, a bias
def test_a_temperature_of_its_own_divides_the_teachers_logits_alone(family):
    """As the loss finishes them: the head's logits divided by the loss's temperature."""
    teacher, student, rollouts = build_model(family), build_model(family, seed=1), fixed_rollouts()
    micro = collate(rollouts, token_weights(rollouts, "token"), teacher)
    with torch.no_grad():
        logp = (own_logits(teacher, micro) / 0.7).log_softmax(-1)
        student_logp = (own_logits(student, micro) / 1.6).log_softmax(-1)
    expected = (micro.weights_N.double() * forward_kl(logp, student_logp)).sum()

    options = {"temperature": 1.6, "own_temperature": 0.7}
    module = Student(student, parse("forward_kl"), temperature=1.6)
    for signal in ("hidden", "topk(64)"):
        found = module(micro, LocalTeacher(teacher, signal, **options).score(micro))
        assert found.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    topk = LocalTeacher(teacher, "topk(4)", **options).score(micro)
    sampled = LocalTeacher(teacher, "sampled", **options).score(micro)
    torch.testing.assert_close(topk.logp_NK, logp.topk(4, dim=-1)[0], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(sampled.logp_N, logp.gather(1, micro.targets_N[:, None])[:, 0], rtol=1e-11, atol=1e-12)
    assert topk.temperature == sampled.temperature == 1.6  # the student's, which the loss goes by


def test_a_teacher_temperature_of_zero():
    with pytest.raises(UserError, match=r"teacher temperature 0\.0 must be above 0"):
        LocalTeacher(build_model("llama"), own_temperature=0.0)


def test_unknown_signal():
    with pytest.raises(UserError, match="unknown teacher signal 'logits'"):
        LocalTeacher(build_model("llama"), "logits")
