"""The in-place cache against the layer of transformers that it replaces."""

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

from tests.conftest import build_config
from tutelage.rollout.cache import InPlaceLayer, keep_rows, new_cache


def states(rows, length, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 2, length, 4, generator=generator) for _ in range(2)]


class Pair:
    """Both layers, always given the same calls."""

    def __init__(self):
        self.ours, self.theirs = InPlaceLayer(), DynamicLayer()

    def update(self, rows, length, seed):
        keys, values = states(rows, length, seed)
        returned = self.ours.update(keys, values)
        for ours, theirs in zip(returned, self.theirs.update(keys, values), strict=True):
            assert torch.equal(ours, theirs)
        self.check()

    def call(self, name, *args):
        for layer in (self.ours, self.theirs):
            getattr(layer, name)(*args)
        self.check()

    def check(self):
        assert self.ours.get_seq_length() == self.theirs.get_seq_length()
        assert self.ours.get_mask_sizes(3) == self.theirs.get_mask_sizes(3)
        if self.theirs.get_seq_length():
            assert torch.equal(self.ours.keys, self.theirs.keys)
            assert torch.equal(self.ours.values, self.theirs.values)


def test_growth_and_leaving_rows():
    pair = Pair()
    pair.check()
    pair.update(5, 7, seed=0)
    for step in range(150):  # past several growths of the buffer
        pair.update(len(pair.theirs.keys), 1, seed=step + 1)
        if step in (3, 90):
            pair.call("batch_select_indices", torch.tensor([2, 0, 3] if step == 3 else [2, 0]))
    assert pair.ours.keys.shape == (2, 2, 157, 4)


def test_appending_does_not_copy_what_is_there():
    layer = InPlaceLayer()
    layer.update(*states(2, 5, seed=0))
    before = layer.keys.data_ptr()
    for step in range(20):
        layer.update(*states(2, 1, seed=step))
    assert layer.keys.data_ptr() == before


@pytest.mark.parametrize(
    ("name", "argument", "rows"),
    [
        ("reorder_cache", torch.tensor([2, 2, 0]), 3),
        ("batch_repeat_interleave", 2, 6),
        ("batch_select_indices", torch.tensor([1]), 1),
        ("crop", -3, 3),
    ],
)
def test_changes_made_by_transformers_are_kept(name, argument, rows):
    pair = Pair()
    pair.update(3, 6, seed=0)
    pair.call(name, argument)
    pair.update(rows, 1, seed=1)
    pair.call("batch_select_indices", torch.tensor([0]))
    pair.update(1, 2, seed=2)


def test_select_right_after_reordering():
    pair = Pair()
    pair.update(3, 6, seed=0)
    pair.call("reorder_cache", torch.tensor([2, 1, 0]))
    pair.call("batch_select_indices", torch.tensor([0, 2]))
    pair.update(2, 1, seed=1)


def test_reset():
    pair = Pair()
    pair.update(3, 6, seed=0)
    pair.call("reset")
    pair.update(2, 4, seed=1)


def test_layers_of_a_new_cache():
    kinds = [type(layer).__name__ for layer in new_cache(build_config("gemma2"), False).layers]
    assert kinds == ["DynamicSlidingWindowLayer", "InPlaceLayer"]
    cache = new_cache(build_config("t5"), True)
    assert isinstance(cache, EncoderDecoderCache)
    assert [type(layer) for layer in cache.self_attention_cache.layers] == [InPlaceLayer, InPlaceLayer]
    assert [type(layer) for layer in cache.cross_attention_cache.layers] == [DynamicLayer, DynamicLayer]


def test_keep_rows_reaches_both_caches():
    cache = new_cache(build_config("t5"), True)
    for part in (cache.self_attention_cache, cache.cross_attention_cache):
        part.update(*states(4, 3, seed=0), layer_idx=0)
    expected = states(4, 3, seed=0)[0][[3, 1]]
    keep_rows(cache, torch.tensor([3, 1]))
    assert torch.equal(cache.self_attention_cache.layers[0].keys, expected)
    assert torch.equal(cache.cross_attention_cache.layers[0].keys, expected)
    plain = DynamicCache()
    plain.update(*states(4, 3, seed=0), layer_idx=0)
    keep_rows(plain, torch.tensor([3, 1]))
    assert torch.equal(plain.layers[0].keys, expected)
