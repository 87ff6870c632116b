"""Every divergence from every signal against enumeration over a vocabulary of 7 tokens, in float64.

The twin knows nothing of the package's algebra: divergences are formulas in probabilities, probabilities of outcomes are
sums over their tokens, sampled tokens are weighted by their probabilities, gradients are autograd's.
"""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch

from tutelage import divergences, estimators
from tutelage.divergences import Divergence
from tutelage.errors import UserError
from tutelage.fused import (
    divergence_loss,
    linear_divergence,
    linear_sampled,
    linear_topk,
    teacher_sampled,
    teacher_topk,
)
from tutelage.types import HiddenStates, LMHead, SampledToken

TOKENS, VOCAB, TEMPERATURE = 4, 7, 0.8


def kl(p, q):
    return (p * (p / q).log()).sum(-1)


def jsd(p, q, beta):
    mixture = beta * p + (1 - beta) * q
    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)


def adaptive_kl(p, q):
    """Token by token: the head are the likeliest of P up to mass 0.5, one at least; its share of |P - Q| is a constant."""
    shares = []
    for p_row, q_row in zip(p.tolist(), q.tolist(), strict=True):
        order = sorted(range(len(p_row)), key=lambda v: -p_row[v])
        size = max(1, sum(sum(p_row[v] for v in order[: n + 1]) <= 0.5 for n in range(len(order))))
        gap = [abs(p_row[v] - q_row[v]) for v in order]
        shares.append(sum(gap[:size]) / sum(gap))
    share = torch.tensor(shares, dtype=p.dtype)
    return share * kl(p, q) + (1 - share) * kl(q, p)


FORMULAS = {  # of probabilities above 0
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd(0.1)": lambda p, q: jsd(p, q, 0.1),
    "jsd(0.5)": lambda p, q: jsd(p, q, 0.5),
    "jsd(0.9, rescale)": lambda p, q: jsd(p, q, 0.9) / 0.09,
    "total_variation": lambda p, q: (p - q).abs().sum(-1) / 2,
    "skew_forward_kl(0.1)": lambda p, q: kl(p, 0.1 * p + 0.9 * q),
    "skew_reverse_kl(0.1)": lambda p, q: kl(q, 0.9 * p + 0.1 * q),
    "adaptive_kl(0.5)": adaptive_kl,
    "squared_hellinger": lambda p, q: 1 - (p * q).sqrt().sum(-1),
}
HELLINGER = Divergence("squared_hellinger", lambda t, s: 1 - ((t + s) / 2).exp().sum(-1))
DIVERGENCES = [*(divergences.parse(name) for name in FORMULAS if name != HELLINGER.name), HELLINGER]
F_DIVERGENCES = [d for d in DIVERGENCES if d.name != "adaptive_kl(0.5)"]  # its weights depend on the outcomes
SAMPLED = [d for d in DIVERGENCES if d.name in ("forward_kl", "reverse_kl")]
PAIRS = [(d, signal) for d in DIVERGENCES for signal in ("hidden", 1, 3, 7)] + [(d, "sampled") for d in SAMPLED]
TWO_TOKENS = 2 * VOCAB * 16 + 13 * VOCAB * 8  # bytes: two float64 projections of two tokens, and a tile of one


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Problem:
    """Four tokens; the student's tensors require gradients."""

    def __init__(self, forbidden=()):
        self.hidden, self.weight, self.bias = random(TOKENS, 3, seed=1), random(VOCAB, 3, seed=2), random(VOCAB, seed=3)
        self.teacher_hidden = random(TOKENS, 5, seed=4)
        self.teacher_head = LMHead(random(VOCAB, 5, seed=5), random(VOCAB, seed=6), scale=0.6)
        for token in forbidden:
            self.bias[token] = self.teacher_head.bias[token] = -math.inf
        self.leaves = [t.requires_grad_() for t in (self.hidden, self.weight, self.bias)]
        self.weights = torch.tensor([0.3, 1.2, 0.5, 2.0], dtype=torch.float64)

    @property
    def head(self):
        return LMHead(self.weight, self.bias, scale=0.9)

    def student_logits(self):
        return 0.9 * (self.hidden @ self.weight.T + self.bias) / TEMPERATURE

    def teacher_logits(self):
        return 0.6 * (self.teacher_hidden @ self.teacher_head.weight.T + self.teacher_head.bias) / TEMPERATURE

    def keep(self, tokens):
        """The same problem over part of the vocabulary."""
        cut = Problem()
        cut.weight, cut.bias = (t.detach()[tokens].requires_grad_() for t in (self.weight, self.bias))
        cut.teacher_head = replace(
            cut.teacher_head, weight=self.teacher_head.weight[tokens], bias=self.teacher_head.bias[tokens]
        )
        cut.leaves = [cut.hidden, cut.weight, cut.bias]
        return cut


def grouped(probabilities, ids):
    """Probabilities of the outcomes: the tokens of a row of `ids`, then all others (left out when there are none)."""
    rows = []
    for p, row in zip(probabilities, ids.tolist(), strict=True):
        rest = [v for v in range(len(p)) if v not in row]
        rows.append(torch.stack([*(p[v] for v in row), *([p[rest].sum()] if rest else [])]))
    return torch.stack(rows)


def twin(problem, divergence, signal):
    """The objective per token by enumeration, [N]."""
    p, q = (logits.softmax(-1) for logits in (problem.teacher_logits(), problem.student_logits()))
    if isinstance(signal, int):
        ids = p.topk(signal, dim=-1).indices
        p, q = grouped(p, ids), grouped(q, ids)
    return FORMULAS[divergence.name](p, q)


def loss(problem, divergence, signal, rows=slice(None), budget_bytes=TWO_TOKENS):
    """(scalar, statistics) of the package; sampled tokens: every token of the vocabulary, weighted by its probability."""
    hidden, teacher_hidden, weights = problem.hidden[rows], problem.teacher_hidden[rows], problem.weights[rows]
    targets = torch.zeros(len(hidden), dtype=torch.int64)
    teacher = (problem.teacher_head,)
    if signal == "hidden":
        answer = HiddenStates(teacher_hidden, *teacher)
    elif signal == "sampled":
        vocab = problem.head.vocab_size
        weights = (weights[:, None] * problem.student_logits()[rows].softmax(-1).detach()).flatten()
        targets = torch.arange(vocab).repeat(len(hidden))
        hidden, teacher_hidden = (t.repeat_interleave(vocab, 0) for t in (hidden, teacher_hidden))
        answer = teacher_sampled(teacher_hidden, *teacher, targets, TEMPERATURE, budget_bytes)
    else:
        answer = teacher_topk(teacher_hidden, *teacher, signal, TEMPERATURE, budget_bytes)
    return divergence_loss(hidden, problem.head, answer, targets, divergence, weights, TEMPERATURE, budget_bytes)


def gradients(problem, total):
    return torch.autograd.grad(total, problem.leaves)


@pytest.mark.parametrize(("divergence", "signal"), PAIRS, ids=str)
def test_value_and_gradients(divergence, signal):
    problem = Problem()
    expected = (twin(problem, divergence, signal) * problem.weights).sum()
    total, stats = loss(problem, divergence, signal)
    torch.testing.assert_close(gradients(problem, total), gradients(problem, expected), rtol=1e-11, atol=1e-12)
    if signal != "sampled":  # of the two estimators only the gradients, not the values, are the divergence's
        assert total.item() == pytest.approx(expected.item(), rel=1e-12)
        torch.testing.assert_close(stats.divergence, twin(problem, divergence, signal).detach(), rtol=1e-11, atol=1e-13)
    else:
        reverse = (twin(problem, divergences.parse("reverse_kl"), "hidden") * problem.weights).sum().item()
        probabilities = problem.student_logits().softmax(-1).detach().flatten()
        weights = problem.weights.repeat_interleave(VOCAB) * probabilities
        assert (stats.k1 @ weights).item() == pytest.approx(reverse, rel=1e-12)
        assert (stats.k3 @ weights).item() == pytest.approx(reverse, rel=1e-12)


@pytest.mark.parametrize(("divergence", "signal"), PAIRS, ids=str)
def test_gradient_in_the_logits(divergence, signal):
    """Heads that copy: the hidden states are the logits."""
    problem = Problem()
    problem.hidden = (0.9 * (problem.hidden @ problem.weight.T + problem.bias)).detach().requires_grad_()
    problem.weight, problem.bias = torch.eye(VOCAB, dtype=torch.float64) / 0.9, None
    problem.student_logits = lambda: problem.hidden / TEMPERATURE
    problem.leaves = [problem.hidden]
    expected = gradients(problem, (twin(problem, divergence, signal) * problem.weights).sum())
    actual = gradients(problem, loss(problem, divergence, signal)[0])
    assert expected[0].abs().max() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(actual[0].sum(-1), torch.zeros(TOKENS, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("divergence", "signal"), PAIRS, ids=str)
def test_chunks_parts_and_order_change_nothing(divergence, signal):
    problem = Problem()
    total, _ = loss(problem, divergence, signal, budget_bytes=2**30)
    expected = total.item(), gradients(problem, total)
    order = [2, 0, 3, 1]
    for parts in ([slice(None)], [order], [slice(0, 1), slice(1, 4)], [[i] for i in order]):
        for budget_bytes in (1, TWO_TOKENS):
            total = sum(loss(problem, divergence, signal, rows, budget_bytes)[0] for rows in parts)
            assert total.item() == pytest.approx(expected[0], rel=1e-12)
            torch.testing.assert_close(gradients(problem, total), expected[1], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("divergence", "signal"), PAIRS, ids=str)
def test_tokens_that_neither_model_can_produce(divergence, signal):
    """Logits of -inf are the same as a vocabulary without these tokens."""
    problem = Problem(forbidden=[5])
    kept = [v for v in range(VOCAB) if v != 5]
    smaller = problem.keep(kept)
    total, _ = loss(problem, divergence, signal)
    expected, _ = loss(smaller, divergence, 6 if signal == 7 else signal)
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    hidden, weight, bias = gradients(problem, total)
    torch.testing.assert_close((hidden, weight[kept], bias[kept]), gradients(smaller, expected), rtol=1e-11, atol=1e-13)
    assert weight[5].abs().sum() == 0
    assert bias[5] == 0


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_a_tail_without_mass_is_no_outcome(divergence):
    problem = Problem(forbidden=[0, 2, 5, 6])
    smaller = problem.keep([1, 3, 4])
    total, _ = loss(problem, divergence, 3)
    expected, _ = loss(smaller, divergence, "hidden")
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    hidden, weight, _ = gradients(problem, total)
    expected_hidden, expected_weight, _ = gradients(smaller, expected)
    torch.testing.assert_close((hidden, weight[[1, 3, 4]]), (expected_hidden, expected_weight), rtol=1e-11, atol=1e-13)
    assert weight[[0, 2, 5, 6]].abs().sum() == 0


@pytest.mark.parametrize("divergence", F_DIVERGENCES, ids=str)
def test_topk_is_a_lower_bound_that_rises_to_the_exact_divergence(divergence):
    problem = Problem()
    exact = loss(problem, divergence, "hidden")
    bounds = [loss(problem, divergence, k) for k in range(1, VOCAB + 1)]
    per_token = torch.stack([stats.divergence for _, stats in bounds])
    assert (per_token[0] > 0).all()
    assert (per_token.diff(dim=0) > -1e-12).all()
    assert (per_token[0] < exact[1].divergence - 1e-6).any()
    torch.testing.assert_close(per_token[-1], exact[1].divergence, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradients(problem, bounds[-1][0]), gradients(problem, exact[0]), rtol=1e-11, atol=1e-13)
    for name in ("forward_kl", "reverse_kl", "student_entropy", "agreement"):
        torch.testing.assert_close(getattr(bounds[-1][1], name), getattr(exact[1], name), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_topk_of_adaptive_kl_may_pass_the_exact_divergence(implementation):
    """P's head is its first token, which Q has nearly right; of the outcomes with K = 2 it is all other tokens, which Q has not."""
    identity = LMHead(torch.eye(4, dtype=torch.float64))
    p = torch.tensor([[0.32, 0.28, 0.22, 0.18]], dtype=torch.float64)
    q = torch.tensor([[0.30, 0.01, 0.30, 0.39]], dtype=torch.float64)
    rest = {"divergence": "adaptive_kl(0.5)", "weights": torch.ones(1), "implementation": implementation}
    exact = linear_divergence(q.log(), identity, p.log(), identity, **rest)
    coarse = linear_topk(q.log(), identity, teacher_topk(p.log(), identity, 2), **rest)
    ids = torch.tensor([[0, 1]])
    assert exact.item() == pytest.approx(adaptive_kl(p, q).item(), rel=1e-12)
    assert coarse.item() == pytest.approx(adaptive_kl(grouped(p, ids), grouped(q, ids)).item(), rel=1e-12)
    assert coarse > 1.2 * exact


@pytest.mark.parametrize("divergence", [d for d in DIVERGENCES if d not in SAMPLED], ids=str)
def test_sampled_tokens_cannot_estimate_the_rest(divergence):
    with pytest.raises(UserError, match="supports forward_kl and reverse_kl"):
        loss(Problem(), divergence, "sampled")


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_heads_of_different_height(implementation):
    """The student's padding rows get neither mass nor gradient, whatever the signal."""
    problem = Problem()
    padded = torch.cat([problem.weight.detach(), random(2, 3, seed=9)]).requires_grad_()
    hidden, teacher = problem.hidden, (problem.teacher_hidden, problem.teacher_head)
    targets = torch.tensor([3, 0, 6, 2])
    cases = {
        "hidden": (linear_divergence, teacher, ()),
        "topk": (linear_topk, (teacher_topk(*teacher, 3),), ()),
        "sampled": (linear_sampled, (teacher_sampled(*teacher, targets),), (targets,)),
    }
    for function, signal, more in cases.values():
        results = []
        for weight in (padded, problem.weight):
            rest = (*signal, *more, "reverse_kl", problem.weights)
            total = function(hidden, LMHead(weight), *rest, implementation=implementation)
            results.append((total.detach(), torch.autograd.grad(total, weight)[0]))
        torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-12, atol=0)
        torch.testing.assert_close(results[0][1][:VOCAB], results[1][1], rtol=1e-12, atol=1e-14)
        assert results[0][1][VOCAB:].abs().sum() == 0
    short = LMHead(problem.weight[:5])
    for function, signal, more in list(cases.values())[1:]:
        with pytest.raises(UserError, match="over 7 tokens, but the student's head has 5 rows"):
            function(hidden, short, *signal, *more, "reverse_kl", problem.weights, implementation=implementation)


# --- sequences --------------------------------------------------------------------------------------------------------


class Sequences:
    """All 25 sequences of two of 5 tokens: a student and a teacher as tables of logits, [V] and [V, V]."""

    def __init__(self):
        self.student = [random(5, seed=1).requires_grad_(), random(5, 5, seed=2).requires_grad_()]
        self.teacher = [random(5, seed=3), random(5, 5, seed=4)]
        self.all = list(product(range(5), repeat=2))

    def step_logp(self, model, y):
        """Log-probabilities of the tokens of `y`: [2]."""
        first, second = model[0].log_softmax(-1), model[1].log_softmax(-1)
        return torch.stack([first[y[0]], second[y[0], y[1]]])

    def expected_gradient(self, estimator):
        """Enumeration: the gradient of a loss on sampled sequences, weighted by the student's own probabilities."""
        total = 0.0
        for y in self.all:
            student = self.step_logp(self.student, y)
            total = total + student.sum().exp().detach() * estimator(student, self.step_logp(self.teacher, y)).sum()
        return torch.autograd.grad(total, self.student)

    def exact_gradient(self, divergence):
        """Of the per-token divergence over all states, the states' distribution held fixed."""
        first, second = (
            FORMULAS[divergence](t.softmax(-1), s.softmax(-1)) for t, s in zip(self.teacher, self.student, strict=True)
        )
        return torch.autograd.grad(first + self.student[0].softmax(-1).detach() @ second, self.student)


@pytest.mark.parametrize(
    ("estimator", "divergence"),
    [
        (estimators.k2, "reverse_kl"),
        (estimators.k3, "forward_kl"),
        (estimators.k1_in_reward, "reverse_kl"),
    ],
)
def test_expected_gradient_over_all_sequences(estimator, divergence):
    sequences = Sequences()
    torch.testing.assert_close(
        sequences.expected_gradient(estimator), sequences.exact_gradient(divergence), rtol=0, atol=1e-12
    )


def test_k1_as_a_loss_teaches_nothing_and_k3_not_reverse_kl():
    sequences = Sequences()
    for gradient in sequences.expected_gradient(estimators.k1):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    k3, reverse = sequences.expected_gradient(estimators.k3), sequences.exact_gradient("reverse_kl")
    assert all((one - two).abs().max() > 0.01 for one, two in zip(k3, reverse, strict=True))


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
def test_the_fused_loss_over_all_sequences(divergence):
    """The same through `linear_sampled`: 50 tokens, each weighted by its sequence's probability."""
    sequences = Sequences()
    firsts, seconds = zip(*sequences.all, strict=True)
    hidden = torch.cat([sequences.student[0].expand(25, 5), sequences.student[1][list(firsts)]])
    targets = torch.tensor([*firsts, *seconds])
    logp = [
        torch.stack([sequences.step_logp(m, y) for y in sequences.all]) for m in (sequences.student, sequences.teacher)
    ]
    weights = logp[0].sum(1).exp().detach().repeat(2)
    signal = SampledToken(logp[1].T.flatten(), vocab_size=5)
    total = linear_sampled(hidden, LMHead(torch.eye(5, dtype=torch.float64)), signal, targets, divergence, weights)
    exact = sequences.exact_gradient(divergence)
    torch.testing.assert_close(torch.autograd.grad(total, sequences.student), exact, rtol=0, atol=1e-12)
