from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.errors import UserError
from tutelage.rewards.base import FunctionReward, Sample
from tutelage.rewards.load import check_sampling, import_function, is_scorer, load_reward
from tutelage.rewards.options import RewardConfig, RLConfig
from tutelage.rollout.base import Sampling
from tutelage.tasks import load_task
from tutelage.tasks.base import Task

CPU = torch.device("cpu")


def reward_of(spelling: str, task: Task | None = None) -> Any:
    return load_reward(RewardConfig(reward=spelling), task or load_task("arithmetic"), CPU)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of a module in the working folder, a new one for every test."""
    name = f"rewards_of_{abs(hash(request.node.nodeid))}"
    source = """
        import functools

        LIMIT = 3

        def length(prompt, completion, reference, example):
            return len(completion)

        def with_default(prompt, completion, reference, example, scale=2.0):
            return scale

        def short(completion):
            return 0.0

        class Reward:
            def __call__(self, prompt, completion, reference, example):
                return 7.0

        live = Reward()
    """
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    (tmp_path / f"{name}_broken.py").write_text("raise KeyError('no such thing')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    return name


def test_no_reward() -> None:
    assert load_reward(RewardConfig(), load_task("arithmetic"), CPU) is None


def test_the_tasks_own() -> None:
    reward = reward_of("accuracy")
    task = load_task("arithmetic")
    example = task.examples("train")[0]
    right, wrong = (Sample("q", text, None, example) for text in (f"#### {example['result']}", "#### 9999"))
    assert reward([right, wrong]) == [1.0, 0.0]
    assert reward.name == "accuracy"


def test_a_name_the_task_does_not_have() -> None:
    with pytest.raises(
        UserError, match=r"rl\.reward=acuracy: no reward of the arithmetic task; did you mean 'accuracy'\?"
    ):
        reward_of("acuracy")


def test_a_function_with_a_dot_for_the_colon() -> None:
    with pytest.raises(
        UserError,
        match=r"no reward of the arithmetic task; did you mean package\.module:mark\? known are accuracy; or use scorer:",
    ):
        reward_of("package.module.mark")


def test_a_task_without_a_reward_names_the_alternatives() -> None:
    class Talk:
        name = "talk"

    with pytest.raises(UserError, match=r"no rewards of its own; did you mean my_module:mark\? use scorer:FOLDER"):
        reward_of("my_module.mark", Talk())  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match=r"the talk task has no rewards of its own; use scorer:FOLDER .*package\.module:function"
    ):
        reward_of("accuracy", Talk())  # type: ignore[arg-type]


def test_prompts_without_completions_have_nothing_to_compare_with(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    task = load_task("jsonl", data=str(tmp_path / "rows.jsonl"), completion_column=None, metric="none")
    with pytest.raises(UserError, match="the jsonl task has no rewards of its own"):
        reward_of("rouge2", task)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(8, temperature=0.7), r"rollout\.temperature=0\.7: .* set rollout\.temperature=1"),
        (Sampling(8, temperature=0.0), r"rollout\.temperature=0\.0"),
        (Sampling(8, top_p=0.9), r"rollout\.top_p=0\.9, rollout\.top_k=0: .* set rollout\.top_p=1"),
        (Sampling(8, top_k=5), r"rollout\.top_p=1\.0, rollout\.top_k=5"),
    ],
)
def test_the_student_must_draw_from_its_own_distribution(sampling: Sampling, message: str) -> None:
    for alpha in (0.0, 0.99):
        with pytest.raises(UserError, match=message):
            check_sampling(RLConfig(reward="accuracy", alpha=alpha), sampling)
    check_sampling(RLConfig(reward="accuracy", alpha=1), sampling)  # only measured
    check_sampling(RLConfig(), sampling)
    check_sampling(RLConfig(reward="accuracy"), Sampling(8))


def test_scorers_are_told_by_their_prefix() -> None:
    assert is_scorer("scorer:x")
    assert not is_scorer("package.module:function")
    assert not is_scorer(None)


# --- functions by import path -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "value"), [("length", 3.0), ("with_default", 2.0), ("live", 7.0)])
def test_functions_of_the_working_folder(module: str, function: str, value: float) -> None:
    reward = reward_of(f"{module}:{function}")
    assert isinstance(reward, FunctionReward)
    assert reward.name == f"{module}:{function}"
    assert reward([Sample("p", "abc", None, {})]) == [value]


def test_installed_modules_go_before_the_working_folder(module: str) -> None:
    Path("colorsys.py").write_text("def rgb_to_hls(*_): return 0.0")
    with pytest.raises(UserError, match=r"rgb_to_hls\(r, g, b\) cannot be called"):
        import_function("colorsys:rgb_to_hls")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{}:lenght", "has no function 'lenght'; did you mean 'length'"),
        ("{}:LIMIT", "is a int, not a function of the form"),
        ("{}:short", r"short\(completion\) cannot be called \(too many positional arguments\); it needs the form "
                     r"\(prompt: str, completion: str, reference: str \| None, example: Mapping\) -> float"),
        ("{}_broken:f", "cannot import .*_broken: KeyError: 'no such thing'"),
        ("{}_nowhere:f", "cannot import .*_nowhere: ModuleNotFoundError: .*importable from"),
        (":f", "cannot import a module without a name"),
        ("{}:", "has no function ''"),
    ],
)  # fmt: skip
def test_functions_that_cannot_be_used(module: str, path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        reward_of(path.format(module))
