"""What a task is: examples, a prompt, a metric and defaults for generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

Example = Mapping[str, Any]
RewardOfCompletion = Callable[[str, Example], float]
Message = Mapping[str, str]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Generated(Sequence[Example]):
    """Examples that a task makes when they are asked for, right by construction.

    A split of millions of them is not encoded and checked before training; rows that somebody gave always are.
    """


@dataclass(frozen=True)
class Generation:
    """A task's defaults for generation.

    Attributes:
        max_prompt_tokens: longer prompts are an error, never cut silently.
        max_new_tokens: limit of the completion, end-of-sequence included.
        temperature, top_p, top_k: of training-time sampling (top_k = 0: off).
        num_beams: of beam-search evaluation (1: greedy).
        stop: texts that end a completion, beside the end-of-sequence token: what is marked or rewarded is the text before
            them (`cut`).
        continuation: completion so far -> text to force next, or None; GSM8K's external calculator is one.
    """

    max_prompt_tokens: int = 512
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1
    stop: tuple[str, ...] = ()
    continuation: Callable[[str], str | None] | None = None


def cut(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of the stop texts."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


@dataclass(frozen=True)
class Scores:
    """Marks of a set of completions.

    Attributes:
        values: the headline and secondary metrics over the whole set, on a scale of 0 to 100; empty where the task
            has no metric.
        per_example: the headline metric's per-example contributions (0/1 for accuracy, sentence ROUGE in 0..1 for
            ROUGE); None for corpus metrics such as BLEU, which are no mean of examples.
        resample: indices of examples -> headline metric of that resample, on the scale of `values`; what the bootstrap
            calls. None where the task has no metric.
    """

    values: Mapping[str, float]
    per_example: tuple[float, ...] | None
    resample: Callable[[Sequence[int]], float] | None


@runtime_checkable
class Task(Protocol):
    """Examples of one kind, with the way to ask and the way to mark.

    Attributes:
        name: the task's name in configurations.
        metric: name of the headline metric ("accuracy", "bleu", "rouge2", ...); `score` returns it per example or corpus.
        generation: defaults for generation.
    """

    name: str
    metric: str
    generation: Generation

    def examples(self, split: str) -> Sequence[Example]:
        """The rows of "train", "validation" or "test", in a fixed order. Raises UserError when there are none."""
        ...

    def prompt(self, example: Example) -> str | Sequence[Message]:
        """What the model is asked: plain text, or chat messages for the tokenizer's chat template."""
        ...

    def reference(self, example: Example) -> str | None:
        """The ground-truth completion, or None where the data has none."""
        ...

    def score(self, completions: Sequence[str], examples: Sequence[Example]) -> Scores:
        """Marks completions against their examples; the two sequences have equal length."""
        ...


@runtime_checkable
class Rewarding(Protocol):
    """A task that also marks a completion by itself, which a corpus metric does not: what `rl.reward` chooses from."""

    @property
    def rewards(self) -> Mapping[str, RewardOfCompletion]:
        """Name -> (completion, example) -> a number from 0 to 1, higher is better; empty where the task can mark nothing."""
        ...
