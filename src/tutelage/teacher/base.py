"""What a teacher is."""

from __future__ import annotations

from typing import Protocol

from tutelage.types import HiddenStates, MicroBatch


class TeacherScorer(Protocol):
    """Marks the tokens of a micro-batch with a typed signal; the type decides which divergences are legal."""

    def score(self, micro: MicroBatch) -> HiddenStates:
        """The signal for the completion tokens, in the order of `micro.targets_N`."""
        ...
