"""Worker of step.py: times TRL's trainers. Run by step.py with the Python of TRL's virtual environment.

    GKDTrainer           lmbda=1, so that every step is on-policy
    DistillationTrainer  is always on-policy

Both: bfloat16 autocast, fused AdamW (their default), no logging, no saving, prompts in the given order.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from machine import peak_memory_mb, resident_memory_mb, versions
from torch.utils.data import SequentialSampler


class Clock(transformers.TrainerCallback):
    """Takes the time after every optimiser step, so that collating and generating count."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.marks.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.marks.append(time.perf_counter())


def common_options(spec: dict[str, Any]) -> dict[str, Any]:
    """Settings that are alike in both trainers; what is not named stays at TRL's default."""
    return {
        "output_dir": str(Path(spec["work"]) / "trl"),
        "max_steps": spec["warm_up"] + spec["steps"],
        "per_device_train_batch_size": spec["batch"],
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": spec["gradient_checkpointing"],
        "learning_rate": spec["learning_rate"],
        "lr_scheduler_type": "constant",
        "bf16": True,
        "use_cpu": True,
        "temperature": 1.0,
        "beta": spec["beta"],
        "model_init_kwargs": {"dtype": spec["trl_weights"]},
        "teacher_model_init_kwargs": {"dtype": "bfloat16"},
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": spec["seed"],
    }


def gkd_trainer(spec: dict[str, Any], rows: list[dict[str, Any]], tokenizer: Any) -> Any:
    """GKDTrainer on token ids; its collator takes prompt and completion apart by `completion_mask`."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    class InOrder(GKDTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset if dataset is None else dataset)

    data = [
        {
            "prompt": row["text"],
            "input_ids": row["prompt"] + row["completion"],
            "completion_mask": [0] * len(row["prompt"]) + [1] * len(row["completion"]),
        }
        for row in rows
    ]
    args = GKDConfig(lmbda=1.0, max_new_tokens=spec["new_tokens"], **common_options(spec))
    trainer = InOrder(
        model=str(Path(spec["work"]) / "student"),
        teacher_model=spec["teacher"],
        args=args,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
    )
    trainer.generation_config.min_new_tokens = spec["new_tokens"]
    return trainer


def distillation_trainer(spec: dict[str, Any], rows: list[dict[str, Any]], tokenizer: Any) -> Any:
    """DistillationTrainer on texts, which it tokenises to the same prompts."""
    from trl import DistillationConfig, DistillationTrainer

    args = DistillationConfig(
        max_completion_length=spec["new_tokens"],
        generation_kwargs={"min_new_tokens": spec["new_tokens"]},
        shuffle_dataset=False,
        **common_options(spec),
    )
    return DistillationTrainer(
        model=str(Path(spec["work"]) / "student"),
        teacher_model=spec["teacher"],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": row["text"]} for row in rows]),
        processing_class=tokenizer,
    )


def count_tokens(trainer: Any) -> list[list[int]]:
    """Makes the trainer note, for every step, [real prompt tokens, completion tokens] that its loss was given."""
    seen: list[list[int]] = []
    compute_loss = trainer.compute_loss

    def noting(model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        if "labels" in inputs:
            completion = int((inputs["labels"] != -100).sum())
            prompt = int(inputs["attention_mask"].sum()) - completion
        else:
            prompt, completion = int(inputs["prompt_mask"].sum()), int(inputs["completion_mask"].sum())
        seen.append([prompt, completion])
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = noting
    return seen


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(spec["teacher"], padding_side="left")
    with (Path(spec["work"]) / "prompts.jsonl").open() as file:
        rows = [json.loads(line) for line in file]
    assert all(tokenizer(row["text"])["input_ids"] == row["prompt"] for row in rows), "both must see the same prompts"
    imported_mb = resident_memory_mb()
    make = {"trl_gkd": gkd_trainer, "trl_distillation": distillation_trainer}[spec["system"]]
    trainer = make(spec, rows, tokenizer)
    clock, seen = Clock(), count_tokens(trainer)
    trainer.add_callback(clock)
    trainer.train()
    seconds = [after - before for before, after in itertools.pairwise(clock.marks)]
    result = {
        "seconds": seconds[spec["warm_up"] :],
        "warm_up_seconds": seconds[: spec["warm_up"]],
        "peak_mb": peak_memory_mb(),
        "imported_mb": imported_mb,
        "prompt_tokens": [prompt for prompt, _ in seen],
        "completion_tokens": [completion for _, completion in seen],
        "versions": versions("trl", "torch", "transformers", "accelerate"),
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
