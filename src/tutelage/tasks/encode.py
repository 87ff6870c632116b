"""A task's examples as prompts: token ids, checked before any long work starts."""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, overload

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tutelage.errors import UserError
from tutelage.tasks.base import Example, Generated, Task
from tutelage.tasks.chat import (
    EndOfTurn,
    UseChat,
    check_template,
    encode_completions,
    encode_prompts,
    end_of_turn,
    is_chat,
)
from tutelage.types import Prompt

# From so many rows on, encoding takes seconds: it shows its progress, or, for examples made when asked for, waits for them.
_MANY = 20_000
# Texts in one call of the tokenizer.
_AT_A_TIME = 1000
# Examples of a split made when asked for that tell it from others.
_SAMPLE = 1000


@dataclass(frozen=True)
class Encoding:
    """How examples become token ids.

    Attributes:
        tokenizer: the student's.
        encoder_decoder: the family; encoders keep the end-of-sequence token behind their input.
        max_prompt_tokens: limit of a prompt.
        use_chat: when to apply the chat template.
        skip_long: leave out examples over the limit instead of stopping.

    Raises:
        UserError: use_chat is "always", and the tokenizer has no chat template.
    """

    tokenizer: Any
    encoder_decoder: bool
    max_prompt_tokens: int
    use_chat: UseChat = "auto"
    skip_long: bool = False

    def __post_init__(self) -> None:
        check_template(self.tokenizer, self.use_chat)

    @cached_property
    def end_of_turn(self) -> EndOfTurn | None:
        """What ends the completion of a chat; None: the end-of-sequence token, as of all other completions.

        A decoder behind an encoder writes the reply alone, outside the template.
        """
        return None if self.encoder_decoder or self.use_chat == "never" else end_of_turn(self.tokenizer)

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a completion of these prompts, beside those a model has by itself."""
        return frozenset() if self.end_of_turn is None else frozenset({self.end_of_turn.token_id})

    def prompts(self, task: Task, examples: Mapping[int, Example], split: str) -> list[Prompt | None]:
        """The prompts of examples by their indices; None in place of one that is left out for its length.

        Raises:
            UserError: a prompt over the limit, an empty one, or an empty reference.
        """
        asked = [task.prompt(example) for example in examples.values()]
        encoded = encode_prompts(self.tokenizer, asked, use_chat=self.use_chat, encoder_decoder=self.encoder_decoder)
        texts = [task.reference(example) for example in examples.values()]
        kept = [
            self._is_kept(ids, text, f"{task.name}, {split} example {index}")
            for index, ids, text in zip(examples, encoded, texts, strict=True)
        ]
        ends = [self.end_of_turn if is_chat(prompt, self.use_chat) else None for prompt in asked]
        answered = [(text, end) for text, end, keep in zip(texts, ends, kept, strict=True) if keep and text is not None]
        references = iter(
            encode_completions(self.tokenizer, [text for text, _ in answered], [end for _, end in answered])
        )
        return [
            Prompt(index, tuple(ids), None if text is None else tuple(next(references)), example) if keep else None
            for (index, example), ids, text, keep in zip(examples.items(), encoded, texts, kept, strict=True)
        ]

    def _is_kept(self, ids: Sequence[int], reference: str | None, where: str) -> bool:
        """Whether a prompt is within the limit, or to be left out."""
        if not ids:
            raise UserError(f"{where}: the prompt has no tokens; remove the row or fill it in")
        if reference is not None and not reference.strip():
            raise UserError(
                f"{where}: the completion is empty; remove the row, fill it in, or give None where there is none"
            )
        if len(ids) > self.max_prompt_tokens and not self.skip_long:
            raise UserError(
                f"{where}: the prompt has {len(ids)} tokens, the limit is {self.max_prompt_tokens}; raise task.max_prompt_tokens, "
                "or leave such examples out with task.skip_long_prompts"
            )
        return len(ids) <= self.max_prompt_tokens


def encode_split(
    task: Task,
    split: str,
    encoding: Encoding,
    limit: int | None = None,
    *,
    fraction: float = 1.0,
    seed: int = 0,
    show_progress: bool = True,
) -> Sequence[Prompt]:
    """The prompts of a split, all of them checked; many examples that are generated are checked as they are asked for.

    Args:
        task: gives the examples.
        split: "train", "validation" or "test".
        encoding: how.
        limit: take the first so many examples; None: all.
        fraction: of these, take this share; see `chosen`. Examples keep their ids.
        seed: keys the choice.
        show_progress: a bar, where there are many.

    Raises:
        UserError: a row that cannot be used.
    """
    examples = task.examples(split)
    count = len(examples) if limit is None else min(limit, len(examples))
    indices = chosen(count, fraction, seed)
    if isinstance(examples, Generated) and len(indices) > _MANY:
        return GeneratedSplit(task, split, examples, encoding, indices)
    with _bar(show_progress and len(indices) > _MANY) as bar:
        tracked = bar.track(indices, description=f"encoding the {split} split")
        made = (encoding.prompts(task, {i: examples[i] for i in some}, split) for some in _batches(tracked, _AT_A_TIME))
        kept = _EncodedSplit(examples, (prompt for several in made for prompt in several if prompt is not None))
    if len(kept) < len(indices):
        left_out = len(indices) - len(kept)
        logging.getLogger(__name__).warning(
            "%d of %d %s examples are over the limit of the prompt: left out", left_out, len(indices), split
        )
    return kept


def _batches(indices: Iterable[int], size: int) -> Iterator[tuple[int, ...]]:
    rest = iter(indices)
    while batch := tuple(islice(rest, size)):
        yield batch


def chosen(count: int, fraction: float, seed: int) -> Sequence[int]:
    """A share of `count` examples, at least one, ascending.

    They are the first of one shuffle that hangs on `count` and `seed` alone: a smaller share is part of every larger one.
    """
    if fraction == 1 or not count:
        return range(count)
    # A key of four words: none of the epochs' orders, which have three, is this one (`data.prompts`).
    order = np.random.default_rng([seed, 0, count, 1]).permutation(count)
    return array("q", np.sort(order[: max(1, round(fraction * count))]).tobytes())


def longest_prompt(prompts: Sequence[Prompt]) -> int:
    """Tokens of a split's longest prompt, 0 where it has none; of a split whose examples are generated when asked for: its limit."""
    if isinstance(prompts, GeneratedSplit):
        return prompts.encoding.max_prompt_tokens
    return max((len(prompt.token_ids) for prompt in prompts), default=0)


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """A hash of what a split trains on: ids, prompts and references as tokens.

    Of a split whose examples are generated when asked for: of its size and its first thousand.
    """
    digest = hashlib.sha256(str(len(prompts)).encode())
    for prompt in prompts[:_SAMPLE] if isinstance(prompts, GeneratedSplit) else prompts:
        reference = prompt.reference_ids
        lengths = (prompt.id, len(prompt.token_ids), -1 if reference is None else len(reference))
        digest.update(array("q", (*lengths, *prompt.token_ids, *(reference or ()))).tobytes())
    return digest.hexdigest()


def _bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown)


class _Split(Sequence[Prompt]):
    """Prompts by their place; subclasses say what is at one."""

    def at(self, place: int) -> Prompt:
        """The prompt at `place`, which is within the split."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | Sequence[Prompt]:
        places = range(len(self))[index]
        return self.at(places) if isinstance(places, int) else [self.at(place) for place in places]

    def __iter__(self) -> Iterator[Prompt]:
        return (self.at(place) for place in range(len(self)))


class _EncodedSplit(_Split):
    """Checked prompts. Their tokens lie in two flat arrays: as tuples of Python's integers, a million rows fill the memory."""

    def __init__(self, examples: Sequence[Example], prompts: Iterable[Prompt]) -> None:
        self._examples = examples
        self._ids = array("q")
        self._tokens, self._ends = array("i"), array("q", [0])
        self._references, self._reference_ends = array("i"), array("q", [0])
        self._without_reference: set[int] = set()  # places
        for place, prompt in enumerate(prompts):
            self._ids.append(prompt.id)
            self._tokens.extend(prompt.token_ids)
            self._ends.append(len(self._tokens))
            if prompt.reference_ids is None:
                self._without_reference.add(place)
            self._references.extend(prompt.reference_ids or ())
            self._reference_ends.append(len(self._references))

    def __len__(self) -> int:
        return len(self._ids)

    def at(self, place: int) -> Prompt:
        """The prompt, out of the arrays."""
        tokens = tuple(self._tokens[self._ends[place] : self._ends[place + 1]])
        reference = tuple(self._references[self._reference_ends[place] : self._reference_ends[place + 1]])
        index = self._ids[place]
        return Prompt(index, tokens, None if place in self._without_reference else reference, self._examples[index])


class GeneratedSplit(_Split):
    """Prompts encoded as they are asked for; one over the limit is an error then, since an index cannot be left out."""

    def __init__(
        self, task: Task, split: str, examples: Sequence[Example], encoding: Encoding, indices: Sequence[int]
    ) -> None:
        self.task, self.split, self.examples, self.encoding, self.indices = task, split, examples, encoding, indices

    def __len__(self) -> int:
        return len(self.indices)

    def at(self, place: int) -> Prompt:
        """Encodes the example. Raises UserError when it is over the limit."""
        index = self.indices[place]
        (prompt,) = self.encoding.prompts(self.task, {index: self.examples[index]}, self.split)
        if prompt is None:
            raise UserError(
                f"{self.task.name}, {self.split} example {index} is over task.max_prompt_tokens={self.encoding.max_prompt_tokens}; "
                f"in a split of {len(self):,} generated examples none can be left out: raise it"
            )
        return prompt
