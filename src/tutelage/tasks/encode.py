"""A task's examples as prompts: token ids, checked before any long work starts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from tutelage.errors import UserError
from tutelage.tasks.base import Example, Task
from tutelage.tasks.chat import UseChat, encode_completion, encode_prompt
from tutelage.types import Prompt

# Larger splits (generated without end, mostly) are encoded as they are read, so that a run starts at once.
_EAGER_LIMIT = 200_000


@dataclass(frozen=True)
class Encoding:
    """How examples become token ids.

    Attributes:
        tokenizer: the student's.
        encoder_decoder: the family; encoders keep the end-of-sequence token behind their input.
        max_prompt_tokens: limit of a prompt.
        max_new_tokens: limit of a completion; a longer reference would never be learnt to its end, so it is
            an error.
        use_chat: when to apply the chat template.
        skip_long: leave out examples over a limit instead of stopping.
    """

    tokenizer: Any
    encoder_decoder: bool
    max_prompt_tokens: int
    max_new_tokens: int | None = None
    use_chat: UseChat = "auto"
    skip_long: bool = False

    def prompt(self, task: Task, index: int, example: Example, split: str) -> Prompt | None:
        """The example's prompt; None when it is left out for its length.

        Raises:
            UserError: a prompt or reference over its limit, or an empty one.
        """
        ids = encode_prompt(
            self.tokenizer, task.prompt(example), use_chat=self.use_chat, encoder_decoder=self.encoder_decoder
        )
        text = task.reference(example)
        where = f"{task.name}, {split} example {index}"
        if not ids:
            raise UserError(f"{where}: the prompt has no tokens; remove the row or fill it in")
        if text is not None and not text.strip():
            raise UserError(
                f"{where}: the completion is empty; remove the row, fill it in, or give None where there is none"
            )
        reference = None if text is None else tuple(encode_completion(self.tokenizer, text))
        for what, length, limit, option in (
            ("prompt", len(ids), self.max_prompt_tokens, "task.max_prompt_tokens"),
            ("completion", len(reference or ()), self.max_new_tokens, "rollout.max_new_tokens"),
        ):
            if limit is not None and length > limit:
                if self.skip_long:
                    return None
                raise UserError(
                    f"{where}: the {what} has {length} tokens, the limit is {limit}; raise {option}, or leave such examples out "
                    "with task.skip_long_prompts"
                )
        return Prompt(index, tuple(ids), reference, example)


def encode_split(task: Task, split: str, encoding: Encoding, limit: int | None = None) -> Sequence[Prompt]:
    """The prompts of a split; all are checked at once unless there are very many.

    Args:
        task: gives the examples.
        split: "train", "validation" or "test".
        encoding: how.
        limit: take the first so many examples; None: all.
    """
    examples = task.examples(split)
    count = len(examples) if limit is None else min(limit, len(examples))
    if count > _EAGER_LIMIT:
        return _Lazy(task, split, examples, encoding, count)
    made = (encoding.prompt(task, i, examples[i], split) for i in range(count))
    kept = [prompt for prompt in made if prompt is not None]
    if len(kept) < count:
        left_out = count - len(kept)
        logging.getLogger(__name__).warning(
            "%d of %d %s examples are over a length limit: left out", left_out, count, split
        )
    return kept


class _Lazy(Sequence[Prompt]):
    """Prompts encoded as they are read; one over a limit is an error then, since an index cannot be left out."""

    def __init__(self, task: Task, split: str, examples: Sequence[Example], encoding: Encoding, count: int) -> None:
        self.task, self.split, self.all, self.encoding, self.size = task, split, examples, encoding, count

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | Sequence[Prompt]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        prompt = self.encoding.prompt(self.task, index, self.all[index], self.split)
        if prompt is None:
            raise UserError(
                f"{self.task.name}, {self.split} example {index} is over a length limit; in a split this large examples cannot be "
                "left out: raise task.max_prompt_tokens or rollout.max_new_tokens"
            )
        return prompt

    def __iter__(self) -> Iterator[Prompt]:
        return (self[i] for i in range(self.size))
