"""Filters against transformers' own, inverse-transform draws, and the numbers that belong to a sequence."""

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tutelage.errors import UserError
from tutelage.rollout.base import Sampling
from tutelage.rollout.sampling import draw, filtered_logprobs, uniforms

LARGEST = (2**32 - 1) / 2**32


def random_logits(rows=50, vocab=37, seed=0):
    return 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def test_uniforms_are_fixed_numbers():
    """Pinned: a change here would break the resumption of runs under way."""
    expected = [0.2884384631, 0.7198955456, 0.2994068528]
    assert uniforms(1, 2, 3, 3).tolist() == pytest.approx(expected, abs=1e-9)


def test_uniforms_belong_to_the_sequence():
    numbers = uniforms(seed=5, prompt_id=7, sample=2, length=40)
    assert np.array_equal(uniforms(5, 7, 2, 9), numbers[:9])
    others = [uniforms(6, 7, 2, 40), uniforms(5, 8, 2, 40), uniforms(5, 7, 3, 40), uniforms(7, 5, 2, 40)]
    assert all(np.abs(numbers - other).max() > 0.1 for other in others)


def test_uniforms_are_uniform():
    numbers = np.concatenate([uniforms(0, prompt, 0, 20) for prompt in range(500)])
    assert numbers.min() >= 0
    assert numbers.max() <= LARGEST
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert ((counts - 500) ** 2 / 500).sum() < 43.8  # chi-square, 19 degrees of freedom: exceeded once in a thousand
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03


@pytest.mark.parametrize(
    ("sampling", "warpers"),
    [
        (Sampling(1), []),
        (Sampling(1, temperature=0.6), [TemperatureLogitsWarper(0.6)]),
        (Sampling(1, top_k=5), [TopKLogitsWarper(5)]),
        (Sampling(1, top_k=1000), [TopKLogitsWarper(1000)]),
        (Sampling(1, top_p=0.7), [TopPLogitsWarper(0.7)]),
        (
            Sampling(1, temperature=1.7, top_k=9, top_p=0.8),
            [TemperatureLogitsWarper(1.7), TopKLogitsWarper(9), TopPLogitsWarper(0.8)],
        ),
    ],
)
def test_filters_are_those_of_transformers(sampling, warpers):
    logits = random_logits()
    expected = logits
    for warper in warpers:
        expected = warper(None, expected)
    torch.testing.assert_close(filtered_logprobs(logits, sampling), expected.log_softmax(-1), rtol=1e-5, atol=1e-6)


def test_top_p_by_hand():
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    kept = {p: filtered_logprobs(logits, Sampling(1, top_p=p)).exp()[0].tolist() for p in (0.4, 0.6, 0.76)}
    assert kept[0.4] == pytest.approx([0, 1, 0, 0])
    assert kept[0.6] == pytest.approx([0, 2 / 3, 0, 1 / 3])
    assert kept[0.76] == pytest.approx([0, 5 / 9, 1.5 / 9, 2.5 / 9])


def test_tiny_top_p_and_top_k_one_are_greedy():
    logits = random_logits()
    for sampling in (Sampling(1, top_p=1e-6), Sampling(1, top_k=1)):
        tokens, logp = draw(logits, sampling, torch.full((50,), LARGEST, dtype=torch.float64))
        assert torch.equal(tokens, logits.argmax(-1))
        assert logp.abs().max() == 0


def test_greedy():
    logits = random_logits()
    tokens, logp = draw(logits, Sampling(1, temperature=0), torch.rand(50, dtype=torch.float64))
    assert torch.equal(tokens, logits.argmax(-1))
    assert logp.tolist() == [0.0] * 50


def test_draw_is_the_inverse_of_the_cumulative_distribution():
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(6, 3)
    uniform = torch.tensor([0.0, 0.199, 0.201, 0.699, 0.701, LARGEST], dtype=torch.float64)
    tokens, logp = draw(logits, Sampling(1), uniform)
    assert tokens.tolist() == [0, 0, 1, 1, 2, 2]
    assert logp.exp().tolist() == pytest.approx([0.2, 0.2, 0.5, 0.5, 0.3, 0.3])


@pytest.mark.parametrize("uniform", [0.0, 2**-32, 0.5, LARGEST])
def test_tokens_of_probability_zero_are_never_drawn(uniform):
    logits = torch.full((1, 50_000), -torch.inf)
    logits[0, [777, 778, 40_000]] = torch.tensor([0.0, 1.0, -1.0])
    tokens, logp = draw(logits, Sampling(1), torch.tensor([uniform], dtype=torch.float64))
    assert tokens.item() in (777, 778, 40_000)
    assert logp.item() > -4


@pytest.mark.parametrize(("bad", "temperature"), [(torch.nan, 0.0), (torch.nan, 1.0), (torch.inf, 1.0)])
def test_logits_that_are_no_numbers(bad, temperature):
    logits = random_logits(3)
    logits[1, 4] = bad
    with pytest.raises(UserError, match="logits are NaN while it writes"):
        draw(logits, Sampling(1, temperature), torch.zeros(3, dtype=torch.float64))


def test_log_probabilities_are_float32_for_bfloat16_logits():
    logits = random_logits().bfloat16()
    tokens, logp = draw(logits, Sampling(1), torch.full((50,), 0.5, dtype=torch.float64))
    assert logp.dtype == torch.float32
    expected = logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    assert torch.equal(logp, expected)
