from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from tests.conftest import EOS, tokenizer
from tutelage.errors import UserError
from tutelage.tasks import encode
from tutelage.tasks.arithmetic import Arithmetic
from tutelage.tasks.base import Example, Generation, Message, Scores
from tutelage.tasks.encode import Encoding, GeneratedSplit, chosen, encode_split, fingerprint, longest_prompt


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
    ("rows", "message"),
    [
        ([("1", "2"), ("12345", "3")], "rows, train example 1: the prompt has 5 tokens, the limit is 4; raise task.max_prompt_tokens"),
        ([("", "2")], "rows, train example 0: the prompt has no tokens"),
        ([("1", "2"), ("1", " ")], "rows, train example 1: the completion is empty"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(rows: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(UserError) as raised:
        encode_split(Rows(rows), "train", encoding())
    assert message in str(raised.value)


def test_limits_are_inclusive() -> None:
    assert len(encode_split(Rows([("1234", "567890")]), "train", encoding())) == 1


def test_long_rows_can_be_left_out_and_the_others_keep_their_places(caplog: pytest.LogCaptureFixture) -> None:
    task = Rows([("12345", "1"), ("2", "3"), ("45678", "1"), ("6", None)])
    prompts = encode_split(task, "train", encoding(skip_long=True))
    assert [prompt.id for prompt in prompts] == [1, 3]
    assert [prompt.example["question"] for prompt in prompts] == ["2", "6"]
    assert [prompt.reference_ids for prompt in prompts] == [(*ids("3"), EOS), None]
    assert "2 of 4 train examples are over the limit of the prompt: left out" in caplog.text


def test_a_limit_takes_the_first_and_reads_no_further() -> None:
    task = Rows([("1", "2"), ("12345", "3")])
    assert [p.id for p in encode_split(task, "validation", encoding(), limit=1)] == [0]


def test_encoded_prompts_are_those_of_the_rows_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_AT_A_TIME", 3)
    task = Rows([("1 2", "3"), ("4", None), ("5", "67</s>"), ("8</s>", "0")])
    prompts = encode_split(task, "train", encoding())
    expected = [encoding().prompts(task, {i: example}, "train")[0] for i, example in enumerate(task.examples("train"))]
    assert list(prompts) == expected
    assert [prompt.reference_ids for prompt in prompts] == [(*ids("3"), EOS), None, (*ids("67"), EOS), (*ids("0"), EOS)]
    assert [prompts[i] for i in (3, 0, -1, -4)] == [expected[i] for i in (3, 0, -1, -4)]
    assert prompts[1::2] == expected[1::2]
    with pytest.raises(IndexError):
        prompts[4]


def test_rows_somebody_gave_are_checked_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_MANY", 2)
    rows = [("1", "2"), ("2", "3"), ("12345", "3"), ("4", "5")]
    with pytest.raises(UserError, match="rows, train example 2: the prompt has 5 tokens"):
        encode_split(Rows(rows), "train", encoding())
    assert [p.id for p in encode_split(Rows(rows), "train", encoding(skip_long=True))] == [0, 1, 3]


def test_encoding_many_rows_shows_its_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    shown = []
    for many, show_progress in ((3, True), (2, False), (2, True)):
        monkeypatch.setattr(encode, "_MANY", many)
        encode_split(Rows([("1", "2")] * 3), "train", encoding(), show_progress=show_progress)
        shown.append("encoding the train split" in capsys.readouterr().err)
    assert shown == [False, False, True]


def test_the_longest_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    assert longest_prompt(encode_split(Rows([("1", "2"), ("1 2", "3"), ("4", None)]), "train", encoding())) == 2
    assert longest_prompt(()) == 0
    monkeypatch.setattr(encode, "_MANY", 4)
    generated = encode_split(Arithmetic(train_size=5, level="easy"), "train", encoding(max_prompt_tokens=60))
    assert longest_prompt(generated) == 60  # any prompt may still come


def test_examples_made_when_asked_for_wait_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Arithmetic(train_size=5, level="easy")
    at_once = encode_split(task, "train", encoding(max_prompt_tokens=60))
    assert not isinstance(at_once, GeneratedSplit)
    monkeypatch.setattr(encode, "_MANY", 4)
    prompts = encode_split(task, "train", encoding(max_prompt_tokens=60))
    assert isinstance(prompts, GeneratedSplit)
    assert list(prompts) == list(at_once)
    assert prompts[1:3] == at_once[1:3]
    short = encode_split(task, "train", encoding(skip_long=True))
    with pytest.raises(
        UserError, match=r"train example 3 is over task\.max_prompt_tokens=4; in a split of 5 generated"
    ):
        short[3]
    with pytest.raises(UserError, match="the limit is 4"):
        encode_split(task, "train", encoding())[3]


def test_a_fingerprint_is_of_the_tokens_and_their_order() -> None:
    def of(*rows: tuple[str, str | None]) -> str:
        return fingerprint(encode_split(Rows(rows), "train", encoding()))

    same = of(("1", "23"), ("4", "5"))
    assert same == of(("1", "23"), ("4", "5"))
    others = [
        of(("1", "23")),
        of(("4", "5"), ("1", "23")),
        of(("1", "23"), ("4", "6")),
        of(("7", "23"), ("4", "5")),
        of(("1", "23"), ("4", None)),
        of(("12", "3"), ("4", "5")),  # the same tokens, cut elsewhere
    ]
    assert len({same, *others}) == 7


def test_the_fingerprint_of_a_generated_split_reads_its_beginning_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_MANY", 4)
    monkeypatch.setattr(encode, "_SAMPLE", 3)

    def of(seed: int, size: int) -> str:
        prompts = encode_split(Arithmetic(train_size=size, seed=seed), "train", encoding(max_prompt_tokens=99))
        return fingerprint(prompts)

    assert of(0, 10_000_000) == of(0, 10_000_000)
    assert len({of(0, 10_000_000), of(1, 10_000_000), of(0, 10_000_001)}) == 3


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(10, 1.0, 10), (10, 0.3, 3), (10, 0.01, 1), (7, 0.5, 4), (1, 0.2, 1), (0, 0.5, 0)],
)
def test_a_share_of_the_examples_has_that_many_of_them(count: int, fraction: float, expected: int) -> None:
    indices = list(chosen(count, fraction, seed=3))
    assert len(indices) == expected
    assert indices == sorted(set(indices))
    assert set(indices) <= set(range(count))


def test_smaller_shares_are_part_of_larger_ones_at_the_same_seed() -> None:
    shares = [set(chosen(200, fraction, seed=5)) for fraction in (0.05, 0.1, 0.5, 0.9, 1.0)]
    assert all(small < large for small, large in pairwise(shares))
    assert shares[2] == set(chosen(200, 0.5, seed=5))
    assert shares[2] != set(chosen(200, 0.5, seed=6))
    # Spread over the data: not its beginning.
    assert 70 < sum(shares[2]) / len(shares[2]) < 130


def test_chosen_examples_keep_their_ids_and_are_the_same_whatever_the_limit_of_the_prompt() -> None:
    task = Rows([(f"{i}" * (1 + i % 3), f"{i}") for i in range(10)])
    whole = {prompt.id: prompt for prompt in encode_split(task, "train", encoding())}
    half = encode_split(task, "train", encoding(), fraction=0.5, seed=2)
    indices = list(chosen(10, 0.5, 2))
    assert [prompt.id for prompt in half] == indices
    assert list(half) == [whole[i] for i in indices]
    short = encode_split(task, "train", encoding(max_prompt_tokens=2, skip_long=True), fraction=0.5, seed=2)
    assert [prompt.id for prompt in short] == [i for i in indices if i % 3 < 2]
    assert len({fingerprint(half), fingerprint(short), fingerprint(list(whole.values()))}) == 3


def test_a_share_of_examples_made_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_MANY", 4)
    task = Arithmetic(train_size=20, level="easy")
    options = encoding(max_prompt_tokens=60)
    whole = encode_split(task, "train", options)
    half = encode_split(task, "train", options, fraction=0.5, seed=1)
    assert isinstance(half, GeneratedSplit)
    assert list(half) == [whole[i] for i in chosen(20, 0.5, 1)]
    assert half[-1] == whole[chosen(20, 0.5, 1)[-1]]
    assert fingerprint(half) != fingerprint(whole)
    few = encode_split(task, "train", options, fraction=0.1, seed=1)
    assert not isinstance(few, GeneratedSplit)  # few enough to be checked at once
    assert [prompt.id for prompt in few] == list(chosen(20, 0.1, 1))


class Chats(Rows):
    """The same rows as conversations."""

    def prompt(self, example: Example) -> Sequence[Message]:  # type: ignore[override]
        return [{"role": "user", "content": str(example["question"])}]


def test_a_template_that_is_asked_for_must_be_there_before_anything_is_encoded() -> None:
    with pytest.raises(UserError, match=r"task\.use_chat is always, but the tokenizer .* has no chat template"):
        encoding(use_chat="always")


def test_completions_of_chats_end_with_the_turn() -> None:
    chat = deepcopy(tokenizer())
    chat.add_tokens(["<|im_end|>"], special_tokens=True)
    chat.chat_template = "{% for m in messages %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    turn = chat.convert_tokens_to_ids("<|im_end|>")
    rows = [("1", "3")]

    def last(task: Rows, **changes: Any) -> int:
        reference = encode_split(task, "train", encoding(tokenizer=chat, **changes))[0].reference_ids
        assert reference is not None
        return reference[-1]

    assert last(Chats(rows)) == turn
    assert last(Rows(rows), use_chat="always") == turn
    assert last(Rows(rows)) == last(Rows(rows), use_chat="never") == EOS
    assert last(Rows(rows), use_chat="always", encoder_decoder=True) == EOS  # its decoder writes outside the template
    assert encoding(tokenizer=chat).end_ids == {turn}
    assert encoding(tokenizer=chat, use_chat="never").end_ids == encoding().end_ids == frozenset()
