"""One face for decoder-only and encoder-decoder models: hidden states, head, tokenizer, special tokens.

The loss never asks a model for logits. So every model is taken apart once, when it is loaded, into the part that makes
hidden states and the head that makes logits, and the two are checked there against the model's own logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.models.modes import without_dropout
from tutelage.types import LMHead, MicroBatch

# Models whose logits are scaled after (Cohere, Granite) or before (T5 with tied embeddings) the head's projection.
_SCALES = {
    "cohere": lambda config: config.logit_scale,
    "cohere2": lambda config: config.logit_scale,
    "granite": lambda config: 1.0 / config.logits_scaling,
    "granitemoe": lambda config: 1.0 / config.logits_scaling,
    "hyperclovax": lambda config: config.logits_scaling,
}


class LanguageModel:
    """A Hugging Face model with its tokenizer, taken apart.

    Attributes:
        module: the PreTrainedModel, or PeftModel with adapters.
        tokenizer: its tokenizer.
        name: folder or hub name, for messages.
        is_encoder_decoder: the family.
        vocab_size: tokens of the vocabulary that take part in the softmax; rows of the head past it are padding. Set by
            `vocabulary.agree` when two models of different height share a tokenizer.
    """

    def __init__(self, module: Any, tokenizer: Any, name: str) -> None:
        self.module: Any = module
        self.tokenizer = tokenizer
        self.name = name
        # A PeftModel wraps the model in place: the base model's own modules hold the adapters.
        self.base: Any = module.get_base_model() if _is_peft(module) else module
        self.config: Any = self.base.config
        self.is_encoder_decoder = bool(self.config.is_encoder_decoder)
        self._head_layer: Any = self.base.get_output_embeddings()
        if self._head_layer is None:
            raise UserError(
                f"{name}: the model {type(self.base).__name__} has no language-model head; load a causal or seq2seq LM"
            )
        self.vocab_size = int(self._head_layer.weight.shape[0])
        if self.is_encoder_decoder:
            self.encoder: Any = self.base.get_encoder()
            self.decoder: Any = self.base.get_decoder()
        else:
            self.decoder = self.base.base_model
        self.accepts_position_ids = "position_ids" in inspect.signature(self.decoder.forward).parameters
        self._scale, self._softcap = _scale_and_softcap(self.config)
        self._check_head()

    @property
    def head(self) -> LMHead:
        """The head with its live weights, cut to the shared vocabulary."""
        base = _base_layer(self._head_layer)
        bias = base.bias if isinstance(base, nn.Linear) else None
        if "final_logits_bias" in self.base._buffers:  # BART's own name for a bias that is not trained
            bias = self.base.final_logits_bias.reshape(-1)
        return LMHead(_effective_weight(self._head_layer), bias, self._scale, self._softcap).rows(self.vocab_size)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self._head_layer.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrix work."""
        return self._head_layer.weight.dtype

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a completion: the generation configuration's and the tokenizer's."""
        ids = _end_ids(self.base.generation_config)
        if self.tokenizer is not None and self.tokenizer.eos_token_id is not None:
            ids |= {self.tokenizer.eos_token_id}
        return ids

    def end_at(self, ids: Iterable[int]) -> None:
        """Makes these tokens end a completion too.

        They are written into the generation configuration, beside what ends one already: the saved model then stops at the
        same tokens wherever it is served.
        """
        ends = self.eos_ids | frozenset(ids)
        if ends == _end_ids(self.base.generation_config):
            return
        if self.base.generation_config is None:
            from transformers import GenerationConfig

            self.base.generation_config = GenerationConfig()
        self.base.generation_config.eos_token_id = sorted(ends)

    @property
    def pad_id(self) -> int:
        """A token to fill rows with. It is masked everywhere, so that it may equal the end-of-sequence token."""
        for candidate in (
            self.tokenizer.pad_token_id if self.tokenizer is not None else None,
            self.config.pad_token_id,
        ):
            if candidate is not None:
                return int(candidate)
        return min(self.eos_ids, default=0)

    @property
    def decoder_start_ids(self) -> tuple[int, ...]:
        """The tokens that stand before an encoder-decoder model's completion.

        The decoder's start token, and what the generation configuration forces behind it, so that it is the model's choice
        no more than the start token is: BART's <s>, the target language of mBART-50 and NLLB.
        """
        start = self.config.to_dict().get("decoder_start_token_id")
        if start is None:
            raise UserError(
                f"{self.name}: config.json has no decoder_start_token_id, which an encoder-decoder model needs"
            )
        forced = None if self.base.generation_config is None else self.base.generation_config.forced_bos_token_id
        return (int(start),) if forced is None else (int(start), int(forced))

    @property
    def max_positions(self) -> int | None:
        """Positions of the decoder, learned or configured; None where no limit is stated or positions are relative."""
        return _positions(self.decoder.config, "decoder")

    @property
    def max_encoder_positions(self) -> int | None:
        """Positions of the encoder; None as for the decoder's, and for a decoder alone."""
        return _positions(self.encoder.config, "encoder") if self.is_encoder_decoder else None

    def lack_of_positions(self, prompt: int, completion: int) -> str | None:
        """Says so when a prompt and a completion of these lengths, in tokens, pass the last position.

        Returns:
            The beginning of an error text, "NAME has 1024 positions in its encoder"; None when they fit.
        """
        sides = [("", prompt + completion, self.max_positions)]
        if self.is_encoder_decoder:
            forced = len(self.decoder_start_ids) - 1
            sides = [
                (" in its encoder", prompt, self.max_encoder_positions),
                (" in its decoder", forced + completion, self.max_positions),
            ]
        for where, needed, limit in sides:
            if limit is not None and needed > limit:
                return f"{self.name} has {limit} positions{where}"
        return None

    @property
    def num_parameters(self) -> int:
        """All parameters, tied ones once."""
        return sum(p.numel() for p in self.module.parameters())

    def hidden(self, micro: MicroBatch) -> Tensor:
        """Last hidden states at the positions that predict the completion tokens: [N, H]."""
        if self.is_encoder_decoder:
            states = self.decoder(
                input_ids=micro.decoder_input_ids_BL,
                attention_mask=micro.decoder_attention_mask_BL,
                encoder_hidden_states=self.encode(micro.input_ids_BL, micro.attention_mask_BL),
                encoder_attention_mask=micro.attention_mask_BL,
                use_cache=False,
            ).last_hidden_state
        else:
            positions = {"position_ids": micro.position_ids_BL} if self.accepts_position_ids else {}
            states = self.decoder(
                input_ids=micro.input_ids_BL, attention_mask=micro.attention_mask_BL, use_cache=False, **positions
            ).last_hidden_state
        return states.flatten(0, 1).index_select(0, micro.index_N)

    def encode(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """The encoder's hidden states: [B, L, H]."""
        return self.encoder(input_ids=input_ids_BL, attention_mask=attention_mask_BL).last_hidden_state

    @torch.no_grad()
    def _check_head(self) -> None:
        """Raises when hidden states and head do not give the model's own logits (an unknown scale, bias or cap)."""
        ids = (torch.arange(7, device=self.device) * 31 + 3).remainder(self.vocab_size)[None]
        mask = torch.ones_like(ids)
        with without_dropout(self.module):
            if self.is_encoder_decoder:
                theirs = self.base(input_ids=ids, attention_mask=mask, decoder_input_ids=ids).logits
                hidden = self.decoder(
                    input_ids=ids,
                    encoder_hidden_states=self.encode(ids, mask),
                    encoder_attention_mask=mask,
                    use_cache=False,
                ).last_hidden_state
            else:
                theirs = self.base(input_ids=ids, attention_mask=mask, use_cache=False).logits
                hidden = self.decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        ours = self.head.logits(hidden)
        error = (ours.float() - theirs[..., : self.vocab_size].float()).abs().max()
        allowed = (0.03 if self.dtype in (torch.bfloat16, torch.float16) else 1e-4) * theirs.float().abs().max().clamp(
            min=1.0
        )
        if not error <= allowed:  # also catches NaN
            raise UserError(
                f"{self.name}: hidden states and head of {type(self.base).__name__} give logits that differ from the model's own "
                f"by {error:.3g}; its head has a scale, bias or cap that tutelage.models.language_model does not know"
            )


def _end_ids(generation_config: Any) -> frozenset[int]:
    """The tokens that end a completion by a generation configuration, which names one, several or none of them."""
    ends = None if generation_config is None else generation_config.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)


def _positions(config: Any, side: str) -> int | None:
    """The positions a configuration states for the "encoder" or the "decoder"; LED's two sides differ."""
    fields = config.to_dict()
    if fields.get("relative_attention_num_buckets"):  # T5's published configurations also name an n_positions
        return None
    names = (f"max_{side}_position_embeddings", "max_position_embeddings", "n_positions")
    return next((fields[name] for name in names if fields.get(name)), None)


def _is_peft(module: nn.Module) -> bool:
    from peft import PeftModel

    return isinstance(module, PeftModel)


def _base_layer(layer: Any) -> Any:
    """The linear layer under a head's adapters."""
    from peft.tuners.lora import LoraLayer

    return layer.get_base_layer() if isinstance(layer, LoraLayer) else layer


def _effective_weight(layer: Any) -> Tensor:
    """A head's weight, with its low-rank adapters added (differentiable in them)."""
    base = _base_layer(layer)
    if base is layer or layer.disable_adapters or layer.merged:  # merged adapters are in the weight already
        return base.weight
    weight = base.weight
    for adapter in layer.active_adapters:
        weight = weight + layer.get_delta_weight(adapter)
    return weight


def _scale_and_softcap(config: Any) -> tuple[float, float | None]:
    fields = config.to_dict()
    scale = float(_SCALES[config.model_type](config)) if config.model_type in _SCALES else 1.0
    if fields.get("scale_decoder_outputs"):  # T5 family with tied embeddings
        scale = float(config.d_model**-0.5)
    return scale, fields.get("final_logit_softcapping")
