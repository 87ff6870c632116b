"""A teacher in the same process: one forward pass of each of its models, without gradients, per micro-batch."""

from __future__ import annotations

from dataclasses import replace

import torch

from tutelage.errors import UserError
from tutelage.fused import DEFAULT_BUDGET_BYTES, teacher_sampled, teacher_topk
from tutelage.teacher.base import SignalKind, TeacherModel, parse_signal
from tutelage.types import HiddenStates, LMHead, MicroBatch, Signal


class LocalTeacher:
    """Scores sequences with a loaded model, or with several as one.

    Args:
        model: the teacher; its parameters need no gradients.
        signal: what it answers with: "hidden", "topk(64)" or "sampled".
        temperature: the loss's, of a top-k or sampled signal; hidden states are tempered in the loss.
        budget_bytes: of the vocabulary-wide buffers of a top-k or sampled signal.
        own_temperature: what the teacher's logits are divided by in place of `temperature`, which the loss goes on to divide
            the student's by; None: the same.

    Raises:
        UserError: the signal does not parse, or a temperature is not above 0.
    """

    def __init__(
        self,
        model: TeacherModel,
        signal: SignalKind | str = "hidden",
        temperature: float = 1.0,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
        own_temperature: float | None = None,
    ) -> None:
        if own_temperature is not None and not own_temperature > 0:
            raise UserError(f"teacher temperature {own_temperature} must be above 0; 1 leaves the teacher as it is")
        self.model = model
        self.signal = parse_signal(signal)
        self.temperature = temperature
        self.budget_bytes = budget_bytes
        self.own_temperature = own_temperature

    @torch.no_grad()
    def hidden_states(self, micro: MicroBatch) -> HiddenStates:
        """The teacher's hidden states at the positions that predict the completion tokens."""
        head = self.model.head
        if self.own_temperature is not None:
            head = scaled(head, self.temperature / self.own_temperature)
        return HiddenStates(self.model.hidden(micro), head)

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


def scaled(head: LMHead, factor: float) -> LMHead:
    """The head whose logits are `factor` times those of `head`: f c tanh(s z / c) = (f c) tanh(f s z / (f c))."""
    softcap = None if head.softcap is None else head.softcap * factor
    return replace(head, scale=head.scale * factor, softcap=softcap)
