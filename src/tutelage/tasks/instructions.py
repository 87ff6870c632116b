"""Instruction following: prompt and completion rows, or chat messages, marked by ROUGE-L and exact match."""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.tasks.base import Example, Scores
from tutelage.tasks.jsonl import Jsonl
from tutelage.tasks.metrics import exact_match, rouge_l


class Instructions(Jsonl):
    """Instructions and their answers; the headline metric is the ROUGE-L F-measure, exact_match beside it.

    Args:
        data: a .jsonl, .json or .parquet file (the train split), a folder with train, validation and test files, or a
            hub data set.
        prompt_column, completion_column: columns of plain text.
        messages_column: a column of chat messages in place of the two; the last, the assistant's, is the reference.
        validation_data, test_data, validation_fraction, data_config, drop_empty: see `DataSource`.
        max_prompt_tokens, max_new_tokens: limits of generation.

    Raises:
        UserError: an option is missing or out of range.
    """

    name = "instructions"

    def __init__(
        self,
        *,
        data: str | None = None,
        prompt_column: str = "prompt",
        completion_column: str = "completion",
        messages_column: str | None = None,
        validation_data: str | None = None,
        test_data: str | None = None,
        validation_fraction: float | None = None,
        data_config: str | None = None,
        drop_empty: bool = False,
        max_prompt_tokens: int = 1024,
        max_new_tokens: int = 256,
    ) -> None:
        super().__init__(
            data=data,
            prompt_column=prompt_column,
            completion_column=completion_column,
            messages_column=messages_column,
            metric="rougeL",
            validation_data=validation_data,
            test_data=test_data,
            validation_fraction=validation_fraction,
            data_config=data_config,
            drop_empty=drop_empty,
            max_prompt_tokens=max_prompt_tokens,
            max_new_tokens=max_new_tokens,
        )

    def score(self, completions: Sequence[str], examples: Sequence[Example]) -> Scores:
        """ROUGE-L, with ROUGE-1, ROUGE-2 and exact_match beside it."""
        references = [[str(self.reference(example))] for example in examples]
        scores = rouge_l(completions, references)
        values = {**scores.values, **exact_match(completions, references).values}
        return Scores(values=values, per_example=scores.per_example, resample=scores.resample)
