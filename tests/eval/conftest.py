"""Tiny models of both families with a tokenizer of 20 words, and a task that marks them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from tutelage.models.language_model import LanguageModel
from tutelage.tasks.base import Example, Generation, Scores
from tutelage.tasks.metrics import mean_scores
from tutelage.types import Prompt

WORDS = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(17))]


def build_tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def build_model(family: str, seed: int = 0, padding_rows: int = 0) -> LanguageModel:
    """A model with random weights large enough that its choices are not uniform."""
    torch.manual_seed(seed)
    height = len(WORDS) + padding_rows
    if family == "llama":
        module = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=height, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=2, max_position_embeddings=64, eos_token_id=1, pad_token_id=0, bos_token_id=None,
                initializer_range=0.5,
            )
        )  # fmt: skip
    else:
        module = T5ForConditionalGeneration(
            T5Config(
                vocab_size=height, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, eos_token_id=1,
                pad_token_id=0, decoder_start_token_id=0, tie_word_embeddings=False, initializer_factor=1.0,
            )
        )  # fmt: skip
        with torch.no_grad():
            module.lm_head.weight.mul_(2.0)
    model = LanguageModel(module.eval(), build_tokenizer(), f"tiny-{family}")
    model.vocab_size = len(WORDS)
    return model


def build_prompts(n: int = 6) -> list[Prompt]:
    """Prompts of different lengths with references; the example's "word" is what the task looks for."""
    return [
        Prompt(
            id=i,
            token_ids=tuple(3 + (i + j) % 17 for j in range(1 + i)),
            reference_ids=(3 + i, 4 + i, 1),
            example={"word": f"w{i}"},
        )
        for i in range(n)
    ]


@dataclass
class WordTask:
    """Right when the completion holds the example's word."""

    name: str = "words"
    metric: str = "accuracy"
    generation: Generation = field(default_factory=lambda: Generation(max_new_tokens=8))

    def examples(self, split: str) -> Sequence[Example]:
        return [prompt.example for prompt in build_prompts()]

    def prompt(self, example: Example) -> str:
        return f"find {example['word']}"

    def reference(self, example: Example) -> str | None:
        return example["word"]

    def score(self, completions: Sequence[str], examples: Sequence[Example]) -> Scores:
        marks = [float(e["word"] in c.split()) for c, e in zip(completions, examples, strict=True)]
        return mean_scores(self.metric, marks)


@pytest.fixture
def make_model() -> Callable[..., LanguageModel]:
    """`build_model`, for tests that need several models or padding rows."""
    return build_model


@pytest.fixture(params=["llama", "t5"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return build_model(request.param)


@pytest.fixture
def prompts() -> list[Prompt]:
    return build_prompts()


@pytest.fixture
def task() -> WordTask:
    return WordTask()
