"""Beam search for evaluation, by transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tutelage.models.language_model import LanguageModel
from tutelage.models.modes import without_dropout
from tutelage.types import Prompt, Rollout


@torch.no_grad()
def beam_search(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    num_beams: int,
    max_new_tokens: int,
    batch_rows: int,
    length_penalty: float = 1.0,
    on_finished: Callable[[int], None] | None = None,
) -> list[Rollout]:
    """The best hypothesis of each prompt.

    Args:
        model: of either family.
        prompts: what to complete.
        num_beams: hypotheses kept.
        max_new_tokens: limit of a completion, end-of-sequence included.
        batch_rows: rows that go through the model at a time, beams included.
        length_penalty: hypotheses are ranked by log-probability / length ** length_penalty.
        on_finished: called with the number of newly finished sequences.

    Returns:
        One rollout per prompt, in order, without behaviour log-probabilities: a beam is no sample.
    """
    rollouts: dict[int, Rollout] = {}
    rows = max(1, batch_rows // num_beams)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].token_ids))
    with without_dropout(model.module):
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            found = _search([prompts[i] for i in chosen], model, num_beams, max_new_tokens, length_penalty)
            rollouts.update(zip(chosen, found, strict=True))
            if on_finished is not None:
                on_finished(len(chosen))
    return [rollouts[i] for i in range(len(prompts))]


def _search(
    prompts: Sequence[Prompt], model: LanguageModel, num_beams: int, max_new_tokens: int, length_penalty: float
) -> list[Rollout]:
    from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig

    width = max(len(prompt.token_ids) for prompt in prompts)
    # A decoder's prompts are padded on the left: `generate` appends on the right and derives positions from the mask. An
    # encoder's on the right: BART's encoder counts positions from the first column, padding or not.
    ids_BL = torch.full((len(prompts), width), model.pad_id)
    mask_BL = torch.zeros_like(ids_BL)
    for row, prompt in enumerate(prompts):
        length = len(prompt.token_ids)
        columns = slice(length) if model.is_encoder_decoder else slice(width - length, width)
        ids_BL[row, columns] = torch.tensor(prompt.token_ids)
        mask_BL[row, columns] = 1
    padding_rows = range(model.vocab_size, model.base.get_output_embeddings().weight.shape[0])
    start_ids = model.decoder_start_ids if model.is_encoder_decoder else ()
    settings = GenerationConfig(
        num_beams=num_beams,
        do_sample=False,
        max_new_tokens=max_new_tokens + len(start_ids[1:]),  # `generate` counts a forced first token
        length_penalty=length_penalty,
        early_stopping=False,
        eos_token_id=sorted(model.eos_ids) or None,
        pad_token_id=model.pad_id,
        suppress_tokens=list(padding_rows) or None,
        decoder_start_token_id=start_ids[0] if start_ids else None,
        forced_bos_token_id=start_ids[1] if len(start_ids) > 1 else None,
    )
    cache = {}
    if model.is_encoder_decoder:
        # `generate` sizes its own cache by the whole model's configuration, whose number of layers is the encoder's in T5.
        of_self, of_encoder = (DynamicCache(config=model.decoder.config) for _ in range(2))
        cache["past_key_values"] = EncoderDecoderCache(of_self, of_encoder)
    own = model.base.generation_config
    # `generate` fills in what is not set from the checkpoint's own generation_config.json: penalties, forbidden words, the
    # end of sequence that BART forces at the limit. Greedy and sampled decoding know none of these.
    model.base.generation_config = settings
    try:
        sequences = model.base.generate(
            ids_BL.to(model.device),
            attention_mask=mask_BL.to(model.device),
            generation_config=settings,
            **cache,
        )
    finally:
        model.base.generation_config = own
    # An encoder-decoder's output starts with the decoder's start tokens, a decoder's with the prompt.
    written = sequences[:, len(start_ids) if model.is_encoder_decoder else width :].tolist()
    return [_rollout(prompt, tokens, model.eos_ids) for prompt, tokens in zip(prompts, written, strict=True)]


def _rollout(prompt: Prompt, tokens: list[int], eos_ids: frozenset[int]) -> Rollout:
    end = next((i + 1 for i, token in enumerate(tokens) if token in eos_ids), None)
    return Rollout(
        prompt_ids=prompt.token_ids,
        completion_ids=tuple(tokens[:end]),
        behaviour_logprobs=None,
        finish_reason="length" if end is None else "stop",
        policy_version=-1,
        prompt_id=prompt.id,
        sample=0,
        source="student",
    )
