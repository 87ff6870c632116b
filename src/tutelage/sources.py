"""Where training sequences come from. The loss does not know.

Every source turns drawn prompts into rollouts; `Mixture` chooses between the student and the fixed data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from tutelage.data.prompts import Draw, PromptStream
from tutelage.errors import UserError
from tutelage.rollout.base import RolloutEngine, Sampling
from tutelage.rollout.log import RolloutLog
from tutelage.types import Rollout, SourceName

# A spawn key keeps the coins' random numbers apart from those of the sequences, which are keyed by entropy alone.
_COIN = 0xC01


class Source(Protocol):
    """Writes or looks up one rollout per drawn prompt, in order."""

    def rollouts(self, draws: Sequence[Draw]) -> list[Rollout]:
        """The rollouts."""
        ...


class DatasetSource:
    """Ground truth."""

    def rollouts(self, draws: Sequence[Draw]) -> list[Rollout]:
        """The references as rollouts. Raises UserError for an example without one."""
        return [self._rollout(draw) for draw in draws]

    @staticmethod
    def _rollout(draw: Draw) -> Rollout:
        prompt = draw.prompt
        if prompt.reference_ids is None:
            raise UserError(
                f"training example {prompt.id} has no completion, but this run trains on data-set sequences; give completions, "
                "or train on the student's own sequences (student_data_fraction=1), or on the teacher's (fixed_data=teacher)"
            )
        return Rollout(prompt.token_ids, prompt.reference_ids, None, "data", -1, prompt.id, draw.sample, "dataset")


class EngineSource:
    """A model's own sequences: the current student's, or (SeqKD) the teacher's.

    Args:
        engine: the model that writes.
        sampling: how.
        seed: the run's seed.
        name: "student" or "teacher".
    """

    def __init__(self, engine: RolloutEngine, sampling: Sampling, seed: int, name: SourceName) -> None:
        self.engine, self.sampling, self.seed, self.name = engine, sampling, seed, name

    def rollouts(self, draws: Sequence[Draw]) -> list[Rollout]:
        """One generation for all of them."""
        prompts = [draw.prompt for draw in draws]
        return self.engine.generate(
            prompts, self.sampling, samples=[draw.sample for draw in draws], seed=self.seed, source=self.name
        )


class FirstDraw:
    """A source that answers every later draw of a prompt with the first: SeqKD's fixed set of teacher sequences.

    Args:
        source: asked once per prompt.
        log: earlier answers of a resumed run.
    """

    def __init__(self, source: Source, log: RolloutLog | None = None) -> None:
        self.source = source
        self._known: dict[int, Rollout] = {}
        for _, rollouts in log or ():
            self._known.update({r.prompt_id: r for r in rollouts if r.source == "teacher"})

    def rollouts(self, draws: Sequence[Draw]) -> list[Rollout]:
        """Remembered rollouts; unknown prompts are written in one generation."""
        fresh = {d.prompt.id: Draw(d.prompt, 0) for d in draws if d.prompt.id not in self._known}
        if fresh:
            self._known.update({r.prompt_id: r for r in self.source.rollouts(list(fresh.values()))})
        return [self._known[d.prompt.id] for d in draws]


class Mixture:
    """The sequences of a step: with probability `fraction` the student's, else fixed ones (the paper's Algorithm 1).

    Args:
        stream: the prompts.
        batch_size: sequences per step, over all ranks.
        student: writes on-policy sequences; may be None when `fraction` is 0.
        fixed: gives the others; may be None when `fraction` is 1.
        fraction: lambda, the student data fraction.
        unit: one coin per "step" for the whole global batch, or one per "sequence".
        seed: the run's seed; coins depend on it and on the step alone, so that all ranks and restarts agree.
        log: replays the steps it holds, and receives the others.
        samples_per_prompt: sequences of each prompt, in a row; divides `batch_size`. Above 1 only where `fraction` is 1.
    """

    def __init__(
        self,
        stream: PromptStream,
        batch_size: int,
        student: Source | None,
        fixed: Source | None,
        fraction: float,
        unit: Literal["step", "sequence"],
        seed: int,
        log: RolloutLog | None = None,
        samples_per_prompt: int = 1,
    ) -> None:
        self.stream, self.batch_size, self.fraction, self.unit, self.seed, self.log = (
            stream, batch_size, fraction, unit, seed, log,
        )  # fmt: skip
        self.student, self.fixed = student, fixed
        self.samples_per_prompt = samples_per_prompt

    def next(self, step: int) -> list[Rollout]:
        """The rollouts of a step, in the order of the stream; from the log when it holds them."""
        if self.log is not None and step in self.log:
            return self.log.read(step)
        draws = self.draws(step)
        on_policy = self.coins(step)
        written: dict[int, Rollout] = {}
        for source, chosen in ((self.student, True), (self.fixed, False)):
            rows = [i for i in range(len(draws)) if on_policy[i] == chosen]
            if rows:
                assert source is not None
                written.update(zip(rows, source.rollouts([draws[i] for i in rows]), strict=True))
        rollouts = [written[i] for i in range(len(draws))]
        if self.log is not None:
            self.log.append(step, rollouts)
        return rollouts

    def draws(self, step: int) -> list[Draw]:
        """The prompts of a step, in the order of its rollouts; samples of one prompt are numbered on, so that they differ."""
        k = self.samples_per_prompt
        drawn = self.stream.batch(step, self.batch_size // k)
        return [Draw(draw.prompt, draw.sample * k + j) for draw in drawn for j in range(k)]

    def coins(self, step: int) -> list[bool]:
        """For each sequence of a step, whether the student writes it."""
        key = np.random.SeedSequence([self.seed, step], spawn_key=(_COIN,))
        random = np.random.Generator(np.random.Philox(key))
        if self.unit == "step":
            return [bool(random.random() < self.fraction)] * self.batch_size
        return [bool(u < self.fraction) for u in random.random(self.batch_size)]
