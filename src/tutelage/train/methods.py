"""The baselines of the paper as presets: each is a setting of one machine, never a code path of its own.

Source: Agarwal et al., ICLR 2024 (arXiv 2306.13649), sections 2 and 3, and the works they name there; later ones name their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from tutelage import divergences
from tutelage.divergences import Divergence
from tutelage.errors import UserError, nearest
from tutelage.rewards.load import is_scorer
from tutelage.section import Section
from tutelage.teacher.base import parse_signal
from tutelage.train.config import Config, Recipe


class IdleOptionError(UserError):
    """An option that was set to something and that the run would not look at.

    Attributes:
        option: its dotted name.
    """

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


@dataclass(frozen=True)
class Method:
    """What a step trains on and how it is marked.

    Attributes:
        divergence: spelling of the token-level divergence; None for the negative log-likelihood of the tokens.
        student_data_fraction: lambda of the paper's Algorithm 1.
        fixed_data: who wrote the sequences that are not the student's.
        summary: one line for help texts.
        needs_reward: whether it is nothing without `rl.reward`, which every method on the student's own sequences may have.
        replay: how many of the student's newest sequences are kept and drawn from again.
        teacher_share: of the teacher in the distribution that tokens of the student's sequences are drawn from.
        importance_clip: largest importance weight of sequences that the current student did not write alone; None: all alike.
        sequence_level: whether the gradient through the student's sampling is followed too.
    """

    divergence: str | None
    student_data_fraction: float
    fixed_data: Literal["dataset", "teacher"]
    summary: str
    needs_reward: bool = False
    replay: int = 0
    teacher_share: float = 0.0
    importance_clip: float | None = None
    sequence_level: bool = False


METHODS: dict[str, Method] = {
    "sft": Method(None, 0.0, "dataset", "negative log-likelihood of the ground truth, no teacher"),
    "seqkd": Method(None, 0.0, "teacher", "negative log-likelihood of the teacher's sequences (Kim & Rush 2016)"),
    "supervised_kd": Method("forward_kl", 0.0, "dataset", "forward KL on fixed sequences (Sanh et al. 2019)"),
    "on_policy_kd": Method("forward_kl", 1.0, "dataset", "forward KL on the student's own sequences"),
    "imitkd": Method(
        "forward_kl", 0.5, "dataset", "forward KL, half the steps on the student's sequences (Lin et al. 2020)"
    ),
    "f_distill": Method("total_variation", 0.5, "dataset", "total variation, half and half (Wen et al. 2023)"),
    # Ko et al. 2024 (arXiv 2402.03898) raise the fraction from 0 whenever the validation loss rises; here it is fixed.
    "distillm": Method(
        "skew_forward_kl(0.1)",
        0.5,
        "dataset",
        "skewed forward KL, half the steps on the student's sequences, new or replayed (Ko et al. 2024)",
        replay=1000,
    ),
    # Gu et al. 2024 (arXiv 2306.08543) also train on a pre-training corpus, clip ratios of policies as PPO does, divide a token's
    # return by the number of tokens behind it, and weigh by the ratio of the token alone. The clip of 2 is this package's choice.
    "minillm": Method(
        "reverse_kl",
        1.0,
        "dataset",
        "reverse KL of whole sequences, written with the teacher's help; without the paper's language-modelling loss and "
        "PPO clipping (Gu et al. 2024)",
        teacher_share=0.2,
        importance_clip=2.0,
        sequence_level=True,
    ),
    "gkd": Method("jsd(0.5)", 1.0, "dataset", "any divergence, any fraction (the paper's method)"),
    "rl_gkd": Method(
        "jsd(0.9)", 1.0, "dataset", "a reward beside the divergence (the paper's Eq. 5)", needs_reward=True
    ),
}


@dataclass(frozen=True)
class Objective:
    """A configuration's method with everything filled in.

    Attributes:
        divergence: the divergence; None for negative log-likelihood, or for a reward alone.
        student_data_fraction: lambda.
        fixed_data: who writes the rest.
        replay: capacity of the buffer of the student's earlier sequences; 0: none.
        teacher_share: of the teacher in the distribution that the student's sequences are drawn from; 0: none.
        importance_clip: largest importance weight; None: no sequence is weighed.
        sequence_level: whether the gradient through the student's sampling is followed too.
    """

    divergence: Divergence | None
    student_data_fraction: float
    fixed_data: Literal["dataset", "teacher"]
    replay: int = 0
    teacher_share: float = 0.0
    importance_clip: float | None = None
    sequence_level: bool = False

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher scores or writes anything in this run."""
        return self.divergence is not None or self.fixed_data == "teacher"


def resolve(config: Config) -> Objective:
    """The objective of a configuration.

    Raises:
        IdleOptionError: an option would change nothing.
        UserError: unknown method, an option that contradicts the method, or a method that needs a teacher without one.
    """
    if config.method not in METHODS:
        raise UserError(f"unknown method {config.method!r}: {nearest(config.method, METHODS)}")
    preset = METHODS[config.method]
    if preset.divergence is None and config.divergence is not None:
        raise IdleOptionError(
            "divergence",
            f"method={config.method} trains on the negative log-likelihood and takes no divergence, but "
            f"divergence={config.divergence} was given; drop it, or use method=supervised_kd or gkd",
        )
    if preset.divergence is None and config.student_data_fraction:
        raise IdleOptionError(
            "student_data_fraction",
            f"method={config.method} has no use for student_data_fraction={config.student_data_fraction}: maximising the "
            "likelihood of the student's own samples teaches nothing; use method=gkd",
        )
    spelling = config.divergence or preset.divergence
    if is_reward_alone(config):
        spelling = None
    fraction = preset.student_data_fraction if config.student_data_fraction is None else config.student_data_fraction
    objective = Objective(
        divergence=None if spelling is None else divergences.parse(spelling),
        student_data_fraction=fraction,
        fixed_data=config.fixed_data or preset.fixed_data,
    )
    if fraction > 0:
        objective = _with_own_sequences(objective, config)
    if objective.needs_teacher and config.teacher is None:
        raise UserError(f"method={config.method} needs a teacher: set --teacher to a folder or a hub name")
    if objective.divergence is not None:
        parse_signal(config.teacher_signal).check(objective.divergence)
    _check_reward(config, objective)
    _check_replay(config, objective)
    _check_sequence_level(config, objective)
    _refuse_idle_options(config, objective)
    return objective


def _with_own_sequences(objective: Objective, config: Config) -> Objective:
    """The objective with what says how the student's own sequences are written, weighed and followed."""
    preset, chosen, followed = METHODS[config.method], config.rollout, config.loss.sequence_level
    replay = preset.replay if chosen.replay is None else chosen.replay
    share = preset.teacher_share if chosen.teacher_share is None else chosen.teacher_share
    clip = preset.importance_clip if chosen.importance_clip is None else chosen.importance_clip
    trains_on_divergence = objective.divergence is not None and (config.rl.reward is None or config.rl.alpha > 0)
    return replace(
        objective,
        replay=replay,
        teacher_share=share,
        importance_clip=clip if replay or share else None,
        sequence_level=trains_on_divergence and (preset.sequence_level if followed is None else followed),
    )


def is_reward_alone(config: Recipe) -> bool:
    """Whether nothing but a reward is looked at. With rl.alpha 0 a teacher may still be there, to measure the divergence from."""
    return config.rl.reward is not None and config.rl.alpha == 0 and config.teacher is None


def _check_reward(config: Config, objective: Objective) -> None:
    """Raises UserError where samples or rewards do not fit what the steps train on, or are measured on."""
    fraction, samples = objective.student_data_fraction, config.rollout.samples_per_prompt
    if METHODS[config.method].needs_reward and config.rl.reward is None:
        raise UserError(
            f"method={config.method} needs a reward: set rl.reward (accuracy, rouge2, bleu, scorer:FOLDER, "
            "package.module:function), or use method=gkd"
        )
    if samples > 1 and fraction != 1:
        raise UserError(
            f"rollout.samples_per_prompt={samples} with student_data_fraction={fraction}: fixed sequences would repeat themselves; "
            "set student_data_fraction=1, or drop rollout.samples_per_prompt"
        )
    if config.rl.reward is None:
        return
    only_measured = config.rl.alpha == 1
    if fraction != 1:
        reason = "a reward is measured on" if only_measured else "a policy gradient is of"
        raise UserError(
            f"rl.reward={config.rl.reward} with student_data_fraction={fraction}: {reason} the student's own sequences; set "
            "student_data_fraction=1 (method=rl_gkd has it), or drop rl.reward"
        )
    if only_measured:
        return
    if objective.teacher_share:
        raise UserError(
            f"rl.reward={config.rl.reward} with rollout.teacher_share={objective.teacher_share}: a policy gradient is of sequences "
            "that the current student wrote; set rollout.teacher_share=0, or drop rl.reward"
        )
    if config.rl.baseline == "group" and samples == 1:
        raise UserError(
            "rl.baseline=group with rollout.samples_per_prompt=1: a sequence is its own baseline, so that every advantage is 0; "
            "set rollout.samples_per_prompt=2 or more, or rl.baseline=leave_one_out"
        )
    if config.rl.baseline == "leave_one_out" and config.train.batch_size == 1:
        raise UserError(
            "rl.baseline=leave_one_out with train.batch_size=1: there is no other sequence to compare with; raise "
            "train.batch_size, or set rl.baseline=none"
        )


def _check_replay(config: Config, objective: Objective) -> None:
    """Raises UserError where the student's earlier sequences do not fit the objective."""
    replay = objective.replay
    if not replay:
        return
    if config.rl.reward is not None:
        reason = "a policy gradient is of sequences that the current student wrote"
        if config.rl.alpha == 1:
            reason = "a reward is measured on the prompts of the step, and earlier sequences have others"
        raise UserError(
            f"rl.reward={config.rl.reward} with rollout.replay={replay}: {reason}; set rollout.replay=0, or drop rl.reward"
        )
    if objective.divergence is not None and parse_signal(config.teacher_signal).name == "sampled":
        raise UserError(
            f"teacher_signal=sampled with rollout.replay={replay}: a sampled signal is right only on tokens of the current student; "
            "use the signal hidden or topk(64), which hold on any sequence, or set rollout.replay=0"
        )
    if replay < config.train.batch_size:
        raise UserError(
            f"rollout.replay={replay} is less than the train.batch_size={config.train.batch_size} sequences of a step; make it "
            "that many or more, or 0"
        )


def _check_sequence_level(config: Config, objective: Objective) -> None:
    """Raises UserError where the gradient through the student's sampling could not be right."""
    if not objective.sequence_level:
        return
    if parse_signal(config.teacher_signal).name == "sampled":
        raise UserError(
            "loss.sequence_level with teacher_signal=sampled: it needs the value of the divergence at every token; use the signal "
            "hidden or topk(64), or set loss.sequence_level=False"
        )
    if objective.importance_clip is None and (objective.replay or objective.teacher_share):
        raise UserError(
            f"loss.sequence_level with rollout.replay={objective.replay}, rollout.teacher_share={objective.teacher_share}: the "
            "gradient through sampling is of the current student's own distribution, which only importance weights restore; set "
            "rollout.importance_clip, such as 2, or set both to 0"
        )


# Whether nothing looks at them, the options, why and what to do.
_Idle = tuple[bool, tuple[str, ...], str]

_OF_OWN_SEQUENCES = (
    *(f"rollout.{name}" for name in ("temperature", "top_p", "top_k", "replay", "teacher_share", "importance_clip")),
    "loss.sequence_level",
)
# In an order in which they can be dropped one by one: weights need several teachers, and these a first.
_OF_TEACHERS = ("teacher_weights", "other_teachers", "teacher", "teacher_model")
_OF_STUDENT = ("student", *(f"student_model.{name}" for name in ("gguf_file", "tokenizer", "revision", "quantization")))


def _refuse_idle_options(config: Config, objective: Objective) -> None:
    """Raises IdleOptionError for an option that was set to something and that this run would not look at.

    The default itself may be given: the configuration that a run saves names every option.
    """
    idle = (*_idle_options(config, objective), *_idle_reward_options(config), _idle_student_options(config))
    for unused, options, reason in idle:
        for option in options:
            value, default = _value_and_default(config, option)
            if unused and value != default:
                raise IdleOptionError(option, f"{option}={value} has no effect: {reason}")


def _idle_options(config: Config, objective: Objective) -> tuple[_Idle, ...]:
    fraction = objective.student_data_fraction
    teacher_writes = objective.fixed_data == "teacher" and fraction < 1
    thins_teacher = config.student_model.init == "teacher_layers"
    by_likelihood = (
        f"method={config.method} trains on the negative log-likelihood; drop it, or use method=supervised_kd or gkd"
    )
    without_teacher = f"method={config.method} has no teacher; drop it, or use method=supervised_kd, seqkd or gkd"
    if is_reward_alone(config):
        by_likelihood = without_teacher = (
            "with rl.alpha 0 and no teacher a run trains on the reward alone; drop it, raise rl.alpha, or set --teacher to "
            "measure the divergence"
        )
    return (
        (
            objective.divergence is None,
            ("divergence", "loss.temperature", "loss.teacher_temperature", "loss.sequence_level", "teacher_signal"),
            by_likelihood,
        ),
        (
            config.train.optimizer != "muon",
            ("train.matrix_learning_rate",),
            f"train.optimizer={config.train.optimizer} has train.learning_rate for all weights; drop it, or set "
            "train.optimizer=muon",
        ),
        (
            fraction == 1,
            ("task.fixed_examples",),
            "every sequence is the student's own; drop it, or lower student_data_fraction",
        ),
        (not objective.needs_teacher and not thins_teacher, _OF_TEACHERS, without_teacher),
        (
            fraction == 0,
            _OF_OWN_SEQUENCES,
            "with student_data_fraction 0 the student writes no training sequences, and evaluations follow eval.temperatures; "
            "drop it, or raise student_data_fraction",
        ),
        (
            objective.replay == 0,
            ("rollout.replay_schedule",),
            "no earlier sequences are kept; drop it, or set rollout.replay, or method=distillm",
        ),
        (
            objective.replay == 0 and objective.teacher_share == 0,
            ("rollout.importance_clip",),
            "the current student writes all of its sequences alone; drop it, or set rollout.replay or rollout.teacher_share",
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


def _idle_reward_options(config: Config) -> tuple[_Idle, ...]:
    reward, alpha = config.rl.reward, config.rl.alpha
    return (
        (
            reward is None,
            ("rl.alpha", "rl.baseline", "rl.scorer_label"),
            "there is no reward; drop it, or set rl.reward",
        ),
        (
            not is_scorer(reward),
            ("rl.scorer_label",),
            f"rl.reward={reward} has no labels; drop it, or set rl.reward=scorer:FOLDER",
        ),
        (
            reward is not None and alpha == 1,
            ("rl.baseline",),
            "with rl.alpha 1 the reward is measured and not trained on; drop it, or lower rl.alpha",
        ),
        (
            reward is not None and alpha == 0,
            ("loss.normalisation", "loss.prefix_tokens", "loss.sequence_level"),
            "with rl.alpha 0 the reward of the whole sequence is trained on, not tokens; drop it, or raise rl.alpha",
        ),
    )


def _idle_student_options(config: Config) -> _Idle:
    reason = (
        "student_model.init=teacher_layers makes the student of the teacher's layers; drop it (give None where a recipe sets it), "
        "or set student_model.init=pretrained"
    )
    return config.student_model.init == "teacher_layers", _OF_STUDENT, reason


def _value_and_default(config: Config, option: str) -> tuple[Any, Any]:
    """Of an option by its dotted name."""
    section: Section = config
    *outer, name = option.split(".")
    for inner in outer:
        section = getattr(section, inner)
    return getattr(section, name), type(section).model_fields[name].default
