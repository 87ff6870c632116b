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
        loss: the weighted sum over the micro-batch's tokens, policy gradient included, a scalar with gradient.
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

        With policy weights, the negative log-likelihood weighted by them is added (the paper's Eq. 5, minimised).

        Raises:
            UserError: the signal does not support the divergence, or is of sampled tokens that the student did not write.
        """
        hidden_NH, head = self.model.hidden(micro), self.model.head
        if self.divergence is None:
            # Both sums are over the same log-likelihoods: their weights add up.
            policy = micro.policy_weights_N
            loss, stats = linear_nll(
                hidden_NH,
                head,
                micro.targets_N,
                micro.weights_N if policy is None else micro.weights_N + policy,
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
            head,
            signal,
            micro.targets_N,
            self.divergence,
            micro.weights_N,
            temperature=self.temperature,
            budget_bytes=self.budget_bytes,
            implementation=self.implementation,
        )
        if micro.policy_weights_N is not None:
            # A projection of its own: this term is at temperature 1, whatever the divergence's.
            loss = loss + linear_nll(
                hidden_NH,
                head,
                micro.targets_N,
                micro.policy_weights_N,
                budget_bytes=self.budget_bytes,
                implementation=self.implementation,
            )
        return StudentOutput(loss, stats)
