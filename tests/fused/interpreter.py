"""The Triton kernels for tests: on a GPU compiled, elsewhere in Triton's interpreter."""

from __future__ import annotations

import importlib
import os

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DIVERGENCES = (
    "forward_kl",
    "reverse_kl",
    "jsd(0.3)",
    "jsd(0.9, rescale)",
    "total_variation",
    "skew_forward_kl(0.2)",
    "skew_reverse_kl(0.2)",
)
WITHOUT_KERNEL = ("adaptive_kl(0.5)",)
INF = float("inf")


def load_kernels():
    """The module under test; without a GPU, interpreted, whatever this process has imported before."""
    names = ["tutelage.fused.triton_terms", "tutelage.fused.triton"]
    if DEVICE == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read where a kernel is defined, those of Triton's own library included
        names = ["triton.language.standard", "triton.language", *names]
    for name in names:
        module = importlib.reload(importlib.import_module(name))
    return module


def random(*shape, seed, size=3.0, dtype=torch.float32):
    return (size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype).to(DEVICE)
