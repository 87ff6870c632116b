from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from tests.conftest import build_model
from tutelage.errors import UserError
from tutelage.models.language_model import LanguageModel
from tutelage.rollout.base import Sampling
from tutelage.tasks import load_task
from tutelage.tasks.base import Generation
from tutelage.tasks.encode import chosen
from tutelage.train.config import Config
from tutelage.train.prompts import sampling_of
from tutelage.train.setup import prepare

MakeConfig = Callable[..., Config]


def live(**options: Any) -> LanguageModel:
    return build_model("llama", with_tokenizer=True, dtype=torch.float32, **options)


def test_sampling_is_the_tasks_unless_the_run_says_otherwise(make_config: MakeConfig) -> None:
    class Task:
        generation = Generation(max_new_tokens=33, temperature=0.7, top_p=0.9, top_k=5)

    nothing: dict[str, Any] = {"rollout": {"max_new_tokens": None}}
    assert sampling_of(make_config(**nothing), Task()) == Sampling(33, 0.7, 0.9, 5)  # type: ignore[arg-type]
    chosen = {"max_new_tokens": 7, "temperature": 0.0, "top_p": 0.5, "top_k": 0}
    assert sampling_of(make_config(rollout=chosen), Task()) == Sampling(7, 0.0, 0.5, 0)  # type: ignore[arg-type]


class WithoutAnswers:
    """Arithmetic of which one answer is missing."""

    name, metric = "arithmetic", "accuracy"

    def __init__(self) -> None:
        self.whole = load_task("arithmetic", level="easy", train_size=4)
        self.generation = self.whole.generation

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def examples(self, split: str) -> Sequence[Any]:
        return [
            {**example, "answer": None} if i == 2 else example for i, example in enumerate(self.whole.examples(split))
        ]

    def reference(self, example: Any) -> str | None:
        return example["answer"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("fraction", "needed"), [(1.0, False), (0.5, True)])
def test_completions_are_needed_where_they_are_trained_on(
    fraction: float, needed: bool, make_config: MakeConfig
) -> None:
    config = make_config(student_data_fraction=fraction)
    models: dict[str, Any] = {"student": live(), "teacher": live(seed=1), "task": WithoutAnswers()}
    if needed:
        with pytest.raises(UserError, match="training example 2 has no completion"):
            prepare(config, **models)
        assert not (config.output / "run.json").exists()
    else:
        assert prepare(config, **models)[0].source.fraction == 1.0


def test_the_share_can_be_the_same_for_every_seed(make_config: MakeConfig) -> None:
    share: dict[str, Any] = {"task.train_fraction": 0.25, "task.train_fraction_seed": 7, "train.batch_size": 5}
    for seed in (3, 4):
        parts, _ = prepare(make_config(seed=seed, **share))
        ids = {draw.prompt.id for step in range(4) for draw in parts.source.draws(step)}
        assert ids == set(chosen(20, 0.25, 7))


def test_a_seed_without_a_share_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"task\.train_fraction_seed=7 draws a share .* below 1, or drop the seed"):
        make_config(**{"task.train_fraction_seed": 7})


def test_only_examples_with_fixed_sequences_need_a_completion(make_config: MakeConfig) -> None:
    """The third of four has none: two suffice for the fixed half, and the student writes to all four."""
    models: dict[str, Any] = {"student": live(), "teacher": live(seed=1), "task": WithoutAnswers()}
    config = make_config(student_data_fraction=0.5, **{"task.fixed_examples": 2, "train.batch_size": 4})
    source = prepare(config, **models)[0].source
    ids = {coin: set() for coin in (True, False)}
    for step in range(40):
        for coin, draw in zip(source.coins(step), source.draws(step), strict=True):
            ids[coin].add(draw.prompt.id)
    assert ids == {True: {0, 1, 2, 3}, False: {0, 1}}
    with pytest.raises(UserError, match=r"task\.fixed_examples=5, but there are only 4 training examples; lower it"):
        prepare(make_config(student_data_fraction=0.5, **{"task.fixed_examples": 5}), **models)


@pytest.mark.parametrize("fraction", [0.0, 1.5])
def test_a_share_outside_its_range(fraction: float, make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=rf"task\.train_fraction: saw {fraction}, needs "):
        make_config(**{"task.train_fraction": fraction})
