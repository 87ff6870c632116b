"""GSM8K: grade-school word problems with worked answers that end in `#### N`.

Source: Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021 (arXiv 2110.14168).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cached_property

from tutelage.errors import UserError
from tutelage.tasks.base import Example, Generation, RewardOfCompletion, Scores
from tutelage.tasks.calculator import calculator_continuation, evaluate, strip_annotations
from tutelage.tasks.hashing import content_hash
from tutelage.tasks.metrics import check_pairs, mean_scores, percentage
from tutelage.tasks.rows import BadRowError, DataSource, text

FINAL = re.compile(r"####\s*\$?\s*([-+]?\$?[\d,]*\.?\d+)")


class GSM8K:
    """Grade-school word problems; accuracy is the share of right numbers after `####`.

    The published data has no validation split: one is carved off the train split by a hash of the question.

    Args:
        data: the hub's openai/gsm8k, or a file or folder with columns question and answer.
        n_shots: worked examples before the question, drawn from the train split (the paper: 4); the same for every
            question, save that a question is never its own example.
        shots_seed: which examples are drawn.
        strip_annotations: leave the `<<3+4=7>>` out of the references (and out of the examples).
        calculator: during evaluation, work out each annotation for the model as it writes it.
        validation_data: a file of validation rows, in place of the carved ones.
        test_data, validation_fraction, data_config, drop_empty: see `DataSource`.
        max_prompt_tokens: limit of the prompt; None: 512, and 256 for each of the `n_shots`.
        max_new_tokens: limit of the completion.

    Raises:
        UserError: an option is out of range or contradicts another.
    """

    name = "gsm8k"
    metric = "accuracy"

    def __init__(
        self,
        *,
        data: str = "openai/gsm8k",
        n_shots: int = 0,
        shots_seed: int = 0,
        strip_annotations: bool = False,
        calculator: bool = True,
        validation_data: str | None = None,
        test_data: str | None = None,
        validation_fraction: float | None = 0.05,
        data_config: str | None = "main",
        drop_empty: bool = False,
        max_prompt_tokens: int | None = None,
        max_new_tokens: int = 320,
    ) -> None:
        if n_shots < 0:
            raise UserError(f"n_shots is {n_shots}; it must be 0 or more")
        if validation_data is not None:
            validation_fraction = None
        self.n_shots, self.shots_seed, self.strip_annotations = n_shots, shots_seed, strip_annotations
        self.generation = Generation(
            max_prompt_tokens=512 + 256 * n_shots if max_prompt_tokens is None else max_prompt_tokens,
            max_new_tokens=max_new_tokens,
            stop=("Question:",),
            continuation=calculator_continuation if calculator else None,
        )
        self._source = DataSource(
            data,
            check=_check,
            key=lambda row: str(row["question"]),
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
        """The question after the worked examples: "Question: ...\\nAnswer:\\n"."""
        shots = [shot for shot in self._shots if shot["question"] != example["question"]][: self.n_shots]
        worked = "".join(f"{_ask(shot)}{self.reference(shot)}\n\n" for shot in shots)
        return worked + _ask(example)

    def reference(self, example: Example) -> str:
        """The worked answer, with the calculator's annotations unless they are stripped."""
        answer = str(example["answer"])
        return strip_annotations(answer) if self.strip_annotations else answer

    def score(self, completions: Sequence[str], examples: Sequence[Example]) -> Scores:
        """Accuracy of the number after the first `####`; answered: the share of completions that have one."""
        check_pairs(completions, examples)
        marks = [_accuracy(completion, example) for completion, example in zip(completions, examples, strict=True)]
        answered = [float(final_number(completion) is not None) for completion in completions]
        return mean_scores("accuracy", marks, {"answered": percentage(answered)})

    @property
    def rewards(self) -> Mapping[str, RewardOfCompletion]:
        """accuracy, verified: 1 where the number after the first `####` is the answer's, else 0."""
        return {"accuracy": _accuracy}

    @cached_property
    def _shots(self) -> Sequence[Example]:
        """One example more than `n_shots`, for the question that is one of them itself."""
        if self.n_shots == 0:
            return ()
        train = self.examples("train")
        if len(train) <= self.n_shots:
            raise UserError(f"n_shots is {self.n_shots}, but the train split has {len(train)} rows; it needs one more")
        order = sorted(range(len(train)), key=lambda i: content_hash(f"{self.shots_seed} {train[i]['question']}"))
        return [train[i] for i in order[: self.n_shots + 1]]


def final_number(text: str) -> Fraction | None:
    """The number after the first `####`, without thousands separators, dollar signs and the full stop; None if none."""
    found = FINAL.search(text)
    return None if found is None else evaluate(found.group(1).replace("$", ""))


def _accuracy(completion: str, example: Example) -> float:
    number = final_number(completion)
    return float(number is not None and number == final_number(str(example["answer"])))


def _ask(example: Example) -> str:
    return f"Question: {example['question']}\nAnswer:\n"


def _check(row: Example) -> None:
    text(row, "question", None, "prompt")
    answer = text(row, "answer", None, "completion")
    if final_number(answer) is None:
        raise BadRowError("column 'answer' has no number after ####; GSM8K's answers end with one")
