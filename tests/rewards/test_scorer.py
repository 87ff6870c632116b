"""Tiny classifiers as the scorer: their own logits are the reference."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

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


def save_peaked(
    folder: Path, config_class: Any, own_tokenizer: Any, labels: dict[int, str], positions: int, **options: int
) -> Any:
    """A classifier whose weights are large enough that its labels are not equally likely, saved with its tokenizer."""
    torch.manual_seed(0)
    config = config_class(
        vocab_size=len(tokenizer()), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=positions, id2label=labels, label2id={v: k for k, v in labels.items()}, **options,
    )  # fmt: skip
    module: Any = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(5.0)
    module.save_pretrained(folder)
    own_tokenizer.save_pretrained(folder)
    return module


def save(folder: Path, labels: dict[int, str], positions: int = 96) -> Any:
    """A BERT with these labels and the arithmetic task's tokenizer."""
    return save_peaked(folder, transformers.BertConfig, tokenizer(), labels, positions, pad_token_id=0)


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


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_a_decoder_whose_configuration_names_no_padding(kind: str, tmp_path: Path) -> None:
    """It reads several texts of unlike lengths, each at its last token."""
    module = save_peaked(
        tmp_path, getattr(transformers, f"{kind}Config"), tokenizer(), THREE, 96, num_key_value_heads=2
    )
    assert module.config.pad_token_id is None
    expected = [logits(module, sample).softmax(-1)[2].item() for sample in SAMPLES]
    assert abs(expected[0] - expected[1]) > 1e-3
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


def framing_tokenizer() -> Any:
    """Frames texts as RoBERTa's does, with the same id of the padding token: 4 tokens around a pair."""
    core = Tokenizer.from_str(tokenizer().backend_tokenizer.to_str())
    core.post_processor = TemplateProcessing(
        single="<unk> $A </s>", pair="<unk> $A </s> </s> $B </s>", special_tokens=[("<unk>", 3), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<s>", eos_token="</s>", unk_token="<unk>", bos_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def save_roberta(folder: Path, positions: int) -> Any:
    """A RoBERTa of this many positions, of which it can use two less, saved with `framing_tokenizer`."""
    return save_peaked(
        folder, transformers.RobertaConfig, framing_tokenizer(), THREE, positions, pad_token_id=1, type_vocab_size=1
    )


PROMPT, ANSWER = "Tom has 3 apples and buys 4 apples.", "3 + 4 = 7. #### 7"


def test_kinds_that_number_positions_from_behind_the_padding_use_them_all(tmp_path: Path) -> None:
    """At every window from one token of the prompt to one more than both texts: the model's own answer for what fits."""
    first, second = (tokenizer().encode(text) for text in (PROMPT, ANSWER))
    for kept in (1, 2, len(first) - 1, len(first), len(first) + 1):
        module = save_roberta(tmp_path / str(kept), positions=kept + len(second) + 4 + 2)
        ids = torch.tensor([[3, *first[:kept], 2, 2, *second, 2]])
        with torch.no_grad():
            expected = module(input_ids=ids).logits.softmax(-1)[0, 2].item()
        scorer = Scorer(str(tmp_path / str(kept)), "entailment", CPU)
        assert scorer.max_tokens == kept + len(second) + 4
        assert scorer([Sample(PROMPT, ANSWER, None, {})]) == pytest.approx([expected], abs=1e-6)


@pytest.mark.parametrize("missing", [0, 1, 5])
def test_a_completion_that_is_too_long_loses_its_end_after_the_whole_prompt(
    missing: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids = tokenizer().encode(ANSWER)
    room = len(ids) - missing
    module = save_roberta(tmp_path, positions=room + 4 + 2)
    with torch.no_grad():
        cut = module(input_ids=torch.tensor([[3, 2, 2, *ids[:room], 2]])).logits.softmax(-1)[0, 2].item()
        whole = module(input_ids=torch.tensor([[3, *ids[:1], 2, 2, *ids[1:2], 2]])).logits.softmax(-1)[0, 2].item()
    short = Sample(tokenizer().decode(ids[:1]), tokenizer().decode(ids[1:2]), None, {})
    scorer = Scorer(str(tmp_path), "entailment", CPU)
    with caplog.at_level(logging.WARNING):
        assert scorer([Sample(PROMPT, ANSWER, None, {}), short]) == pytest.approx([cut, whole], abs=1e-6)
        scorer([Sample(PROMPT, ANSWER, None, {}), Sample(PROMPT, "7", None, {})])
    prompt = len(tokenizer().encode(PROMPT))
    reads = f"the scorer reads {room + 4} tokens, but prompt and completion have"
    assert [record.message for record in caplog.records if record.name == "tutelage.rewards.scorer"] == [
        f"{reads} {prompt + len(ids) + 4}: it sees nothing of such prompts, and as much of their completions as fits",
        f"{reads} {prompt + 1 + 4}: it sees the beginning of such prompts only",
    ]


def test_a_scorer_without_a_limit_reads_everything(tmp_path: Path) -> None:
    torch.manual_seed(2)
    config = transformers.BloomConfig(
        vocab_size=len(tokenizer()), hidden_size=16, n_layer=1, n_head=2, num_labels=1, pad_token_id=0
    )
    module: Any = transformers.BloomForSequenceClassification(config).eval()
    module.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    long = Sample(PROMPT * 20, ANSWER * 20, None, {})
    scorer = Scorer(str(tmp_path), "entailment", CPU)
    assert scorer.max_tokens is None
    ids = torch.tensor([tokenizer().encode(long.prompt) + tokenizer().encode(long.completion)])
    with torch.no_grad():
        expected = module(input_ids=ids).logits[0, 0].item()
    assert scorer([long]) == pytest.approx([expected], abs=1e-5)


def test_the_smaller_limit_holds(tmp_path: Path) -> None:
    save(tmp_path, THREE, positions=96)
    limited = tokenizer()
    limited.model_max_length = 20
    limited.save_pretrained(tmp_path)
    assert Scorer(str(tmp_path), "entailment", CPU).max_tokens == 20


def test_a_scorer_that_reads_no_text(tmp_path: Path) -> None:
    save_roberta(tmp_path, positions=6)
    with pytest.raises(UserError, match=r"reads 4 tokens at a time, of which 4 frame prompt and completion"):
        Scorer(str(tmp_path), "entailment", CPU)


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
