"""What each loss does to one tile of logits: values, the derivative in the logits, statistics.

A loss is a sum over tokens of a function of the student's logits; `chunked` walks over the tokens and projects.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from tutelage.divergences import Distribution, Divergence, expect
from tutelage.fused.base import finish_logits, project_chunks
from tutelage.types import LMHead


class Tile(NamedTuple):
    """Results of t tokens."""

    values: Tensor  # [t]
    logit_grad: Tensor | None  # [t, V]: derivative of each token's value in its own logits (after temperature)
    stats: list[Tensor]  # each [t]


class TokenLoss(Protocol):
    """A loss that is a sum over tokens of a function of the student's logits."""

    stat_names: ClassVar[tuple[str, ...]]  # fields of TokenStats, the values first

    @property
    def temperature(self) -> float:
        """Divides the student's logits."""

    @property
    def bytes_per_token(self) -> int:
        """Size of one row of `signal`."""

    def select(self, index: Tensor) -> Self:
        """The loss of these tokens only."""

    def signals(self, chunks: Sequence[slice]) -> Iterator[Tensor]:
        """What the student is compared with on each chunk, one row per token; a chunk's may overwrite the one before."""

    def tile(self, logits: Tensor, signal: Tensor, want_grad: bool, want_stats: bool) -> Tile:
        """Values and derivative at the student's logits [t, V], given the rows of `signal` for the same tokens.

        Both may be overwritten.
        """


@dataclass(frozen=True)
class DivergenceLoss:
    """A divergence from the distributions of a teacher whose hidden states and head are at hand."""

    stat_names: ClassVar[tuple[str, ...]] = (
        "divergence",
        "student_entropy",
        "agreement",
        "forward_kl",
        "reverse_kl",
        "teacher_entropy",
    )
    divergence: Divergence
    teacher_hidden: Tensor
    teacher_head: LMHead
    temperature: float

    @property
    def bytes_per_token(self) -> int:
        """One row of the teacher's projected logits."""
        return self.teacher_head.vocab_size * self.teacher_hidden.element_size()

    def select(self, index: Tensor) -> Self:
        """The loss of these tokens only."""
        return replace(self, teacher_hidden=self.teacher_hidden[index])

    def signals(self, chunks: Sequence[slice]) -> Iterator[Tensor]:
        """The teacher's projected logits [c, V]."""
        return project_chunks(self.teacher_hidden, self.teacher_head, chunks)

    def tile(self, logits: Tensor, signal: Tensor, want_grad: bool, want_stats: bool) -> Tile:
        """Values, derivative and statistics of [t, V] logits."""
        teacher_logits = finish_logits(signal, self.teacher_head, self.temperature).to(logits.dtype)
        teacher, student = Distribution.of_logits_(teacher_logits), Distribution.of_logits_(logits)
        logit_grad = None
        if want_grad:
            values, logit_grad = self.divergence.score(teacher, student)
            logit_grad.addcmul_(student.p, logit_grad.sum(-1, keepdim=True), value=-1)
        else:
            values = self.divergence(teacher.logp, student.logp)
        return Tile(values, logit_grad, pair_stats(teacher, student) if want_stats else [])


def pair_stats(teacher: Distribution, student: Distribution) -> list[Tensor]:
    """Entropy of the student, agreement, forward and reverse KL, entropy of the teacher: each [t]."""
    log_ratio = teacher.logp - student.logp
    return [
        -expect(student.p, student.logp),
        _agreement(teacher.logp, student.logp),
        expect(teacher.p, log_ratio),
        -expect(student.p, log_ratio),
        -expect(teacher.p, teacher.logp),
    ]


def _agreement(teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
    """1 where a most likely token of the student is also one of the teacher's, else 0; [t, V] twice -> [t]."""
    not_teachers = teacher_logp != teacher_logp.amax(-1, keepdim=True)
    student_best_there = student_logp.masked_fill(not_teachers, -math.inf).amax(-1)
    return (student_best_there == student_logp.amax(-1)).to(student_logp.dtype)


@dataclass(frozen=True)
class NLLLoss:
    """The negative log-likelihood of target tokens."""

    stat_names: ClassVar[tuple[str, ...]] = ("divergence", "student_entropy", "agreement")
    targets: Tensor
    temperature: float = 1.0
    bytes_per_token: int = 8

    def select(self, index: Tensor) -> Self:
        """The loss of these tokens only."""
        return replace(self, targets=self.targets[index])

    def signals(self, chunks: Sequence[slice]) -> Iterator[Tensor]:
        """The targets [c, 1]."""
        return (self.targets[rows, None] for rows in chunks)

    def tile(self, logits: Tensor, signal: Tensor, want_grad: bool, want_stats: bool) -> Tile:
        """Values, derivative and statistics of [t, V] logits."""
        student = Distribution.of_logits_(logits)
        target_logp = student.logp.gather(1, signal)
        stats = []
        if want_stats:
            is_max = target_logp == student.logp.amax(-1, keepdim=True)
            stats = [-expect(student.p, student.logp), is_max.squeeze(1).to(logits.dtype)]
        logit_grad = None
        if want_grad:
            logit_grad = student.p.scatter_add_(1, signal, torch.full_like(target_logp, -1.0))
        return Tile(-target_logp.squeeze(1), logit_grad, stats)
