"""The stream of prompts: epochs without gaps or repeats, and nothing to remember."""

import pytest

from tests.conftest import build_prompts
from tutelage.data.prompts import PromptStream
from tutelage.errors import UserError

PROMPTS = build_prompts((2,) * 13)


def ids(draws):
    return [(draw.prompt.id, draw.sample) for draw in draws]


def test_every_epoch_is_a_permutation():
    stream = PromptStream(PROMPTS, seed=0)
    drawn = [pair for step in range(13) for pair in ids(stream.batch(step, 5))]  # 5 epochs of 13
    epochs = [drawn[start : start + 13] for start in range(0, 65, 13)]
    for epoch, pairs in enumerate(epochs):
        assert sorted(pairs) == [(i, epoch) for i in range(13)]
    orders = [tuple(i for i, _ in pairs) for pairs in epochs]
    assert len(set(orders)) == 5
    assert tuple(range(13)) not in orders


def test_a_step_depends_on_seed_and_step_alone():
    stream = PromptStream(PROMPTS, seed=3)
    forward = [ids(stream.batch(step, 4)) for step in range(20)]
    backward = [ids(PromptStream(PROMPTS, seed=3).batch(step, 4)) for step in reversed(range(20))]
    assert forward == backward[::-1]
    assert forward != [ids(PromptStream(PROMPTS, seed=4).batch(step, 4)) for step in range(20)]


def test_a_batch_may_be_larger_than_the_data():
    assert sorted(ids(PromptStream(PROMPTS[:2], seed=0).batch(0, 5)))[:2] == [(0, 0), (0, 1)]


def test_no_prompts():
    with pytest.raises(UserError, match=r"no training prompts are left; check task\.data"):
        PromptStream([], seed=0)
