"""The words of the project: prompts, rollouts, micro-batches and the teacher's signals.

Shape legend, used as suffixes of tensor names everywhere in the package:

    B   rows (sequences) of a micro-batch
    L   padded length of a row, in tokens
    N   completion tokens of a micro-batch, rows flattened, no padding
    H   hidden size (Hs: the student's, Ht: the teacher's)
    V   vocabulary size
    K   tokens of a top-k signal
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

FinishReason = Literal["stop", "length", "data"]
SourceName = Literal["student", "dataset", "teacher"]


@dataclass(frozen=True)
class Prompt:
    """One training or evaluation example, tokenised.

    Attributes:
        id: position of the example in its split; keys the example's randomness, never its place in a batch.
        token_ids: what the model is given: the decoder's prefix, or the encoder's input for encoder-decoder models.
        reference_ids: the ground-truth completion with its end-of-sequence token; None where the data has none.
        example: the raw row, for metrics and for showing.
    """

    id: int
    token_ids: tuple[int, ...]
    reference_ids: tuple[int, ...] | None = None
    example: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rollout:
    """One sequence to train on, whoever wrote it.

    Attributes:
        prompt_ids: tokens of the prompt (the encoder's input for encoder-decoder models).
        completion_ids: tokens written after it, with the end-of-sequence token when `finish_reason` is "stop" or "data".
        behaviour_logprobs: log-probability of each completion token under the distribution it was drawn from (after
            temperature, top-k and top-p), in nats; None for data-set sequences.
        finish_reason: "stop" (end of sequence), "length" (token limit) or "data" (taken from the data set).
        policy_version: the optimiser step whose weights wrote the sequence; -1 for data-set and teacher sequences.
        prompt_id: `Prompt.id` of the prompt.
        sample: how many sequences this run had drawn for this prompt before; keys the randomness with `prompt_id`.
        source: who wrote the completion.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    behaviour_logprobs: tuple[float, ...] | None
    finish_reason: FinishReason
    policy_version: int
    prompt_id: int
    sample: int
    source: SourceName


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the models together, with one weight per completion token.

    Rows are padded on the right. Decoder-only: a row is prompt + completion. Encoder-decoder: `input_ids_BL` is the
    encoder's input and the completion lives in `decoder_input_ids_BL`, shifted right by the decoder's start token.

    Attributes:
        input_ids_BL, attention_mask_BL, position_ids_BL: model inputs, int64.
        decoder_input_ids_BL, decoder_attention_mask_BL: encoder-decoder models only, else None.
        index_N: for every completion token, the flat position (row * L + column) whose hidden state predicts it.
        targets_N: the completion tokens themselves.
        weights_N: float32; the weighted sum over all micro-batches is the objective.
        row_N: the row each completion token belongs to.
        rollouts: the sequences, in row order.
        policy_weights_N: float32, of either sign, or None without a policy gradient; the weighted sum of the tokens' negative
            log-likelihoods joins the objective.
    """

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    position_ids_BL: Tensor
    decoder_input_ids_BL: Tensor | None
    decoder_attention_mask_BL: Tensor | None
    index_N: Tensor
    targets_N: Tensor
    weights_N: Tensor
    row_N: Tensor
    rollouts: tuple[Rollout, ...]
    policy_weights_N: Tensor | None = None

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch with every tensor on `device`."""
        moved = {k: v.to(device, non_blocking=True) for k, v in self.__dict__.items() if isinstance(v, Tensor)}
        return MicroBatch(**{**self.__dict__, **moved})


@dataclass(frozen=True)
class LMHead:
    """A language-model head: `logits = cap(scale * (hidden @ weight.T + bias))`, cap(z) = softcap * tanh(z / softcap).

    Attributes:
        weight: [V, H].
        bias: [V] or None.
        scale: multiplies the logits (T5 with tied embeddings: H ** -0.5; Cohere: logit_scale; Granite: 1/logits_scaling).
        softcap: Gemma's logit soft-cap, or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocab_size(self) -> int:
        """Rows of the head, padding rows included."""
        return self.weight.shape[0]

    def rows(self, n: int) -> LMHead:
        """The head of the first `n` tokens; rows past them are padding of the vocabulary (a view, gradients flow)."""
        if n == self.vocab_size:
            return self
        return LMHead(self.weight[:n], None if self.bias is None else self.bias[:n], self.scale, self.softcap)

    def logits(self, hidden: Tensor) -> Tensor:
        """`hidden` [..., H] -> logits [..., V], in the dtype of `hidden`."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


@dataclass(frozen=True)
class HiddenStates:
    """The exact teacher signal: last hidden states and the head that turns them into logits. Any divergence is legal.

    Attributes:
        hidden_NH: the teacher's hidden states at the positions that predict the completion tokens.
        head: the teacher's head.
    """

    hidden_NH: Tensor
    head: LMHead


@dataclass(frozen=True)
class TopK:
    """The teacher's K most probable tokens and the mass of all others. Any divergence is legal.

    Both models' distributions are coarsened to K + 1 outcomes, the K tokens and one for the rest, and compared there. That is
    exact at K = V, and a lower bound of every f-divergence: all of the package's but `adaptive_kl`, not all registered ones.

    Attributes:
        token_ids_NK: int64, distinct within a row.
        logp_NK: float32 log-probabilities of these tokens over the shared vocabulary, after `temperature`.
        tail_logp_N: log of the mass of all other tokens; -inf where there is none. `estimators.tail_logp` derives it
            for a teacher that reports nothing but its top tokens.
        vocab_size: rows of the shared vocabulary, over which the teacher's distribution is normalised.
        temperature: what the teacher's logits were divided by; the student's are divided by the same.
    """

    token_ids_NK: Tensor
    logp_NK: Tensor
    tail_logp_N: Tensor
    vocab_size: int
    temperature: float = 1.0

    def select(self, index: Tensor) -> TopK:
        """The signal of the tokens at `index` only."""
        return replace(
            self,
            token_ids_NK=self.token_ids_NK[index],
            logp_NK=self.logp_NK[index],
            tail_logp_N=self.tail_logp_N[index],
        )


@dataclass(frozen=True)
class SampledToken:
    """The teacher's log-probability of each completion token, nothing else.

    Legal for forward_kl and reverse_kl only, and only on tokens that the current student drew from its own distribution
    at the same temperature, without top-k or top-p: the gradients are right in expectation over those draws.

    Attributes:
        logp_N: float32 log-probability of every completion token over the shared vocabulary, after `temperature`.
        vocab_size: rows of the shared vocabulary, over which the teacher's distribution is normalised.
        temperature: what the teacher's logits were divided by; the student's are divided by the same.
    """

    logp_N: Tensor
    vocab_size: int
    temperature: float = 1.0

    def select(self, index: Tensor) -> SampledToken:
        """The signal of the tokens at `index` only."""
        return replace(self, logp_N=self.logp_N[index])


Signal = HiddenStates | TopK | SampledToken
