"""The kernels against float64 autograd: on a GPU compiled, elsewhere in Triton's interpreter, and compiled for one."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from tests.fused.interpreter import DEVICE, DIVERGENCES, INF, WITHOUT_KERNEL, load_kernels, random
from tutelage import divergences
from tutelage.divergences import Divergence, forward_kl, parse, reverse_kl
from tutelage.fused.base import finish_logits
from tutelage.types import LMHead

pytest.importorskip("triton")

pytestmark = pytest.mark.filterwarnings("ignore:.*(divide by zero|invalid value|overflow):RuntimeWarning")


kernels = load_kernels()


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(kernels, "_MAX_BLOCK", 64)  # V = 130 takes three and ends inside the last


def head(scale=1.0, softcap=None):
    return LMHead(torch.empty(0, 0), None, scale, softcap)


def weights_like(projected):
    return torch.ones(len(projected), device=DEVICE)


def entropy(logp):
    return torch.special.entr(logp.exp()).sum(-1)


def is_max(logits):
    return logits == logits.amax(-1, keepdim=True)


def expected(
    projected,
    teacher,
    divergence="jsd(0.3)",
    student_head=None,
    teacher_head=None,
    temperature=1.0,
    dtype=torch.float64,
):
    """Values, derivative in the projection without its constant factor, and statistics: full logits and autograd."""
    student_head, teacher_head = student_head or head(), teacher_head or head()
    leaf = projected.detach().to(dtype).requires_grad_()
    student_logits = finish_logits(leaf, student_head, temperature)
    teacher_logits = finish_logits(teacher.to(dtype), teacher_head, temperature)
    logq, logp = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    values = parse(divergence).value(logp, logq)
    (grad,) = torch.autograd.grad(values.sum(), leaf)
    stats = [
        entropy(logq),
        (is_max(student_logits) & is_max(teacher_logits)).any(-1).to(dtype),
        forward_kl(logp, logq),
        reverse_kl(logp, logq),
        entropy(logp),
    ]
    return values.detach().double(), grad.double() * (temperature / student_head.scale), torch.stack(stats).double()


def score(projected, teacher, divergence="jsd(0.3)", student_head=None, teacher_head=None, temperature=1.0, **options):
    """Values, derivative and statistics from the kernel; `projected` is left alone."""
    options = {"weights_c": weights_like(projected), "want_grad": True, "want_stats": True, **options}
    grad = projected.clone()
    values, stats = kernels.score_(
        grad, teacher, student_head or head(), teacher_head or head(), parse(divergence), temperature, **options
    )
    return values, grad, stats


def assert_matches(found, wanted, rtol=1e-5, atol=3e-6):
    values, grad, stats = found
    assert values.dtype == stats.dtype == torch.float32
    torch.testing.assert_close(values.double(), wanted[0], rtol=rtol, atol=atol)
    torch.testing.assert_close(stats.double(), wanted[2], rtol=rtol, atol=atol)
    if wanted[0].isfinite().all():
        # A bfloat16 derivative is rounded once, on its way out (the interpreter cuts off what does not fit).
        grad_rtol = 2**-7 if grad.dtype == torch.bfloat16 else rtol
        torch.testing.assert_close(grad.double(), wanted[1], rtol=grad_rtol, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "vocab"), [(3, 37), (2, 1), (1, 130)])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_values_derivatives_and_statistics(divergence, tokens, vocab, dtype):
    inputs = random(tokens, vocab, seed=1, dtype=dtype), random(tokens, vocab, seed=2, dtype=dtype)
    assert_matches(score(*inputs, divergence), expected(*inputs, divergence))


@pytest.mark.parametrize("divergence", ["jsd(0.3)", "reverse_kl"])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.7},
        {"student_head": head(scale=0.7), "teacher_head": head(scale=1.3), "temperature": 0.5},
        {"student_head": head(scale=0.7, softcap=4.0), "temperature": 1.7},
        {"student_head": head(softcap=5.0), "teacher_head": head(scale=1.3, softcap=2.0)},
    ],
)
def test_scale_softcap_and_temperature(divergence, options):
    inputs = random(2, 37, seed=1), random(2, 37, seed=2)
    assert_matches(score(*inputs, divergence, **options), expected(*inputs, divergence, **options))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_masked_vocabulary(divergence):
    """Tokens no model may say, more than a block of them; and each model's own, which make some divergences infinite."""
    student, teacher = random(3, 100, seed=1), random(3, 100, seed=2)
    student[:, :70] = teacher[:, :70] = -INF
    student[1, 77] = teacher[2, 99] = -INF
    found, wanted = score(student, teacher, divergence), expected(student, teacher, divergence)
    assert_matches(found, wanted)
    assert found[2][2:4].isinf().tolist() == [[False, True, False], [False, False, True]]
    torch.testing.assert_close(found[1][0].double(), wanted[1][0], rtol=1e-5, atol=1e-6)
    assert found[1][0, :70].abs().max() == 0


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_one_hot_teacher(divergence):
    student, teacher = random(2, 37, seed=1), torch.full((2, 37), -INF, device=DEVICE)
    teacher[0, 3] = teacher[1, 36] = 0.0
    found, wanted = score(student, teacher, divergence), expected(student, teacher, divergence)
    assert_matches(found, wanted)
    assert found[2][4].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd(0.3)"])
def test_maxima_that_rise_through_the_row(divergence):
    """Every block rescales what came before."""
    rise = torch.linspace(-4, 4, 130, device=DEVICE)
    student, teacher = rise + random(1, 130, seed=1, size=0.5), 2 * rise + random(1, 130, seed=2, size=0.5)
    assert_matches(score(student, teacher, divergence), expected(student, teacher, divergence))


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd(0.3)"])
def test_maxima_that_rise_until_what_came_before_vanishes(divergence):
    """Terms that were infinite within their block have probability 0 in float32 in the end."""
    rise = torch.linspace(-300, 300, 130, device=DEVICE)
    student, teacher = rise + random(1, 130, seed=1), rise + random(1, 130, seed=2)
    student[0, 60] = teacher[0, 61] = -INF
    wanted = expected(student, teacher, divergence, dtype=torch.float32)
    assert wanted[2].isfinite().all()
    assert_matches(score(student, teacher, divergence), wanted, atol=3e-5)


@pytest.mark.parametrize("offset", [512.0, -512.0])
def test_constant_offset_of_the_logits_changes_nothing(offset):
    student, teacher = (random(2, 70, seed=seed).mul(64).round().div(64) for seed in (1, 2))  # + offset is exact
    torch.testing.assert_close(score(student + offset, teacher), score(student, teacher), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_equal_models(divergence):
    projected = random(2, 37, seed=1)
    values, grad, stats = score(projected, projected, divergence)
    assert values.abs().max() < 1e-6
    assert grad.abs().max() < 1e-7
    torch.testing.assert_close(stats[0], stats[4], rtol=0, atol=0)
    assert stats[1:4].tolist() == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("divergence", ["forward_kl", "total_variation"])
def test_rows_of_weight_zero(divergence):
    student, teacher = random(3, 37, seed=1), random(3, 37, seed=2)
    student[1, 5] = -INF  # an infinite divergence must not reach the derivative either
    weights = torch.tensor([0.5, 0.0, 2.0], device=DEVICE)
    every = score(student, teacher, divergence)
    active = [0, 2]
    for want_stats in (True, False):
        values, grad, stats = score(student, teacher, divergence, weights_c=weights, want_stats=want_stats)
        torch.testing.assert_close(values[active], every[0][active], rtol=1e-6, atol=0)
        torch.testing.assert_close(grad[active], every[1][active], rtol=1e-5, atol=1e-8)
        assert grad[1].abs().max() == 0
        if want_stats:
            torch.testing.assert_close(stats, every[2])
            torch.testing.assert_close(values[1], every[0][1])
        else:
            assert stats is None
            assert values[1] == 0


@pytest.mark.parametrize(("divergence", "want_stats"), [*((name, False) for name in DIVERGENCES), ("jsd(0.3)", True)])
def test_value_alone_leaves_the_projection(divergence, want_stats):
    student, teacher = random(2, 37, seed=1), random(2, 37, seed=2)
    values, untouched, _ = score(student, teacher, divergence, want_grad=False, want_stats=want_stats)
    torch.testing.assert_close(values.double(), expected(student, teacher, divergence)[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(untouched, student)


def test_vocabularies_of_different_height():
    """Rows of the first 37 of 40 and 41 logits; what is beyond stays as it is."""
    student, teacher = random(3, 40, seed=1), random(3, 41, seed=2)
    wanted = expected(student[:, :37], teacher[:, :37])
    grad = student.clone()
    values, stats = kernels.score_(
        grad[:, :37], teacher[:, :37], head(), head(), parse("jsd(0.3)"), 1.0, weights_like(student), True, True
    )
    assert_matches((values, grad[:, :37], stats), wanted)
    assert torch.equal(grad[:, 37:], student[:, 37:])


def test_dtypes_may_differ():
    inputs = random(3, 37, seed=1), random(3, 37, seed=2, dtype=torch.float16)
    assert_matches(score(*inputs), expected(*inputs))


def test_agreement_of_ties():
    """One shared most likely token is enough; shared, but no longer most likely further on, is not."""
    student, teacher = torch.zeros(4, 100, device=DEVICE), torch.zeros(4, 100, device=DEVICE)
    student[0, [3, 70]] = teacher[0, [70, 90]] = 2.0
    student[1, [3, 70]] = teacher[1, [4, 90]] = 2.0
    student[2, 3] = teacher[2, 3] = 2.0
    teacher[2, 70] = 3.0
    assert score(student, teacher)[2][1].tolist() == [1.0, 0.0, 0.0, 1.0]


def nll_expected(projected, targets, softcap=None, scale=1.0):
    leaf = projected.detach().double().requires_grad_()
    logits = finish_logits(leaf, head(scale, softcap), 1.0)
    logp = logits.log_softmax(-1)
    values = -logp.gather(1, targets[:, None]).squeeze(1)
    (grad,) = torch.autograd.grad(values.sum(), leaf)
    hit = is_max(logits).gather(1, targets[:, None]).squeeze(1).double()
    return values.detach(), grad / scale, torch.stack([entropy(logp), hit]).detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0, "scale": 0.7}])
@pytest.mark.parametrize(("vocab", "targets"), [(37, [36, 0, 32]), (1, [0]), (130, [64, 129])])
def test_nll(vocab, targets, options, dtype):
    targets = torch.tensor(targets, device=DEVICE)
    grad = random(len(targets), vocab, seed=1, dtype=dtype)
    grad[0, targets[0]] = grad[0].max()  # a tie that the target is part of
    wanted = nll_expected(grad, targets, **options)
    values, stats = kernels.nll_(grad, head(**options), targets, weights_like(grad), True, True)
    assert stats[1, 0] == 1
    assert_matches((values, grad, stats), wanted)


def test_nll_of_masked_tokens_and_weight_zero():
    projected, targets = random(3, 80, seed=1), torch.tensor([75, 2, 70], device=DEVICE)
    projected[:, :70] = -INF
    wanted = nll_expected(projected, targets)
    weights = torch.tensor([1.0, 0.0, 0.0], device=DEVICE)
    grad = projected.clone()
    values, stats = kernels.nll_(grad, head(), targets, weights, True, True)
    assert values[1] == INF
    torch.testing.assert_close(values.double(), wanted[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stats.double(), wanted[2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad[0].double(), wanted[1][0], rtol=1e-5, atol=1e-6)
    assert grad[1:].abs().max() == 0
    values, stats = kernels.nll_(projected, head(), targets, weights, False, False)
    assert stats is None
    assert values[1:].tolist() == [0.0, 0.0]


def test_supports():
    assert all(kernels.supports(parse(divergence)) for divergence in DIVERGENCES)
    assert not any(kernels.supports(parse(divergence)) for divergence in WITHOUT_KERNEL)
    named = {spelling.partition("(")[0] for spelling in (*DIVERGENCES, *WITHOUT_KERNEL)}
    assert named == divergences._FAMILIES.keys()  # of each family it is known whether it has a kernel
    assert not kernels.supports(Divergence("hellinger", lambda t, s: 1 - ((t + s) / 2).exp().sum(-1)))


def test_parameters_a_divergence_leaves_at_their_defaults():
    inputs = random(2, 37, seed=1), random(2, 37, seed=2)
    for function, spelling in ((partial(divergences.jsd, beta=0.4), "jsd(0.4)"),
                               (divergences.skew_reverse_kl, "skew_reverse_kl(0.1)")):  # fmt: skip
        assert torch.equal(score(*inputs, Divergence("mine", function))[0], score(*inputs, spelling)[0])


def test_no_tokens():
    values, grad, stats = score(random(0, 37, seed=1), random(0, 37, seed=2))
    assert (values.shape, grad.shape, stats.shape) == ((0,), (0, 37), (5, 0))


@pytest.mark.parametrize(
    ("student", "teacher", "weights"),
    [
        (torch.zeros(3, 37), torch.zeros(3, 38), torch.ones(3)),
        (torch.zeros(3, 37), torch.zeros(3, 37), torch.ones(2)),
        (torch.zeros(3, 37).double(), torch.zeros(3, 37), torch.ones(3)),
        (torch.zeros(37, 3).T, torch.zeros(3, 37), torch.ones(3)),
    ],
)
def test_rows_the_kernel_cannot_take(student, teacher, weights):
    with pytest.raises(ValueError, match=r"weight|logits|rows"):
        kernels.score_(student, teacher, head(), head(), parse("jsd(0.5)"), 1.0, weights, True, True)
    with pytest.raises(ValueError, match="one target per weight"):
        kernels.nll_(torch.zeros(3, 37), head(), torch.zeros(2, dtype=torch.int64), torch.ones(3), True, True)


COMPILE = """
import json, re, subprocess, sys, tempfile, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tutelage.divergences import parse
from tutelage.fused.triton import _ELEMENTS_PER_WARP, _MAX_BLOCK, _kind, _score_kernel

def build(kind, model="softcap", teacher="logits", want=("grad", "stats"), dtype="*bf16", block=_MAX_BLOCK, **options):
    inner = "fp32" if model == "softcap" else None
    types = dict(projected=dtype, weights="*fp32", values="*fp32", stats="*fp32" if "stats" in want else None,
                 stride="i32", vocab="i32", student_inner=inner, student_outer="fp32", teacher_rows=dtype,
                 teacher_stride="i32", teacher_inner=inner, teacher_outer="fp32", teacher_weight="fp32")
    constants = dict(KIND=kind, WANT_GRAD="grad" in want, WANT_STATS="stats" in want, BLOCK=block)
    if teacher == "targets":
        types |= dict(teacher_rows="*i64", teacher_stride=None, teacher_inner=None, teacher_outer=None)
        constants["teacher_stride"] = 1  # as in a launch, which makes arguments of 1 constants and sees multiples of 16
    constants = {name: None for name, type in types.items() if type is None} | constants
    signature = {name: types.get(name) or "constexpr" for name in _score_kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, type in enumerate(signature.values()) if type[0] in "*i"}
    options |= dict(num_warps=max(1, block // _ELEMENTS_PER_WARP), enable_fp_fusion=True)
    kernel = triton.compile(ASTSource(_score_kernel, signature, constants, aligned), GPUTarget("cuda", 90, 32), options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    spilled = sum(int(number) for number in re.search(r"STACK:([0-9]+).*LOCAL:([0-9]+)", usage).groups())
    print(json.dumps([f"{kind} {model} {teacher} {want} {dtype} {block}", spilled, "ld.global.v4.b32" in kernel.asm["ptx"]]))

for kind in [_kind(parse(spelling))[0] for spelling in sys.argv[1:]]:
    build(kind)
    build(kind, want=["grad"])
build("jsd", "plain", want=["grad"])
build("jsd", "plain", want=[])
build("jsd", want=["stats"])
build("jsd", dtype="*fp32")
build("forward_kl", "plain", "targets")
build("forward_kl", "plain", "targets", want=["grad"])
build("jsd", block=32)
build("jsd", maxnreg=32)
"""


def test_compiles_for_hopper_and_hardly_spills_registers(tmp_path):
    """As launched on full vocabularies. The interpreter takes more than the compiler does; compiling needs no GPU."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", COMPILE, *DIVERGENCES]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    *compiled, small, squeezed = map(json.loads, run.stdout.splitlines())
    assert len({name for name, *_ in compiled}) == 2 * len(DIVERGENCES) + 6
    # Bytes that a thread spills (soft-cap and rescaled jsd: 16), and whether it loads 16 bytes at once.
    assert [kernel for kernel in compiled if kernel[1] > 16 or not kernel[2]] == []
    assert small[1:] == [0, False]
    assert squeezed[1] > 16  # 32 registers are too few, and it shows


@pytest.mark.skipif(DEVICE == "cpu", reason="takes a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_large_vocabulary(divergence, dtype, monkeypatch):
    monkeypatch.undo()
    inputs = random(4, 256_003, seed=1, dtype=dtype), random(4, 256_003, seed=2, dtype=dtype)
    assert_matches(score(*inputs, divergence), expected(*inputs, divergence), atol=1e-5)


@pytest.mark.skipif(DEVICE == "cpu", reason="takes a GPU with 10 GB")
def test_more_than_2_to_the_31_logits():
    row, stride = 130, 2**30
    student, teacher = (
        torch.empty(3 * stride, dtype=torch.bfloat16, device=DEVICE).as_strided((3, row), (stride, 1)) for _ in range(2)
    )
    student.copy_(random(3, row, seed=1))
    teacher.copy_(random(3, row, seed=2))
    wanted = expected(student, teacher)
    weights = weights_like(student)
    values, stats = kernels.score_(student, teacher, head(), head(), parse("jsd(0.3)"), 1.0, weights, True, True)
    assert_matches((values, student, stats), wanted)
