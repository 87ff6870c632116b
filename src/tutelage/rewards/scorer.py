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
_NO_LIMIT = 1e20  # transformers gives a tokenizer that states no limit one of 1e30


class Scorer:
    """A local Hugging Face folder with a sequence-classification model, in float32.

    Prompt and completion are its first and second text. A pair that is too long for the model loses the end of its prompt;
    where the completion alone is too long, the whole prompt and the end of the completion. A warning says so once of each.

    Args:
        folder: model and tokenizer.
        label: of a model with several outputs, the label whose probability is the reward; a model with one output gives that
            output itself.
        device: where it computes.

    Raises:
        UserError: no such folder, no complete sequence classifier or tokenizer in it, no such label, or a model that reads
            too few tokens for any text.
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
        self.max_tokens = _max_tokens(self.module, self.tokenizer)
        self._special_tokens: int = self.tokenizer.num_special_tokens_to_add(pair=True)
        if self.max_tokens is not None and self.max_tokens <= self._special_tokens:
            raise UserError(
                f"rl.reward={self.name} reads {self.max_tokens} tokens at a time, of which {self._special_tokens} frame prompt and "
                "completion: no completion fits; give the folder of a model that reads more"
            )
        self._warned: set[str] = set()

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """See `Reward`."""
        scores: list[float] = []
        for start in range(0, len(samples), _ROWS):
            scores += self._score(samples[start : start + _ROWS])
        return [checked(score, self.name, sample) for score, sample in zip(scores, samples, strict=True)]

    def _score(self, samples: Sequence[Sample]) -> list[float]:
        inputs = self.tokenizer.pad([self._encoded(sample) for sample in samples], return_tensors="pt").to(self.device)
        logits = self.module(**inputs).logits
        chosen = logits[:, 0] if self.column is None else logits.softmax(-1)[:, self.column]
        scores: list[float] = chosen.tolist()
        return scores

    def _encoded(self, sample: Sample) -> Any:
        """Prompt and completion as the model reads them: what fits, the completion before the prompt."""
        pair = self.tokenizer(sample.prompt, sample.completion, verbose=False)
        if self.max_tokens is None or len(pair["input_ids"]) <= self.max_tokens:
            return pair
        room = self.max_tokens - self._special_tokens
        completion = self.tokenizer(sample.completion, add_special_tokens=False, verbose=False)["input_ids"]
        if len(completion) < room:
            self._warn_once(len(pair["input_ids"]), "the beginning of such prompts only")
            return self.tokenizer(sample.prompt, sample.completion, truncation="only_first", max_length=self.max_tokens)
        # A tokenizer refuses to cut a text to nothing: the prompt is left out by hand.
        self._warn_once(len(pair["input_ids"]), "nothing of such prompts, and as much of their completions as fits")
        return self.tokenizer("", sample.completion, truncation="only_second", max_length=self.max_tokens)

    def _warn_once(self, tokens: int, seen: str) -> None:
        if seen not in self._warned:
            self._warned.add(seen)
            logging.getLogger(__name__).warning(
                "the scorer reads %d tokens, but prompt and completion have %d: it sees %s",
                self.max_tokens,
                tokens,
                seen,
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
    # Decoders' classifiers read the last token that is no padding, by a configuration that often does not say which that is.
    text_config = module.config.get_text_config()
    if text_config.pad_token_id is None:
        text_config.pad_token_id = tokenizer.pad_token_id
    return module, tokenizer


def _max_tokens(module: Any, tokenizer: Any) -> int | None:
    """The most tokens that the model reads at a time; None where neither it nor its tokenizer has a limit."""
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < _NO_LIMIT else []
    # An attribute, not a key: GPT-2's key is n_positions, which transformers gives this name.
    positions = getattr(module.config, "max_position_embeddings", None)
    if positions:
        limits.append(positions - _positions_without_tokens(module))
    return min(limits, default=None)


def _positions_without_tokens(module: Any) -> int:
    """Rows of the position table before the first token's: RoBERTa's kinds number tokens from behind a padding row."""
    tables = [
        part
        for name, part in module.named_modules()
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(part, torch.nn.Embedding)
    ]
    return max((table.padding_idx + 1 for table in tables if table.padding_idx is not None), default=0)


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
