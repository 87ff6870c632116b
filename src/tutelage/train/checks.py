"""Whether models, signal and sequences fit one another: checked before any long work."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from tutelage.divergences import Divergence
from tutelage.errors import MissingSplitError, UserError
from tutelage.estimators import check_on_policy
from tutelage.models.language_model import LanguageModel
from tutelage.rollout.base import Sampling
from tutelage.tasks import Task
from tutelage.tasks.checks import check_scores, check_texts, checked_task, first_example
from tutelage.teacher.base import parse_signal
from tutelage.train.config import Config
from tutelage.train.methods import Objective
from tutelage.types import Rollout


def check_task(config: Config, task: Task) -> None:
    """Raises UserError where a live task has no answer, or one of another type, for one example of each split of the run."""
    checked_task(task)
    example = first_example(task, "train")
    if example is not None:
        check_texts(task, example)
    if config.eval.final == "none":
        return  # nothing is marked: a task to train on needs no metric
    try:
        example = first_example(task, "validation" if config.eval.final == "auto" else config.eval.final)
    except MissingSplitError:
        return  # with auto a run does without; elsewhere `prompts.held_out_prompts` says so
    if example is not None:
        check_texts(task, example)
        check_scores(task, example)


def check_pair(student: LanguageModel, teacher: LanguageModel) -> None:
    """Raises UserError when the two cannot read one micro-batch: of different families, or with other decoder starts."""
    if student.is_encoder_decoder != teacher.is_encoder_decoder:
        kinds = {True: "an encoder-decoder", False: "a decoder-only model"}
        raise UserError(
            f"the student ({student.name}) is {kinds[student.is_encoder_decoder]}, the teacher ({teacher.name}) "
            f"{kinds[teacher.is_encoder_decoder]}; give two models of one family"
        )
    if student.is_encoder_decoder and student.decoder_start_ids != teacher.decoder_start_ids:
        raise UserError(
            f"completions of the student ({student.name}) start behind the tokens {student.decoder_start_ids}, those of the "
            f"teacher ({teacher.name}) behind {teacher.decoder_start_ids}; give both the same decoder_start_token_id "
            "(config.json) and forced_bos_token_id (generation_config.json)"
        )


def check_mixture(config: Config, objective: Objective) -> None:
    """Raises UserError where several teachers are given to a run in which they could not mark together."""
    if not config.other_teachers:
        return
    others = ", ".join(config.other_teachers)
    if objective.fixed_data == "teacher":
        raise UserError(
            f"other_teachers={others} with fixed_data=teacher: several teachers mark sequences together, but none of them writes "
            "for all; drop other_teachers, or set fixed_data=dataset (method=seqkd is of one teacher)"
        )
    if objective.divergence is None:
        raise UserError(
            f"other_teachers={others} has no effect: no teacher marks the tokens of this run; drop it, or use a method with a "
            "divergence, such as method=gkd"
        )


def check_signal(config: Config, objective: Objective, student: LanguageModel, sampling: Sampling) -> None:
    """Raises UserError where the teacher's signal does not fit what the student writes, or its vocabulary."""
    signal = parse_signal(config.teacher_signal)
    if signal.name == "sampled":
        drawn = (sampling.temperature, sampling.top_p, sampling.top_k)
        check_on_policy(
            objective.student_data_fraction, *drawn, config.loss.temperature, teacher_share=objective.teacher_share
        )
    if signal.k is not None and signal.k > student.vocab_size:
        raise UserError(
            f"teacher_signal={signal}, but the vocabulary has {student.vocab_size} tokens; lower k, or use teacher_signal=hidden"
        )


def check_implementation(config: Config, objective: Objective, device: torch.device) -> None:
    """Raises UserError where Triton's kernels are asked for and there is none for the run's loss."""
    if config.loss.implementation != "triton":
        return
    signal = parse_signal(config.teacher_signal)
    if device.type != "cuda":
        lack = f"they run on CUDA, not on train.device={device}"
    elif find_spec("triton") is None:
        lack = "the package triton is not installed"
    elif objective.divergence is not None and signal.name != "hidden":
        lack = f"there is none for teacher_signal={signal}"
    elif objective.divergence is not None and not _has_kernel(objective.divergence):
        lack = f"there is none for divergence={objective.divergence}"
    else:
        return
    raise UserError(f"loss.implementation=triton forces Triton's kernels, but {lack}; use loss.implementation=auto")


def _has_kernel(divergence: Divergence) -> bool:
    from tutelage.fused import triton  # only where it is used: it is large, and Linux only

    return triton.supports(divergence)


def check_draws(config: Config, objective: Objective, sampling: Sampling) -> None:
    """Raises UserError where the student's tokens are not drawn as mixtures, importance and gradients through sampling need it."""
    drawn = f"with rollout.temperature={sampling.temperature}, rollout.top_p={sampling.top_p}, rollout.top_k={sampling.top_k}: "
    whole = sampling.top_p == 1 and sampling.top_k == 0
    if objective.sequence_level and not (whole and sampling.temperature == 1):
        raise UserError(
            f"loss.sequence_level {drawn}the gradient through sampling is right only for draws from the student's own distribution; "
            "set rollout.temperature=1, rollout.top_p=1 and rollout.top_k=0, or loss.sequence_level=False"
        )
    if objective.teacher_share and not (whole and sampling.temperature > 0):
        raise UserError(
            f"rollout.teacher_share={objective.teacher_share} {drawn}a mixture is drawn from whole distributions; set "
            "rollout.temperature above 0, rollout.top_p=1 and rollout.top_k=0, or rollout.teacher_share=0"
        )
    if objective.importance_clip is not None and not (whole and sampling.temperature > 0):
        raise UserError(
            f"rollout.importance_clip={objective.importance_clip} {drawn}a ratio of probabilities needs draws from the student's "
            "whole distribution; set rollout.temperature above 0, rollout.top_p=1 and rollout.top_k=0, or drop "
            "rollout.importance_clip"
        )
    if objective.teacher_share and config.other_teachers:
        raise UserError(
            f"rollout.teacher_share={objective.teacher_share} with other_teachers={', '.join(config.other_teachers)}: several "
            "teachers mark sequences together, but only a single one can help to write them; drop other_teachers, or set "
            "rollout.teacher_share=0"
        )


def check_positions(model: LanguageModel, longest: int, sampling: Sampling) -> None:
    """Raises UserError when a prompt of `longest` tokens and its completion could pass the model's last position."""
    lack = model.lack_of_positions(longest, sampling.max_new_tokens)
    if lack is not None:
        raise UserError(
            f"{lack}, but it is to read prompts of up to {longest} and completions of up to {sampling.max_new_tokens} tokens; lower "
            "task.max_prompt_tokens (with task.skip_long_prompts, to leave longer prompts out) or rollout.max_new_tokens"
        )


def check_length(model: LanguageModel, rollout: Rollout) -> None:
    """Raises UserError when a data-set sequence passes the model's last position."""
    prompt, completion = len(rollout.prompt_ids), len(rollout.completion_ids)
    lack = model.lack_of_positions(prompt, completion)
    if lack is not None:
        raise UserError(
            f"training example {rollout.prompt_id} has a prompt of {prompt} and a completion of {completion} tokens, but {lack}; "
            "shorten or remove the row"
        )
