"""The gradient of a divergence of whole sequences, by enumeration: every batch that could be drawn, by its probability.

The estimator is the package's own, from importance factors and returns to the student's loss, in float64. Its twin is autograd
through the student's probabilities of all sequences and through the divergence at their tokens: E_q sum_t w_t D_t.
"""

from functools import partial
from itertools import product
from math import exp, log, prod

import pytest
import torch

from tests.conformance.lookup import LookupModel, states_of
from tests.conformance.test_policy_gradient import assert_equal, run
from tutelage import divergences
from tutelage.data.batching import micro_batches
from tutelage.models.student import Student
from tutelage.teacher.local import LocalTeacher
from tutelage.train.importance import ImportanceWeights, weighed
from tutelage.train.loop import weigh
from tutelage.train.returns import SequenceReturns
from tutelage.types import Rollout

pytestmark = pytest.mark.usefixtures("exact")

VOCAB, END, LONGEST = 3, 0, 3
# All sequences of two tokens; all that end with END or are cut off behind three.
FIXED = list(product(range(VOCAB), repeat=2))
OPEN = [
    y
    for length in range(1, LONGEST + 1)
    for y in product(range(VOCAB), repeat=length)
    if END not in y[:-1] and (y[-1] == END or length == LONGEST)
]
Table = partial(LookupModel, states_of((0, y) for y in FIXED + OPEN), VOCAB)
DIVERGENCES = [divergences.parse(spelling) for spelling in ("reverse_kl", "forward_kl", "jsd(0.5)")]


def position_weights(batch):
    """Of a token by its position alone: what is a constant to the returns is one in truth, whatever the length."""
    return [[0.7**t / len(batch) for t in range(len(y))] for y in batch]


def behaviour(student, teacher, share, y):
    """Log-probabilities of the tokens of `y` under what writes them."""
    pairs = zip(student.token_logp(0, y).tolist(), teacher.token_logp(0, y).tolist(), strict=True)
    return tuple(log((1 - share) * exp(q) + share * exp(p)) for q, p in pairs)


def expected_gradient(
    student, teacher, divergence, k, share=0.0, sequences=OPEN, follow=True, signal="hidden", weigh=None
):
    """Of the package's loss: over every batch of `k` sequences, weighted by the batch's probability."""
    module, scorer = Student(student, divergence), LocalTeacher(teacher, signal)
    importance = ImportanceWeights(student, 1e9, 1.0, 10**9, mixed=True)
    returns = SequenceReturns(module, scorer, 10**9)
    written = {
        y: Rollout((1,), y, behaviour(student, teacher, share, y), "stop", 0, 0, i, "student")
        for i, y in enumerate(sequences)
    }
    rollouts, weights, policy = [], [], []
    for batch in product(sequences, repeat=k):
        drawn = [written[y] for y in batch]
        factors = importance(drawn, step=0) if share else None
        of_loss = (weigh or position_weights)(batch)
        of_loss = of_loss if factors is None else weighed(of_loss, factors)
        of_policy = returns(drawn, of_loss, factors)
        probability = prod(exp(sum(r.behaviour_logprobs)) for r in drawn)
        rollouts += drawn
        weights += [[probability * w for w in row] for row in of_loss]
        policy += [[probability * w for w in row] for row in of_policy]
    total = 0.0
    for micro in micro_batches(rollouts, weights, student, 10**9, policy if follow else None):
        total = total + module(micro, scorer.score(micro)).loss
    return torch.autograd.grad(total, student.leaves)


def objective_gradient(student, teacher, divergence, sequences=OPEN, follow=True):
    """Of E_q sum_t w_t D_t over all sequences; with the sequences' probabilities held fixed unless `follow`."""
    total = 0.0
    for y in sequences:
        q = student.log_q(0, y).exp()
        values = divergence.value(teacher.logp(0, y).detach(), student.logp(0, y))
        (weights,) = position_weights([y])
        total = total + (q if follow else q.detach()) * (values * torch.tensor(weights, dtype=torch.float64)).sum()
    return torch.autograd.grad(total, student.leaves)


@pytest.fixture
def pair():
    return Table(seed=1), Table(seed=5)


def test_the_sequences_are_all_of_them(pair):
    assert (len(FIXED), len(OPEN)) == (9, 15)
    for sequences in (FIXED, OPEN):
        assert sum(pair[0].log_q(0, y).exp().item() for y in sequences) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2])  # alone, and with a baseline
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_the_gradient_through_sampling(pair, divergence, k):
    assert_equal(expected_gradient(*pair, divergence, k), objective_gradient(*pair, divergence))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_sequences_of_the_mixture_with_importance_weights(pair, divergence, k):
    assert_equal(expected_gradient(*pair, divergence, k, share=0.4), objective_gradient(*pair, divergence))


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_without_it_the_gradient_is_gkds(pair, divergence, share):
    actual = expected_gradient(*pair, divergence, 1, share, follow=False)
    assert_equal(actual, objective_gradient(*pair, divergence, follow=False))
    followed = objective_gradient(*pair, divergence)
    assert all((one - other).abs().max() > 1e-3 for one, other in zip(actual, followed, strict=True))


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_reverse_kl_of_tokens_is_that_of_sequences(pair, share):
    """KL(Q||P) over sequences from its definition, with the paper's weights 1 / (L B), at MiniLLM's divergence."""
    student, teacher = pair

    def of_configuration(batch):
        rollouts = [Rollout((1,), y, None, "stop", 0, 0, 0, "student") for y in batch]
        return weigh(rollouts, None, run(1.0, "none", 1))[0]

    total = 0.0
    for y in FIXED:
        log_q, log_p = student.log_q(0, y), teacher.log_q(0, y).detach()
        total = total + log_q.exp() * (log_q - log_p) / len(y)
    expected = torch.autograd.grad(total, student.leaves)
    actual = expected_gradient(*pair, DIVERGENCES[0], 2, share, FIXED, weigh=of_configuration)
    for one, other in zip(actual, expected, strict=True):
        # FIXED passes fewer states than the table has: the others' rows are 0 in both.
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
        assert other.abs().max() > 1e-3


def test_a_whole_top_k_signal_is_the_exact_one(pair):
    actual = expected_gradient(*pair, DIVERGENCES[2], 2, signal=f"topk({VOCAB})")
    assert_equal(actual, objective_gradient(*pair, DIVERGENCES[2]))
