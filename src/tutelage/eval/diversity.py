"""How different the samples of one prompt are: Self-BLEU and distinct-n."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from statistics import fmean

from sacrebleu.metrics import BLEU


@cache
def _sentence_bleu() -> BLEU:
    # effective_order: a sentence shorter than four tokens is marked on the n-gram orders it has.
    return BLEU(effective_order=True)


def self_bleu(samples: Sequence[str]) -> float:
    """Mean BLEU of each sample against the other samples of the same prompt; 100: all the same, low: diverse.

    Args:
        samples: completions of one prompt, two or more.

    Returns:
        A score in [0, 100].

    Raises:
        ValueError: fewer than two samples.

    Source: Zhu et al. 2018 (arXiv 1802.01886), section 3; sentence BLEU-4 by sacreBLEU.
    """
    if len(samples) < 2:
        raise ValueError(f"Self-BLEU compares samples with each other and needs two or more, got {len(samples)}")
    return fmean(_against_others(samples, i) for i in range(len(samples)))


def _against_others(samples: Sequence[str], i: int) -> float:
    others = [*samples[:i], *samples[i + 1 :]]
    # An exact copy scores 100 by definition; said here because sacreBLEU gives an empty hypothesis 0, which would
    # present a model that writes nothing as a diverse one.
    if samples[i] in others:
        return 100.0
    return float(_sentence_bleu().sentence_score(samples[i], others).score)


def mean_self_bleu(samples_per_prompt: Sequence[Sequence[str]]) -> float:
    """Self-BLEU averaged over prompts.

    Args:
        samples_per_prompt: for each prompt its completions, two or more each.
    """
    return fmean(self_bleu(samples) for samples in samples_per_prompt)


def distinct_n(samples: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams of `samples`, words split at white space; 1: none repeats.

    Args:
        samples: any set of texts; n-grams do not cross their ends.
        n: order, at least 1.

    Returns:
        A share in [0, 1]; 0 where no sample has n words.

    Raises:
        ValueError: n below 1.

    Source: Li et al. 2016 (arXiv 1510.03055), section 4.
    """
    if n < 1:
        raise ValueError(f"n-grams have at least one word, got n={n}")
    grams = [tuple(words[i : i + n]) for words in (text.split() for text in samples) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
