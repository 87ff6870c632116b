"""A task of one's own and what tiny runs of it need: live models and their configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.conftest import build_model
from tutelage.errors import MissingSplitError
from tutelage.models.language_model import LanguageModel
from tutelage.tasks.base import Example, Generation, Scores
from tutelage.tasks.metrics import mean_scores
from tutelage.train import config_io
from tutelage.train.config import Config


@dataclass
class Sums:
    """A task of one's own: right when the sum is."""

    splits: tuple[str, ...] = ("train", "validation")
    name: str = "sums"
    metric: str = "accuracy"
    generation: Generation = field(default_factory=lambda: Generation(max_prompt_tokens=16, max_new_tokens=6))

    def examples(self, split: str) -> Sequence[Example]:
        if split not in self.splits:
            raise MissingSplitError(f"the sums have no {split} split")
        return [{"a": a, "b": b} for a in range(3) for b in range(2)]

    def prompt(self, example: Example) -> str:
        return f"{example['a']} + {example['b']} ="

    def reference(self, example: Example) -> str:
        return f" {example['a'] + example['b']}"

    def score(self, completions: Sequence[str], examples: Sequence[Example]) -> Scores:
        pairs = zip(completions, examples, strict=True)
        return mean_scores("accuracy", [float(text == self.reference(example)) for text, example in pairs])


def live(family: str = "llama", seed: int = 0, **options: Any) -> LanguageModel:
    """A tiny model with a tokenizer, in float32; `options` are those of `build_model`."""
    return build_model(family, with_tokenizer=True, seed=seed, **{"dtype": torch.float32, **options})


def sums_config(folder: Path, **changes: Any) -> Config:
    """Two steps on the sums without an evaluation, into `folder`; `changes` are merged over these keys."""
    tiny = {"steps": 2, "batch_size": 3, "learning_rate": 0.01, "device": "cpu"}
    base = {"student": "tiny-student", "teacher": "tiny-teacher", "output": str(folder), "train": tiny}
    quiet = {"log": {"progress": False}, "eval": {"final": "none"}, "task": {"name": "sums"}}
    return config_io.build(config_io.deep_merge({**base, **quiet}, config_io.nest(changes)))
