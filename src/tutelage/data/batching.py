"""Token weights from global counts, and micro-batches under a token budget.

Weights are fixed for the whole optimiser step before it is cut into micro-batches, and the loss is their weighted sum.
So micro-batching, accumulation and ranks cannot change the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from tutelage.models.language_model import LanguageModel
from tutelage.types import MicroBatch, Rollout

Normalisation = Literal["sequence", "token"]


def token_weights(
    rollouts: Sequence[Rollout], normalisation: Normalisation, prefix_tokens: int | None = None
) -> list[list[float]]:
    """One weight per completion token of the global batch.

    "sequence": 1 / (L_y * B), the paper's Eq. 2: mean over each sequence's own tokens, then over sequences.
    "token": 1 / N over all completion tokens of the batch.

    With `prefix_tokens` L_y and N count the first so many tokens of each completion, and all later ones weigh 0: the weights
    sum to 1 whatever the prefix, and a shorter completion keeps all of its tokens.
    """
    lengths = [len(r.completion_ids) for r in rollouts]
    kept = [n if prefix_tokens is None else min(n, prefix_tokens) for n in lengths]
    total = sum(kept)
    weights = [1.0 / total if normalisation == "token" else 1.0 / (k * len(rollouts)) for k in kept]
    return [[w] * k + [0.0] * (n - k) for w, k, n in zip(weights, kept, lengths, strict=True)]


def policy_weights(rollouts: Sequence[Rollout], advantages: Sequence[float]) -> list[list[float]]:
    """The policy gradient's weight of every completion token of the global batch: A / B, A being its sequence's advantage.

    Not divided by the sequence's length, whatever the normalisation of the divergence: the reward of the paper's Eq. 5 is of
    the whole sequence, and grad log q(y) is the sum over its tokens. The end-of-sequence token is one of them.
    """
    pairs = zip(rollouts, advantages, strict=True)
    return [[advantage / len(rollouts)] * len(rollout.completion_ids) for rollout, advantage in pairs]


def micro_batches(
    rollouts: Sequence[Rollout],
    weights: Sequence[Sequence[float]],
    model: LanguageModel,
    token_budget: int,
    policy: Sequence[Sequence[float]] | None = None,
) -> list[MicroBatch]:
    """Rows sorted by length and packed under a budget of padded tokens.

    Args:
        rollouts: the sequences of an optimiser step.
        weights: their token weights.
        model: gives the family, the padding and the device.
        token_budget: most padded tokens of a micro-batch: rows * L, for encoder-decoder models of either side. A row
            longer than the budget gets a micro-batch of its own.
        policy: their weights in a policy gradient; None: there is none.
    """
    order = sorted(range(len(rollouts)), key=lambda i: (_row_length(rollouts[i], model), i))
    groups: list[list[int]] = []
    for i in order:
        longest = _row_length(rollouts[i], model)  # rows come sorted: the newest is the longest
        if groups and longest * (len(groups[-1]) + 1) <= token_budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return [
        collate(
            [rollouts[i] for i in group],
            [weights[i] for i in group],
            model,
            None if policy is None else [policy[i] for i in group],
        )
        for group in groups
    ]


def collate(
    rollouts: Sequence[Rollout],
    weights: Sequence[Sequence[float]],
    model: LanguageModel,
    policy: Sequence[Sequence[float]] | None = None,
) -> MicroBatch:
    """Right-padded tensors of these rows, on the model's device."""
    prompts = [r.prompt_ids for r in rollouts]
    completions = [r.completion_ids for r in rollouts]
    decoder_ids = decoder_mask = None
    if model.is_encoder_decoder:
        input_ids, mask = _pad(prompts, model.pad_id)
        start_ids = model.decoder_start_ids
        decoder_ids, decoder_mask = _pad([(*start_ids, *c[:-1]) for c in completions], model.pad_id)
        width, starts = decoder_ids.shape[1], [len(start_ids) - 1] * len(rollouts)
    else:
        input_ids, mask = _pad([p + c for p, c in zip(prompts, completions, strict=True)], model.pad_id)
        # The token at column c is predicted by the hidden state at c - 1: the last prompt token predicts the first.
        width, starts = input_ids.shape[1], [len(p) - 1 for p in prompts]
    rows = [row for row, c in enumerate(completions) for _ in c]
    index = [row * width + starts[row] + k for row, c in enumerate(completions) for k in range(len(c))]
    micro = MicroBatch(
        input_ids_BL=input_ids,
        attention_mask_BL=mask,
        position_ids_BL=torch.arange(input_ids.shape[1]).expand_as(input_ids),
        decoder_input_ids_BL=decoder_ids,
        decoder_attention_mask_BL=decoder_mask,
        index_N=torch.tensor(index, dtype=torch.int64),
        targets_N=torch.tensor([t for c in completions for t in c], dtype=torch.int64),
        weights_N=_flat(weights),
        row_N=torch.tensor(rows, dtype=torch.int64),
        rollouts=tuple(rollouts),
        policy_weights_N=None if policy is None else _flat(policy),
    )
    return micro.to(model.device)


def _flat(weights: Sequence[Sequence[float]]) -> torch.Tensor:
    """[N], rows one after another."""
    return torch.tensor([w for row in weights for w in row], dtype=torch.float32)


def _row_length(rollout: Rollout, model: LanguageModel) -> int:
    if model.is_encoder_decoder:
        return max(len(rollout.prompt_ids), len(rollout.completion_ids))
    return len(rollout.prompt_ids) + len(rollout.completion_ids)


def _pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, [B, L] int64, padded on the right."""
    width = max(len(r) for r in rows)
    ids = torch.tensor([list(r) + [pad_id] * (width - len(r)) for r in rows], dtype=torch.int64)
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows], dtype=torch.int64)
    return ids, mask
