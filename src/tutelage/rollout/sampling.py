"""Drawing tokens: temperature, top-k, top-p, and randomness that belongs to the sequence."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tutelage.errors import UserError
from tutelage.rollout.base import Sampling


def uniforms(seed: int, prompt_id: int, sample: int, length: int) -> np.ndarray:
    """The sequence's own random numbers, one per position: float64 [length] in [0, 1).

    A counter-based generator (Philox, Salmon et al. 2011) keyed by run seed, prompt and sample index: position n of a
    sequence gets the same number whatever the batch, the number of ranks or restarts. On a grid of 2^-32, so that
    u * total < total holds in float64.
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, prompt_id, sample])))
    return generator.integers(0, 2**32, size=length, dtype=np.uint64) / 2**32


def filtered_logprobs(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities of the distribution that is sampled from: temperature, then top-k, then top-p. float32 [B, V].

    `sampling.temperature` must be positive; excluded tokens have -inf.
    """
    logits_BV = logits_BV.float() / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        smallest_kept = logits_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest_kept, -torch.inf)
    if sampling.top_p < 1.0:
        ordered, index = logits_BV.sort(dim=-1, descending=True)
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability  # a token stays when those before it do not reach top_p yet
        ordered = ordered.masked_fill(before >= sampling.top_p, -torch.inf)
        logits_BV = torch.empty_like(ordered).scatter_(-1, index, ordered)
    return logits_BV.log_softmax(-1)


def draw(logits_BV: Tensor, sampling: Sampling, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """One token per row, by inverse transform of the row's uniform number.

    Args:
        logits_BV: [B, V], any float dtype.
        sampling: temperature 0 takes the arg-max.
        uniform_B: float64 in [0, 1).

    Returns:
        tokens [B] int64, and their log-probabilities [B] float32 under the distribution drawn from (0 when greedy).

    Raises:
        UserError: a row has a logit that is NaN, or none to choose by.
    """
    if sampling.temperature == 0:
        largest, tokens = logits_BV.max(-1)
        _check_numbers(largest)
        return tokens, torch.zeros(tokens.shape, dtype=torch.float32, device=tokens.device)
    logp_BV = filtered_logprobs(logits_BV, sampling)
    # In float64: a float32 running sum over a large vocabulary loses the tail.
    cumulative = logp_BV.double().exp().cumsum(-1)
    _check_numbers(cumulative[:, -1])
    threshold = uniform_B[:, None].to(cumulative) * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
    return tokens, logp_BV.gather(-1, tokens[:, None]).squeeze(-1)


def _check_numbers(values_B: Tensor) -> None:
    """Raises UserError when one is NaN: taken for a number it would give a token that nobody drew."""
    if bool(values_B.isnan().any()):
        raise UserError(
            "a model's logits are NaN while it writes: its weights are damaged, or its dtype overflows; load it with dtype float32, "
            "or go back to an earlier checkpoint and lower train.learning_rate"
        )
