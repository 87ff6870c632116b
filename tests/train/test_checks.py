from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conftest import build_model, fixed_rollouts
from tutelage.errors import UserError
from tutelage.models.language_model import LanguageModel
from tutelage.rollout.base import Sampling
from tutelage.tasks.encode import Encoding
from tutelage.train.checks import check_length, check_positions, check_replay
from tutelage.train.config import Config, RolloutConfig


def live(family: str = "llama", **options: Any) -> LanguageModel:
    return build_model(family, with_tokenizer=True, dtype=torch.float32, **options)


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
    encoding = Encoding(model.tokenizer, model.is_encoder_decoder, prompt)
    if lack is None:
        check_positions(model, encoding, Sampling(10))
    else:
        with pytest.raises(UserError, match=f"{lack}, but prompts of up to {prompt} and completions of up to 10"):
            check_positions(model, encoding, Sampling(10))


@pytest.mark.parametrize("sampling", [Sampling(5, 0.0), Sampling(5, top_p=0.9), Sampling(5, top_k=3)])
def test_importance_needs_draws_from_the_whole_distribution(sampling: Sampling) -> None:
    weighted = Config(student="s", rollout=RolloutConfig(replay_clip=2.0))
    with pytest.raises(UserError, match=rf"replay_clip=2\.0 with rollout\.temperature={sampling.temperature}, "):
        check_replay(weighted, sampling)
    check_replay(weighted, Sampling(5, 0.7))
    check_replay(Config(student="s"), sampling)


def test_data_set_sequences_past_the_last_position() -> None:
    check_length(live("gpt2"), fixed_rollouts(((90, 6),))[0])
    with pytest.raises(
        UserError, match="example 0 has a prompt of 90 and a completion of 7 tokens, but tiny-gpt2 has 96 positions"
    ):
        check_length(live("gpt2"), fixed_rollouts(((90, 7),))[0])
