from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import build_model, fixed_rollouts
from tests.sums import Sums, sums_config
from tutelage.errors import UserError
from tutelage.models.language_model import LanguageModel
from tutelage.rollout.base import Sampling
from tutelage.train.checks import (
    check_draws,
    check_implementation,
    check_length,
    check_positions,
    check_signal,
    check_task,
)
from tutelage.train.config import Config, LossConfig, RolloutConfig
from tutelage.train.methods import resolve


def live(family: str = "llama", **options: Any) -> LanguageModel:
    return build_model(family, with_tokenizer=True, dtype=torch.float32, **options)


class Counted(Sums):
    """Gives a count where marks are needed."""

    def score(self, completions: Any, examples: Any) -> Any:
        return len(completions)


def test_a_live_task_is_marked_on_the_split_of_the_evaluation_alone(tmp_path: Path) -> None:
    for final in ("auto", "validation"):
        with pytest.raises(UserError, match=r"score\(completions, examples\) of the task Counted gave 1 of type int"):
            check_task(sums_config(tmp_path, **{"eval.final": final}), Counted())
    check_task(sums_config(tmp_path, **{"eval.final": "none"}), Counted())
    check_task(sums_config(tmp_path, **{"eval.final": "auto"}), Counted(splits=("train",)))
    check_task(sums_config(tmp_path, **{"eval.final": "validation"}), Sums())


@pytest.mark.parametrize(
    ("family", "prompt", "lack"),
    [
        ("gpt2", 86, None),
        ("gpt2", 87, "tiny-gpt2 has 96 positions"),
        ("t5", 5000, None),
        ("bart", 96, None),
        ("bart", 97, "tiny-bart has 96 positions in its encoder"),
    ],
)
def test_positions(family: str, prompt: int, lack: str | None) -> None:
    model = live(family)
    if lack is None:
        check_positions(model, prompt, Sampling(10))
    else:
        seen = rf"{lack}, but it is to read prompts of up to {prompt} and completions of up to 10 tokens; lower task\.max_prompt_tokens"
        with pytest.raises(UserError, match=seen):
            check_positions(model, prompt, Sampling(10))


@pytest.mark.parametrize("sampling", [Sampling(5, 0.0), Sampling(5, top_p=0.9), Sampling(5, top_k=3)])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replay": 64, "importance_clip": 2.0}, "rollout.importance_clip=2.0 with rollout.temperature="),
        ({"teacher_share": 0.2}, "rollout.teacher_share=0.2 with rollout.temperature="),
    ],
)
def test_weights_and_mixtures_need_draws_from_the_whole_distribution(
    options: dict[str, Any], message: str, sampling: Sampling
) -> None:
    config, plain = (Config(student="s", teacher="t", rollout=RolloutConfig(**raw)) for raw in (options, {}))
    with pytest.raises(UserError, match=re.escape(f"{message}{sampling.temperature}, ")):
        check_draws(config, resolve(config), sampling)
    check_draws(config, resolve(config), Sampling(5, 0.7))
    check_draws(plain, resolve(plain), sampling)


@pytest.mark.parametrize("sampling", [Sampling(5, 0.7), Sampling(5, top_p=0.9), Sampling(5, top_k=3)])
def test_a_gradient_through_sampling_needs_the_students_own_distribution(sampling: Sampling) -> None:
    config = Config(student="s", teacher="t", loss=LossConfig(sequence_level=True))
    with pytest.raises(UserError, match=rf"loss\.sequence_level with rollout\.temperature={sampling.temperature}, "):
        check_draws(config, resolve(config), sampling)
    check_draws(config, resolve(config), Sampling(5))


def test_a_single_teacher_helps_to_write() -> None:
    config = Config(student="s", teacher="t", other_teachers=("u", "v"), rollout=RolloutConfig(teacher_share=0.2))
    with pytest.raises(UserError, match=r"teacher_share=0\.2 with other_teachers=u, v: several teachers mark"):
        check_draws(config, resolve(config), Sampling(5))


def test_a_sampled_signal_needs_tokens_of_the_student_alone() -> None:
    written = {"teacher_signal": "sampled", "divergence": "reverse_kl"}
    config = Config(student="s", teacher="t", rollout=RolloutConfig(teacher_share=0.2), **written)
    with pytest.raises(
        UserError, match=r"rollout\.teacher_share=0\.2: a sampled signal is right only on tokens drawn from"
    ):
        check_signal(config, resolve(config), live(), Sampling(5))


def test_data_set_sequences_past_the_last_position() -> None:
    check_length(live("gpt2"), fixed_rollouts(((90, 6),))[0])
    with pytest.raises(
        UserError, match="example 0 has a prompt of 90 and a completion of 7 tokens, but tiny-gpt2 has 96 positions"
    ):
        check_length(live("gpt2"), fixed_rollouts(((90, 7),))[0])


@pytest.mark.parametrize(
    ("device", "options", "lack"),
    [
        ("cpu", {}, "they run on CUDA, not on train.device=cpu"),
        ("cuda", {"teacher_signal": "topk(8)"}, "there is none for teacher_signal=topk(8)"),
        ("cuda", {"divergence": "adaptive_kl(0.5)"}, "there is none for divergence=adaptive_kl(0.5)"),
        ("cuda", {"divergence": "jsd(0.1)"}, None),
        ("cuda", {"method": "seqkd"}, None),
    ],
)
def test_kernels_that_are_not_there_are_refused(device: str, options: dict[str, Any], lack: str | None) -> None:
    config = Config(student="s", teacher="t", loss=LossConfig(implementation="triton"), **options)
    if lack is None:
        check_implementation(config, resolve(config), torch.device(device))
    else:
        with pytest.raises(UserError, match=re.escape(f"but {lack}; use loss.implementation=auto")):
            check_implementation(config, resolve(config), torch.device(device))
    anything = Config(student="s", teacher="t", **options)
    check_implementation(anything, resolve(anything), torch.device(device))
