"""Tiny models of every supported family, with weights large enough that their distributions are peaked.

Also for other tests to import: `build_module` and `build_model` make one by name, `fixed_rollouts` writes sequences for it.
"""

from functools import lru_cache
from typing import Any

import pytest
import safetensors.torch  # noqa: F401 - before any test makes float64 the default: its import makes tensors
import torch
import transformers

from tutelage.models.language_model import LanguageModel
from tutelage.tasks.arithmetic import build_tokenizer
from tutelage.types import MicroBatch, Prompt, Rollout

DECODERS = ("llama", "qwen2", "gpt2", "gemma2")
ENCODER_DECODERS = ("t5", "t5_v1_1", "bart")
FAMILIES = DECODERS + ENCODER_DECODERS
PAD, BOS, EOS = 0, 1, 2

_SPECIAL = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
_LLAMA_LIKE = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "max_position_embeddings": 96,
}


@lru_cache
def tokenizer() -> Any:
    """The arithmetic task's: 226 tokens."""
    return build_tokenizer()


def build_config(family: str, *, vocab: int = 64, hidden: int = 16, layers: int = 2, dropout: float = 0.0) -> Any:
    """A configuration that `transformers` makes a model of `family` from."""
    depth = {"vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers}
    if family == "llama":
        return transformers.LlamaConfig(
            **_SPECIAL, **_LLAMA_LIKE, **depth, attention_dropout=dropout, tie_word_embeddings=False
        )
    if family == "qwen2":
        return transformers.Qwen2Config(
            **_SPECIAL, **_LLAMA_LIKE, **depth, attention_dropout=dropout, tie_word_embeddings=True
        )
    if family == "gemma2":
        # A window of 4 is shorter than most prompts of these tests.
        return transformers.Gemma2Config(
            **_SPECIAL, **_LLAMA_LIKE, **depth, attention_dropout=dropout, head_dim=8, query_pre_attn_scalar=8,
            sliding_window=4, attn_logit_softcapping=2.0, final_logit_softcapping=5.0, attn_implementation="eager",
        )  # fmt: skip
    if family == "gpt2":
        rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        return transformers.GPT2Config(
            **_SPECIAL, **rates, vocab_size=vocab, n_embd=hidden, n_layer=layers, n_head=2, n_positions=96
        )
    if family == "bart":
        ends = {"forced_eos_token_id": None, "decoder_start_token_id": EOS}
        return transformers.BartConfig(
            **_SPECIAL, **ends, vocab_size=vocab, d_model=hidden, encoder_layers=layers, decoder_layers=layers,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
            max_position_embeddings=96, dropout=dropout,
        )  # fmt: skip
    return transformers.T5Config(
        pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD, vocab_size=vocab, d_model=hidden, d_kv=8, d_ff=32,
        num_layers=layers, num_heads=2, dropout_rate=dropout, tie_word_embeddings=family == "t5",
        feed_forward_proj="relu" if family == "t5" else "gated-gelu",
    )  # fmt: skip


def build_module(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A model in evaluation mode; `options` are those of `build_config`."""
    config = build_config(family, **options)
    auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    module = auto.from_config(config, dtype=dtype)
    if family == "t5_v1_1":  # as after loading a checkpoint that holds both weights
        module.lm_head.weight = torch.nn.Parameter(module.lm_head.weight.detach().clone())
        del module.all_tied_weights_keys["lm_head.weight"]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            random = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
            # Biases are 0 and norms 1 (Gemma's 0) to begin with: shaken, so that leaving one out shows.
            parameter.copy_(0.5 * random if parameter.dim() > 1 else parameter + 0.1 * random)
            if family == "gemma2" and "post_" in name:  # else the tied head repeats the last token for ever
                parameter.add_(1.0)
        if family == "bart":
            module.final_logits_bias.normal_(generator=generator)
    return module.eval()


def build_model(family: str, *, with_tokenizer: bool = False, **options: Any) -> LanguageModel:
    """`build_module`, taken apart; without a tokenizer the special tokens are those of the configuration."""
    if with_tokenizer:
        options.setdefault("vocab", len(tokenizer()))
    return LanguageModel(build_module(family, **options), tokenizer() if with_tokenizer else None, f"tiny-{family}")


def build_prompts(lengths: tuple[int, ...] = (3, 9, 1, 6, 5, 12), vocab: int = 64, seed: int = 0) -> list[Prompt]:
    """Prompts of these lengths without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in lengths]
    return [Prompt(id=i, token_ids=tuple(tokens)) for i, tokens in enumerate(ids)]


def fixed_rollouts(
    lengths: tuple[tuple[int, int], ...] = ((3, 4), (7, 1), (1, 6), (5, 5), (2, 3)), vocab: int = 64
) -> list[Rollout]:
    """Data-set sequences of these prompt and completion lengths, each with the end-of-sequence token last."""
    prompts = build_prompts(tuple(prompt for prompt, _ in lengths), vocab)
    bodies = build_prompts(tuple(completion - 1 for _, completion in lengths), vocab, seed=1)
    return [
        Rollout(prompt.token_ids, (*body.token_ids, EOS), None, "data", -1, prompt.id, 0, "dataset")
        for prompt, body in zip(prompts, bodies, strict=True)
    ]


def own_logits(model: LanguageModel, micro: MicroBatch) -> torch.Tensor:
    """The model's own logits for the completion tokens, [N, V], by the forward pass of transformers."""
    inputs = {"input_ids": micro.input_ids_BL, "attention_mask": micro.attention_mask_BL}
    if model.is_encoder_decoder:
        inputs["decoder_input_ids"] = micro.decoder_input_ids_BL
        inputs["decoder_attention_mask"] = micro.decoder_attention_mask_BL
    return model.module(**inputs).logits.flatten(0, 1)[micro.index_N]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes float32 mean float64: models upcast to float32 inside norms and softmax, float64 models too.

    What must not change a result can then be asserted to 1e-10.
    """
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)
