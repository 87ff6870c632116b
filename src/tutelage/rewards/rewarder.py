"""Rewards the sequences of a step, and measures beside it what the reward may be gamed against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

from tutelage.rewards.base import Reward, Sample
from tutelage.tasks.base import Task, cut
from tutelage.types import Prompt, Rollout


@dataclass(frozen=True)
class StepRewards:
    """The rewards of a step's sequences.

    Attributes:
        values: one per sequence, in their order.
        group_size: samples of each prompt; they stand in a row.
        task_metrics: the task's own metrics over the same completions, in percent. Where the reward rises and these fall,
            or the divergence from the teacher grows, the student games the reward.
    """

    values: tuple[float, ...]
    group_size: int
    task_metrics: Mapping[str, float]

    def record(self) -> dict[str, Any]:
        """For the metrics file: mean and standard deviation of the rewards, the task's metrics, and the share of ties.

        `reward_tied_groups` is the share of prompts whose samples all have one reward, and so teach nothing; it is left out
        where a prompt has a single sample.
        """
        groups = [self.values[i : i + self.group_size] for i in range(0, len(self.values), self.group_size)]
        ties = {"reward_tied_groups": fmean(min(group) == max(group) for group in groups)}
        return {
            "reward": fmean(self.values),
            "reward_std": pstdev(self.values),
            **(ties if self.group_size > 1 else {}),
            "task_metrics": dict(self.task_metrics),
        }


class Rewarder:
    """Turns rollouts into text, rewards them, and has the task mark them.

    Completions end at the task's stop texts, as in evaluation.

    Args:
        reward: what is maximised.
        task: gives references, stop texts and its own metrics.
        tokenizer: the student's.
        group_size: samples of each prompt.
    """

    def __init__(self, reward: Reward, task: Task, tokenizer: Any, group_size: int = 1) -> None:
        self.reward, self.task, self.tokenizer, self.group_size = reward, task, tokenizer, group_size

    def __call__(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> StepRewards:
        """The rewards of a step.

        Args:
            prompts: one per rollout, in order; a group's stand in a row.
            rollouts: written for them.

        Raises:
            UserError: the reward fails on one of them.
        """
        samples = self._samples(prompts, rollouts)
        values = tuple(self.reward(samples))
        scores = self.task.score([sample.completion for sample in samples], [sample.example for sample in samples])
        return StepRewards(values, self.group_size, scores.values)

    def values(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> tuple[float, ...]:
        """The rewards alone, as an evaluation needs them: arguments and errors as above, one number for each rollout."""
        return tuple(self.reward(self._samples(prompts, rollouts)))

    def _samples(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[Sample]:
        return [self._sample(prompt, rollout) for prompt, rollout in zip(prompts, rollouts, strict=True)]

    def _sample(self, prompt: Prompt, rollout: Rollout) -> Sample:
        if prompt.id != rollout.prompt_id:
            raise ValueError(
                f"the rollout of prompt {rollout.prompt_id} stands where that of prompt {prompt.id} belongs"
            )
        written = self.tokenizer.decode(rollout.completion_ids, skip_special_tokens=True)
        return Sample(
            prompt=self.tokenizer.decode(rollout.prompt_ids, skip_special_tokens=True),
            completion=cut(written, self.task.generation.stop),
            reference=self.task.reference(prompt.example),
            example=prompt.example,
        )
