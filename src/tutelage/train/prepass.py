"""Reading a step's sequences before its update: one number per token, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tutelage.data.batching import micro_batches, token_weights
from tutelage.models.language_model import LanguageModel
from tutelage.types import MicroBatch, Rollout


@torch.no_grad()
def read_tokens(
    student: LanguageModel, rollouts: Sequence[Rollout], token_budget: int, values: Callable[[MicroBatch], Tensor]
) -> list[list[float]]:
    """A value of every completion token, as one list per sequence.

    Args:
        student: reads without dropout, and is left in evaluation mode.
        rollouts: the sequences, in the order of the result.
        token_budget: most padded tokens of a forward pass.
        values: gives those of a micro-batch, [N].
    """
    student.module.eval()
    found: dict[int, list[float]] = {}  # by the rollout's identity: micro-batches come sorted by length
    for micro in micro_batches(rollouts, token_weights(rollouts, "token"), student, token_budget):
        rows = values(micro).split([len(r.completion_ids) for r in micro.rollouts])
        found.update((id(r), row.tolist()) for r, row in zip(micro.rollouts, rows, strict=True))
    return [found[id(r)] for r in rollouts]
