"""Translation, marked by sacreBLEU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from tutelage.errors import UserError
from tutelage.tasks.base import Example, Generation, RewardOfCompletion, Scores
from tutelage.tasks.metrics import bleu, reference_rewards
from tutelage.tasks.rows import BadRowError, DataSource, text

LANGUAGES = {
    "cs": "Czech", "de": "German", "en": "English", "es": "Spanish", "et": "Estonian", "fi": "Finnish", "fr": "French",
    "gu": "Gujarati", "hi": "Hindi", "ja": "Japanese", "kk": "Kazakh", "lt": "Lithuanian", "lv": "Latvian",
    "ro": "Romanian", "ru": "Russian", "tr": "Turkish", "uk": "Ukrainian", "zh": "Chinese",
}  # fmt: skip


class Translation:
    """Sentence translation; the headline metric is corpus BLEU, chrF beside it.

    Args:
        data: the hub's wmt/wmt14, or a file, folder or other hub data set. A row has the two columns, or one column
            `translation` that holds both.
        source_column, target_column: columns, normally language codes.
        prefix: written before the source text; None: T5's "translate English to German: " for the two languages.
        tokenize: sacreBLEU's tokenizer.
        num_beams: beams of the evaluation by beam search.
        validation_data, test_data, validation_fraction, data_config, drop_empty: see `DataSource`.
        max_prompt_tokens, max_new_tokens: limits of generation.

    Raises:
        UserError: no prefix is known for the columns, or an option is out of range.
    """

    name = "translation"
    metric = "bleu"

    def __init__(
        self,
        *,
        data: str = "wmt/wmt14",
        source_column: str = "en",
        target_column: str = "de",
        prefix: str | None = None,
        tokenize: str = "13a",
        num_beams: int = 4,
        validation_data: str | None = None,
        test_data: str | None = None,
        validation_fraction: float | None = None,
        data_config: str | None = None,
        drop_empty: bool = False,
        max_prompt_tokens: int = 128,
        max_new_tokens: int = 128,
    ) -> None:
        if data == "wmt/wmt14" and data_config is None:
            data_config = "de-en"
        if num_beams < 1:
            raise UserError(f"num_beams is {num_beams}; it must be 1 or more")
        self.source_column, self.target_column, self.tokenize = source_column, target_column, tokenize
        self.prefix = _default_prefix(source_column, target_column) if prefix is None else prefix
        self.generation = Generation(
            max_prompt_tokens=max_prompt_tokens, max_new_tokens=max_new_tokens, num_beams=num_beams
        )
        self._source = DataSource(
            data,
            check=self._check,
            key=lambda row: str(_pair(row)[source_column]),
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
        """The source text after the prefix."""
        return f"{self.prefix}{_pair(example)[self.source_column]}"

    def reference(self, example: Example) -> str:
        """The target text."""
        return str(_pair(example)[self.target_column])

    def score(self, completions: Sequence[str], examples: Sequence[Example]) -> Scores:
        """Corpus BLEU and chrF."""
        return bleu(completions, [[self.reference(example)] for example in examples], self.tokenize)

    @cached_property
    def rewards(self) -> Mapping[str, RewardOfCompletion]:
        """Exact match, ROUGE, and sentence BLEU and chrF, against the target text."""
        return reference_rewards(lambda example: [self.reference(example)], self.tokenize)

    def _check(self, row: Example) -> None:
        pair = _pair(row)
        text(pair, self.source_column, "source_column", "prompt")
        text(pair, self.target_column, "target_column", "completion")


def _pair(row: Example) -> Mapping[str, str]:
    """The mapping that holds both languages: the row, or its `translation` column as many hub data sets have it."""
    if "translation" not in row:
        return row
    pair = row["translation"]
    if not isinstance(pair, Mapping):
        raise BadRowError("column 'translation' must be an object with one text per language")
    return pair


def _default_prefix(source: str, target: str) -> str:
    for option, code in (("source_column", source), ("target_column", target)):
        if code not in LANGUAGES:
            raise UserError(f"{option} is {code!r}, no known language code; set prefix, such as 'translate X to Y: '")
    return f"translate {LANGUAGES[source]} to {LANGUAGES[target]}: "
