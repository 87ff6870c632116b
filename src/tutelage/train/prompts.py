"""The prompts of a run: those it trains on and those it is evaluated on, encoded and checked."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tutelage.data.prompts import Draw, PromptStream
from tutelage.errors import MissingSplitError, UserError
from tutelage.models.language_model import LanguageModel
from tutelage.rollout.base import Sampling
from tutelage.sources import DatasetSource
from tutelage.tasks import Task
from tutelage.tasks.encode import Encoding, GeneratedSplit, encode_split, longest_prompt
from tutelage.train.checks import check_length, check_positions
from tutelage.train.config import Config
from tutelage.train.methods import Objective
from tutelage.types import Prompt


def encoding_of(config: Config, student: LanguageModel, task: Task) -> Encoding:
    """How examples become token ids for this student."""
    return Encoding(
        student.tokenizer,
        student.is_encoder_decoder,
        config.task.max_prompt_tokens or task.generation.max_prompt_tokens,
        config.task.use_chat,
        config.task.skip_long_prompts,
    )


def sampling_of(config: Config, task: Task) -> Sampling:
    """How the student writes: the configuration's choices over the task's defaults."""
    chosen, default = config.rollout, task.generation
    return Sampling(
        max_new_tokens=chosen.max_new_tokens or default.max_new_tokens,
        temperature=default.temperature if chosen.temperature is None else chosen.temperature,
        top_p=default.top_p if chosen.top_p is None else chosen.top_p,
        top_k=default.top_k if chosen.top_k is None else chosen.top_k,
    )


def training_streams(
    config: Config, objective: Objective, models: Sequence[LanguageModel], task: Task
) -> tuple[PromptStream, PromptStream]:
    """The training prompts and those that fixed sequences answer, checked against what the run does with them.

    They are one stream unless `task.fixed_examples` is set.

    Args:
        config, objective, task: the run.
        models: those that read the sequences, the student first.

    Raises:
        UserError: no prompts, fewer than task.fixed_examples, one that is too long, a completion that is missing, or sequences past
            a model's positions.
    """
    encoding, sampling = encoding_of(config, models[0], task), sampling_of(config, task)
    drawn_by = config.task.train_fraction_seed
    prompts = encode_split(
        task,
        "train",
        encoding,
        fraction=config.task.train_fraction,
        seed=config.seed if drawn_by is None else drawn_by,
        show_progress=config.log.progress,
    )
    stream = fixed = PromptStream(prompts, config.seed)
    first = config.task.fixed_examples
    if first is not None:
        if first > len(prompts):
            raise UserError(
                f"task.fixed_examples={first}, but there are only {len(prompts)} training examples; lower it, or drop it for all of them"
            )
        fixed = PromptStream(prompts[:first], config.seed)
    longest = longest_prompt(prompts)
    for model in models:
        check_positions(model, longest, sampling)
    # A split that is generated as it is trained on is checked then.
    uses_references = objective.fixed_data == "dataset" and objective.student_data_fraction < 1
    if uses_references and not isinstance(fixed.prompts, GeneratedSplit):
        for prompt in fixed.prompts:
            (rollout,) = DatasetSource().rollouts([Draw(prompt, 0)])
            for model in models:
                check_length(model, rollout)
    return stream, fixed


def held_out_prompts(config: Config, student: LanguageModel, task: Task) -> Sequence[Prompt]:
    """The prompts to evaluate on, checked; none where eval.final says so, or says auto and the task has no validation split.

    Raises:
        UserError: a split is asked for and missing, a row is bad, or eval.every has nothing to evaluate on.
    """
    split = config.eval.final
    if split == "auto":
        split = "validation"
        try:
            task.examples(split)
        except MissingSplitError as error:
            logging.getLogger(__name__).warning("no evaluation before and after training: %s", error)
            split = "none"
    if split != "none":
        encoding = encoding_of(config, student, task)
        return encode_split(task, split, encoding, config.eval.limit, show_progress=config.log.progress)
    if config.eval.every:
        raise UserError(
            f"eval.every={config.eval.every} asks for evaluations during training, but there is no split to evaluate: "
            "give the task a validation split, or drop eval.every"
        )
    return ()
