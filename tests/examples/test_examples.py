"""The examples train, and their losses are those of the models' own logits."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import DataCollatorForSeq2Seq, TrainingArguments

from tutelage import divergences

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module(request.param)


def mean_from_logits(teacher: Any, student: Any, divergence: str, inputs: dict[str, Any], is_target: Any) -> Any:
    """Mean of the divergence at the positions before the targets [B, L], from both models' own logits."""
    with torch.no_grad():
        teacher_logp, student_logp = (
            model.module(**inputs).logits[:, :-1].double().log_softmax(-1) for model in (teacher, student)
        )
    return divergences.parse(divergence).value(teacher_logp, student_logp)[is_target[:, 1:]].mean()


@pytest.mark.parametrize("example", ["trainer_loss", "bare_loop"], indirect=True)
def test_the_divergence_decreases(example: ModuleType) -> None:
    values = example.main(["--steps", "30"])
    assert len(values) == 30
    assert sum(values[-3:]) < 0.8 * sum(values[:3])


@pytest.mark.parametrize("example", ["trainer_loss"], indirect=True)
@pytest.mark.parametrize("counted", [None, 40])
def test_the_trainer_has_the_loss_of_the_logits(example: ModuleType, counted: int | None, tmp_path: Path) -> None:
    teacher, student = example.start("", [])[1:]
    rows = [
        {"input_ids": [5, 6, 7, 8, 9, 10], "labels": [-100, -100, 7, 8, 9, 10]},
        {"input_ids": [11, 12, 13, 2], "labels": [-100, 12, 13, 2]},
    ]
    student.tokenizer.padding_side = "right"
    batch = DataCollatorForSeq2Seq(student.tokenizer)(rows)
    trainer = example.DistillationTrainer(
        teacher, student, args=TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    )
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=counted)

    is_target = batch.pop("labels") != -100
    assert is_target.sum() == 7
    mean = mean_from_logits(teacher, student, "jsd(0.5)", dict(batch), is_target)
    assert loss.item() == pytest.approx(mean.item() * (1 if counted is None else 7 / counted), rel=1e-4)


@pytest.mark.parametrize("example", ["bare_loop"], indirect=True)
def test_the_loop_has_the_loss_of_the_logits(example: ModuleType) -> None:
    teacher, student = example.start("", [])[1:]
    student.end_at(range(4, 60))  # a quarter of the vocabulary, so that completions differ in length
    inputs, written = example.write(student, list(example.QUESTIONS[:4]))
    lengths = written.sum(1)
    assert 1 <= lengths.min() < lengths.max() <= example.NEW_TOKENS

    is_target = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    is_target[:, -written.shape[1] :] = written
    assert torch.equal(is_target & (inputs["attention_mask"] == 0), torch.zeros_like(is_target))
    mean = mean_from_logits(teacher, student, "reverse_kl", inputs, is_target)
    assert example.loss(student, teacher, inputs, written).item() == pytest.approx(mean.item(), rel=1e-4)
