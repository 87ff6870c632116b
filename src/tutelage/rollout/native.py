"""Rollouts inside the training process: key-value cache always, evaluation mode, finished rows leave the batch.

Its slow twin is transformers' `generate`: greedy outputs are equal, sampled distributions are tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tutelage.models.language_model import LanguageModel
from tutelage.models.modes import without_dropout
from tutelage.rollout.base import Sampling
from tutelage.rollout.cache import keep_rows, new_cache
from tutelage.rollout.mixed import Mixed, Stepper
from tutelage.rollout.sampling import draw, uniforms
from tutelage.types import FinishReason, Prompt, Rollout, SourceName

Force = Callable[[tuple[int, ...]], tuple[int, ...] | None]

# Rows leave the cache when at least this share of them is finished: copying the cache costs about as much as the
# decoding of a few tokens, dead rows cost on every token.
_LEAVE_SHARE = 0.125


@dataclass
class _Row:
    """A sequence being written."""

    slot: int
    prompt: Prompt
    sample: int
    uniform: Any
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    finish: FinishReason | None = None


class NativeEngine:
    """Writes completions with a model of either family.

    Args:
        model: whose current weights write.
        batch_rows: most rows decoded at a time; None: all.
        force: called with a row's completion so far after each token; what it returns is appended instead of sampled
            tokens (a calculator's result, say). Forced tokens have log-probability 0.
        teacher: takes part in every token, in evaluation mode; over the model's vocabulary (`models.vocabulary.agree`).
        teacher_share: of `teacher` in the mixture that tokens are drawn from: see `mixed`. Temperature divides the logits of
            both models and must be positive; top-k and top-p act on the mixture.
    """

    def __init__(
        self,
        model: LanguageModel,
        batch_rows: int | None = None,
        force: Force | None = None,
        teacher: LanguageModel | None = None,
        teacher_share: float = 0.0,
    ) -> None:
        self.model = model
        self.batch_rows = batch_rows
        self.force = force
        self.teacher = teacher
        self.teacher_share = teacher_share
        self.version = 0

    def publish(self, version: int) -> None:
        """Tells which optimiser step's weights the model now has; the weights are shared, so that nothing is copied."""
        self.version = version

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        samples: Sequence[int],
        seed: int,
        source: SourceName = "student",
        on_finished: Callable[[int], None] | None = None,
    ) -> list[Rollout]:
        """One rollout per prompt, in order; see `RolloutEngine.generate`."""
        rows = [
            _Row(slot, prompt, sample, uniforms(seed, prompt.id, sample, sampling.max_new_tokens))
            for slot, (prompt, sample) in enumerate(zip(prompts, samples, strict=True))
        ]
        # Rows of like length share a batch: less padding in the prefill, fewer dead columns in the cache.
        rows.sort(key=lambda row: (len(row.prompt.token_ids), row.slot))
        width = self.batch_rows or max(1, len(rows))
        with without_dropout(self.model.module):
            for start in range(0, len(rows), width):
                self._decode(rows[start : start + width], sampling, on_finished or (lambda _: None))
        version = self.version if source == "student" else -1
        rows.sort(key=lambda row: row.slot)
        return [_rollout(row, version, source) for row in rows]

    def _decode(self, rows: list[_Row], sampling: Sampling, on_finished: Callable[[int], None]) -> None:
        """Writes these rows to their ends."""
        stepper = _stepper(self.model, rows)
        if self.teacher is not None and self.teacher_share > 0:
            stepper = Mixed(stepper, _stepper(self.teacher, rows), self.teacher_share, sampling.temperature)
            sampling = replace(sampling, temperature=1.0)
        eos = self.model.eos_ids
        alive = rows
        logits_BV = stepper.first()
        for position in range(sampling.max_new_tokens):
            uniform_B = torch.tensor(
                [row.uniform[position] for row in alive], dtype=torch.float64, device=logits_BV.device
            )
            tokens_B, logp_B = draw(logits_BV, sampling, uniform_B)
            self._append(alive, tokens_B.tolist(), logp_B.tolist(), eos, last=position + 1 == sampling.max_new_tokens)
            open_rows = [i for i, row in enumerate(alive) if row.finish is None]
            if not open_rows:
                on_finished(len(alive))
                return
            if len(alive) - len(open_rows) >= max(1, _LEAVE_SHARE * len(alive)):
                on_finished(len(alive) - len(open_rows))
                stepper.keep(torch.tensor(open_rows, device=logits_BV.device))
                alive = [alive[i] for i in open_rows]
            last = torch.tensor([[row.tokens[-1]] for row in alive], device=logits_BV.device)
            logits_BV = stepper.next(last)

    def _append(
        self, alive: list[_Row], tokens: list[int], logps: list[float], eos: frozenset[int], last: bool
    ) -> None:
        for row, sampled, logp in zip(alive, tokens, logps, strict=True):
            if row.finish is not None:  # waiting for enough others to leave with
                continue
            token = row.forced.pop(0) if row.forced else None
            row.tokens.append(sampled if token is None else token)
            row.logprobs.append(logp if token is None else 0.0)
            if row.tokens[-1] in eos:
                row.finish = "stop"
            elif last:
                row.finish = "length"
            elif self.force is not None and not row.forced:
                row.forced.extend(self.force(tuple(row.tokens)) or ())


def _stepper(model: LanguageModel, rows: Sequence[_Row]) -> Stepper:
    return _EncoderDecoder(model, rows) if model.is_encoder_decoder else _DecoderOnly(model, rows)


class _DecoderOnly:
    """One token at a time behind left-padded prompts; positions count real tokens only."""

    def __init__(self, model: LanguageModel, rows: Sequence[_Row]) -> None:
        self.model, self.head = model, model.head
        prompts = [row.prompt.token_ids for row in rows]
        width = max(len(p) for p in prompts)
        self.ids = torch.tensor([[model.pad_id] * (width - len(p)) + list(p) for p in prompts], device=model.device)
        self.mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        self.cache = new_cache(model.config, False)

    def first(self) -> Tensor:
        """Logits behind the prompts: [B, V]."""
        return self._forward(self.ids, (self.mask.cumsum(-1) - 1).clamp(min=0))

    def next(self, last_B1: Tensor) -> Tensor:
        """Logits behind one more token."""
        self.mask = torch.cat([self.mask, torch.ones_like(last_B1)], dim=1)
        return self._forward(last_B1, self.mask.sum(-1, keepdim=True) - 1)

    def keep(self, rows: Tensor) -> None:
        """Finished rows leave."""
        keep_rows(self.cache, rows)
        self.mask = self.mask[rows]

    def _forward(self, ids_BL: Tensor, positions_BL: Tensor) -> Tensor:
        positions = {"position_ids": positions_BL} if self.model.accepts_position_ids else {}
        out = self.model.decoder(
            input_ids=ids_BL, attention_mask=self.mask, past_key_values=self.cache, use_cache=True, **positions
        )
        return self.head.logits(out.last_hidden_state[:, -1])


class _EncoderDecoder:
    """The encoder once, then the decoder one token at a time."""

    def __init__(self, model: LanguageModel, rows: Sequence[_Row]) -> None:
        self.model, self.head = model, model.head
        prompts = [row.prompt.token_ids for row in rows]
        width = max(len(p) for p in prompts)
        ids = torch.tensor([list(p) + [model.pad_id] * (width - len(p)) for p in prompts], device=model.device)
        self.mask = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in prompts], device=model.device)
        self.states = model.encode(ids, self.mask)
        self.cache = new_cache(model.decoder.config, True)

    def first(self) -> Tensor:
        """Logits behind the decoder's start tokens: [B, V]."""
        start = torch.tensor(self.model.decoder_start_ids, device=self.mask.device)
        return self._forward(start.expand(self.mask.shape[0], -1))

    def next(self, last_B1: Tensor) -> Tensor:
        """Logits behind one more token."""
        return self._forward(last_B1)

    def keep(self, rows: Tensor) -> None:
        """Finished rows leave."""
        keep_rows(self.cache, rows)
        self.mask, self.states = self.mask[rows], self.states[rows]

    def _forward(self, ids_BL: Tensor) -> Tensor:
        out = self.model.decoder(
            input_ids=ids_BL,
            encoder_hidden_states=self.states,
            encoder_attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
        )
        return self.head.logits(out.last_hidden_state[:, -1])


def _rollout(row: _Row, version: int, source: SourceName) -> Rollout:
    assert row.finish is not None
    return Rollout(
        prompt_ids=row.prompt.token_ids,
        completion_ids=tuple(row.tokens),
        behaviour_logprobs=tuple(row.logprobs),
        finish_reason=row.finish,
        policy_version=version,
        prompt_id=row.prompt.id,
        sample=row.sample,
        source=source,
    )
