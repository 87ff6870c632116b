"""From rewards to advantages: the baselines of REINFORCE.

The policy gradient of E r(y) is E[(r(y) - b) grad log q(y)] for every b that does not depend on y (Williams 1992).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Baseline = Literal["leave_one_out", "group", "none"]


def advantages(rewards: Sequence[float], group_size: int, baseline: Baseline) -> list[float]:
    """How much better each sequence did than its baseline.

    With k sequences in a group, drawn independently:

    - leave_one_out: the mean of the other k - 1. It does not depend on the sequence's own draw: unbiased.
    - group: the mean of all k. The advantages are (k - 1) / k of those of leave_one_out, and so is the expected gradient:
      the weight of the reward shrinks by that factor, its direction stays. Nothing is divided by a standard deviation.
    - none: 0. Unbiased, of the highest variance.

    Args:
        rewards: of a whole batch; `group_size` samples of a prompt stand in a row.
        group_size: samples of each prompt. With 1, leave_one_out compares with all other sequences of the batch.
        baseline: which.

    Returns:
        One advantage per sequence; exactly 0 where a group's rewards are equal and there is a baseline.

    Raises:
        ValueError: the batch is no whole number of groups, or a sequence has no other to be compared with.

    Source: Kool et al., "Buy 4 REINFORCE Samples, Get a Baseline for Free!", 2019 (leave_one_out); Shao et al., 2024
    (arXiv 2402.03300), Eq. 3, without the division (group).
    """
    if baseline == "none":
        return list(rewards)
    size = len(rewards) if baseline == "leave_one_out" and group_size == 1 else group_size
    if size < 2 or len(rewards) % size:
        raise ValueError(
            f"{len(rewards)} rewards in groups of {size}: baseline {baseline} needs whole groups of 2 or more"
        )
    groups = np.asarray(rewards, dtype=np.float64).reshape(-1, size)
    # Differences first: equal rewards then cancel exactly, where a rounded mean would leave noise for Adam to scale up.
    above = (groups[:, :, None] - groups[:, None, :]).sum(-1)
    found: list[float] = (above / (size - 1 if baseline == "leave_one_out" else size)).ravel().tolist()
    return found
