"""Metrics shared by the tasks: exact match, ROUGE, BLEU and chrF, each with a cheap resample for the bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from tutelage.tasks.base import Example, RewardOfCompletion, Scores

References = Sequence[Sequence[str]]


def mean_scores(metric: str, per_example: Sequence[float], secondary: Mapping[str, float] | None = None) -> Scores:
    """Scores of a headline metric that is a mean over examples.

    Args:
        metric: the headline metric's name.
        per_example: its value for each example, in 0..1.
        secondary: further metrics over the whole set, already on a scale of 0 to 100.

    Raises:
        ValueError: there is no example to average over.
    """
    marks = np.asarray(per_example, dtype=np.float64)
    if marks.size == 0:
        raise ValueError(f"{metric} needs at least one completion to mark")

    def resample(indices: Sequence[int]) -> float:
        return float(100.0 * marks[np.asarray(indices)].mean())

    values = {metric: float(100.0 * marks.mean()), **(secondary or {})}
    return Scores(values=values, per_example=tuple(marks.tolist()), resample=resample)


def no_scores(completions: Sequence[str], references: References) -> Scores:
    """The scores of a task without a metric: nothing."""
    check_pairs(completions, references)
    return Scores(values={}, per_example=None, resample=None)


def check_pairs(completions: Sequence[str], others: Sequence[Any]) -> None:
    """Raises ValueError unless there is one completion for each example."""
    if len(completions) != len(others):
        raise ValueError(f"{len(completions)} completions for {len(others)} examples")


def percentage(flags: Sequence[float]) -> float:
    """Mean of values in 0..1 as a percentage."""
    return float(100.0 * np.mean(flags))


def exact_match(completions: Sequence[str], references: References) -> Scores:
    """Share of completions that equal one of their references, surrounding white space aside."""
    check_pairs(completions, references)
    marks = [
        float(any(completion.strip() == reference.strip() for reference in several))
        for completion, several in zip(completions, references, strict=True)
    ]
    return mean_scores("exact_match", marks)


def rouge(completions: Sequence[str], references: References, headline: str = "rouge2") -> Scores:
    """ROUGE-1, ROUGE-2 and ROUGE-L F-measures by rouge-score, with stemming; the best of several references counts.

    Args:
        completions: the texts to mark.
        references: one or more references for each of them.
        headline: "rouge1", "rouge2" or "rougeL": the metric that `per_example` and `resample` give.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004.
    """
    from rouge_score.rouge_scorer import RougeScorer

    check_pairs(completions, references)
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    rows = [scorer.score_multi(list(several), text) for text, several in zip(completions, references, strict=True)]
    secondary = {kind: percentage([row[kind].fmeasure for row in rows]) for kind in kinds if kind != headline}
    return mean_scores(headline, [row[headline].fmeasure for row in rows], secondary)


def bleu(completions: Sequence[str], references: References, tokenize: str = "13a") -> Scores:
    """Corpus BLEU and chrF by sacreBLEU; BLEU is the headline metric.

    BLEU is a function of counts that add up over sentences, so the counts are kept and a resample only adds them again.

    Args:
        completions: the translations.
        references: one or more references for each of them.
        tokenize: sacreBLEU's tokenizer ("13a", "intl", "zh", "ja-mecab", ...).

    Source: Post, "A Call for Clarity in Reporting BLEU Scores", 2018.
    """
    from sacrebleu.metrics import BLEU, CHRF

    check_pairs(completions, references)
    # effective_order only changes how a sentence is scored, never its counts; it silences a warning meant for sentences.
    metric = BLEU(tokenize=tokenize, effective_order=True)
    counts = np.array(
        [_bleu_counts(metric.sentence_score(text, list(several)))
         for text, several in zip(completions, references, strict=True)],
        dtype=np.int64,
    )  # fmt: skip

    def resample(indices: Sequence[int]) -> float:
        total = counts[np.asarray(indices)].sum(axis=0).tolist()
        sys_len, ref_len, ngrams = total[0], total[1], total[2:]
        order = len(ngrams) // 2
        score = BLEU.compute_bleu(ngrams[:order], ngrams[order:], sys_len, ref_len, smooth_method="exp")
        return float(score.score)

    streams = [list(stream) for stream in _reference_streams(references)]
    values = {
        "bleu": resample(range(len(completions))),
        "chrf": float(CHRF().corpus_score(list(completions), streams).score),
    }
    return Scores(values=values, per_example=None, resample=resample)


def _bleu_counts(score: Any) -> list[int]:
    return [score.sys_len, score.ref_len, *score.counts, *score.totals]


def _reference_streams(references: References) -> list[list[str | None]]:
    """sacreBLEU's layout: one list per reference number, None where an example has fewer references."""
    most = max(len(several) for several in references)
    return [[several[k] if k < len(several) else None for several in references] for k in range(most)]


def rouge2(completions: Sequence[str], references: References) -> Scores:
    """`rouge` with ROUGE-2 as the headline metric."""
    return rouge(completions, references, "rouge2")


def rouge_l(completions: Sequence[str], references: References) -> Scores:
    """`rouge` with ROUGE-L as the headline metric."""
    return rouge(completions, references, "rougeL")


METRICS: Mapping[str, Callable[[Sequence[str], References], Scores]] = {
    "exact_match": exact_match,
    "rouge2": rouge2,
    "rougeL": rouge_l,
    "bleu": bleu,
    "none": no_scores,
}


def reference_rewards(
    references: Callable[[Example], Sequence[str]], tokenize: str = "13a"
) -> dict[str, RewardOfCompletion]:
    """The metrics of this file as rewards of single completions, each from 0 to 1.

    Exact match and ROUGE are the corpus metrics' own per-example marks. BLEU and chrF are sacreBLEU's of one sentence: BLEU
    over the orders of n-grams that the sentence has, with exponential smoothing.

    Args:
        references: example -> its references, one or more.
        tokenize: of BLEU, as in `bleu`.
    """
    from sacrebleu.metrics import BLEU, CHRF

    sentence_bleu, sentence_chrf = BLEU(tokenize=tokenize, effective_order=True), CHRF()

    def per_example(metric: Callable[[Sequence[str], References], Scores]) -> RewardOfCompletion:
        def reward(completion: str, example: Example) -> float:
            marks = metric([completion], [references(example)]).per_example
            assert marks is not None, "a corpus metric marks no single example"
            return marks[0]

        return reward

    def of_sentence(metric: Any) -> RewardOfCompletion:
        return lambda completion, example: (
            float(metric.sentence_score(completion, list(references(example))).score) / 100
        )

    return {
        "exact_match": per_example(exact_match),
        **{name: per_example(partial(rouge, headline=name)) for name in ("rouge1", "rouge2", "rougeL")},
        "bleu": of_sentence(sentence_bleu),
        "chrf": of_sentence(sentence_chrf),
    }
