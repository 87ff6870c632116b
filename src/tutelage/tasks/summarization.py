"""Summarization, marked by ROUGE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from tutelage.tasks.base import Example, Generation, RewardOfCompletion, Scores
from tutelage.tasks.metrics import reference_rewards, rouge
from tutelage.tasks.rows import BadRowError, DataSource, checked_text, text


class Summarization:
    """A summary of a document; the headline metric is the ROUGE-2 F-measure, ROUGE-1 and ROUGE-L beside it.

    Args:
        data: the hub's EdinburghNLP/xsum, or a file, folder or other hub data set (AESLC: document_column=body,
            summary_column=subject).
        document_column, summary_column: columns.
        references_column: a column with further references, an array of strings; the best reference counts. Rows
            without the column, or with an empty array, have the summary alone.
        prefix: written before the document.
        validation_data, test_data, validation_fraction, data_config, drop_empty: see `DataSource`.
        max_prompt_tokens, max_new_tokens: limits of generation (the paper's for XSum: 1024 and 64).

    Raises:
        UserError: an option is out of range.
    """

    name = "summarization"
    metric = "rouge2"

    def __init__(
        self,
        *,
        data: str = "EdinburghNLP/xsum",
        document_column: str = "document",
        summary_column: str = "summary",
        references_column: str | None = None,
        prefix: str = "summarize: ",
        validation_data: str | None = None,
        test_data: str | None = None,
        validation_fraction: float | None = None,
        data_config: str | None = None,
        drop_empty: bool = False,
        max_prompt_tokens: int = 1024,
        max_new_tokens: int = 64,
    ) -> None:
        self.document_column, self.summary_column = document_column, summary_column
        self.references_column, self.prefix = references_column, prefix
        self.generation = Generation(max_prompt_tokens=max_prompt_tokens, max_new_tokens=max_new_tokens)
        self._source = DataSource(
            data,
            check=self._check,
            key=lambda row: str(row[document_column]),
            validation_data=validation_data,
            test_data=test_data,
            validation_fraction=validation_fraction,
            data_config=data_config,
            drop_empty=drop_empty,
        )

    def examples(self, split: str) -> Sequence[Example]:
        """The rows of a split. Raises UserError naming file and line for one that cannot be used."""
        return self._source.split(split).values

    def prompt(self, example: Example) -> str:
        """The document after the prefix."""
        return f"{self.prefix}{example[self.document_column]}"

    def reference(self, example: Example) -> str:
        """The summary."""
        return str(example[self.summary_column])

    def references(self, example: Example) -> list[str]:
        """The summary and every further reference."""
        further = [] if self.references_column is None else example.get(self.references_column) or []
        return [self.reference(example), *further]

    def score(self, completions: Sequence[str], examples: Sequence[Example]) -> Scores:
        """ROUGE F-measures against the best of each example's references."""
        return rouge(completions, [self.references(example) for example in examples], self.metric)

    @cached_property
    def rewards(self) -> Mapping[str, RewardOfCompletion]:
        """Exact match, ROUGE, and sentence BLEU and chrF, against the best of an example's references."""
        return reference_rewards(self.references)

    def _check(self, row: Example) -> None:
        text(row, self.document_column, "document_column", "prompt")
        text(row, self.summary_column, "summary_column", "completion")
        if self.references_column is None or row.get(self.references_column) is None:
            return
        further = row[self.references_column]
        if not isinstance(further, list):
            raise BadRowError(f"column {self.references_column!r} must be an array of strings")
        for number, reference in enumerate(further, start=1):
            checked_text(reference, f"column {self.references_column!r}, reference {number}", "reference")
