from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.compare.conftest import raw
from tutelage.compare import plan, references
from tutelage.compare.config import read
from tutelage.compare.start import Start, address
from tutelage.eval.results import Completion, Evaluation, Row
from tutelage.train import config_io
from tutelage.train.config import Config


def evaluation(text: str) -> Evaluation:
    completion = Completion("greedy", 3, 0, "1 + 1 =", text, 2, "stop", 100.0, "2")
    row = Row("greedy", 1, 1, "accuracy", 100.0, None, {"accuracy": 100.0}, {}, 2.0, {"stop": 1.0}, None, None, 0.5)
    return Evaluation("tiny", "arithmetic", (row,), (completion,))


def counting(made: list[str], text: str) -> Callable[[], Evaluation]:
    def make() -> Evaluation:
        made.append(text)
        return evaluation(text)

    return make


@pytest.fixture
def config(models: Path, tmp_path: Path) -> Callable[..., Config]:
    def build(**changes: Any) -> Config:
        recipe = read(raw(models, tmp_path / "out"))
        cell = plan.final_cells(recipe, plan.expand(recipe)[0], {})[0]
        keys = cell.config.model_dump(exclude_unset=True)
        return config_io.build(config_io.deep_merge(keys, config_io.nest(changes)))

    return build


def test_made_once_and_read_by_the_others(config: Callable[..., Config], tmp_path: Path) -> None:
    made: list[str] = []
    first = Start(config(), tmp_path)(counting(made, "first"))
    again = Start(config(method="gkd"), tmp_path)(counting(made, "second"))
    assert made == ["first"]
    assert again == first == evaluation("first")


def test_a_kill_while_it_is_written_leaves_nothing(config: Callable[..., Config], tmp_path: Path) -> None:
    def killed() -> Evaluation:
        raise KeyboardInterrupt

    start, made = Start(config(), tmp_path), []
    with pytest.raises(KeyboardInterrupt):
        start(killed)
    (start.folder / "unfinished").mkdir()
    (start.folder / "unfinished" / "results.json").write_text("{")
    assert start(counting(made, "whole")) == evaluation("whole")
    assert made == ["whole"]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"method": "seqkd"},  # no teacher reads, and none is measured against
        {"eval.temperatures": (0.5,)},
        {"eval.limit": 3},
        {"task.options.validation_size": 7},
        {"rollout.max_new_tokens": 7},
        {"student_model.dtype": "bfloat16"},
        {"rl.reward": "accuracy", "method": "rl_gkd"},  # measured on the initial student, too
    ],
)
def test_what_shapes_it_is_in_its_name(config: Callable[..., Config], changes: dict[str, Any]) -> None:
    assert address(config(**changes)) != address(config())


def test_rewards_that_differ_are_measured_apart(config: Callable[..., Config]) -> None:
    def of(reward: str, alpha: float = 0.5) -> str:
        return address(config(**{"method": "rl_gkd", "rl.reward": reward, "rl.alpha": alpha}))

    assert of("accuracy") != of("tests.compare.conftest:half")
    assert of("accuracy") == of("accuracy", alpha=0.25)


def test_a_reward_written_anew_is_another(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "reward_of_the_start.py"
    source.write_text("def mark(prompt, completion, reference, example):\n    return 0.0\n")
    rewarded = config(**{"method": "rl_gkd", "rl.reward": "reward_of_the_start:mark"})
    rewards = references.common_rewards([plan.Cell("a", {}, rewarded)])

    def addresses() -> list[str]:
        return [
            address(rewarded),
            references.key("initial", rewarded, rewards)[-1],
            references.key("teacher", rewarded, rewards)[-1],
        ]

    before = addresses()
    assert addresses() == before
    source.write_text(source.read_text().replace("0.0", "1.5"))
    assert not set(addresses()) & set(before)


def test_what_only_shapes_training_is_not(config: Callable[..., Config]) -> None:
    trained = {"method": "gkd", "divergence": "reverse_kl", "train.learning_rate": 0.5, "train.steps": 9}
    assert address(config(**trained)) == address(config())


def test_the_student_is_there_by_its_weights(config: Callable[..., Config], models: Path) -> None:
    before = address(config())
    weights = models / "student" / "model.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content + b"\0")
        assert address(config()) != before
    finally:
        weights.write_bytes(content)
