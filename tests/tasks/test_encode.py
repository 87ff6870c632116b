from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conftest import EOS, tokenizer
from tutelage.errors import UserError
from tutelage.tasks import encode
from tutelage.tasks.base import Example, Generation, Scores
from tutelage.tasks.encode import Encoding, encode_split


@dataclass
class Rows:
    """A task over (question, answer) pairs."""

    rows: Sequence[tuple[str, str | None]]
    name: str = "rows"
    metric: str = "none"
    generation: Generation = field(default_factory=Generation)

    def examples(self, split: str) -> Sequence[Example]:
        return [{"question": question, "answer": answer} for question, answer in self.rows]

    def prompt(self, example: Example) -> str:
        return str(example["question"])

    def reference(self, example: Example) -> str | None:
        return example["answer"]  # type: ignore[no-any-return]

    def score(self, completions: Sequence[str], examples: Sequence[Example]) -> Scores:
        return Scores({}, None, None)


def encoding(**changes: Any) -> Encoding:
    return Encoding(**{"tokenizer": tokenizer(), "encoder_decoder": False, "max_prompt_tokens": 4, **changes})


def ids(text: str) -> tuple[int, ...]:
    return tuple(tokenizer()(text)["input_ids"])


def test_prompts_and_references_with_the_end_of_sequence() -> None:
    first, second = encode_split(Rows([("1 2", "3"), ("4", None)]), "train", encoding())
    assert (first.id, first.token_ids, first.reference_ids) == (0, ids("1 2"), (*ids("3"), EOS))
    assert first.example == {"question": "1 2", "answer": "3"}
    assert (second.id, second.token_ids, second.reference_ids) == (1, ids("4"), None)


@pytest.mark.parametrize(
    ("rows", "limits", "message"),
    [
        ([("1", "2"), ("12345", "3")], {}, "rows, train example 1: the prompt has 5 tokens, the limit is 4; raise task.max_prompt_tokens"),
        ([("1", "234")], {"max_new_tokens": 3}, "example 0: the completion has 4 tokens, the limit is 3; raise rollout.max_new_tokens"),
        ([("", "2")], {}, "rows, train example 0: the prompt has no tokens"),
        ([("1", "2"), ("1", " ")], {}, "rows, train example 1: the completion is empty"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(rows: list[tuple[str, str]], limits: dict[str, int], message: str) -> None:
    with pytest.raises(UserError) as raised:
        encode_split(Rows(rows), "train", encoding(**limits))
    assert message in str(raised.value)


def test_limits_are_inclusive() -> None:
    assert len(encode_split(Rows([("1234", "56")]), "train", encoding(max_new_tokens=3))) == 1


def test_long_rows_can_be_left_out_and_the_others_keep_their_places(caplog: pytest.LogCaptureFixture) -> None:
    prompts = encode_split(Rows([("12345", "1"), ("2", "3"), ("4", "5678"), ("6", "7")]), "train",
                           encoding(skip_long=True, max_new_tokens=4))  # fmt: skip
    assert [prompt.id for prompt in prompts] == [1, 3]
    assert "2 of 4 train examples are over a length limit: left out" in caplog.text


def test_a_limit_takes_the_first_and_reads_no_further() -> None:
    task = Rows([("1", "2"), ("12345", "3")])
    assert [p.id for p in encode_split(task, "validation", encoding(), limit=1)] == [0]


def test_very_large_splits_are_encoded_as_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_EAGER_LIMIT", 2)
    task = Rows([("1", "2"), ("12345", "3"), ("4", "5")])
    prompts = encode_split(task, "train", encoding(skip_long=True))
    assert len(prompts) == 3
    assert prompts[2].token_ids == ids("4")
    assert [p.id for p in prompts[::2]] == [0, 2]
    with pytest.raises(UserError, match="example 1 is over a length limit; in a split this large"):
        prompts[1]
    with pytest.raises(UserError, match="the prompt has 5 tokens"):
        encode_split(task, "train", encoding())[1]
