"""A tiny BERT as the scorer: its own logits are the reference."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.conftest import build_module, tokenizer
from tutelage.errors import UserError
from tutelage.rewards.base import Sample
from tutelage.rewards.scorer import Scorer

CPU = torch.device("cpu")
SAMPLES = [
    Sample("Tom has 3 apples.", "3 + 4 = 7. #### 7", None, {}),
    Sample("Tom has 12 apples and buys 5 more of them.", "#### 17", None, {}),
]
THREE = {0: "Contradiction", 1: "neutral", 2: "ENTAILMENT"}


def save(folder: Path, labels: dict[int, str], positions: int = 96, seed: int = 0) -> Any:
    """A classifier with these labels, saved with its tokenizer."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer()), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=positions, id2label=labels, label2id={v: k for k, v in labels.items()}, pad_token_id=0,
    )  # fmt: skip
    module = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(5.0)
    module.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return module


def logits(module: Any, sample: Sample) -> torch.Tensor:
    """The model's own, of one pair without padding."""
    with torch.no_grad():
        return module(**tokenizer()(sample.prompt, sample.completion, return_tensors="pt")).logits[0]


def test_the_probability_of_the_label(tmp_path: Path) -> None:
    module = save(tmp_path, THREE)
    scorer = Scorer(str(tmp_path), "entailment", CPU)
    expected = [logits(module, sample).softmax(-1)[2].item() for sample in SAMPLES]
    assert scorer(SAMPLES) == pytest.approx(expected, abs=1e-6)
    assert abs(expected[0] - expected[1]) > 1e-3
    assert scorer.name == f"scorer:{tmp_path}"
    neutral = Scorer(str(tmp_path), "Neutral", CPU)
    assert neutral(SAMPLES)[0] == pytest.approx(logits(module, SAMPLES[0]).softmax(-1)[1].item(), abs=1e-6)


def test_a_single_output_is_the_reward_itself(tmp_path: Path) -> None:
    module = save(tmp_path, {0: "LABEL_0"})
    expected = [logits(module, sample)[0].item() for sample in SAMPLES]
    assert Scorer(str(tmp_path), "entailment", CPU)(SAMPLES) == pytest.approx(expected, abs=1e-5)


def test_many_samples_and_again(tmp_path: Path) -> None:
    save(tmp_path, THREE)
    scorer = Scorer(str(tmp_path), "entailment", CPU)
    once = scorer(SAMPLES * 40)
    assert once == pytest.approx(scorer(SAMPLES) * 40, abs=1e-6)
    assert scorer(SAMPLES * 40) == once


def test_long_prompts_lose_their_end_and_a_warning_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = save(tmp_path, THREE, positions=16)
    scorer = Scorer(str(tmp_path), "entailment", CPU)
    long = Sample("Tom has 3 apples and buys 4 apples and buys 5 apples and 6 apples.", "#### 7", None, {})
    ids = tokenizer()(long.prompt)["input_ids"], tokenizer()(long.completion)["input_ids"]
    kept = torch.tensor([ids[0][: 16 - len(ids[1])] + ids[1]])
    assert kept.shape == (1, 16)
    with torch.no_grad():
        kinds = torch.tensor([[0] * (16 - len(ids[1])) + [1] * len(ids[1])])
        own = tokenizer()(long.prompt, long.completion)
        types = {"token_type_ids": kinds} if "token_type_ids" in own else {}
        expected = module(input_ids=kept, **types).logits.softmax(-1)[0, 2].item()
    with caplog.at_level(logging.WARNING):
        assert scorer([long]) == pytest.approx([expected], abs=1e-6)
        scorer([long])
    warnings = [record.message for record in caplog.records if "the scorer reads 16 tokens" in record.message]
    assert len(warnings) == 1
    assert f"have {len(ids[0]) + len(ids[1])}" in warnings[0]


def test_folders_that_hold_no_scorer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rl\.reward=scorer:/nowhere: there is no folder '/nowhere'"):
        Scorer("/nowhere", "entailment", CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot load a sequence-classification model"):
        Scorer(str(tmp_path / "empty"), "entailment", CPU)
    module: Any = build_module("llama", dtype=torch.float32, vocab=len(tokenizer()))
    module.save_pretrained(tmp_path / "lm")
    tokenizer().save_pretrained(tmp_path / "lm")
    with pytest.raises(UserError, match=r"lacks the weights score\.weight: it is no trained sequence classifier"):
        Scorer(str(tmp_path / "lm"), "entailment", CPU)


def test_a_label_the_model_does_not_have(tmp_path: Path) -> None:
    save(tmp_path, {0: "NEGATIVE", 1: "POSITIVE"})
    with pytest.raises(UserError, match=r"labels NEGATIVE, POSITIVE, but rl\.scorer_label is 'entailment'; choose one"):
        Scorer(str(tmp_path), "entailment", CPU)
