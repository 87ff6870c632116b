"""A teacher in the same process: one forward pass without gradients per micro-batch."""

from __future__ import annotations

import torch

from tutelage.fused import DEFAULT_BUDGET_BYTES, teacher_sampled, teacher_topk
from tutelage.models.language_model import LanguageModel
from tutelage.teacher.base import SignalKind, parse_signal
from tutelage.types import HiddenStates, MicroBatch, Signal


class LocalTeacher:
    """Scores sequences with a loaded model.

    Args:
        model: the teacher; its parameters need no gradients.
        signal: what it answers with: "hidden", "topk(64)" or "sampled".
        temperature: of a top-k or sampled signal; hidden states are tempered in the loss.
        budget_bytes: of the vocabulary-wide buffers of a top-k or sampled signal.

    Raises:
        UserError: the signal does not parse.
    """

    def __init__(
        self,
        model: LanguageModel,
        signal: SignalKind | str = "hidden",
        temperature: float = 1.0,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
    ) -> None:
        self.model = model
        self.signal = parse_signal(signal)
        self.temperature = temperature
        self.budget_bytes = budget_bytes

    @torch.no_grad()
    def hidden_states(self, micro: MicroBatch) -> HiddenStates:
        """The teacher's hidden states at the positions that predict the completion tokens."""
        return HiddenStates(self.model.hidden(micro), self.model.head)

    def score(self, micro: MicroBatch) -> Signal:
        """The signal for the completion tokens, in the order of `micro.targets_N`."""
        states = self.hidden_states(micro)
        hidden, head, options = states.hidden_NH, states.head, (self.temperature, self.budget_bytes)
        match self.signal:
            case SignalKind("topk", int(k)):
                return teacher_topk(hidden, head, k, *options)
            case SignalKind("sampled"):
                return teacher_sampled(hidden, head, micro.targets_N, *options)
        return states
