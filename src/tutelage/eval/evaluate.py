"""Evaluation of a model on a task: greedy, sampled and beam-search decoding, intervals, diversity, distance from a teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from tutelage.errors import UserError
from tutelage.eval.beam import beam_search
from tutelage.eval.diversity import distinct_n, mean_self_bleu
from tutelage.eval.results import Completion, Decoding, Evaluation, Row
from tutelage.eval.signals import Estimate, TeacherDivergence, reference_rollouts, teacher_divergence
from tutelage.eval.statistics import Interval, bootstrap_interval, pass_at_k, wilson_interval
from tutelage.models.language_model import LanguageModel
from tutelage.rewards.rewarder import Rewarder
from tutelage.rollout.base import Sampling
from tutelage.rollout.native import Force, NativeEngine
from tutelage.tasks.base import Generation, Scores, Task, cut
from tutelage.teacher.base import TeacherModel
from tutelage.types import Prompt, Rollout

# Metrics that mark a completion right or wrong: only for these does "one of k samples is right" mean anything.
RIGHT_OR_WRONG = frozenset({"accuracy", "exact_match"})

Progress = Callable[[int, int], None]


def evaluate(
    model: LanguageModel,
    task: Task,
    prompts: Sequence[Prompt],
    *,
    temperatures: Sequence[float] = (0.0, 1.0),
    max_new_tokens: int | None = None,
    seed: int = 0,
    batch_rows: int = 64,
    samples_per_prompt: int = 1,
    num_beams: int = 1,
    bootstrap: int = 1000,
    teacher: TeacherModel | None = None,
    rewarder: Rewarder | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Decodes the prompts in every setting, marks what was written, and measures the distance from the teacher.

    Args:
        model: of either family; its training mode is left as it was.
        task: marks the completions; its stop texts and forced continuations (a calculator) hold during decoding.
        prompts: of one split, with their examples.
        temperatures: one row each; 0: greedy. Others sample the whole distribution, without top-k or top-p.
        max_new_tokens: limit of a completion; None: the task's.
        seed: of the samples and of the bootstrap.
        batch_rows: rows generated at a time.
        samples_per_prompt: completions of each prompt at temperatures above 0 (greedy and beam search write one).
        num_beams: above 1, one more row decoded by beam search.
        bootstrap: resamples behind the 95% intervals; 0: no intervals.
        teacher: over the same vocabulary (`models.vocabulary.agree`); measures the divergence on the references and on
            the sequences of every row.
        rewarder: rewards the completions; None: no reward is measured.
        progress: called with (sequences finished, sequences in all).

    Raises:
        UserError: no prompts, nothing to decode, beam search on a task that forces continuations, or a reward that fails.
    """
    generation = task.generation
    decodings = _decodings(prompts, temperatures, num_beams, samples_per_prompt, generation)
    limit = max_new_tokens or generation.max_new_tokens
    counts = [samples_per_prompt if decoding.is_sampled else 1 for decoding in decodings]
    report = _counting(progress, len(prompts) * sum(counts))
    rows: list[Row] = []
    completions: list[Completion] = []
    divergence: dict[str, TeacherDivergence] = {}
    distance = None if teacher is None else partial(teacher_divergence, model, teacher, bootstrap=bootstrap, seed=seed)
    if distance is not None and all(prompt.reference_ids is not None for prompt in prompts):
        divergence["references"] = distance(reference_rollouts(prompts))
    for decoding, count in zip(decodings, counts, strict=True):
        started = time.perf_counter()
        rollouts = _write(model, generation, prompts, decoding, count, limit, batch_rows, seed, report)
        seconds = time.perf_counter() - started
        row, texts = _mark(model, task, prompts, rollouts, decoding.label, count, bootstrap, seed, seconds)
        if rewarder is not None:
            row, texts = _reward(row, texts, rewarder, prompts, rollouts, bootstrap, seed)
        rows.append(row)
        completions += texts
        if distance is not None:
            divergence[decoding.label] = distance(rollouts)
    return Evaluation(model.name, task.name, tuple(rows), tuple(completions), divergence)


def _write(
    model: LanguageModel,
    generation: Generation,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    samples: int,
    max_new_tokens: int,
    batch_rows: int,
    seed: int,
    on_finished: Callable[[int], None] | None,
) -> list[Rollout]:
    """The rollouts of one decoding setting, prompt by prompt, `samples` of each."""
    if decoding.num_beams > 1:
        return beam_search(
            model,
            prompts,
            num_beams=decoding.num_beams,
            max_new_tokens=max_new_tokens,
            batch_rows=batch_rows,
            on_finished=on_finished,
        )
    return NativeEngine(model, batch_rows, force=forced_tokens(model, generation)).generate(
        [prompt for prompt in prompts for _ in range(samples)],
        Sampling(max_new_tokens, decoding.temperature),
        samples=list(range(samples)) * len(prompts),
        seed=seed,
        on_finished=on_finished,
    )


def _decodings(
    prompts: Sequence[Prompt], temperatures: Sequence[float], num_beams: int, samples: int, generation: Generation
) -> list[Decoding]:
    if not prompts:
        raise UserError("there is nothing to evaluate: the split has no prompts (or all were left out as too long)")
    if any(temperature < 0 for temperature in temperatures):
        raise UserError(f"temperatures={tuple(temperatures)}: a temperature is 0 (greedy) or above")
    if samples > 1 and not any(temperatures):
        raise UserError(
            f"samples_per_prompt={samples} needs a temperature above 0: greedy decoding writes the same text every time; "
            "add one to temperatures"
        )
    if num_beams > 1 and generation.continuation is not None:
        raise UserError(
            f"num_beams={num_beams}: this task forces text during decoding (its calculator), which beam search cannot; "
            "use num_beams=1, or switch the task's calculator off"
        )
    decodings = [Decoding(temperature) for temperature in temperatures]
    decodings += [Decoding(num_beams=num_beams)] if num_beams > 1 else []
    if not decodings:
        raise UserError("nothing to decode: give at least one of temperatures, or num_beams above 1")
    return decodings


def _counting(progress: Progress | None, total: int) -> Callable[[int], None] | None:
    """Turns "so many more" into "so many of all"."""
    if progress is None:
        return None
    finished = 0

    def report(more: int) -> None:
        nonlocal finished
        finished += more
        progress(finished, total)

    return report


def forced_tokens(model: LanguageModel, generation: Generation) -> Force | None:
    """What a task inserts while a completion is written: its forced continuations, and the end behind a stop text.

    Ending at the stop text is for speed alone; `cut` removes what stands behind it either way.

    Args:
        model: whose tokenizer turns tokens into text and back.
        generation: the task's defaults.

    Returns:
        For the rollout engine: completion so far -> tokens to append, or None. None where the task inserts nothing.
    """
    end = min(model.eos_ids, default=None)
    if generation.continuation is None and (not generation.stop or end is None):
        return None

    def force(completion_ids: tuple[int, ...]) -> tuple[int, ...] | None:
        text = model.tokenizer.decode(completion_ids, skip_special_tokens=True)
        if end is not None and any(stop in text for stop in generation.stop):
            return (end,)
        inserted = generation.continuation(text) if generation.continuation is not None else None
        return tokens_behind(model.tokenizer, text, inserted) if inserted else None

    return force


def tokens_behind(tokenizer: Any, text: str, inserted: str) -> tuple[int, ...]:
    """The tokens that continue `text` by `inserted`.

    Taken in context where the tokens of `text` stay what they are: alone, many tokenizers put a space before a fragment.
    """
    before = tokenizer.encode(text, add_special_tokens=False)
    together = tokenizer.encode(text + inserted, add_special_tokens=False)
    if together[: len(before)] == before:
        return tuple(together[len(before) :])
    return tuple(tokenizer.encode(inserted, add_special_tokens=False))


def _mark(
    model: LanguageModel,
    task: Task,
    prompts: Sequence[Prompt],
    rollouts: Sequence[Rollout],
    label: str,
    samples: int,
    bootstrap: int,
    seed: int,
    seconds: float,
) -> tuple[Row, list[Completion]]:
    """Marks the rollouts of one decoding setting, which stand prompt by prompt, `samples` of each."""
    decode = model.tokenizer.decode
    texts = [
        cut(decode(rollout.completion_ids, skip_special_tokens=True), task.generation.stop) for rollout in rollouts
    ]
    scores = task.score(texts, [prompt.example for prompt in prompts for _ in range(samples)])
    groups = [texts[i : i + samples] for i in range(0, len(texts), samples)]
    reasons = [rollout.finish_reason for rollout in rollouts]
    row = Row(
        decoding=label,
        examples=len(prompts),
        samples_per_prompt=samples,
        metric=task.metric,
        value=scores.values.get(task.metric),
        interval=_interval(scores, task.metric, len(prompts), samples, bootstrap, seed),
        values=dict(scores.values),
        pass_at_k=_pass_at_k(scores, samples) if task.metric in RIGHT_OR_WRONG else {},
        mean_length=fmean(len(rollout.completion_ids) for rollout in rollouts),
        finish={reason: reasons.count(reason) / len(reasons) for reason in ("stop", "length")},
        self_bleu=mean_self_bleu(groups) if samples > 1 else None,
        distinct_2=fmean(distinct_n(group, 2) for group in groups) if samples > 1 else None,
        seconds=seconds,
    )
    marks = scores.per_example or [None] * len(texts)
    questions = [decode(prompt.token_ids, skip_special_tokens=True) for prompt in prompts]
    references = [
        None if prompt.reference_ids is None else decode(prompt.reference_ids, skip_special_tokens=True)
        for prompt in prompts
    ]
    completions = [
        Completion(
            decoding=label,
            prompt_id=rollout.prompt_id,
            sample=rollout.sample,
            prompt=questions[i // samples],
            text=texts[i],
            tokens=len(rollout.completion_ids),
            finish_reason=rollout.finish_reason,
            mark=marks[i],
            reference=references[i // samples],
        )
        for i, rollout in enumerate(rollouts)
    ]
    return row, completions


def _reward(
    row: Row,
    completions: Sequence[Completion],
    rewarder: Rewarder,
    prompts: Sequence[Prompt],
    rollouts: Sequence[Rollout],
    bootstrap: int,
    seed: int,
) -> tuple[Row, list[Completion]]:
    """Row and completions with what the reward gives these."""
    samples = row.samples_per_prompt
    rewards = rewarder.values([prompt for prompt in prompts for _ in range(samples)], rollouts)
    by_prompt = np.asarray(rewards).reshape(-1, samples).mean(1)
    interval = None
    if bootstrap and np.ptp(by_prompt) > 0:  # where all are equal, resampling finds no spread, however few they are
        interval = bootstrap_interval(
            lambda chosen: float(by_prompt[chosen].mean()), len(prompts), bootstrap, seed=seed
        )
    rewarded = [replace(each, reward=reward) for each, reward in zip(completions, rewards, strict=True)]
    return replace(row, reward=Estimate(float(by_prompt.mean()), interval)), rewarded


def _interval(scores: Scores, metric: str, n_prompts: int, samples: int, bootstrap: int, seed: int) -> Interval | None:
    """Interval of the headline metric over prompts: samples of one prompt are not independent and stay together."""
    again = scores.resample
    if again is None or bootstrap == 0:
        return None
    marks = set(scores.per_example or ())
    if metric in RIGHT_OR_WRONG and marks in ({0.0}, {1.0}):
        # Resampling examples that are all wrong, or all right, finds no spread, however few they are.
        ends = wilson_interval(n_prompts * int(marks.pop()), n_prompts)
        return Interval(100 * ends.low, 100 * ends.high)

    def resample(chosen: np.ndarray) -> float:
        return again((chosen[:, None] * samples + np.arange(samples)).ravel().tolist())

    return bootstrap_interval(resample, n_prompts, bootstrap, seed=seed)


def _pass_at_k(scores: Scores, samples: int) -> Mapping[int, float]:
    """pass@k in percent for every power of two up to `samples`; empty for a single sample."""
    if scores.per_example is None or samples == 1:
        return {}
    correct = np.asarray(scores.per_example).reshape(-1, samples).sum(1).round().astype(int).tolist()
    powers = [2**e for e in range(samples.bit_length())]
    return {k: 100 * fmean(pass_at_k(samples, c, k) for c in correct) for k in powers}
