"""Sequences that student and teacher write together: every token is drawn from a mixture of the two.

Source: Gu et al., MiniLLM, ICLR 2024 (arXiv 2306.08543), section 2.2, "teacher-mixed sampling".
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from tutelage.divergences import log_mixture


class Stepper(Protocol):
    """Decodes a batch of rows token by token, with a cache of its own."""

    def first(self) -> Tensor:
        """Logits of the first token of every row: [B, V]."""
        ...

    def next(self, last_B1: Tensor) -> Tensor:
        """Logits behind one more token of every row: [B, V]."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these."""
        ...


class Mixed:
    """Two models that read the same rows; steps like one.

    Its logits are the mixture's log-probabilities, log((1 - share) q + share p), of temperature already: they are to be
    drawn from at temperature 1.

    Args:
        student: q.
        teacher: p, over the same vocabulary (`models.vocabulary.agree`).
        share: of the teacher in each token, inside (0, 1).
        temperature: divides both models' logits; positive.
    """

    def __init__(self, student: Stepper, teacher: Stepper, share: float, temperature: float) -> None:
        if not (temperature > 0 and 0 < share < 1):
            raise ValueError(
                f"a mixture needs a temperature above 0 and a share inside (0, 1), not {temperature} and {share}"
            )
        self.student, self.teacher, self.share, self.temperature = student, teacher, share, temperature

    def first(self) -> Tensor:
        """Log-probabilities of the first token: float32 [B, V]."""
        return self._mix(self.student.first(), self.teacher.first())

    def next(self, last_B1: Tensor) -> Tensor:
        """Log-probabilities behind one more token: float32 [B, V]."""
        return self._mix(self.student.next(last_B1), self.teacher.next(last_B1))

    def keep(self, rows: Tensor) -> None:
        """Finished rows leave both models' caches."""
        self.student.keep(rows)
        self.teacher.keep(rows)

    def _mix(self, student_BV: Tensor, teacher_BV: Tensor) -> Tensor:
        student_logp, teacher_logp = (
            (logits.float() / self.temperature).log_softmax(-1) for logits in (student_BV, teacher_BV)
        )
        return log_mixture(teacher_logp, student_logp, self.share)
