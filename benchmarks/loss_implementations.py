"""What loss.py compares: each implementation as a function that prepares one forward and backward pass.

Every pass takes the mean over tokens of D(teacher || student) and leaves gradients on the student's hidden states and head.
All of them mean the same by beta: the weight of the teacher in the mixture, with forward KL at 0 and reverse KL at 1.
Libraries are imported where they are used: no interpreter needs to have all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LOSSES = ("forward_kl", "reverse_kl", "jsd(0.5)")
_FLOOR_BYTES = 2 * 2**30  # both models' projections: one chunk at all sizes measured on a CPU

Run = Callable[[], Tensor | None]


@dataclass
class Problem:
    """Inputs of one pass; only the student's need gradients.

    Attributes:
        hidden, teacher_hidden: last hidden states [N, Hs] and [N, Ht].
        weight, teacher_weight: the heads [V, Hs] and [V, Ht].
    """

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor

    @property
    def tokens(self) -> int:
        return len(self.hidden)

    def forget_gradients(self) -> None:
        self.hidden.grad = self.weight.grad = None


def _beta(loss: str) -> float:
    return {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd(0.5)": 0.5}[loss]


def _differentiated(forward: Callable[[], Tensor]) -> Run:
    """`forward` with its backward pass."""

    def run() -> Tensor:
        value = forward()
        value.backward()
        return value.detach()

    return run


def _tutelage(implementation: Any, return_stats: bool = False) -> Callable[[Problem, str], Run]:
    def prepare(problem: Problem, loss: str) -> Run:
        from tutelage.fused import linear_divergence
        from tutelage.types import LMHead

        weights = torch.full((problem.tokens,), 1 / problem.tokens, device=problem.hidden.device)
        student = (problem.hidden, LMHead(problem.weight))
        teacher = (problem.teacher_hidden, LMHead(problem.teacher_weight))
        options = {"implementation": implementation, "return_stats": return_stats}

        def forward() -> Tensor:
            found = linear_divergence(*student, *teacher, loss, weights, **options)
            return found[0] if isinstance(found, tuple) else found

        return _differentiated(forward)

    return prepare


def _trl_gkd(problem: Problem, loss: str) -> Run:
    """Full logits, in float32 whatever the inputs: Accelerate converts the outputs of autocast models so."""
    from trl.experimental.gkd import GKDTrainer  # type: ignore[import-not-found]

    def forward() -> Tensor:
        student = F.linear(problem.hidden, problem.weight).float()
        with torch.no_grad():
            teacher = F.linear(problem.teacher_hidden, problem.teacher_weight).float()
        # Without labels, so that it need not copy the unmasked tokens as it does in training.
        return GKDTrainer.generalized_jsd_loss(student, teacher, beta=_beta(loss), num_items_in_batch=problem.tokens)

    return _differentiated(forward)


def _trl_distillation(problem: Problem, loss: str) -> Run:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss  # type: ignore[import-not-found]

    mask = torch.ones(1, problem.tokens, dtype=torch.long, device=problem.hidden.device)

    def forward() -> Tensor:
        hidden = (problem.hidden[None], problem.teacher_hidden[None])
        return _chunked_divergence_loss(*hidden, problem.weight, problem.teacher_weight, mask, _beta(loss))[0]

    return _differentiated(forward)


def _liger_chunked(compiled: bool) -> Callable[[Problem, str], Run]:
    compiled_for: Any = None

    def prepare(problem: Problem, loss: str) -> Run:
        nonlocal compiled_for
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # type: ignore[import-not-found]

        # Left in the cache, an earlier problem's graph would make this one's shapes dynamic, and after eight of them
        # Dynamo would run uncompiled.
        case = (problem.hidden.dtype, problem.hidden.shape, problem.teacher_weight.shape, loss)
        if compiled_for != case:
            torch.compiler.reset()
            compiled_for = case
        labels = torch.zeros(problem.tokens, dtype=torch.long, device=problem.hidden.device)  # no token is ignored
        function = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, beta=_beta(loss), compiled=compiled
        )
        tensors = (problem.hidden, problem.weight, problem.teacher_hidden, problem.teacher_weight)
        return _differentiated(lambda: function(*tensors, labels))

    return prepare


def _liger_triton(problem: Problem, loss: str) -> Run:
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD  # type: ignore[import-not-found]

    function = LigerFusedLinearJSD(jsd_beta=_beta(loss))
    tensors = (problem.hidden, problem.weight, problem.teacher_hidden, problem.teacher_weight)
    return _differentiated(lambda: function(*tensors, None))


Project = Callable[[Tensor, Tensor, Tensor], Any]  # hidden [N, H], head [V, H], out [N, V]


def _four_products(problem: Problem, project: Project) -> Run:
    """The matrix products of an exact divergence and nothing else, into memory that is there already."""
    tokens, vocab = problem.tokens, len(problem.weight)
    most = _FLOOR_BYTES // (2 * vocab * problem.hidden.element_size())
    chunk = min(tokens, most)
    student, teacher = problem.hidden.new_zeros(chunk, vocab), problem.hidden.new_zeros(chunk, vocab)
    hidden_grad, weight_grad = torch.zeros_like(problem.hidden), torch.zeros_like(problem.weight)

    @torch.no_grad()
    def run() -> None:
        for start in range(0, tokens, chunk):
            hidden = problem.hidden[start : start + chunk]
            logits = student[: len(hidden)]
            project(hidden, problem.weight, logits)
            project(problem.teacher_hidden[start : start + chunk], problem.teacher_weight, teacher[: len(hidden)])
            torch.mm(logits, problem.weight, out=hidden_grad[start : start + chunk])
            if start == 0:
                torch.mm(logits.T, hidden, out=weight_grad)
            else:
                weight_grad.addmm_(logits.T, hidden)

    return run


def _gemm_floor(problem: Problem, loss: str) -> Run:
    return _four_products(problem, lambda hidden, weight, out: torch.mm(hidden, weight.T, out=out))


def _gemm_floor_onednn(problem: Problem, loss: str) -> Run:
    """The floor whose projections go to oneDNN, as Tutelage's do in float32 on a CPU."""
    from tutelage.fused import base

    if problem.hidden.dtype != torch.float32 or problem.hidden.device.type != "cpu":
        seen = f"{problem.hidden.dtype} on {problem.hidden.device.type}"
        raise ValueError(
            f"gemm_floor_onednn is for float32 on a CPU, not {seen}: Tutelage projects there as gemm_floor does"
        )
    if not torch.backends.mkldnn.is_available():
        raise ValueError("gemm_floor_onednn needs a PyTorch built with oneDNN (torch.backends.mkldnn)")
    return _four_products(problem, lambda hidden, weight, out: base.project_in_blocks(hidden, weight, None, out))


@dataclass(frozen=True)
class Implementation:
    """One competitor.

    Attributes:
        prepare: (problem, loss) -> one pass. What `prepare` itself does is not timed.
        packages: whose versions the results state.
        is_peer: runs in the Python that has TRL and Liger.
        is_loss: has a value and gradients; the floors have none.
        only_cuda: does not run on a CPU.
        only_float32_on_cpu: runs nowhere else.
        only_when_named: is no part of the default.
    """

    prepare: Callable[[Problem, str], Run]
    packages: tuple[str, ...]
    is_peer: bool = False
    is_loss: bool = True
    only_cuda: bool = False
    only_float32_on_cpu: bool = False
    only_when_named: bool = False


_TRL, _LIGER = ("trl", "torch", "transformers"), ("liger-kernel", "torch")
IMPLEMENTATIONS = {
    "tutelage": Implementation(_tutelage("chunked"), ("tutelage", "torch")),
    "tutelage_statistics": Implementation(
        _tutelage("chunked", return_stats=True), ("tutelage", "torch"), only_when_named=True
    ),
    "tutelage_triton": Implementation(_tutelage("triton"), ("tutelage", "torch", "triton"), only_cuda=True),
    "reference": Implementation(_tutelage("reference"), ("tutelage", "torch")),
    "trl_gkd": Implementation(_trl_gkd, _TRL, is_peer=True),
    "trl_distillation": Implementation(_trl_distillation, _TRL, is_peer=True),
    "liger": Implementation(_liger_chunked(False), _LIGER, is_peer=True),
    "liger_compiled": Implementation(_liger_chunked(True), _LIGER, is_peer=True),
    "liger_triton": Implementation(_liger_triton, (*_LIGER, "triton"), is_peer=True, only_cuda=True),
    "gemm_floor": Implementation(_gemm_floor, ("torch",), is_loss=False),
    "gemm_floor_onednn": Implementation(
        _gemm_floor_onednn, ("tutelage", "torch"), is_loss=False, only_float32_on_cpu=True, only_when_named=True
    ),
}
