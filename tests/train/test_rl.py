"""RL + GKD through whole runs: what a step does, that the reward rises, and what stops a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch

from tests.conftest import build_model, tokenizer
from tests.train.reward_functions import digits
from tutelage.errors import UserError
from tutelage.models.language_model import LanguageModel
from tutelage.train.config import Config
from tutelage.train.loop import Parts, train
from tutelage.train.metrics import read_metrics
from tutelage.train.setup import prepare

MakeConfig = Callable[..., Config]
FUNCTIONS = "tests.train.reward_functions"


def model(hidden: int, *, seed: int, dtype: torch.dtype = torch.float32) -> LanguageModel:
    return build_model("llama", with_tokenizer=True, hidden=hidden, seed=seed, dtype=dtype)


def parts_of(config: Config, dtype: torch.dtype = torch.float32) -> Parts:
    teacher = None if config.teacher is None else model(32, seed=1, dtype=dtype)
    return prepare(config, student=model(16, seed=0, dtype=dtype), teacher=teacher)[0]


def text(ids: tuple[int, ...]) -> str:
    return str(tokenizer().decode(ids, skip_special_tokens=True))


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("alpha", "teacher"), [(0.3, True), (0.0, True), (0.0, False), (1.0, True)])
def test_one_step_is_plain_pytorchs(alpha: float, teacher: bool, make_config: MakeConfig) -> None:
    """Written out: Eq. 5 with two samples a prompt, leave-one-out, full logits, autograd."""
    config = make_config(
        method="rl_gkd", **({} if teacher else {"teacher": None}),
        **{"rl.reward": f"{FUNCTIONS}:digits", "rl.alpha": alpha, "rollout.samples_per_prompt": 2, "train.steps": 1},
    )  # fmt: skip
    parts = parts_of(config, torch.float64)
    record = train(parts, config).records[0]

    student: Any = model(16, seed=0, dtype=torch.float64).module
    marker: Any = model(32, seed=1, dtype=torch.float64).module
    rollouts = parts.log.read(0)
    assert [(a.prompt_id, b.sample - a.sample) for a, b in pairwise(rollouts)][::2] == [
        (rollouts[0].prompt_id, 1), (rollouts[2].prompt_id, 1),
    ]  # fmt: skip
    rewards = [digits("", text(rollout.completion_ids), None, {}) for rollout in rollouts]
    assert len(set(rewards)) > 1
    loss = torch.zeros((), dtype=torch.float64)
    for i, rollout in enumerate(rollouts):
        ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        first = len(rollout.prompt_ids) - 1
        logq = student(ids).logits[0, first:-1].log_softmax(-1)
        logp = marker(ids).logits[0, first:-1].log_softmax(-1).detach()
        mixed = (0.9 * logp.exp() + 0.1 * logq.exp()).log()
        divergence = (0.9 * logp.exp() * (logp - mixed) + 0.1 * logq.exp() * (logq - mixed)).sum(-1).mean()
        sequence = logq.gather(1, torch.tensor(rollout.completion_ids)[:, None]).sum()
        advantage = rewards[i] - rewards[i ^ 1]
        loss = loss + (alpha * divergence - (1 - alpha) * advantage * sequence) / 4
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), math.inf)

    assert record["loss"] == pytest.approx(loss.item(), rel=1e-10)
    assert record["grad_norm"] == pytest.approx(norm.item(), rel=1e-9)
    assert ("forward_kl" in record) == teacher
    assert record["reward"] == pytest.approx(fmean(rewards))
    assert record["reward_std"] == pytest.approx(pstdev(rewards))
    assert record["reward_tied_groups"] == sum(rewards[i] == rewards[i + 1] for i in (0, 2)) / 2
    assert set(record["task_metrics"]) == {"accuracy", "valid_format", "step_accuracy"}
    assert "reward" in record["seconds"]


def test_alpha_one_is_distillation_to_the_bit(make_config: MakeConfig) -> None:
    trained = []
    for name, changes in {
        "measured": {"rl.reward": f"{FUNCTIONS}:digits", "rl.alpha": 1.0},
        "plain": {},
    }.items():
        config = make_config(output=f"{make_config().output}-{name}", **changes, **{"train.steps": 3})
        parts = parts_of(config)
        train(parts, config)
        trained.append([parameter.detach() for parameter in parts.student.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*trained, strict=True))


RISING = {
    "a reward alone": {"rl.alpha": 0.0, "teacher": None, "rollout.samples_per_prompt": 8},
    "group": {"rl.alpha": 0.0, "teacher": None, "rollout.samples_per_prompt": 8, "rl.baseline": "group"},
    "beside a divergence": {"rl.alpha": 0.2},
}


@pytest.mark.parametrize("changes", RISING.values(), ids=RISING)
def test_the_reward_rises(changes: dict[str, Any], make_config: MakeConfig) -> None:
    rate = {"train.steps": 30, "train.batch_size": 32, "train.learning_rate": 0.02, "train.schedule": "constant"}
    config = make_config(method="rl_gkd", **{"rl.reward": f"{FUNCTIONS}:has_the"}, **rate, **changes)
    train(parts_of(config), config)
    rewards = [record["reward"] for record in read_metrics(config.output / "metrics.jsonl")]
    assert fmean(rewards[:5]) < 0.4
    assert fmean(rewards[-5:]) > 0.8


def test_a_reward_that_fails_stops_before_the_update(make_config: MakeConfig) -> None:
    config = make_config(method="rl_gkd", **{"rl.reward": f"{FUNCTIONS}:not_a_number"})
    parts = parts_of(config)
    before = [parameter.detach().clone() for parameter in parts.student.parameters()]
    with pytest.raises(UserError, match=r"the reward tests.*:not_a_number returned nan, .* of the prompt '") as raised:
        train(parts, config)
    rollout = parts.log.read(0)[0]
    assert repr(text(rollout.completion_ids)) in str(raised.value)
    assert all(torch.equal(one, other) for one, other in zip(before, parts.student.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rl.reward": "rouge2"}, "rl.reward=rouge2: no reward of the arithmetic task; .*known are accuracy; or use scorer:FOLDER"),
        ({"rl.reward": "scorer:nowhere"}, "there is no folder 'nowhere'"),
        ({"rl.reward": f"{FUNCTIONS}:digit"}, "has no function 'digit'; did you mean 'digits'"),
        ({"rl.reward": "accuracy", "rollout.temperature": 0.7}, r"rollout\.temperature=0\.7"),
        ({"rl.reward": "accuracy", "rollout.top_k": 5}, r"rollout\.top_k=5"),
    ],
)  # fmt: skip
def test_bad_rewards_stop_before_any_work(changes: dict[str, Any], message: str, make_config: MakeConfig) -> None:
    config = make_config(method="rl_gkd", **changes)
    with pytest.raises(UserError, match=message):
        prepare(config)
    assert not (config.output / "run.json").exists()
