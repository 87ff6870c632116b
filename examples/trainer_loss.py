"""The exact divergence as the loss of a transformers.Trainer: no logits of all tokens, from neither model.

python examples/trainer_loss.py                                       # a tiny random pair
python examples/trainer_loss.py --teacher FOLDER --student FOLDER --learning-rate 1e-5
"""

import tempfile
from typing import Any

import torch
from models import QUESTIONS, start
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from tutelage.fused import linear_divergence


class DistillationTrainer(Trainer):
    """Minimises the mean over completion tokens of JSD(0.5)."""

    loss_is_scaled_for_ga = True  # by num_items_in_batch, below

    def __init__(self, teacher: Any, student: Any, **options: Any) -> None:
        super().__init__(model=student.module, **options)
        self.teacher, self.student = teacher, student
        teacher.module.to(self.args.device)
        self.model_accepts_loss_kwargs = True  # or Trainer would not count num_items_in_batch

    def compute_loss(self, model: Any, inputs: Any, return_outputs: Any = False, num_items_in_batch: Any = None) -> Any:
        labels = inputs.pop("labels")
        kept = labels[:, 1:] != -100  # the state at a token predicts the next one
        # logits_to_keep=1: the models' own heads run on one position, not on all.
        inputs |= {"output_hidden_states": True, "logits_to_keep": 1, "use_cache": False}
        hidden = model(**inputs).hidden_states[-1][:, :-1][kept]
        with torch.no_grad():
            teacher_hidden = self.teacher.module(**inputs).hidden_states[-1][:, :-1][kept]
        # The tokens of all micro-batches and devices of this optimiser step, so that how they are split changes nothing.
        count = kept.sum() if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes
        weights = torch.ones(len(hidden), device=labels.device) / count
        return linear_divergence(hidden, self.student.head, teacher_hidden, self.teacher.head, "jsd(0.5)", weights)


def main(arguments: list[str] | None = None) -> list[float]:
    options, teacher, student = start(__doc__, arguments)
    student.tokenizer.padding_side = "right"
    prompts, answer = student.tokenizer(list(QUESTIONS)).input_ids, student.tokenizer(" The answer is 12.").input_ids
    rows = [{"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer} for prompt in prompts]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, max_steps=options.steps, per_device_train_batch_size=4, gradient_accumulation_steps=2, logging_steps=1,
            learning_rate=options.learning_rate, save_strategy="no", report_to=[], remove_unused_columns=False,
        )  # fmt: skip
        data = {"train_dataset": rows, "data_collator": DataCollatorForSeq2Seq(student.tokenizer)}
        trainer = DistillationTrainer(teacher, student, args=settings, **data)
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    main()
