import numpy as np
import pytest
import sacrebleu

from tutelage.tasks.metrics import bleu, exact_match, mean_scores, no_scores, reference_rewards, rouge

WORDS = ["ein", "Hund", "läuft", "über", "die", "Wiese", "und", "bellt", ",", "laut", "."]


def corpus(size: int) -> tuple[list[str], list[list[str]]]:
    """Sentences and one or two references each, related enough for every n-gram order to match somewhere."""
    rng = np.random.default_rng(0)
    references, completions = [], []
    for i in range(size):
        words = [WORDS[k] for k in rng.integers(0, len(WORDS), rng.integers(4, 15))]
        changed = [WORDS[rng.integers(len(WORDS))] if rng.random() < 0.2 else word for word in words]
        references.append([" ".join(words)] + ([" ".join(words[1:])] if i % 2 else []))
        completions.append(" ".join(changed))
    return completions, references


def streams(references: list[list[str]]) -> list[list[str | None]]:
    return [[several[k] if k < len(several) else None for several in references] for k in range(2)]


def test_bleu_and_chrf_equal_sacrebleu():
    completions, references = corpus(60)
    scores = bleu(completions, references)
    assert scores.values["bleu"] == pytest.approx(
        sacrebleu.corpus_bleu(completions, streams(references)).score, abs=1e-9
    )
    assert scores.values["chrf"] == pytest.approx(
        sacrebleu.corpus_chrf(completions, streams(references)).score, abs=1e-9
    )
    assert 20 < scores.values["bleu"] < 80
    assert scores.per_example is None


def test_bleu_resample_equals_scoring_the_resampled_corpus():
    completions, references = corpus(60)
    scores = bleu(completions, references)
    rng = np.random.default_rng(1)
    for _ in range(5):
        indices = rng.integers(0, 60, 60)
        direct = bleu([completions[i] for i in indices], [references[i] for i in indices])
        assert scores.resample(indices) == pytest.approx(direct.values["bleu"], abs=1e-9)
        assert scores.resample(indices) != scores.values["bleu"]


def test_bleu_of_short_and_empty_sentences_equals_sacrebleu():
    completions, references = ["a b", "", "c"], [["a b c"], ["d"], ["c"]]
    expected = sacrebleu.corpus_bleu(completions, [[several[0] for several in references]]).score
    assert bleu(completions, references).values["bleu"] == pytest.approx(expected, abs=1e-9)


def test_bleu_tokenizer_matters():
    completions, references = ["Hallo,Welt ist schön heute"], [["Hallo , Welt ist schön heute"]]
    assert bleu(completions, references, "13a").values["bleu"] == pytest.approx(100.0)
    assert bleu(completions, references, "none").values["bleu"] < 99


def test_rouge_takes_the_best_reference():
    completions = ["the cat sat", "a dog"]
    references = [["birds fly", "the cat sat down"], ["a cat"]]
    scores = rouge(completions, references)
    # Against "the cat sat down": unigrams P = 1, R = 3/4; bigrams P = 1, R = 2/3. Against "a cat": 1 of 2 unigrams.
    assert scores.values["rouge1"] == pytest.approx(100 * (6 / 7 + 0.5) / 2)
    assert scores.values["rouge2"] == pytest.approx(100 * (0.8 + 0.0) / 2)
    assert scores.values["rougeL"] == pytest.approx(100 * (6 / 7 + 0.5) / 2)
    assert scores.per_example == pytest.approx((0.8, 0.0))
    assert scores.resample([0, 0]) == pytest.approx(80.0)
    assert rouge(completions, references, "rougeL").per_example == pytest.approx((6 / 7, 0.5))


def test_exact_match():
    scores = exact_match([" yes\n", "Yes", "no"], [["yes"], ["yes"], ["nay", "no"]])
    assert scores.per_example == (1.0, 0.0, 1.0)
    assert scores.values == {"exact_match": pytest.approx(200 / 3)}
    assert scores.resample(np.array([1, 1, 0])) == pytest.approx(100 / 3)


def test_no_scores():
    scores = no_scores(["anything"], [[]])
    assert (dict(scores.values), scores.per_example, scores.resample) == ({}, None, None)


@pytest.mark.parametrize("metric", [exact_match, rouge, bleu, no_scores])
def test_unequal_lengths(metric):
    with pytest.raises(ValueError, match="2 completions for 1 examples"):
        metric(["a", "b"], [["a"]])


def test_mean_of_nothing():
    with pytest.raises(ValueError, match="accuracy needs at least one completion"):
        mean_scores("accuracy", [])


def test_rewards_are_the_marks_of_single_completions():
    completions, references = corpus(20)
    rewards = reference_rewards(lambda example: references[example["row"]])
    assert list(rewards) == ["exact_match", "rouge1", "rouge2", "rougeL", "bleu", "chrf"]
    found = {
        name: [reward(text, {"row": row}) for row, text in enumerate(completions)] for name, reward in rewards.items()
    }
    assert found["exact_match"] == list(exact_match(completions, references).per_example)
    for name in ("rouge1", "rouge2", "rougeL"):
        assert found[name] == list(rouge(completions, references, name).per_example)
    pairs = list(zip(completions, references, strict=True))
    assert found["bleu"] == pytest.approx([sacrebleu.sentence_bleu(*pair).score / 100 for pair in pairs], abs=1e-12)
    assert found["chrf"] == pytest.approx([sacrebleu.sentence_chrf(*pair).score / 100 for pair in pairs], abs=1e-12)
    assert all(0 <= mark <= 1 + 1e-12 for marks in found.values() for mark in marks)


def test_sentence_bleu_of_short_and_empty_completions():
    """A right word is worth something, though it has no n-grams of higher order."""
    bleu_of = reference_rewards(lambda _: ["ein Hund bellt laut"])["bleu"]
    assert 0 < bleu_of("ein Hund", {}) < bleu_of("ein Hund bellt", {}) < 1 - 1e-9
    assert bleu_of("ein Hund bellt laut", {}) == pytest.approx(1.0)
    assert bleu_of("", {}) == 0.0
