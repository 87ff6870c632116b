"""Arithmetic word problems, generated: seeded, unlimited, with splits that cannot overlap."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from random import Random
from typing import Any, Literal, get_args, overload

from tutelage.errors import UserError
from tutelage.tasks.base import SPLITS, Example, Generated, Generation, RewardOfCompletion, Scores
from tutelage.tasks.hashing import content_hash
from tutelage.tasks.metrics import check_pairs, mean_scores, percentage
from tutelage.tasks.word_problems import Problem, draw_problem

Level = Literal["easy", "medium", "hard"]

# level -> (fewest and most equations, largest operand)
LEVELS: dict[str, tuple[tuple[int, int], int]] = {"easy": ((1, 2), 9), "medium": ((2, 4), 20), "hard": ((4, 6), 99)}

FINAL = re.compile(r"####\s*(\d+)")
EQUATION = re.compile(r"\d+ [-+*/] \d+ = \d+")
FORMAT = re.compile(r"(?:\d+ [-+*/] \d+ = \d+\. )+#### \d+")


def split_of(problem: Problem) -> str:
    """The split a problem belongs to: 80% train, 10% validation, 10% test.

    Decided by a hash of the computation (every number and operation, in order) and by nothing else. Two problems that
    differ only in names, things or wording are in the same split, for every seed and level.
    """
    place = content_hash(problem.content)
    if place < 0.8:
        return "train"
    return "validation" if place < 0.9 else "test"


class ProblemSequence(Generated):
    """Problems of one split, generated when asked for; the problem at an index depends on (seed, split, index) alone.

    Args:
        split: "train", "validation" or "test".
        size: how many there are; a longer sequence starts with the problems of a shorter one.
        seed: the task's seed.
        steps: fewest and most equations.
        largest_operand: see `draw_problem`.
    """

    def __init__(self, split: str, size: int, seed: int, steps: tuple[int, int], largest_operand: int) -> None:
        self.split, self.size, self.seed = split, size, seed
        self.steps, self.largest_operand = steps, largest_operand

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        position = index + self.size if index < 0 else index
        if not 0 <= position < self.size:
            raise IndexError(f"problem {index} of {self.size}")
        problem = self.problem(position)
        return {"question": problem.question, "answer": problem.answer, "result": problem.result}

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(self.size))

    def problem(self, index: int) -> Problem:
        """The problem at `index`, which is not negative."""
        return _problem(self.split, index, self.seed, self.steps, self.largest_operand)


# An evaluation asks for each of its problems a dozen times, and one of the test split takes ten draws.
@lru_cache(maxsize=2**14)
def _problem(split: str, index: int, seed: int, steps: tuple[int, int], largest_operand: int) -> Problem:
    """Drawn again until its content belongs to this split."""
    rng = Random(f"arithmetic {seed} {split} {index}")
    while True:
        problem = draw_problem(rng, steps, largest_operand)
        if split_of(problem) == split:
            return problem


class Arithmetic:
    """Multi-step word problems with worked answers such as "12 + 7 = 19. 19 - 4 = 15. #### 15".

    Args:
        seed: other seeds give other problems of the same splits: no seed's train problems are in any seed's test.
        level: "easy" (1-2 equations, operands to 9), "medium" (2-4, to 20) or "hard" (4-6, to 99).
        steps: fewest and most equations, in place of the level's.
        largest_operand: the largest number added or subtracted, in place of the level's.
        train_size, validation_size, test_size: problems per split; generated on access, so millions cost nothing.
        data: no data is read; present so that a configuration that names some fails clearly.

    Raises:
        UserError: an option is out of range.
    """

    name = "arithmetic"
    metric = "accuracy"

    def __init__(
        self,
        *,
        seed: int = 0,
        level: Level = "medium",
        steps: tuple[int, int] | None = None,
        largest_operand: int | None = None,
        train_size: int = 1000,
        validation_size: int = 500,
        test_size: int = 500,
        data: str | None = None,
    ) -> None:
        if data is not None:
            raise UserError(
                f"the arithmetic task generates its problems and reads no data, but task.data is {data!r}: drop it"
            )
        if level not in LEVELS:
            raise UserError(f"level is {level!r}; it must be one of {', '.join(get_args(Level))}")
        self.steps, self.largest_operand = LEVELS[level]
        if steps is not None:
            self.steps = _check_steps(steps)
        if largest_operand is not None:
            if not 2 <= largest_operand <= 400:
                raise UserError(f"largest_operand is {largest_operand}; it must be between 2 and 400")
            self.largest_operand = largest_operand
        self.sizes = dict(zip(SPLITS, (train_size, validation_size, test_size), strict=True))
        for split, size in self.sizes.items():
            if size < 1:
                raise UserError(f"{split}_size is {size}; it must be at least 1")
        self.seed = seed

    @cached_property
    def generation(self) -> Generation:
        """Limits that the longest problem and the longest worked answer of these steps fit, one token per digit."""
        most = self.steps[1]
        # An equation is at most "999 + 999 = 999.": 12 tokens; then "#### 999" and the end-of-sequence token.
        return Generation(max_prompt_tokens=24 + 20 * most, max_new_tokens=12 * most + 5)

    def examples(self, split: str) -> Sequence[Example]:
        """The problems of a split: columns question, answer (worked) and result (int)."""
        if split not in self.sizes:
            raise UserError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
        return ProblemSequence(split, self.sizes[split], self.seed, self.steps, self.largest_operand)

    def prompt(self, example: Example) -> str:
        """The problem's text."""
        return str(example["question"])

    def reference(self, example: Example) -> str:
        """The worked answer."""
        return str(example["answer"])

    def score(self, completions: Sequence[str], examples: Sequence[Example]) -> Scores:
        """Accuracy of the number after "####"; valid_format and step_accuracy beside it, all in percent.

        step_accuracy is the share of a reference's equations that the completion has at the same place, averaged over
        examples.
        """
        check_pairs(completions, examples)
        pairs = list(zip(completions, examples, strict=True))
        secondary = {
            "valid_format": percentage([float(FORMAT.fullmatch(text.strip()) is not None) for text, _ in pairs]),
            "step_accuracy": percentage([_correct_steps(text, str(example["answer"])) for text, example in pairs]),
        }
        return mean_scores("accuracy", [_accuracy(text, example) for text, example in pairs], secondary)

    @property
    def rewards(self) -> Mapping[str, RewardOfCompletion]:
        """accuracy, verified: 1 where the number after "####" is the result, else 0."""
        return {"accuracy": _accuracy}


def final_number(text: str) -> int | None:
    """The number after the first "####", or None."""
    found = FINAL.search(text)
    return None if found is None else int(found.group(1))


def _accuracy(completion: str, example: Example) -> float:
    return float(final_number(completion) == example["result"])


def _correct_steps(completion: str, answer: str) -> float:
    wanted, seen = EQUATION.findall(answer), EQUATION.findall(completion)
    return sum(a == b for a, b in zip(wanted, seen, strict=False)) / len(wanted)


def _check_steps(steps: Sequence[int]) -> tuple[int, int]:
    if len(steps) != 2 or not 1 <= steps[0] <= steps[1]:
        raise UserError(f"steps is {steps!r}; it must be two numbers, fewest and most equations, such as [2, 4]")
    return steps[0], steps[1]


def build_tokenizer() -> Any:
    """A tokenizer for this task: one token per word, per digit and per sign, fewer than 300 in all.

    The vocabulary is every piece that occurs in a fixed sample of generated problems, with the space before it, and
    single ASCII characters for all other text, so that any ASCII text survives encode and decode. The same on every
    machine.

    Returns:
        `transformers.PreTrainedTokenizerFast` with <pad>, <s>, </s> and <unk>; it adds no special token by itself.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = Regex(r" ?\d| ?[A-Za-z]+| ?[^\sA-Za-z\d]+|\s")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    splitter = pre_tokenizers.Sequence([pre_tokenizers.Split(pieces, "isolated"), byte_level])
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    characters = [byte_level.pre_tokenize_str(chr(code))[0][0] for code in (9, 10, *range(32, 127))]
    sample = ProblemSequence("train", 2000, 0, (1, 4), LEVELS["hard"][1])
    texts = (text for example in sample for text in (example["question"], example["answer"]))
    words = {piece for text in texts for piece, _ in splitter.pre_tokenize_str(text)}
    vocabulary = special + characters + sorted(words.difference(characters))
    # Longest match over given pieces needs no merges, which in a vocabulary this small would crowd out the words.
    model = models.WordPiece(
        {piece: i for i, piece in enumerate(vocabulary)},
        unk_token="<unk>",
        continuing_subword_prefix="",
        max_input_chars_per_word=100_000,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
