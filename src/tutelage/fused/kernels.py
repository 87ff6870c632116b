"""Which implementation does the elementwise part of a loss: Triton's kernels, or PyTorch on tiles."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, Protocol

from torch import Tensor

from tutelage.errors import UserError
from tutelage.fused.losses import DivergenceLoss, NLLLoss, TokenLoss
from tutelage.types import LMHead

Elementwise = Literal["auto", "torch", "triton"]


class Kernel(Protocol):
    """One launch for a chunk."""

    def __call__(
        self, projected: Tensor, signal: Tensor, head: LMHead, weights: Tensor, want_grad: bool, want_stats: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Values [c] and statistics [K - 1, c] or None; with `want_grad`, derivatives overwrite `projected` [c, V].

        As a loss's `tile`, but for the derivative: it is the one in the projection, without the constant factor
        scale / temperature.
        """


def find_kernel(loss: TokenLoss, hidden: Tensor, elementwise: Elementwise) -> Kernel | None:
    """The kernel of a loss; None for PyTorch. "auto" takes a kernel on CUDA, wherever there is one.

    Raises:
        UserError: "triton" is asked for, and is not installed, has no kernel for the loss or the dtype, or would have to
            run on a CPU without Triton's interpreter.
    """
    if elementwise == "torch" or (elementwise == "auto" and (not hidden.is_cuda or find_spec("triton") is None)):
        return None
    if find_spec("triton") is None:
        raise UserError("implementation triton: the package triton is not installed; pip install triton, or use auto")
    from tutelage.fused import triton  # only where it is used: it is large, and Linux only

    dtypes = {hidden.dtype, *([loss.teacher_hidden.dtype] if isinstance(loss, DivergenceLoss) else [])}
    kernel = _kernel(loss) if dtypes <= set(triton.DTYPES) else None
    if kernel is None and elementwise == "triton":
        what = f"divergence {loss.divergence}" if isinstance(loss, DivergenceLoss) else type(loss).__name__
        seen = " and ".join(sorted(map(str, dtypes)))
        raise UserError(
            f"implementation triton: there is no kernel for {what} in {seen}; use implementation auto or chunked"
        )
    if elementwise == "triton" and not hidden.is_cuda and not triton.is_interpreted():
        raise UserError(
            f"implementation triton: the kernels run on CUDA, but the hidden states are on {hidden.device}; move models and "
            "tensors to a GPU, use implementation auto, or set the environment variable TRITON_INTERPRET=1 before the start, "
            "for Triton's slow interpreter"
        )
    return kernel


def _kernel(loss: TokenLoss) -> Kernel | None:
    from tutelage.fused import triton

    def score(
        projected: Tensor, signal: Tensor, head: LMHead, weights: Tensor, want_grad: bool, want_stats: bool
    ) -> tuple[Tensor, Tensor | None]:
        assert isinstance(loss, DivergenceLoss)
        teacher = loss.teacher_head
        marks = (loss.divergence, loss.temperature, weights, want_grad, want_stats)
        return triton.score_(projected, signal, head, teacher, *marks)

    def nll(
        projected: Tensor, signal: Tensor, head: LMHead, weights: Tensor, want_grad: bool, want_stats: bool
    ) -> tuple[Tensor, Tensor | None]:
        return triton.nll_(projected, head, signal[:, 0], weights, want_grad, want_stats)

    match loss:
        case DivergenceLoss() if triton.supports(loss.divergence):
            return score
        case NLLLoss():
            return nll
        case _:
            return None
