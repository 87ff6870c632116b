"""Adds up a step's statistics over its micro-batches; touches the host once a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tutelage.models.student import StudentOutput
from tutelage.types import Rollout


class Tally:
    """The statistics of one optimiser step.

    Args:
        rollouts: the step's sequences.
    """

    def __init__(self, rollouts: Sequence[Rollout]) -> None:
        self.rollouts = rollouts
        self._sums: dict[str, Tensor] = {}

    def add(self, output: StudentOutput) -> None:
        """Takes a micro-batch."""
        sums = {name: value.sum() for name, value in vars(output.stats).items() if value is not None}
        for name, value in {**sums, "loss": output.loss.detach()}.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    @property
    def loss(self) -> Tensor:
        """The step's loss so far: 0-d, on the device."""
        return self._sums["loss"]

    def record(self, grad_norm: Tensor) -> dict[str, Any]:
        """The step's metrics: the loss, token means of the statistics (nats; agreement as a share), lengths, shares.

        "finite" says whether loss and gradient norm are.
        """
        tokens = sum(len(r.completion_ids) for r in self.rollouts)
        names = list(self._sums)
        numbers = torch.stack([self._sums[n].double() for n in names] + [grad_norm.double()]).tolist()
        values = dict(zip([*names, "grad_norm"], numbers, strict=True))
        loss, norm = values.pop("loss"), values.pop("grad_norm")
        reasons = Counter(r.finish_reason for r in self.rollouts)
        count = len(self.rollouts)
        return {
            "loss": loss,
            **{name: total / tokens for name, total in values.items()},
            "grad_norm": norm,
            "completion_length": tokens / count,
            "finish": {reason: reasons[reason] / count for reason in ("stop", "length", "data")},
            "student_share": sum(r.source == "student" for r in self.rollouts) / count,
            "tokens": tokens,
            "sequences": count,
            "finite": bool(torch.isfinite(torch.tensor([loss, norm])).all()),
        }
