"""The chunked losses against their full-logits twin, against autograd's own checks and against known values."""

import math
from dataclasses import astuple, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.fused import chunked, linear_divergence, linear_nll, reference
from tutelage.types import LMHead

DIVERGENCES = [
    "forward_kl",
    "reverse_kl",
    "jsd(0.1)",
    "jsd(0.5)",
    "jsd(0.9, rescale)",
    "total_variation",
    "skew_forward_kl(0.1)",
    "skew_reverse_kl(0.1)",
    "adaptive_kl(0.5)",
]
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "all": {"bias": True, "scale": 0.7, "softcap": 1.5},
}
THREE_TOKENS = 3 * 37 * 16 + 13 * 37 * 8  # bytes: the two float64 projections [3, 37] of a chunk, and a tile of one row


def head(vocab, hidden, seed, *, bias=False, scale=1.0, softcap=None):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocab, hidden, generator=generator, dtype=torch.float64)
    offset = torch.randn(vocab, generator=generator, dtype=torch.float64).requires_grad_() if bias else None
    return LMHead(weight.requires_grad_(), offset, scale, softcap)


def hidden(tokens, size, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, size, generator=generator, dtype=torch.float64).requires_grad_()


def problem(tokens=7, vocab=37, teacher_vocab=37, **head_options):
    """Student of 5 and teacher of 8 dimensions, unequal weights, both requiring gradients."""
    weights = torch.linspace(0.1, 1.3, tokens, dtype=torch.float64)
    return {
        "student_hidden": hidden(tokens, 5, 1),
        "student_head": head(vocab, 5, 2, **head_options),
        "teacher_hidden": hidden(tokens, 8, 3),
        "teacher_head": head(teacher_vocab, 8, 4, **head_options),
        "weights": weights,
    }


def evaluate(module, inputs, loss="linear_divergence", **options):
    """The loss, its statistics and its gradients for every student tensor."""
    total, stats = getattr(module, loss)(**inputs, return_stats=True, **options)
    without_stats = getattr(module, loss)(**inputs, **options)
    assert total.item() == pytest.approx(without_stats.item(), rel=1e-12, nan_ok=True)
    student = inputs["student_head"]
    leaves = [t for t in (inputs["student_hidden"], student.weight, student.bias) if t is not None and t.requires_grad]
    return total.detach(), stats, torch.autograd.grad(total, leaves)


def assert_twins(inputs, loss="linear_divergence", budget_bytes=THREE_TOKENS, **options):
    expected = evaluate(reference, inputs, loss, **options)
    actual = evaluate(chunked, inputs, loss, budget_bytes=budget_bytes, **options)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(actual[2], expected[2], rtol=1e-10, atol=1e-13)
    for one, two in zip(astuple(actual[1]), astuple(expected[1]), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-13)


def test_tiny_budget_means_chunks_of_three():
    assert chunked.plan(7, 37, 37 * 16, torch.float64, "cpu", THREE_TOKENS) == (3, 1)


@pytest.mark.parametrize("tokens", [0, 1, 3, 7])
@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_chunked_equals_reference(divergence, options, tokens):
    assert_twins(problem(tokens, **options), divergence=divergence, temperature=0.8)


@pytest.mark.parametrize(("vocab", "teacher_vocab"), [(37, 41), (41, 37), (1, 1), (1, 3)])
def test_heads_of_different_height(vocab, teacher_vocab):
    inputs = problem(vocab=vocab, teacher_vocab=teacher_vocab, bias=True)
    assert_twins(inputs, divergence="jsd(0.5)")
    (gradient,) = torch.autograd.grad(linear_divergence(**inputs, divergence="jsd(0.5)"), inputs["student_head"].weight)
    assert gradient[min(vocab, teacher_vocab) :].abs().sum() == 0


def test_padding_rows_carry_no_mass():
    inputs = problem(teacher_vocab=41)
    cut = {**inputs, "teacher_head": inputs["teacher_head"].rows(37)}
    assert linear_divergence(**inputs, divergence="forward_kl").item() == pytest.approx(
        linear_divergence(**cut, divergence="forward_kl").item(), abs=1e-14
    )


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd(0.5)", "total_variation", "skew_reverse_kl(0.1)"])
def test_student_logits_of_minus_infinity(divergence):
    """A token that neither model can produce; both heads forbid it by bias."""
    inputs = problem(bias=True)
    with torch.no_grad():
        inputs["student_head"].bias[5] = inputs["teacher_head"].bias[5] = -math.inf
    assert_twins(inputs, divergence=divergence)
    with torch.no_grad():  # and one that only the teacher cannot
        inputs["teacher_head"].bias[6] = -math.inf
    expected = reference.linear_divergence(**inputs, divergence=divergence)
    actual = chunked.linear_divergence(**inputs, divergence=divergence, budget_bytes=THREE_TOKENS)
    assert actual.isfinite()
    assert actual.item() == pytest.approx(expected.item(), rel=1e-12)
    for module in (reference, chunked):
        loss, stats = module.linear_divergence(**inputs, divergence=divergence, return_stats=True)
        gradients = torch.autograd.grad(loss, (inputs["student_hidden"], inputs["student_head"].weight))
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert stats.reverse_kl.isposinf().all()
        assert stats.forward_kl.isfinite().all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_token_that_only_the_student_cannot_say(divergence):
    """Forward KL is infinite by definition, alone and as a part of adaptive KL, and pulls at the token; no other can."""
    is_infinite = divergence in ("forward_kl", "adaptive_kl(0.5)")
    inputs = problem(bias=True)
    with torch.no_grad():
        inputs["student_head"].bias[6] = -math.inf
    assert_twins(inputs, divergence=divergence)
    for module in (reference, chunked):
        total, stats, gradients = evaluate(module, inputs, divergence=divergence)
        assert total.isposinf() if is_infinite else total.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert (gradients[1][6].abs().max() > 0) == is_infinite
        assert stats.forward_kl.isposinf().all()
        assert stats.reverse_kl.isfinite().all()


def test_one_hot_teacher_makes_forward_kl_the_nll():
    inputs = problem(1, bias=True)
    bias = torch.full((37,), -math.inf, dtype=torch.float64)
    bias[11] = 0.0
    inputs["teacher_head"] = replace(inputs["teacher_head"], bias=bias)
    assert_twins(inputs, divergence="forward_kl")
    assert_twins(inputs, divergence="jsd(0.9)")
    student = {name: inputs[name] for name in ("student_hidden", "student_head", "weights")}
    nll = linear_nll(**student, targets=torch.tensor([11]))
    kl = linear_divergence(**inputs, divergence="forward_kl")
    assert kl.item() == pytest.approx(nll.item(), rel=1e-12)
    leaves = (inputs["student_hidden"], inputs["student_head"].weight, inputs["student_head"].bias)
    torch.testing.assert_close(torch.autograd.grad(kl, leaves), torch.autograd.grad(nll, leaves))


@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
def test_nll_chunked_equals_reference(options, tokens):
    inputs = problem(tokens, **options)
    del inputs["teacher_hidden"], inputs["teacher_head"]
    inputs["targets"] = torch.arange(tokens) * 5 % 37
    assert_twins(inputs, "linear_nll")
    inputs["weights"] = inputs["weights"] * (torch.arange(tokens) % 2)
    assert_twins(inputs, "linear_nll")


def test_nll_equals_cross_entropy():
    inputs = problem(bias=True, scale=0.7, softcap=1.5)
    targets = torch.arange(7) * 5 % 37
    logits = inputs["student_head"].logits(inputs["student_hidden"])
    expected = (torch.nn.functional.cross_entropy(logits, targets, reduction="none") * inputs["weights"]).sum()
    actual, stats = linear_nll(
        inputs["student_hidden"], inputs["student_head"], targets, inputs["weights"], return_stats=True
    )
    assert actual.item() == pytest.approx(expected.item(), rel=1e-12)
    assert stats.agreement.tolist() == (logits.argmax(-1) == targets).double().tolist()
    assert stats.forward_kl is None
    assert stats.reverse_kl is None
    assert stats.teacher_entropy is None


@pytest.mark.parametrize("weights", [[0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0.5, 2, 0, 0]])
def test_zero_weights(weights):
    inputs = problem(bias=True) | {"weights": torch.tensor(weights, dtype=torch.float64)}
    assert_twins(inputs, divergence="reverse_kl")
    with torch.no_grad():  # tokens of weight 0 may hold anything
        inputs["student_hidden"][0] = math.nan
    total = linear_divergence(**inputs, divergence="reverse_kl")
    (gradient,) = torch.autograd.grad(total, inputs["student_hidden"])
    assert total.isfinite()
    assert gradient.isfinite().all()
    assert gradient[0].abs().sum() == 0


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_low_rank_adapter_on_the_head(divergence):
    """W + B A with a frozen W: the gradients of A and B are those of autograd through full logits."""
    inputs = problem(bias=True, scale=0.7, softcap=1.5)
    frozen = inputs["student_head"].weight.detach()
    generator = torch.Generator().manual_seed(5)
    a, b = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((2, 5), (37, 2)))
    leaves = (inputs["student_hidden"], a.requires_grad_(), b.requires_grad_())
    results = []
    for module, options in ((reference, {}), (chunked, {"budget_bytes": THREE_TOKENS})):
        adapted = inputs | {"student_head": replace(inputs["student_head"], weight=frozen + 0.5 * b @ a)}
        total = module.linear_divergence(**adapted, divergence=divergence, **options)
        results.append((total.detach(), *torch.autograd.grad(total, leaves)))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-13)
        assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("divergence", [d for d in DIVERGENCES if d != "adaptive_kl(0.5)"])  # not the value's gradient
def test_gradcheck(divergence):
    inputs = problem(3, vocab=11, teacher_vocab=11, bias=True, scale=0.7, softcap=1.5)
    student = inputs["student_head"]

    def loss(hidden, weight, bias):
        changed = inputs | {"student_hidden": hidden, "student_head": replace(student, weight=weight, bias=bias)}
        options = {"divergence": divergence, "temperature": 1.3, "budget_bytes": 1000}
        return 2.5 * linear_divergence(**changed, **options)

    assert torch.autograd.gradcheck(loss, (inputs["student_hidden"], student.weight, student.bias))


def test_known_values_through_identity_heads():
    """Heads that copy log-probabilities: the loss is the divergence, and forward KL's gradient is Q - P."""
    teacher = torch.tensor([[0.6, 0.35, 0.05]], dtype=torch.float64)
    student = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    identity = LMHead(torch.eye(3, dtype=torch.float64))
    student_logp = student.log().requires_grad_()
    for divergence, value in [("forward_kl", 0.597991), ("jsd(0.1)", 0.053912), ("total_variation", 0.45)]:
        inputs = (student_logp, identity, teacher.log(), identity, divergence, torch.tensor([2.0]))
        total, stats = linear_divergence(*inputs, return_stats=True)
        assert total.item() == pytest.approx(2 * value, abs=2e-6)
        assert stats.divergence.item() == pytest.approx(value, abs=1e-6)
        assert stats.forward_kl.item() == pytest.approx(0.597991, abs=1e-6)
        assert stats.reverse_kl.item() == pytest.approx(0.885325, abs=1e-6)
        assert stats.teacher_entropy.item() == pytest.approx(-(teacher * teacher.log()).sum().item(), abs=1e-12)
        assert stats.student_entropy.item() == pytest.approx(-(student * student.log()).sum().item(), abs=1e-12)
        assert stats.agreement.item() == 0
        (gradient,) = torch.autograd.grad(total, student_logp)
        assert abs(gradient.sum().item()) < 1e-12
        if divergence == "forward_kl":
            torch.testing.assert_close(gradient, 2 * (student - teacher))


@settings(deadline=None, max_examples=25)
@given(
    tokens=st.integers(0, 13),
    vocab=st.integers(1, 40),
    budget=st.integers(1, 20_000),
    divergence=st.sampled_from(DIVERGENCES),
    temperature=st.floats(0.3, 3.0),
)
def test_any_size_and_budget(tokens, vocab, budget, divergence, temperature):
    inputs = problem(tokens, vocab=vocab, bias=True)
    assert_twins(inputs, budget_bytes=budget, divergence=divergence, temperature=temperature)
