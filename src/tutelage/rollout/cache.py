"""A key-value cache that is written in place and whose finished rows leave."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

_GROWTH = 64


class InPlaceLayer(DynamicLayer):
    """A DynamicLayer that keeps spare columns: transformers' own copies the whole cache for every token.

    `keys` and `values` stay views of the filled part, [B, heads, length, head_dim], so that everything that reads a
    DynamicLayer works unchanged.
    """

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self._keys: Any = None  # the buffers, [B, heads, columns, head_dim]
        self._values: Any = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends [B, heads, new, head_dim] and returns everything so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self._holds(end):
            self._keys = self._grown(self.keys, key_states, start, end)
            self._values = self._grown(self.values, value_states, start, end)
        self._keys[:, :, start:end] = key_states
        self._values[:, :, start:end] = value_states
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows."""
        length = self.get_seq_length()
        if not self._holds(length):
            super().batch_select_indices(indices)
            return
        self._keys, self._values = self._keys[indices], self._values[indices]
        self.keys, self.values = self._keys[:, :, :length], self._values[:, :, :length]

    def _holds(self, end: int) -> bool:
        """Whether the buffers have `end` columns and are what `keys` and `values` are views of.

        They are not after inherited methods, such as `reorder_cache`, that put new tensors in place of the views.
        """
        if self._keys is None or self.keys is None:
            return False
        return self.keys.data_ptr() == self._keys.data_ptr() and end <= self._keys.shape[-2]

    @staticmethod
    def _grown(old: Tensor, new: Tensor, start: int, end: int) -> Tensor:
        rows, heads, _, width = new.shape
        buffer = torch.empty(rows, heads, end + max(_GROWTH, end // 2), width, dtype=new.dtype, device=new.device)
        if start:
            buffer[:, :, :start] = old
        return buffer


def new_cache(config: Any, is_encoder_decoder: bool) -> Any:
    """An empty cache for a decoder: in-place layers where it attends to everything, its own kinds elsewhere.

    Args:
        config: the decoder's own: the number of layers that T5's states for the whole model is the encoder's.
        is_encoder_decoder: whether the cache holds cross-attention too.
    """
    cache = DynamicCache(config=config)
    cache.layers = [InPlaceLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return EncoderDecoderCache(cache, DynamicCache(config=config)) if is_encoder_decoder else cache


def keep_rows(cache: Any, rows: Tensor) -> None:
    """Drops all rows but these, in the self- and cross-attention caches."""
    if isinstance(cache, EncoderDecoderCache):
        cache.self_attention_cache.batch_select_indices(rows)
        cache.cross_attention_cache.batch_select_indices(rows)
    else:
        cache.batch_select_indices(rows)
