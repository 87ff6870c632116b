"""RL + GKD, the paper's Eq. 5, by enumeration: every batch the student could have drawn, weighted by its probability.

The estimator is the package's own, from rewards to the student's loss, in float64. Its twin is autograd through the
student's probabilities of all 7 sequences: (1 - alpha) E r(y) - alpha E D(y), the states of D held fixed, as no gradient
flows through sampling there.

leave_one_out and none are unbiased. group is biased by exactly the factor (k - 1) / k on the reward term, k being the
samples of a prompt: its expectation is the gradient of ((k - 1) / k) (1 - alpha) E r - alpha E D.
"""

from functools import partial
from itertools import product
from math import prod
from types import SimpleNamespace

import pytest
import torch

from tests.conformance.lookup import LookupModel, random, states_of
from tests.conformance.test_enumeration import DIVERGENCES, HELLINGER
from tutelage import divergences
from tutelage.data.batching import micro_batches
from tutelage.models.student import Student
from tutelage.rewards.rewarder import StepRewards
from tutelage.teacher.local import LocalTeacher
from tutelage.train.loop import weigh
from tutelage.types import Rollout

pytestmark = pytest.mark.usefixtures("exact")

# Three tokens, of which 0 ends a sequence: one sequence of one token, 2 * 3 of two, the most there may be.
VOCAB, END, LONGEST, PROMPTS = 3, 0, 2, (0, 1)


def sequences():
    """All completions: those that end, and those cut off at the longest length."""
    found = []
    for length in range(1, LONGEST + 1):
        for y in product(range(VOCAB), repeat=length):
            ends_early = END in y[:-1]
            if not ends_early and (y[-1] == END or length == LONGEST):
                found.append(y)
    return found


ALL = sequences()
Table = partial(LookupModel, states_of(product(PROMPTS, ALL)), VOCAB)
REWARDS = {(x, y): r for (x, y), r in zip(product(PROMPTS, ALL), random(2 * len(ALL), seed=9).tolist(), strict=True)}


def rollout(x, y):
    return Rollout((1,), y, None, "stop", 0, x, 0, "student")


def run(alpha, baseline, samples_per_prompt, normalisation="sequence"):
    """The keys of a configuration that `weigh` reads."""
    return SimpleNamespace(
        loss=SimpleNamespace(normalisation=normalisation, prefix_tokens=None),
        rl=SimpleNamespace(alpha=alpha, baseline=baseline),
        rollout=SimpleNamespace(samples_per_prompt=samples_per_prompt),
    )


def expected_gradient(student, teacher, divergence, prompts, k, alpha, baseline, signal="hidden", token_budget=10**9):
    """Of the package's loss: over every batch of `k` samples of each prompt, weighted by the batch's probability."""
    q = {(x, y): student.log_q(x, y).exp().item() for x in prompts for y in ALL}
    rollouts, weights, policy = [], [], []
    for batch in product(*[[(x, y) for y in ALL] for x in prompts for _ in range(k)]):
        drawn = [rollout(*sequence) for sequence in batch]
        rewards = StepRewards(tuple(REWARDS[sequence] for sequence in batch), k, {})
        probability = prod(q[sequence] for sequence in batch)
        of_divergence, of_policy = weigh(drawn, rewards, run(alpha, baseline, k))
        rollouts += drawn
        weights += [[probability * w for w in row] for row in of_divergence]
        policy += [[probability * w for w in row] for row in of_policy]
    module, scorer = Student(student, divergence), LocalTeacher(teacher, signal)
    total = 0.0
    for micro in micro_batches(rollouts, weights, student, token_budget, policy):
        total = total + module(micro, None if divergence is None else scorer.score(micro)).loss
    return torch.autograd.grad(total, student.leaves)


def objective_gradient(student, teacher, divergence, prompts, alpha, reward_share=1.0):
    """Of -(1 - alpha) E r(y) + alpha E D(y) over prompts and all sequences: what descent minimises."""
    total = 0.0
    for x, y in product(prompts, ALL):
        q = student.log_q(x, y).exp()
        total = total - reward_share * (1 - alpha) * q * REWARDS[x, y]
        if divergence is not None:
            total = (
                total + alpha * q.detach() * divergence.value(teacher.logp(x, y).detach(), student.logp(x, y)).mean()
            )
    return torch.autograd.grad(total / len(prompts), student.leaves)


def assert_equal(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_the_sequences_are_all_of_them():
    student = Table(seed=1)
    assert len(ALL) == 7
    for x in PROMPTS:
        assert sum(student.log_q(x, y).exp().item() for y in ALL) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("baseline", ["leave_one_out", "none"])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_every_divergence(divergence, baseline):
    student, teacher = Table(seed=1), Table(seed=5)
    actual = expected_gradient(student, teacher, divergence, (0,), 2, 0.3, baseline)
    assert_equal(actual, objective_gradient(student, teacher, divergence, (0,), 0.3))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.99])
def test_every_weight(alpha):
    student, teacher, divergence = Table(seed=1), Table(seed=5), divergences.parse("jsd(0.9)")
    actual = expected_gradient(student, teacher, divergence, (1,), 2, alpha, "leave_one_out")
    assert_equal(actual, objective_gradient(student, teacher, divergence, (1,), alpha))


@pytest.mark.parametrize("k", [2, 3])
def test_the_group_mean_shrinks_the_reward_by_its_factor_and_nothing_else(k):
    student, teacher = Table(seed=1), Table(seed=5)
    actual = expected_gradient(student, teacher, HELLINGER, (0,), k, 0.3, "group")
    assert_equal(actual, objective_gradient(student, teacher, HELLINGER, (0,), 0.3, reward_share=(k - 1) / k))
    unbiased = objective_gradient(student, teacher, HELLINGER, (0,), 0.3)
    assert all((one - other).abs().max() > 1e-3 for one, other in zip(actual, unbiased, strict=True))


def test_leave_one_out_over_a_batch_of_different_prompts():
    """One sample of each prompt: the others are of other prompts, and independent all the same."""
    student, teacher, divergence = Table(seed=1), Table(seed=5), divergences.parse("reverse_kl")
    actual = expected_gradient(student, teacher, divergence, PROMPTS, 1, 0.3, "leave_one_out")
    assert_equal(actual, objective_gradient(student, teacher, divergence, PROMPTS, 0.3))


@pytest.mark.parametrize("baseline", ["leave_one_out", "none"])
def test_three_samples(baseline):
    student, teacher, divergence = Table(seed=1), Table(seed=5), divergences.parse("forward_kl")
    actual = expected_gradient(student, teacher, divergence, (0,), 3, 0.6, baseline)
    assert_equal(actual, objective_gradient(student, teacher, divergence, (0,), 0.6))


def test_a_reward_alone_needs_no_teacher():
    student = Table(seed=1)
    actual = expected_gradient(student, Table(seed=5), None, (0,), 2, 0.0, "leave_one_out")
    assert_equal(actual, objective_gradient(student, None, None, (0,), 0.0))


def test_a_whole_top_k_signal_is_the_exact_one():
    student, teacher, divergence = Table(seed=1), Table(seed=5), divergences.parse("jsd(0.5)")
    actual = expected_gradient(student, teacher, divergence, (0,), 2, 0.3, "leave_one_out", signal="topk(3)")
    assert_equal(actual, objective_gradient(student, teacher, divergence, (0,), 0.3))


def test_micro_batches_change_nothing():
    student, teacher, divergence = Table(seed=1), Table(seed=5), divergences.parse("jsd(0.9)")
    arguments = (student, teacher, divergence, (0,), 2, 0.3, "leave_one_out")
    assert_equal(expected_gradient(*arguments, token_budget=40), expected_gradient(*arguments))


def test_dividing_the_log_likelihood_by_the_length_is_another_objective():
    """Eq. 5 rewards sequences: a mean over tokens in place of the sum does not have its gradient."""
    student = Table(seed=1)
    total = 0.0
    for y in ALL:
        log_q = student.log_q(0, y)
        total = total - log_q.exp().detach() * REWARDS[0, y] * log_q / len(y)
    wrong = torch.autograd.grad(total, student.leaves)
    right = objective_gradient(student, None, None, (0,), 0.0)
    assert all((one - other).abs().max() > 0.01 for one, other in zip(wrong, right, strict=True))
