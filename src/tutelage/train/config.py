"""The configuration of a run: every key is a YAML key, a command-line option and an argument of `tutelage.distill`.

Each section belongs to one room of the package. Extra keys are errors. Conflicts raise when the configuration is
built, never in the middle of a run; what the presets of `methods.py` fill in is filled in before that.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tutelage import divergences
from tutelage.errors import UserError
from tutelage.fused import Implementation
from tutelage.models.options import ModelConfig, StudentConfig
from tutelage.rewards.options import RLConfig
from tutelage.section import Section
from tutelage.sources import ReplaySchedule
from tutelage.teacher.base import parse_signal

_Beta = Annotated[float, Field(ge=0, lt=1)]
_Temperature = Annotated[float, Field(ge=0)]


# Of TaskConfig: how much of the training split a run may see, and nothing of the other splits.
TRAINING_KEYS = ("train_fraction", "train_fraction_seed", "fixed_examples")


class TaskConfig(Section):
    """Which task, and where its data lies. Options a task does not know are errors."""

    name: str = "jsonl"
    """arithmetic, gsm8k, translation, summarization, instructions or jsonl."""
    data: str | None = None
    """File, folder or hub name of the data (NAME, NAME@REVISION); None: the task's public hub name, or none where it generates its
    own."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further options of the task: columns, sizes, prefix, few-shot examples, ..."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    """Limit of the prompt; None: the task's own. Longer prompts are an error, or left out with skip_long_prompts."""
    skip_long_prompts: bool = False
    """Leave out prompts over the limit (the count is reported) instead of stopping."""
    use_chat: Literal["auto", "always", "never"] = "auto"
    """Chat template: auto applies it to chat messages only, always wraps plain prompts too."""
    train_fraction: float = Field(1.0, gt=0, le=1)
    """Train on this share of the training examples, drawn by `seed`; at one seed, a smaller share is part of every larger one."""
    train_fraction_seed: int | None = Field(None, ge=0)
    """Draws the share instead of `seed`: runs of several seeds then see the same examples."""
    fixed_examples: int | None = Field(None, ge=1)
    """Only so many of the training examples, the first ones, have fixed sequences (ground truth or the teacher's), as the paper's
    Algorithm 1 has a set for these and one of prompts; the student writes to all. None: all have."""

    @field_validator("options")
    @classmethod
    def _check_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in options:
            if name in cls.model_fields and name != "max_prompt_tokens":  # which most tasks have too
                raise UserError(f"task.options.{name} is no option of a task; use task.{name}")
        return options


class RolloutConfig(Section):
    """How training sequences are generated."""

    temperature: float | None = Field(None, ge=0)
    """Sampling temperature of the student; None: the task's; 0: greedy."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus sampling; None: the task's."""
    top_k: int | None = Field(None, ge=0)
    """Sample among the k most probable tokens; 0: all; None: the task's."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Limit of a completion; None: the task's."""
    samples_per_prompt: int = Field(1, ge=1)
    """Sequences the student writes for each prompt of a step; divides train.batch_size, which counts sequences."""
    replay: int | None = Field(None, ge=0)
    """How many of the student's newest sequences are kept, to be drawn again in place of new ones; 0: none; None: the method's."""
    replay_schedule: ReplaySchedule | None = None
    """Share of the student's steps that draw kept sequences: rising from 0 to 1 over the run (None), falling from 1 to 0, or
    constant at 1/2."""
    teacher_share: float | None = Field(None, ge=0, lt=1)
    """Draw each token of the student's sequences from (1 - teacher_share) q + teacher_share p, q the student's distribution and p
    the teacher's, both at `temperature`; None: the method's."""
    importance_clip: float | None = Field(None, ge=1)
    """Weight each token of a kept sequence, or of one written with a teacher_share, by how much likelier the current student is to
    come to it than what wrote it, by this factor at most; None: the method's, or all alike."""
    teacher_temperature: float = Field(0.0, ge=0)
    """Sampling temperature of teacher-generated sequences; 0: greedy."""
    batch_rows: int | None = Field(None, ge=1)
    """Rows generated at a time; None: the whole batch."""


class LossConfig(Section):
    """How a sequence is marked."""

    temperature: float = Field(1.0, gt=0)
    """Divides both models' logits in the divergence; independent of the sampling temperature."""
    teacher_temperature: float | None = Field(None, gt=0)
    """Divides the teacher's logits in place of `temperature`: below it, a sharper teacher; None: the same."""
    normalisation: Literal["sequence", "token"] = "sequence"
    """sequence: mean over each sequence's tokens, then over sequences (the paper's Eq. 2); token: one mean over all tokens."""
    prefix_tokens: int | None = Field(None, ge=1)
    """Mark the first so many tokens of each completion only, and take the means over these (arXiv 2602.15260); None: all. The
    statistics are of all tokens, so that it is a lower rollout.max_new_tokens that makes a step quicker."""
    sequence_level: bool | None = None
    """Follow the gradient through the student's sampling too: a token answers for the divergence at the tokens behind it; None: the
    method's."""
    budget_mb: int = Field(256, ge=1)
    """Memory for the vocabulary-wide buffers of the loss; a GPU is quicker with 1024 or more."""
    implementation: Implementation = "auto"
    """auto: Triton's kernels on CUDA where the loss has one, else chunked; chunked, triton or reference force one."""


class TrainConfig(Section):
    """The optimisation."""

    steps: int = Field(1000, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(32, ge=1)
    """Sequences per step, over all micro-batches."""
    micro_batch_tokens: int = Field(8192, ge=1)
    """Most padded tokens in one forward pass; smaller: less memory, same gradient."""
    learning_rate: float = Field(3e-4, gt=0)
    """Peak learning rate."""
    matrix_learning_rate: float = Field(0.02, gt=0)
    """Peak learning rate of the weight matrices under optimizer=muon."""
    optimizer: Literal["adamw", "adafactor", "muon"] = "adamw"
    """muon: Muon on the matrices of the layers, AdamW on the rest."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    betas: tuple[_Beta, _Beta] = (0.9, 0.95)
    """Of AdamW."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """After the warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Linear warm-up."""
    min_lr_share: float = Field(0.0, ge=0, le=1)
    """Where cosine and linear end, as a share of the peak."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest global gradient norm; None: no clipping."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest checkpoints stay."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; None: cuda when there is one. Models that are given already loaded are moved there."""


class EvalConfig(Section):
    """Evaluation during and after training."""

    every: int = Field(0, ge=0)
    """Steps between evaluations on the validation split; 0: only at the end of the run, when `final` is set."""
    final: Literal["auto", "none", "validation", "test"] = "auto"
    """The split evaluated before the first step and after the last; auto: validation where the task has one."""
    limit: int | None = Field(200, ge=1)
    """Examples evaluated; None: all."""
    temperatures: tuple[_Temperature, ...] = (0.0, 1.0)
    """0: greedy; others: sampling."""
    samples_per_prompt: int = Field(1, ge=1)
    """Completions of each prompt at temperatures above 0, before the first step and after the last; several give pass@k and Self-BLEU,
    and at two such temperatures the report's charts of diversity."""
    batch_rows: int = Field(64, ge=1)
    """Rows generated at a time."""
    bootstrap: int = Field(1000, ge=0)
    """Resamples behind the 95% confidence intervals."""
    teacher_divergence: bool = True
    """Measure the distance from the teacher, before the first step and after the last: a forward pass of both models over everything
    that was written, and over the references."""
    reward: bool = True
    """Measure the run's reward on held-out examples, too, in every evaluation: where it rises and the task's metric falls, it is gamed."""
    marks: int = Field(16, ge=0)
    """Sequences of which every evaluation keeps the teacher's mark on each token, for the report; 0: none."""

    @field_validator("temperatures")
    @classmethod
    def _check_temperatures(cls, temperatures: tuple[float, ...]) -> tuple[float, ...]:
        if not temperatures:
            raise UserError("eval.temperatures is empty; give at least one, 0 for greedy decoding")
        return temperatures


class LogConfig(Section):
    """Where metrics go besides metrics.jsonl."""

    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Also log to these."""
    project: str = "tutelage"
    """Project name for W&B and trackio."""
    progress: bool = True
    """Show progress bars."""
    samples: int = Field(3, ge=0)
    """Completions shown before and after training."""
    report: bool = True
    """Write report.html at the end of the run."""


class Recipe(Section):
    """The keys of a run, each checked by itself; a YAML file holds any part of them."""

    student: str | None = None
    """Folder or hub name of the student (with student-model.init=config: of its config.json; teacher_layers has none)."""
    teacher: str | None = None
    """Folder or hub name of the teacher; method=sft has none, unless student-model.init=teacher_layers takes its layers."""
    other_teachers: tuple[str, ...] = ()
    """Folders or hub names of further teachers, loaded as teacher_model says: all of them mark together, by the geometric mean of
    their distributions."""
    teacher_weights: tuple[float, ...] | None = None
    """Weight of `teacher` and of each of `other_teachers` in that mean; of sum 1; None: equal."""
    output: Path = Path("runs/latest")
    """The run's folder."""
    method: str = "gkd"
    """sft, seqkd, supervised_kd, on_policy_kd, imitkd, f_distill, distillm, minillm, gkd or rl_gkd."""
    divergence: str | None = None
    """forward_kl, reverse_kl, jsd(0.5), jsd(0.5, rescale), total_variation, skew_forward_kl(0.1), adaptive_kl(0.5), ...; None: the
    method's."""
    teacher_signal: str = "hidden"
    """What the teacher answers with: hidden (exact), topk(64) (its likeliest tokens and one bucket for the rest), or sampled
    (the probability of each token the student drew; reverse_kl and forward_kl only; as in Lu & Thinking Machines Lab 2025,
    "On-Policy Distillation")."""
    student_data_fraction: float | None = Field(None, ge=0, le=1)
    """Share of steps trained on the student's own sequences (lambda); None: the method's."""
    fraction_unit: Literal["step", "sequence"] = "step"
    """step: the paper's one coin for the whole batch; sequence: one coin for each sequence."""
    fixed_data: Literal["dataset", "teacher"] | None = None
    """Where sequences come from that are not the student's; None: the method's."""
    seed: int = Field(0, ge=0, lt=2**64)
    """Keys every random choice."""
    resume: bool = False
    """Go on from the newest checkpoint in `output`; where no run is, one starts."""
    overwrite: bool = False
    """Delete an earlier run in `output`."""
    student_model: StudentConfig = StudentConfig()
    teacher_model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    rollout: RolloutConfig = RolloutConfig()
    loss: LossConfig = LossConfig()
    rl: RLConfig = RLConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()


class Config(Recipe):
    """A whole run: a recipe whose keys fit together."""

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.divergence is not None:
            divergences.parse(self.divergence)
        parse_signal(self.teacher_signal)
        _check_teachers(self)
        if self.train.warmup_steps >= self.train.steps:
            raise UserError(
                f"train.warmup_steps is {self.train.warmup_steps}, but the run has only train.steps={self.train.steps}; "
                "lower train.warmup_steps"
            )
        if self.train.batch_size % self.rollout.samples_per_prompt:
            raise UserError(
                f"train.batch_size={self.train.batch_size} is no multiple of rollout.samples_per_prompt="
                f"{self.rollout.samples_per_prompt}; the batch counts sequences: make it one"
            )
        if self.task.train_fraction_seed is not None and self.task.train_fraction == 1:
            raise UserError(
                f"task.train_fraction_seed={self.task.train_fraction_seed} draws a share of the training examples, but "
                "task.train_fraction is 1, all of them; set it below 1, or drop the seed"
            )
        if self.eval.samples_per_prompt > 1 and not any(self.eval.temperatures):
            raise UserError(
                f"eval.samples_per_prompt={self.eval.samples_per_prompt} needs a temperature above 0: greedy decoding writes the same "
                "text every time; add one to eval.temperatures"
            )
        init = self.student_model.init
        if init == "teacher_layers" and self.student_model.layers is None:
            raise UserError(
                "student_model.init=teacher_layers needs student_model.layers, the number of layers to keep"
            )
        if init == "teacher_layers" and self.teacher is None:
            raise UserError(
                "student_model.init=teacher_layers needs a teacher: set --teacher to a folder or a hub name"
            )
        if init != "teacher_layers" and self.student_model.layers is not None:
            raise UserError(
                f"student_model.layers={self.student_model.layers} is for student_model.init=teacher_layers, but init is {init}; "
                "set it, or drop student_model.layers"
            )
        if init != "teacher_layers" and self.student is None:
            raise UserError(
                "no student given: set --student to a folder or a hub name (or student_model.init=teacher_layers)"
            )
        return self


def _check_teachers(config: Config) -> None:
    """Raises UserError where the weights do not fit the teachers."""
    if config.other_teachers and config.teacher is None:
        raise UserError(
            "other_teachers are further ones, but there is no teacher: set --teacher to the first, or drop them"
        )
    weights, teachers = config.teacher_weights, 1 + len(config.other_teachers)
    if weights is None:
        return
    if teachers == 1:
        raise UserError(f"teacher_weights={list(weights)} weighs several teachers; set other_teachers, or drop it")
    if len(weights) != teachers or min(weights) <= 0 or not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise UserError(
            f"teacher_weights={list(weights)} for {teachers} teachers: give {teachers} positive numbers of sum 1, the first for "
            f"`teacher` (the sum is {sum(weights):g}), or none for equal weights"
        )


def identity(config: Config) -> dict[str, Any]:
    """The part of a configuration that a checkpoint must agree with: all that shapes the trajectory, nothing else."""
    free = {"output", "resume", "overwrite", "log", "eval"}
    kept = config.model_dump(mode="json", exclude=free)
    for key in ("checkpoint_every", "keep_checkpoints", "device"):
        kept["train"].pop(key)
    return kept
