"""Self-BLEU and distinct-n against values worked by hand."""

import math

import pytest

from tutelage.eval.diversity import distinct_n, mean_self_bleu, self_bleu


@pytest.mark.parametrize("text", ["the cat sat on the mat", "word", ""])
def test_identical_samples_have_self_bleu_100(text: str) -> None:
    assert self_bleu([text, text, text]) == pytest.approx(100.0)


def test_self_bleu_worked_by_hand() -> None:
    # Each against the other: precisions 4/5, 3/4, 2/3, 1/2; equal length, no brevity penalty.
    expected = 100 * math.prod([4 / 5, 3 / 4, 2 / 3, 1 / 2]) ** 0.25
    assert self_bleu(["a b c d e", "a b c d f"]) == pytest.approx(expected)


def test_self_bleu_takes_all_other_samples_as_references() -> None:
    # Every n-gram (n <= 2) of the third sample is in one of the others; with one reference alone it would not be.
    third_alone = 100 * math.prod([1.0, 1.0]) ** 0.5
    pair = self_bleu(["p q r s", "u v w x"])
    mixed = self_bleu(["p q", "q p", "p q"])
    assert pair < 20
    assert mixed == pytest.approx((third_alone * 2 + self_bleu(["q p", "p q"])) / 3)


def test_mean_over_prompts_not_over_pooled_samples() -> None:
    same, different = ["a b c d", "a b c d"], ["e f g h", "i j k l"]
    assert mean_self_bleu([same, different]) == pytest.approx((100.0 + self_bleu(different)) / 2)


def test_self_bleu_of_one_sample_raises() -> None:
    with pytest.raises(ValueError, match="two or more, got 1"):
        self_bleu(["alone"])


@pytest.mark.parametrize(
    ("samples", "n", "expected"),
    [
        (["a b a b"], 1, 2 / 4),
        (["a b a b"], 2, 2 / 3),
        (["a b", "b a"], 2, 1.0),
        (["a b", "a b"], 2, 1 / 2),
        (["a"], 2, 0.0),
    ],
)
def test_distinct_n(samples: list[str], n: int, expected: float) -> None:
    assert distinct_n(samples, n) == pytest.approx(expected)
