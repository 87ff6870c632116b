"""Student and teacher writing together, against full forward passes of both without a cache, one row at a time."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import build_model, own_logits
from tests.rollout.test_native import PROMPTS, completions, stopping_model
from tutelage.data.batching import collate
from tutelage.rollout.base import Sampling
from tutelage.rollout.mixed import Mixed
from tutelage.rollout.native import NativeEngine
from tutelage.rollout.sampling import uniforms
from tutelage.types import Rollout

SAMPLING = Sampling(10, temperature=0.8)
PAIRS = [("llama", "gpt2"), ("gemma2", "llama"), ("t5", "t5_v1_1"), ("bart", "bart")]


def teacher_of(family):
    """Wider and with padding in its head, cut to the student's vocabulary as `vocabulary.agree` does."""
    teacher = build_model(family, seed=7, hidden=32, vocab=70)
    teacher.vocab_size = 64
    return teacher


def generate(student, teacher, share, sampling=SAMPLING, **options):
    engine = NativeEngine(student, teacher=teacher, teacher_share=share, **options)
    return engine.generate(PROMPTS, sampling, samples=[0] * len(PROMPTS), seed=3)


def next_probabilities(model, prompt, written):
    """Of the token behind `written`, by a full forward pass."""
    rollout = Rollout(prompt.token_ids, (*written, 0), None, "length", 0, prompt.id, 0, "student")
    micro = collate([rollout], [[1.0] * (len(written) + 1)], model)
    return (own_logits(model, micro)[-1, :64] / SAMPLING.temperature).softmax(-1)


@torch.no_grad()
def write_slowly(student, teacher, share, prompt):
    """Tokens and their log-probabilities, by the inverse transform of the sequence's own random numbers."""
    written, logps = [], []
    for u in uniforms(3, prompt.id, 0, SAMPLING.max_new_tokens):
        mixed = (1 - share) * next_probabilities(student, prompt, written)
        mixed = mixed + share * next_probabilities(teacher, prompt, written)
        token = int((mixed.cumsum(-1) <= u * mixed.sum()).sum())
        written.append(token)
        logps.append(mixed[token].log().item())
        if token in student.eos_ids:
            break
    return tuple(written), logps


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("family", "teacher_family"), PAIRS)
def test_tokens_and_logprobs_are_those_of_full_forward_passes(family, teacher_family):
    student, teacher = stopping_model(family), teacher_of(teacher_family)
    expected = [write_slowly(student, teacher, 0.3, prompt) for prompt in PROMPTS]
    assert len({len(tokens) for tokens, _ in expected}) >= 2  # rows do leave at different steps
    for batch_rows in (None, 4):
        rollouts = generate(student, teacher, 0.3, batch_rows=batch_rows)
        assert completions(rollouts) == [tokens for tokens, _ in expected]
        for rollout, (_, logps) in zip(rollouts, expected, strict=True):
            assert rollout.behaviour_logprobs == pytest.approx(logps, abs=1e-9)
    assert {(r.source, r.policy_version) for r in rollouts} == {("student", 0)}
    assert completions(generate(student, None, 0.0)) != completions(rollouts)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_share_of_zero_is_the_student_alone(family):
    student, teacher = build_model(family, dtype=torch.float32), build_model(family, seed=7, dtype=torch.float32)
    assert generate(student, teacher, 0.0) == generate(student, None, 0.0)


def test_a_share_close_to_one_is_the_teacher():
    student, teacher = build_model("llama"), build_model("llama", seed=7)
    assert completions(generate(student, teacher, 1 - 1e-9)) == completions(generate(teacher, None, 0.0))


def test_top_k_acts_on_the_mixture():
    student, teacher = build_model("llama"), build_model("llama", seed=7)
    filtered = generate(student, teacher, 0.5, replace(SAMPLING, top_k=2))
    with torch.no_grad():
        for prompt, rollout in zip(PROMPTS, filtered, strict=True):
            written = rollout.completion_ids[:-1]
            mixed = sum(0.5 * next_probabilities(model, prompt, written) for model in (student, teacher))
            top = mixed.topk(2)
            assert rollout.completion_ids[-1] in top.indices.tolist()
            logp = (mixed[rollout.completion_ids[-1]] / top.values.sum()).log().item()
            assert rollout.behaviour_logprobs[-1] == pytest.approx(logp, abs=1e-4)


@pytest.mark.parametrize(("share", "temperature"), [(0.0, 1.0), (1.0, 1.0), (0.3, 0.0)])
def test_there_is_no_greedy_mixture(share, temperature):
    with pytest.raises(ValueError, match=f"share inside .0, 1., not {temperature} and {share}"):
        Mixed(None, None, share, temperature)
