"""Configuration of rewards."""

from __future__ import annotations

from pydantic import Field

from tutelage.rewards.advantages import Baseline
from tutelage.section import Section


class RewardConfig(Section):
    """What sequences are rewarded by."""

    reward: str | None = None
    """accuracy, exact_match, rouge1, rouge2, rougeL, bleu or chrf (what the task has of these, each from 0 to 1), scorer:FOLDER (a sequence
    classifier that reads prompt and completion), or package.module:function, called with (prompt, completion, reference, example);
    None: no reward."""
    scorer_label: str = "entailment"
    """The label whose probability is the reward, of a scorer with several outputs; upper and lower case are the same."""


class RLConfig(RewardConfig):
    """A reward beside the divergence (the paper's Eq. 5): maximises (1 - alpha) * reward - alpha * divergence."""

    alpha: float = Field(0.5, ge=0, le=1)
    """Weight of the divergence; 1: distillation, the reward is only measured; 0: reward alone, a teacher is only measured."""
    baseline: Baseline = "leave_one_out"
    """What a reward is compared with: leave_one_out (the other samples of the prompt; of the batch where
    rollout.samples_per_prompt is 1), group (all samples of the prompt, its own among them) or none."""
