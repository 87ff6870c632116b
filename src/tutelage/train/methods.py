"""The baselines of the paper as presets: each is a setting of one machine, never a code path of its own.

Source: Agarwal et al., ICLR 2024 (arXiv 2306.13649), sections 2 and 3, and the works they name there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tutelage import divergences
from tutelage.divergences import Divergence
from tutelage.errors import UserError, nearest
from tutelage.section import Section
from tutelage.teacher.base import parse_signal
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
        UserError: unknown method, an option that contradicts the method or would change nothing, or a method that needs a
            teacher without one.
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
    if objective.divergence is not None:
        parse_signal(config.teacher_signal).check(objective.divergence)
    _refuse_idle_options(config, objective)
    return objective


def _refuse_idle_options(config: Config, objective: Objective) -> None:
    """Raises UserError for an option that was set to something and that this run would not look at.

    The default itself may be given: the configuration that a run saves names every option.
    """
    fraction = objective.student_data_fraction
    teacher_writes = objective.fixed_data == "teacher" and fraction < 1
    thins_teacher = config.student_model.init == "teacher_layers"
    # (whether nothing looks at them, the options, why and what to do)
    idle: tuple[tuple[bool, tuple[str, ...], str], ...] = (
        (
            objective.divergence is None,
            ("loss.temperature", "teacher_signal"),
            f"method={config.method} trains on the negative log-likelihood; drop it, or use method=supervised_kd or gkd",
        ),
        (
            config.train.optimizer != "muon",
            ("train.matrix_learning_rate",),
            f"train.optimizer={config.train.optimizer} has train.learning_rate for all weights; drop it, or set "
            "train.optimizer=muon",
        ),
        (
            not objective.needs_teacher and not thins_teacher,
            ("teacher", "teacher_model"),
            f"method={config.method} has no teacher; drop it, or use method=supervised_kd, seqkd or gkd",
        ),
        (
            fraction == 0,
            ("rollout.temperature", "rollout.top_p", "rollout.top_k"),
            "with student_data_fraction 0 the student writes no training sequences, and evaluations follow eval.temperatures; "
            "drop it, or raise student_data_fraction",
        ),
        (
            fraction == 1,
            ("fixed_data",),
            "with student_data_fraction 1 the student writes every training sequence; drop it, or lower "
            "student_data_fraction",
        ),
        (
            not teacher_writes,
            ("rollout.teacher_temperature",),
            "the teacher writes no training sequences; drop it, or use method=seqkd, or fixed_data=teacher",
        ),
    )
    for unused, options, reason in idle:
        for option in options:
            value, default = _value_and_default(config, option)
            if unused and value != default:
                raise UserError(f"{option}={value} has no effect: {reason}")


def _value_and_default(config: Config, option: str) -> tuple[Any, Any]:
    """Of an option by its dotted name."""
    section: Section = config
    *outer, name = option.split(".")
    for inner in outer:
        section = getattr(section, inner)
    return getattr(section, name), type(section).model_fields[name].default
