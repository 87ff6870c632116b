"""A teacher in the same process: exact, one forward pass without gradients per micro-batch."""

from __future__ import annotations

import torch

from tutelage.models.language_model import LanguageModel
from tutelage.types import HiddenStates, MicroBatch


class LocalTeacher:
    """Scores sequences with a loaded model.

    Args:
        model: the teacher; its parameters need no gradients.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    @torch.no_grad()
    def score(self, micro: MicroBatch) -> HiddenStates:
        """The teacher's hidden states at the positions that predict the completion tokens."""
        return HiddenStates(self.model.hidden(micro), self.model.head)
