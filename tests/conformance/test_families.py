"""One step through the whole stack for every family: write, weigh, cut, score, learn."""

import math

import pytest
import torch

from tests.conftest import FAMILIES, build_model, build_prompts
from tutelage import divergences
from tutelage.data.batching import micro_batches, token_weights
from tutelage.data.prompts import PromptStream
from tutelage.models import vocabulary
from tutelage.models.load import add_lora
from tutelage.models.options import LoraConfig
from tutelage.models.student import Student
from tutelage.rollout.base import Sampling
from tutelage.rollout.native import NativeEngine
from tutelage.sources import EngineSource, Mixture
from tutelage.teacher.local import LocalTeacher

PROMPTS = build_prompts((3, 9, 1, 6, 5, 12, 4, 2))


def parts(family, adapters=False):
    student = build_model(family, with_tokenizer=True, seed=1)
    teacher = build_model(family, with_tokenizer=True, seed=2, hidden=24, vocab=240)  # padded to another height
    if adapters:
        student = add_lora(student, LoraConfig(rank=4))
    assert vocabulary.agree(student, teacher) == 226
    engine = EngineSource(NativeEngine(student), Sampling(6), 0, "student")
    source = Mixture(PromptStream(PROMPTS, 0), 8, engine, None, 1.0, "step", 0)
    return Student(student, divergences.parse("jsd(0.5)")), LocalTeacher(teacher), source


def loss_of(student, teacher, rollouts, *, backward):
    total = 0.0
    for micro in micro_batches(rollouts, token_weights(rollouts, "sequence"), student.model, 40):
        loss = student(micro, teacher.score(micro)).loss
        if backward:
            loss.backward()
        total += loss.item()
    return total


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_following_the_gradient_brings_the_student_nearer(family, adapters):
    student, teacher, source = parts(family, adapters)
    rollouts = source.next(0)
    assert {r.source for r in rollouts} == {"student"}
    before = loss_of(student, teacher, rollouts, backward=True)
    assert 0 < before < math.log(2)  # the range of the divergence
    trained = [p for p in student.parameters() if p.grad is not None]
    assert all(p.grad is None for p in teacher.model.module.parameters())
    slope = sum(p.grad.square().sum() for p in trained)
    step = 1e-4 * before / slope
    with torch.no_grad():
        for parameter in trained:
            parameter.sub_(step * parameter.grad)
    after = loss_of(student, teacher, rollouts, backward=False)
    # To first order the loss falls by step * slope: the gradient is that of this very loss.
    assert (before - after) / float(step * slope) == pytest.approx(1.0, abs=0.05)
