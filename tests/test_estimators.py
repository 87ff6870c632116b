"""Coarsening, tails and sampled-token estimators against definitions; the sequence-level proofs are in conformance."""

import math

import pytest
import torch

from tests.conftest import fixed_rollouts
from tutelage import divergences, estimators
from tutelage.errors import UserError
from tutelage.types import Rollout

P = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
Q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


# --- top-k and tail ---------------------------------------------------------------------------------------------------


def test_coarsen_adds_up_the_others():
    coarse = estimators.coarsen(torch.stack([P, Q]).log(), torch.tensor([[0, 2], [3, 1]]))
    torch.testing.assert_close(coarse.exp(), torch.tensor([[0.5, 0.15, 0.35], [0.4, 0.2, 0.4]], dtype=torch.float64))


def test_coarsen_of_the_whole_vocabulary_has_an_empty_tail():
    logp = P.log().requires_grad_()
    coarse = estimators.coarsen(logp, torch.tensor([2, 0, 1, 3]))
    assert coarse.tolist() == [*logp[[2, 0, 1, 3]].tolist(), -math.inf]
    (gradient,) = torch.autograd.grad(coarse[:-1].sum(), logp)
    assert gradient.tolist() == [1.0] * 4


def test_a_tail_of_impossible_tokens_passes_no_nan_back():
    logits = torch.tensor([0.3, -math.inf, 1.1, -math.inf], dtype=torch.float64, requires_grad=True)
    coarse = estimators.coarsen(logits.log_softmax(-1), torch.tensor([0, 2]))
    assert coarse[-1].item() == -math.inf
    (gradient,) = torch.autograd.grad(divergences.forward_kl(coarse.detach(), coarse), logits)
    assert gradient.tolist() == pytest.approx([0.0] * 4, abs=1e-15)


def test_a_tail_too_small_for_one_minus_sum():
    """Mass 1e-30 beside two tokens that sum to 1 in float64."""
    logp = torch.tensor([math.log(0.5), math.log(0.5), math.log(4e-31), math.log(6e-31)], dtype=torch.float64)
    assert estimators.coarsen(logp, torch.tensor([0, 1]))[-1].item() == pytest.approx(math.log(1e-30), rel=1e-14)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd(0.5)", "total_variation"])
def test_coarsen_gradcheck(divergence):
    divergence, ids = divergences.parse(divergence), torch.tensor([1, 3])
    logits = Q.log().requires_grad_()

    def loss(z):
        return divergence.value(estimators.coarsen(P.log(), ids), estimators.coarsen(z.log_softmax(-1), ids))

    assert torch.autograd.gradcheck(loss, logits)


@pytest.mark.parametrize("x", [-1e-18, -1e-5, -0.69, -0.7, -40.0])
def test_log1mexp(x):
    expected = math.log(-math.expm1(x)) if x > -1 else math.log1p(-math.exp(x))
    assert estimators.log1mexp(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-14)


def test_log1mexp_at_the_ends():
    assert estimators.log1mexp(torch.tensor([0.0, -math.inf])).tolist() == [-math.inf, 0.0]


def test_tail_logp_is_what_is_left():
    tail = estimators.tail_logp(torch.stack([P, Q]).log()[:, :2].float(), vocab_size=4)
    assert tail.dtype == torch.float32
    assert tail.tolist() == pytest.approx([math.log(0.2), math.log(0.7)], rel=1e-6)


def test_tail_logp_of_the_whole_vocabulary():
    assert estimators.tail_logp(P.log(), vocab_size=4).item() == -math.inf
    assert estimators.tail_logp(torch.empty(0, 3), vocab_size=9).shape == (0,)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, 2**-23), (torch.float64, 2**-52)])
def test_tail_logp_of_a_sum_rounded_to_one_is_the_rounding(dtype, unit):
    """Sums of 1 + 2e-9, 1 + 4e-18 (in float64 exactly 1) and 1 + 9e-5, which K roundings may make; then one below 1."""
    above = torch.tensor([[0.0, -20.0], [0.0, -40.0], [0.0, math.log(9e-5)]], dtype=dtype)
    assert estimators.tail_logp(above, vocab_size=9).tolist() == pytest.approx([math.log(unit)] * 3, rel=1e-6)
    assert estimators.tail_logp(above[:, :1] - 1e-30, vocab_size=9).tolist() == pytest.approx([math.log(unit)] * 3)
    below = torch.tensor([math.log1p(-3e-7 - 2e-9), -20.0], dtype=dtype)
    exact = 1 - sum(math.exp(x) for x in below.tolist())
    assert estimators.tail_logp(below, vocab_size=9).item() == pytest.approx(math.log(exact), rel=1e-6)


@pytest.mark.parametrize("logp", [[-0.1, -1.0], [0.0, math.log(1e-3)], [math.nan, -1.0]])
def test_tail_logp_refuses_what_is_no_distribution(logp):
    with pytest.raises(UserError, match="top-2 probabilities sum to"):
        estimators.tail_logp(torch.tensor([[-2.0, -3.0], logp]), vocab_size=9)


def test_tail_logp_refuses_more_tokens_than_there_are():
    with pytest.raises(UserError, match="3 log-probabilities a token, but the vocabulary has 2"):
        estimators.tail_logp(torch.full((1, 3), -2.0), vocab_size=2)


# --- sampled tokens ---------------------------------------------------------------------------------------------------


def test_values_from_the_definition():
    q, p = torch.tensor(0.2, dtype=torch.float64).log(), torch.tensor(0.3, dtype=torch.float64).log()
    assert estimators.k1(q, p).item() == pytest.approx(-0.405465108, abs=1e-9)
    assert estimators.k2(q, p).item() == pytest.approx(0.082200977, abs=1e-9)
    assert estimators.k3(q, p).item() == pytest.approx(1.5 - 1 - 0.405465108, abs=1e-9)
    assert estimators.k3(q, q).item() == 0


def test_k1_and_k3_are_unbiased_for_reverse_kl_and_k2_is_not():
    reverse = divergences.reverse_kl(P.log(), Q.log()).item()
    means = {name: (Q * estimators.parse(name).value(Q.log(), P.log())).sum().item() for name in ("k1", "k2", "k3")}
    assert means["k1"] == pytest.approx(reverse, rel=1e-13)
    assert means["k3"] == pytest.approx(reverse, rel=1e-13)
    assert abs(means["k2"] - reverse) > 0.1


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_slope_is_the_derivative(name):
    estimator, student_logp = estimators.parse(name), Q.log().requires_grad_()
    (expected,) = torch.autograd.grad(estimator.value(student_logp, P.log()).sum(), student_logp)
    torch.testing.assert_close(estimator.slope(Q.log(), P.log()), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("wanted", "name"), [("reverse_kl", "k2"), ("forward_kl", "k3"), ("k2", "k2"), ("k3", "k3")])
def test_as_loss(wanted, name):
    assert estimators.as_loss(wanted).name == name
    typed = estimators.parse(wanted) if wanted in ("k2", "k3") else divergences.parse(wanted)
    assert estimators.as_loss(typed).name == name


@pytest.mark.parametrize("wanted", ["k1", estimators.parse("k1")])
def test_k1_is_no_loss(wanted):
    with pytest.raises(UserError, match=r"k1 as a loss has the gradient 0 .* use k2"):
        estimators.as_loss(wanted)


def test_other_divergences_and_names_are_refused():
    with pytest.raises(
        UserError, match=r"jsd\(0.5\) needs more .* supports forward_kl and reverse_kl; .* hidden or topk"
    ):
        estimators.as_loss("jsd(0.5)")
    with pytest.raises(UserError, match="unknown divergence"):
        estimators.as_loss("k4")
    with pytest.raises(UserError, match="unknown estimator 'k4'"):
        estimators.parse("k4")


# --- on policy --------------------------------------------------------------------------------------------------------


def test_on_policy_sampling_passes():
    estimators.check_on_policy(1.0, temperature=1.0, top_p=1.0, top_k=0)
    estimators.check_on_policy(1.0, temperature=0.7, top_p=1.0, top_k=0, loss_temperature=0.7)


@pytest.mark.parametrize(
    ("change", "seen", "fix"),
    [
        ({"student_data_fraction": 0.5}, "student_data_fraction=0.5", "student_data_fraction=1"),
        ({"temperature": 0.7}, "rollout.temperature=0.7 and loss.temperature=1.0", "set both to 1"),
        ({"temperature": 0.0}, "rollout.temperature=0.0", "set both to 1"),
        ({"loss_temperature": 2.0}, "loss.temperature=2.0", "set both to 1"),
        ({"top_p": 0.9}, "rollout.top_p=0.9", "rollout.top_p=1"),
        ({"top_k": 50}, "rollout.top_k=50", "rollout.top_k=0"),
        ({"teacher_share": 0.2}, "rollout.teacher_share=0.2", "rollout.teacher_share=0"),
    ],
)
def test_any_other_sampling_is_refused(change, seen, fix):
    settings = {"student_data_fraction": 1.0, "temperature": 1.0, "top_p": 1.0, "top_k": 0} | change
    with pytest.raises(UserError) as error:
        estimators.check_on_policy(**settings)
    assert seen in str(error.value)
    assert "hidden or topk(64)" in str(error.value)
    assert fix in str(error.value)


def own(version, prompt_id=0):
    return Rollout((5,), (7, 2), (-0.1, -0.2), "stop", version, prompt_id, 0, "student")


def test_only_the_current_students_sequences_pass():
    estimators.check_rollouts([own(3), own(3, prompt_id=1)])
    with pytest.raises(UserError, match="the sequence of prompt 0 is from the dataset"):
        estimators.check_rollouts([own(3), *fixed_rollouts()])
    with pytest.raises(UserError, match=r"weights of steps \[3, 4\]"):
        estimators.check_rollouts([own(3), own(4)])
