"""The student as a module whose `forward` returns the loss.

The loss is computed inside `forward`, heads included, so that hooks of a distributed wrapper fire around all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from tutelage import estimators
from tutelage.divergences import Divergence
from tutelage.fused import DEFAULT_BUDGET_BYTES, Implementation, TokenStats, divergence_loss, linear_nll
from tutelage.models.language_model import LanguageModel
from tutelage.types import MicroBatch, SampledToken, Signal


@dataclass(frozen=True)
class StudentOutput:
    """What a forward pass gives.

    Attributes:
        loss: the weighted sum over the micro-batch's tokens, a scalar with gradient.
        stats: detached per-token statistics, [N] each.
    """

    loss: Tensor
    stats: TokenStats


class Student(nn.Module):
    """The student with its objective.

    Args:
        model: the student, taken apart.
        divergence: None for the negative log-likelihood of the tokens.
        temperature: divides both models' logits in the divergence.
        budget_bytes: of the vocabulary-wide buffers.
        implementation: of the loss: see `tutelage.fused.linear_divergence`.
    """

    def __init__(
        self,
        model: LanguageModel,
        divergence: Divergence | None,
        temperature: float = 1.0,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
        implementation: Implementation = "auto",
    ) -> None:
        super().__init__()
        self.module = model.module
        self.model = model
        self.divergence = divergence
        self.temperature = temperature
        self.budget_bytes = budget_bytes
        self.implementation = implementation

    def forward(self, micro: MicroBatch, signal: Signal | None) -> StudentOutput:
        """The weighted divergence from the teacher's signal, or the weighted negative log-likelihood without one.

        Raises:
            UserError: the signal does not support the divergence, or is of sampled tokens that the student did not write.
        """
        hidden_NH = self.model.hidden(micro)
        if self.divergence is None:
            loss, stats = linear_nll(
                hidden_NH,
                self.model.head,
                micro.targets_N,
                micro.weights_N,
                budget_bytes=self.budget_bytes,
                return_stats=True,
                implementation=self.implementation,
            )
            return StudentOutput(loss, stats)
        assert signal is not None, "a divergence needs the teacher's signal"
        if isinstance(signal, SampledToken):
            estimators.check_rollouts(micro.rollouts)
        loss, stats = divergence_loss(
            hidden_NH,
            self.model.head,
            signal,
            micro.targets_N,
            self.divergence,
            micro.weights_N,
            temperature=self.temperature,
            budget_bytes=self.budget_bytes,
            implementation=self.implementation,
        )
        return StudentOutput(loss, stats)
