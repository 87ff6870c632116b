"""Where training sequences come from. The loss does not know.

Every source turns drawn prompts into rollouts; `Mixture` chooses between the student and the fixed data.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np

from tutelage.data.prompts import Draw, PromptStream
from tutelage.errors import UserError
from tutelage.rollout.base import RolloutEngine, Sampling
from tutelage.rollout.log import RolloutLog
from tutelage.types import Rollout, SourceName

# Spawn keys keep these random numbers apart from one another, and from those of the sequences, which are keyed by entropy alone.
_COIN = 0xC01
_REPLAY = 0x2EB

Unit = Literal["step", "sequence"]
ReplaySchedule = Literal["rising", "constant", "falling"]


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
                "say how many examples at the start have one (task.fixed_examples; counted without those that a validation_fraction "
                "holds out and prompts that are too long), "
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


class Replay:
    """The student's sequences, new ones or earlier ones from a bounded buffer (off-policy, at no cost of writing).

    Those of a step are drawn without replacement from the newest `capacity` that the student had written before it. They keep
    their prompt, sample and policy version. While the buffer holds too few for a step, all are new.

    Args:
        student: writes the new ones.
        log: of the run. It holds all steps before the one under way, so that a resumed run finds the same buffer.
        capacity: of the buffer, in sequences.
        share: of a step, the probability that its sequences come from the buffer: see `replay_share`.
        unit: one coin per "step" for all of its sequences, or one per "sequence".
        seed: the run's seed; coins and choice depend on it and on the step.

    Source: Ko et al., DistiLLM (arXiv 2402.03898), whose code writes new sequences until the buffer is full.
    """

    def __init__(
        self, student: Source, log: RolloutLog, capacity: int, share: Callable[[int], float], unit: Unit, seed: int
    ) -> None:
        self.student, self.log, self.share, self.unit, self.seed = student, log, share, unit, seed
        self._buffer: deque[Rollout] = deque(maxlen=capacity)
        self._step = 0

    def rollouts(self, draws: Sequence[Draw]) -> list[Rollout]:
        """One rollout per draw; an earlier one is of another prompt than the draw's."""
        self._catch_up()
        random = _random(self.seed, self._step, _REPLAY)
        coins = _toss(random, self.share(self._step), self.unit, len(draws))
        earlier = [i for i, coin in enumerate(coins) if coin]
        if len(earlier) > len(self._buffer):
            earlier = []
        chosen = random.choice(len(self._buffer), size=len(earlier), replace=False) if earlier else ()
        written = {i: self._buffer[int(place)] for i, place in zip(earlier, chosen, strict=True)}
        new = [i for i in range(len(draws)) if i not in written]
        if new:
            written.update(zip(new, self.student.rollouts([draws[i] for i in new]), strict=True))
        return [written[i] for i in range(len(draws))]

    def check_log(self, done: int) -> None:
        """Raises UserError where the log lacks one of the run's first `done` steps: the buffer would never move past it."""
        missing = next((step for step in range(done) if step not in self.log), None)
        if missing is not None:
            raise UserError(
                f"{self.log.path} lacks step {missing}, but the run goes on from the checkpoint after {done} steps, and rollout.replay "
                "draws from what the student wrote in them; put the run's own file back, delete the checkpoints of more than "
                f"{missing} steps to go on from an earlier one, or start over (overwrite)"
            )

    def _catch_up(self) -> None:
        """Takes in what the student wrote in the logged steps; the first step that is not there is the one under way."""
        while self._step in self.log:
            rollouts = self.log.read(self._step)
            self._buffer.extend(r for r in rollouts if r.source == "student" and r.policy_version == self._step)
            self._step += 1


def replay_share(step: int, steps: int, schedule: ReplaySchedule) -> float:
    """The probability of replay at a step of a run: "rising" from 0 to 1 (DistiLLM's), "falling", or "constant" at 1/2."""
    match schedule:
        case "rising":
            return step / steps
        case "falling":
            return 1 - step / steps
        case "constant":
            return 0.5


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
        log: replays the steps it holds, and receives the others with the seconds that writing them took.
        samples_per_prompt: sequences of each prompt, in a row; divides `batch_size`. Above 1 only where `fraction` is 1.
        fixed_stream: the prompts of the fixed sequences; None: `stream`.
    """

    def __init__(
        self,
        stream: PromptStream,
        batch_size: int,
        student: Source | None,
        fixed: Source | None,
        fraction: float,
        unit: Unit,
        seed: int,
        log: RolloutLog | None = None,
        samples_per_prompt: int = 1,
        fixed_stream: PromptStream | None = None,
    ) -> None:
        self.fixed_stream = fixed_stream or stream
        self.stream, self.batch_size, self.fraction, self.unit, self.seed, self.log = (
            stream, batch_size, fraction, unit, seed, log,
        )  # fmt: skip
        self.student, self.fixed = student, fixed
        self.samples_per_prompt = samples_per_prompt

    def next(self, step: int) -> list[Rollout]:
        """The rollouts of a step, in the order of the stream; from the log when it holds them."""
        if self.log is not None and step in self.log:
            return self.log.read(step)
        started = time.perf_counter()
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
            self.log.append(step, rollouts, time.perf_counter() - started)  # tokens are on the host: no work is queued
        return rollouts

    def check_log(self, done: int) -> None:
        """Raises UserError where a run that goes on after `done` steps lacks in its log what it is to draw from again."""
        if isinstance(self.student, Replay):
            self.student.check_log(done)

    def draws(self, step: int) -> list[Draw]:
        """The prompts of a step, in the order of its rollouts; samples of one prompt are numbered on, so that they differ."""
        k = self.samples_per_prompt
        drawn = self.stream.batch(step, self.batch_size // k)
        draws = [Draw(draw.prompt, draw.sample * k + j) for draw in drawn for j in range(k)]
        if self.fixed_stream is self.stream:
            return draws
        fixed = self.fixed_stream.batch(step, self.batch_size)
        return [own if coin else other for own, other, coin in zip(draws, fixed, self.coins(step), strict=True)]

    def coins(self, step: int) -> list[bool]:
        """For each sequence of a step, whether the student writes it."""
        return _toss(_random(self.seed, step, _COIN), self.fraction, self.unit, self.batch_size)


def _random(seed: int, step: int, key: int) -> np.random.Generator:
    """Random numbers of a step: the same on all ranks and after a restart."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, step], spawn_key=(key,))))


def _toss(random: np.random.Generator, probability: float, unit: Unit, count: int) -> list[bool]:
    """`count` coins, all the same one where the unit is the step."""
    if unit == "step":
        return [bool(random.random() < probability)] * count
    return [bool(u < probability) for u in random.random(count)]
