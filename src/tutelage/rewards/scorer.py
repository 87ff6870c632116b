"""A learned reward: a sequence classifier that reads prompt and completion, textual entailment for one.

Source: the reward of Agarwal et al., ICLR 2024 (arXiv 2306.13649), after Roit et al. 2023 (arXiv 2306.00186): the
probability that the document entails the summary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tutelage.errors import UserError
from tutelage.rewards.base import Sample, checked

_ROWS = 32


class Scorer:
    """A local Hugging Face folder with a sequence-classification model, in float32.

    Prompt and completion are its first and second text. A pair that is too long for the model loses the end of its prompt,
    and a warning says so once.

    Args:
        folder: model and tokenizer.
        label: of a model with several outputs, the label whose probability is the reward; a model with one output gives that
            output itself.
        device: where it computes.

    Raises:
        UserError: no such folder, no complete sequence classifier or tokenizer in it, or no such label.
    """

    def __init__(self, folder: str, label: str, device: torch.device) -> None:
        self.name = f"scorer:{folder}"
        if not Path(folder).is_dir():
            raise UserError(
                f"rl.reward={self.name}: there is no folder {folder!r}; give the folder of a sequence-classification model"
            )
        self.module, self.tokenizer = _load(folder)
        self.module.to(device).eval().requires_grad_(False)
        self.device = device
        self.column = _column(self.module.config, label, self.name)
        positions = self.module.config.to_dict().get("max_position_embeddings")
        limits = (self.tokenizer.model_max_length, positions or self.tokenizer.model_max_length)
        self.max_tokens = int(min(limits))
        self._has_warned = False

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """See `Reward`."""
        scores: list[float] = []
        for start in range(0, len(samples), _ROWS):
            scores += self._score(samples[start : start + _ROWS])
        return [checked(score, self.name, sample) for score, sample in zip(scores, samples, strict=True)]

    def _score(self, samples: Sequence[Sample]) -> list[float]:
        prompts, completions = [sample.prompt for sample in samples], [sample.completion for sample in samples]
        self._warn_of_long(prompts, completions)
        inputs = self.tokenizer(
            prompts,
            completions,
            padding=True,
            truncation="only_first",
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(self.device)
        logits = self.module(**inputs).logits
        chosen = logits[:, 0] if self.column is None else logits.softmax(-1)[:, self.column]
        scores: list[float] = chosen.tolist()
        return scores

    def _warn_of_long(self, prompts: list[str], completions: list[str]) -> None:
        if self._has_warned:
            return
        longest = max(len(ids) for ids in self.tokenizer(prompts, completions, verbose=False)["input_ids"])
        if longest > self.max_tokens:
            self._has_warned = True
            logging.getLogger(__name__).warning(
                "the scorer reads %d tokens, but prompt and completion have %d: it sees the beginning of such prompts only",
                self.max_tokens,
                longest,
            )


def _load(folder: str) -> tuple[Any, Any]:
    import transformers
    from safetensors import SafetensorError

    try:
        module, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ImportError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot load a sequence-classification model from {folder!r}: {error}") from error
    if report["missing_keys"]:
        raise UserError(
            f"the model in {folder!r} lacks the weights {', '.join(sorted(report['missing_keys']))}: it is no trained sequence "
            "classifier; give the folder of one that is"
        )
    if tokenizer.pad_token is None:
        raise UserError(
            f"the tokenizer in {folder!r} has no padding token, which a scorer needs to read several texts at a time"
        )
    return module, tokenizer


def _column(config: Any, label: str, name: str) -> int | None:
    """The output that is the reward; None where there is one output only."""
    if config.num_labels == 1:
        return None
    columns = {text.lower(): column for column, text in config.id2label.items()}
    if label.lower() not in columns:
        raise UserError(
            f"rl.reward={name} has the labels {', '.join(config.id2label.values())}, but rl.scorer_label is {label!r}; choose one of them"
        )
    return columns[label.lower()]
