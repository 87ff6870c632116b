"""Distance from the teacher against full logits worked out in the test."""

from dataclasses import replace

import pytest
import torch

from tutelage.eval import signals
from tutelage.eval.signals import reference_rollouts, teacher_divergence
from tutelage.models.language_model import LanguageModel
from tutelage.types import Rollout


def logp_of(model: LanguageModel, rollout: Rollout) -> torch.Tensor:
    """Log-probabilities that predict the completion tokens, [N, V], straight from the model's own logits."""
    prompt, completion = list(rollout.prompt_ids), list(rollout.completion_ids)
    with torch.no_grad():
        if model.is_encoder_decoder:
            shifted = torch.tensor([[0, *completion[:-1]]])
            logits = model.base(input_ids=torch.tensor([prompt]), decoder_input_ids=shifted).logits[0]
        else:
            logits = model.base(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return logits[:, : model.vocab_size].double().log_softmax(-1)


def test_a_model_is_no_distance_from_itself(model, prompts) -> None:
    found = teacher_divergence(model, model, reference_rollouts(prompts), bootstrap=50)
    for measure in (found.forward_kl, found.reverse_kl, found.jsd):
        assert measure.value == pytest.approx(0.0, abs=1e-6)
    assert found.agreement.value == 1.0
    assert found.student_entropy == found.teacher_entropy
    assert (found.sequences, found.tokens) == (6, 18)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_measures_equal_those_of_the_full_logits(make_model, prompts, family) -> None:
    student, teacher = make_model(family, seed=1), make_model(family, seed=2, padding_rows=5)
    # Different lengths: a mean over sequences would differ from the mean over tokens.
    rollouts = [replace(r, completion_ids=(*range(3, 4 + 2 * i), 1)) for i, r in enumerate(reference_rollouts(prompts))]
    p = torch.cat([logp_of(teacher, r) for r in rollouts])
    q = torch.cat([logp_of(student, r) for r in rollouts])
    m = ((p.exp() + q.exp()) / 2).log()
    found = teacher_divergence(student, teacher, rollouts, bootstrap=0, token_budget=20)
    assert found.forward_kl.value == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-5)
    assert found.reverse_kl.value == pytest.approx(float((q.exp() * (q - p)).sum(-1).mean()), rel=1e-5)
    jsd = 0.5 * (p.exp() * (p - m)).sum(-1) + 0.5 * (q.exp() * (q - m)).sum(-1)
    assert found.jsd.value == pytest.approx(float(jsd.mean()), rel=1e-5)
    assert found.student_entropy.value == pytest.approx(float(-(q.exp() * q).sum(-1).mean()), rel=1e-5)
    assert found.teacher_entropy.value == pytest.approx(float(-(p.exp() * p).sum(-1).mean()), rel=1e-5)
    assert found.agreement.value == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert found.tokens == len(p)
    assert found.forward_kl.interval is None


def test_interval_holds_the_mean_and_samples_of_a_prompt_stay_together(make_model, prompts) -> None:
    student, teacher = make_model("llama", seed=1), make_model("llama", seed=2)
    rollouts = reference_rollouts(prompts)
    once = teacher_divergence(student, teacher, rollouts, bootstrap=200)
    twice = teacher_divergence(student, teacher, rollouts * 2, bootstrap=200)
    assert once.forward_kl.interval is not None
    assert twice.forward_kl.interval is not None
    assert once.forward_kl.interval.low < once.forward_kl.value < once.forward_kl.interval.high
    # The same sequences written twice carry no more information: the interval must not shrink.
    assert twice.forward_kl.interval.low == pytest.approx(once.forward_kl.interval.low, rel=1e-5)
    assert twice.forward_kl.interval.high == pytest.approx(once.forward_kl.interval.high, rel=1e-5)


def test_training_mode_is_given_back(make_model, prompts) -> None:
    student, teacher = make_model("llama", seed=1), make_model("llama", seed=2)
    student.module.train()
    teacher_divergence(student, teacher, reference_rollouts(prompts), bootstrap=0)
    assert student.module.training
    assert not teacher.module.training


def test_training_mode_is_given_back_after_an_error(make_model, prompts, monkeypatch) -> None:
    student, teacher = make_model("llama", seed=1), make_model("llama", seed=2)
    student.module.train()

    def fail(*args: object) -> None:
        assert not student.module.training
        raise RuntimeError("out of memory")

    monkeypatch.setattr(signals, "_measure", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        teacher_divergence(student, teacher, reference_rollouts(prompts), bootstrap=0)
    assert student.module.training
    assert not teacher.module.training


def test_prompts_without_reference_are_named(prompts) -> None:
    with pytest.raises(ValueError, match="the first has id 2"):
        reference_rollouts([*prompts[:2], replace(prompts[2], reference_ids=None)])
