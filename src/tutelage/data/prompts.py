"""Which prompts a step sees: a pure function of seed and step, so that there is no cursor to lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tutelage.errors import UserError
from tutelage.types import Prompt


@dataclass(frozen=True)
class Draw:
    """A prompt taken from the stream.

    Attributes:
        prompt: the prompt.
        sample: how many times the stream gave it before.
    """

    prompt: Prompt
    sample: int


class PromptStream:
    """Endless epochs over prompts, each in its own order.

    Args:
        prompts: the training prompts; at least one.
        seed: keys the orders.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        if not prompts:
            raise UserError("no training prompts are left; check task.data and task.max_prompt_tokens")
        self.prompts = prompts
        self._order = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng([seed, epoch, len(prompts)]).permutation(len(prompts))
        )

    def batch(self, step: int, size: int) -> list[Draw]:
        """The prompts of one step; steps of one size tile the epochs without gaps or repeats."""
        drawn = []
        for position in range(step * size, (step + 1) * size):
            epoch, index = divmod(position, len(self.prompts))
            drawn.append(Draw(self.prompts[int(self._order(epoch)[index])], epoch))
        return drawn
