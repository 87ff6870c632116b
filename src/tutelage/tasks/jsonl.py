"""Any prompt and completion data: JSON Lines, JSON, Parquet or the hub; plain text or chat messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from tutelage.errors import UserError
from tutelage.tasks.base import Example, Generation, Message, RewardOfCompletion, Scores
from tutelage.tasks.metrics import METRICS, reference_rewards
from tutelage.tasks.rows import BadRowError, DataSource, column, messages, text


class Jsonl:
    """Prompts and completions from files or the hub.

    Args:
        data: a .jsonl, .json or .parquet file (the train split), a folder with train, validation and test files, or a
            hub data set.
        prompt_column, completion_column: columns of plain text; completion_column None: the data has prompts only. A completion that
            is null: this row has none, which training rows may be without.
        messages_column: a column of chat messages, in place of the two: the last message, the assistant's, is the
            reference and those before it the prompt.
        metric: "exact_match", "rouge2", "rougeL", "bleu" or "none".
        validation_data, test_data, validation_fraction, data_config, drop_empty: see `DataSource`.
        max_prompt_tokens, max_new_tokens: limits of generation.

    Raises:
        UserError: an option is missing or contradicts another.
    """

    name = "jsonl"

    def __init__(
        self,
        *,
        data: str | None = None,
        prompt_column: str = "prompt",
        completion_column: str | None = "completion",
        messages_column: str | None = None,
        metric: str = "exact_match",
        validation_data: str | None = None,
        test_data: str | None = None,
        validation_fraction: float | None = None,
        data_config: str | None = None,
        drop_empty: bool = False,
        max_prompt_tokens: int = 512,
        max_new_tokens: int = 256,
    ) -> None:
        if data is None:
            raise UserError(
                f"the {self.name} task needs data: set task.data to a file, a folder with train.jsonl, or a hub data set"
            )
        if metric not in METRICS:
            raise UserError(f"metric is {metric!r}; it must be one of {', '.join(METRICS)}")
        if completion_column is None and messages_column is None and metric != "none":
            raise UserError(
                f"completion_column is null, so metric {metric!r} has nothing to compare with; set metric to none"
            )
        self.metric = metric
        self.prompt_column, self.completion_column = prompt_column, completion_column
        self.messages_column = messages_column
        self.generation = Generation(max_prompt_tokens=max_prompt_tokens, max_new_tokens=max_new_tokens)
        self._source = DataSource(
            data, self._check, self._key, validation_data, test_data, validation_fraction, data_config, drop_empty
        )

    def examples(self, split: str) -> Sequence[Example]:
        """The rows of a split. Raises UserError for one that cannot be used, or one to be marked that has no completion."""
        rows = self._source.split(split).values
        if split != "train" and self.metric != "none":
            self._need_completions(rows, split, f"metric {self.metric}")
        return rows

    def prompt(self, example: Example) -> str | Sequence[Message]:
        """The prompt's text, or the messages before the last."""
        if self.messages_column is None:
            return str(example[self.prompt_column])
        return list(example[self.messages_column][:-1])

    def reference(self, example: Example) -> str | None:
        """The completion, or the content of the last message."""
        if self.messages_column is not None:
            return str(example[self.messages_column][-1]["content"])
        completion = None if self.completion_column is None else example[self.completion_column]
        return None if completion is None else str(completion)

    def score(self, completions: Sequence[str], examples: Sequence[Example]) -> Scores:
        """Marks by the chosen metric."""
        references = [self.reference(example) for example in examples]
        return METRICS[self.metric](completions, [[] if one is None else [one] for one in references])

    @cached_property
    def rewards(self) -> Mapping[str, RewardOfCompletion]:
        """Exact match, ROUGE, and sentence BLEU and chrF, against the completions of the data; empty where it has none.

        Raises UserError where some training rows have one and some have none.
        """
        if self.messages_column is None and self.completion_column is None:
            return {}
        self._need_completions(self.examples("train"), "train", "a reward against completions")
        return reference_rewards(self._references)

    def _references(self, example: Example) -> list[str]:
        reference = self.reference(example)
        if reference is None:
            raise UserError(
                f"this row has a null {self.completion_column}, which a reward against completions compares with; fill it in, or do not "
                "reward what is held out (eval.reward=false)"
            )
        return [reference]

    def _need_completions(self, rows: Sequence[Example], split: str, what: str) -> None:
        without = next((i for i, row in enumerate(rows, start=1) if self.reference(row) is None), None)
        if without is not None:
            raise UserError(
                f"row {without} of the {split} split has a null {self.completion_column}, but {what} compares with it; fill it in, leave "
                "such rows to the train split (task.options.validation_data names a file of its own), or choose another reward or metric"
            )

    def _check(self, row: Example) -> None:
        if self.messages_column is None:
            text(row, self.prompt_column, "prompt_column", "prompt")
            if (
                self.completion_column is not None
                and column(row, self.completion_column, "completion_column") is not None
            ):
                text(row, self.completion_column, "completion_column", "completion")
            return
        chat = messages(row, self.messages_column, "messages_column")
        if len(chat) < 2:
            raise BadRowError(
                f"column {self.messages_column!r} has one message; it needs a prompt and the assistant's answer"
            )
        if chat[-1]["role"] != "assistant":
            raise BadRowError(
                f"column {self.messages_column!r} ends with a message of {chat[-1]['role']!r}; the last message is the "
                "reference and must be the assistant's"
            )

    def _key(self, row: Example) -> str:
        prompt = self.prompt(row)
        return prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
