"""What a rollout engine is: it turns prompts into sequences of the current student (or of the teacher)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tutelage.types import Prompt, Rollout, SourceName


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_new_tokens: limit of the completion, end-of-sequence included.
        temperature: divides the logits; 0: greedy.
        top_p: keep the smallest set of tokens with at least this probability (after temperature and top-k).
        top_k: keep the k most probable tokens; 0: all.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


class RolloutEngine(Protocol):
    """Writes completions. One call serves a whole optimiser step."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        samples: Sequence[int],
        seed: int,
        source: SourceName = "student",
        on_finished: Callable[[int], None] | None = None,
    ) -> list[Rollout]:
        """One rollout per prompt, in order.

        Args:
            prompts: what to complete; a prompt may stand several times, with different `samples`.
            sampling: how tokens are drawn.
            samples: per prompt, how many sequences were drawn for it before; with `seed` and the prompt's id this keys
                the sequence's randomness, so that batch composition and restarts cannot change a draw.
            seed: the run's seed.
            source: written into the rollouts.
            on_finished: called with the number of sequences newly finished (for progress bars).
        """
        ...

    def publish(self, version: int) -> None:
        """Makes the engine write with the weights of this optimiser step from now on."""
        ...
