"""What a teacher is, and which signals it can be asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from tutelage import estimators
from tutelage.divergences import Divergence
from tutelage.errors import UserError
from tutelage.types import LMHead, MicroBatch, Signal


class TeacherScorer(Protocol):
    """Marks the tokens of a micro-batch with a typed signal; the type decides which divergences are legal."""

    def score(self, micro: MicroBatch) -> Signal:
        """The signal for the completion tokens, in the order of `micro.targets_N`."""
        ...


class TeacherModel(Protocol):
    """What marks are made of: a `models.language_model.LanguageModel`, or several as one (`teacher.mixture.TeacherMixture`).

    Attributes:
        module: holds the parameters, and whether dropout is on.
        vocab_size: tokens of the vocabulary that take part in the softmax.
    """

    module: Any
    vocab_size: int

    @property
    def head(self) -> LMHead:
        """Turns hidden states into logits."""
        ...

    def hidden(self, micro: MicroBatch) -> Tensor:
        """Hidden states at the positions that predict the completion tokens: [N, H]."""
        ...


@dataclass(frozen=True)
class SignalKind:
    """What a teacher answers with.

    Attributes:
        name: "hidden" (`types.HiddenStates`), "topk" (`types.TopK`) or "sampled" (`types.SampledToken`).
        k: tokens of a top-k signal; None for the others.
    """

    name: Literal["hidden", "topk", "sampled"]
    k: int | None = None

    def __str__(self) -> str:
        return self.name if self.k is None else f"{self.name}({self.k})"

    def check(self, divergence: Divergence) -> None:
        """Raises UserError when this signal does not support `divergence`."""
        if self.name == "sampled":
            estimators.as_loss(divergence)


def parse_signal(spelling: str | SignalKind) -> SignalKind:
    """The signal of a spelling: "hidden", "topk(64)" or "sampled"; `str` of the result spells the same.

    Raises:
        UserError: any other spelling, or k below 1.
    """
    if isinstance(spelling, SignalKind):
        return spelling
    match spelling.strip():
        case "hidden":
            return SignalKind("hidden")
        case "sampled":
            return SignalKind("sampled")
    topk = re.fullmatch(r"\s*topk\s*\(\s*(\d+)\s*\)\s*", spelling)
    if topk is None or int(topk[1]) < 1:
        raise UserError(
            f"unknown teacher signal {spelling!r}: write hidden (exact), topk(64) (the 64 most probable tokens and the mass of the "
            "others; at least 1) or sampled (the probability of each sampled token)"
        )
    return SignalKind("topk", int(topk[1]))
