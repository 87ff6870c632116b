from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.conftest import tokenizer
from tutelage.rewards.base import Sample
from tutelage.rewards.rewarder import Rewarder, StepRewards
from tutelage.tasks import Generation, load_task
from tutelage.types import Prompt, Rollout

TASK = load_task("arithmetic", level="easy", train_size=4)


def written(text: str, prompt: Prompt) -> Rollout:
    ids = (*tokenizer().encode(text), tokenizer().eos_token_id)
    return Rollout(prompt.token_ids, ids, None, "stop", 0, prompt.id, 0, "student")


def prompt_of(index: int) -> Prompt:
    example = TASK.examples("train")[index]
    return Prompt(index, tuple(tokenizer().encode(TASK.prompt(example))), None, example)


class Length:
    name = "length"

    def __init__(self) -> None:
        self.seen: list[Sample] = []

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        self.seen += samples
        return [float(len(sample.completion)) for sample in samples]


def test_samples_are_text_and_the_task_marks_them_too() -> None:
    reward, prompts = Length(), [prompt_of(0), prompt_of(1)]
    right = str(TASK.reference(prompts[0].example))
    found = Rewarder(reward, TASK, tokenizer())(prompts, [written(right, prompts[0]), written("1", prompts[1])])
    assert found.values == (float(len(right)), 1.0)
    example = prompts[0].example
    assert reward.seen[0] == Sample(example["question"], right, example["answer"], example)
    assert reward.seen[1].completion == "1"  # without the end-of-sequence token
    assert dict(found.task_metrics) == {"accuracy": 50.0, "valid_format": 50.0, "step_accuracy": 50.0}
    alone = Rewarder(reward, TASK, tokenizer()).values(prompts, [written(right, prompts[0]), written("1", prompts[1])])
    assert alone == found.values
    assert reward.seen[2:] == reward.seen[:2]


def test_completions_end_at_the_stop_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """As evaluation cuts them: what stands behind it neither earns a reward nor spoils an answer."""
    monkeypatch.setattr(TASK, "generation", Generation(stop=("Q:", "####")))
    reward, prompt = Length(), prompt_of(0)
    right = str(TASK.reference(prompt.example))
    found = Rewarder(reward, TASK, tokenizer())([prompt], [written(right, prompt)])
    assert reward.seen[0].completion == right.partition("####")[0]
    assert found.values == (float(right.index("####")),)
    assert found.task_metrics["accuracy"] == 0.0  # the answer stands behind the stop text

    monkeypatch.setattr(TASK, "generation", Generation(stop=("Q:",)))
    found = Rewarder(reward, TASK, tokenizer())([prompt], [written(f"{right} Q: more", prompt)])
    assert reward.seen[1].completion == f"{right} "
    assert found.task_metrics["accuracy"] == 100.0


def test_prompts_and_rollouts_must_agree() -> None:
    with pytest.raises(ValueError, match="the rollout of prompt 1 stands where that of prompt 0 belongs"):
        Rewarder(Length(), TASK, tokenizer())([prompt_of(0)], [written("1", prompt_of(1))])


def test_record_by_hand() -> None:
    record: dict[str, Any] = StepRewards((1.0, 0.0, 2.0, 2.0, 0.0, 1.0), 2, {"accuracy": 50.0}).record()
    assert record == {
        "reward": 1.0,
        "reward_std": pytest.approx((4 / 6) ** 0.5),
        "reward_tied_groups": pytest.approx(1 / 3),
        "task_metrics": {"accuracy": 50.0},
    }


def test_single_samples_have_no_ties() -> None:
    assert StepRewards((1.0, 3.0), 1, {}).record() == {"reward": 2.0, "reward_std": 1.0, "task_metrics": {}}
