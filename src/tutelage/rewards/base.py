"""What a reward is: samples of the student in, one number each out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

from tutelage.errors import UserError
from tutelage.tasks.base import Example

_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Sample:
    """A completion to reward.

    Attributes:
        prompt: what the student read, decoded without special tokens.
        completion: what it wrote, likewise, up to the task's first stop text.
        reference: the task's ground truth; None where the data has none.
        example: the raw row.
    """

    prompt: str
    completion: str
    reference: str | None
    example: Example


class Reward(Protocol):
    """Rewards completions; a pure function of the samples, so that a resumed run is the undisturbed one."""

    @property
    def name(self) -> str:
        """How `rl.reward` spells it."""
        ...

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """One finite number per sample, higher is better.

        Raises:
            UserError: a sample cannot be rewarded (shows its prompt and completion).
        """
        ...


class RewardFunction(Protocol):
    """What `rl.reward=package.module:function` names."""

    def __call__(self, prompt: str, completion: str, reference: str | None, example: Mapping[str, Any], /) -> float:
        """The reward of one completion: a finite number, higher is better; the same for the same arguments."""
        ...


def checked(value: Any, name: str, sample: Sample) -> float:
    """A reward as a float. Raises UserError when it is no number or not finite."""
    if not isinstance(value, Real):
        raise _failure(name, sample, f"returned {value!r} of type {type(value).__name__}, but a reward is a number")
    number = float(value)
    if not math.isfinite(number):
        raise _failure(name, sample, f"returned {number}, but a reward is finite")
    return number


@dataclass(frozen=True)
class FunctionReward:
    """A Python function as a reward, called for one sample after another.

    Attributes:
        name: how `rl.reward` spells it.
        function: the function.
    """

    name: str
    function: RewardFunction

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """See `Reward`."""
        return [self._of(sample) for sample in samples]

    def _of(self, sample: Sample) -> float:
        try:
            value = self.function(sample.prompt, sample.completion, sample.reference, sample.example)
        except Exception as error:  # whatever somebody's function raises must tell on which sample it did
            raise _failure(self.name, sample, f"raised {type(error).__name__}: {error}") from error
        return checked(value, self.name, sample)


def _failure(name: str, sample: Sample, problem: str) -> UserError:
    return UserError(
        f"the reward {name} {problem}, for the completion {_excerpt(sample.completion)} of the prompt {_excerpt(sample.prompt)}; "
        "correct the reward; a run that had begun its steps goes on from its last checkpoint (resume)"
    )


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")
