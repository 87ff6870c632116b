"""The baselines of the paper as presets: each is a setting of one machine, never a code path of its own.

Source: Agarwal et al., ICLR 2024 (arXiv 2306.13649), sections 2 and 3, and the works they name there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tutelage import divergences
from tutelage.divergences import Divergence
from tutelage.errors import UserError, nearest
from tutelage.train.config import Config


@dataclass(frozen=True)
class Method:
    """What a step trains on and how it is marked.

    Attributes:
        divergence: spelling of the token-level divergence; None for the negative log-likelihood of the tokens.
        student_data_fraction: lambda of the paper's Algorithm 1.
        fixed_data: who wrote the sequences that are not the student's.
        summary: one line for help texts.
    """

    divergence: str | None
    student_data_fraction: float
    fixed_data: Literal["dataset", "teacher"]
    summary: str


METHODS: dict[str, Method] = {
    "sft": Method(None, 0.0, "dataset", "negative log-likelihood of the ground truth, no teacher"),
    "seqkd": Method(None, 0.0, "teacher", "negative log-likelihood of the teacher's sequences (Kim & Rush 2016)"),
    "supervised_kd": Method("forward_kl", 0.0, "dataset", "forward KL on fixed sequences (Sanh et al. 2019)"),
    "on_policy_kd": Method("forward_kl", 1.0, "dataset", "forward KL on the student's own sequences"),
    "imitkd": Method(
        "forward_kl", 0.5, "dataset", "forward KL, half the steps on the student's sequences (Lin et al. 2020)"
    ),
    "f_distill": Method("total_variation", 0.5, "dataset", "total variation, half and half (Wen et al. 2023)"),
    "gkd": Method("jsd(0.5)", 1.0, "dataset", "any divergence, any fraction (the paper's method)"),
}


@dataclass(frozen=True)
class Objective:
    """A configuration's method with everything filled in.

    Attributes:
        divergence: the divergence, or None for negative log-likelihood.
        student_data_fraction: lambda.
        fixed_data: who writes the rest.
    """

    divergence: Divergence | None
    student_data_fraction: float
    fixed_data: Literal["dataset", "teacher"]

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher scores or writes anything in this run."""
        return self.divergence is not None or self.fixed_data == "teacher"


def resolve(config: Config) -> Objective:
    """The objective of a configuration.

    Raises:
        UserError: unknown method, an option that contradicts the method, or a method that needs a teacher without one.
    """
    if config.method not in METHODS:
        raise UserError(f"unknown method {config.method!r}: {nearest(config.method, METHODS)}")
    preset = METHODS[config.method]
    if preset.divergence is None and config.divergence is not None:
        raise UserError(
            f"method={config.method} trains on the negative log-likelihood and takes no divergence, but "
            f"divergence={config.divergence} was given; drop it, or use method=supervised_kd or gkd"
        )
    if preset.divergence is None and config.student_data_fraction:
        raise UserError(
            f"method={config.method} has no use for student_data_fraction={config.student_data_fraction}: maximising the "
            "likelihood of the student's own samples teaches nothing; use method=gkd"
        )
    spelling = config.divergence or preset.divergence
    fraction = preset.student_data_fraction if config.student_data_fraction is None else config.student_data_fraction
    objective = Objective(
        divergence=None if spelling is None else divergences.parse(spelling),
        student_data_fraction=fraction,
        fixed_data=config.fixed_data or preset.fixed_data,
    )
    if objective.needs_teacher and config.teacher is None:
        raise UserError(f"method={config.method} needs a teacher: set --teacher to a folder or a hub name")
    return objective
