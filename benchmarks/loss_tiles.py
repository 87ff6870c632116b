"""How large the tiles of the loss should be on a CPU: the time of its elementwise part over the bytes of a tile.

    .venv/bin/python benchmarks/loss_tiles.py

Hidden states of 16 numbers make the matrix products nearly free; what is left is softmax, divergence and their derivative. Sizes
take turns. The size that the library uses is marked; benchmarks/results/tiles.json keeps the figures.
"""

from __future__ import annotations

import time
from pathlib import Path

import machine
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from tutelage.fused import chunked, linear_divergence
from tutelage.types import LMHead

RESULTS = Path(__file__).resolve().parent / "results" / "tiles.json"
MEGABYTES = (1.5, 3, 6, 12, 24, 48)
LOSSES = ("forward_kl", "jsd(0.5)")
TOKENS, HIDDEN, VOCABULARY = 1024, 16, 49152


def one_pass(hidden: torch.Tensor, weight: torch.Tensor, teacher: LMHead, loss: str) -> float:
    """Seconds of a forward and a backward pass."""
    hidden.grad = weight.grad = None
    weights = torch.full((TOKENS,), 1 / TOKENS)
    started = time.perf_counter()
    linear_divergence(
        hidden, LMHead(weight), hidden.detach(), teacher, loss, weights, implementation="chunked"
    ).backward()
    return time.perf_counter() - started


def case(dtype: torch.dtype, loss: str, repetitions: int) -> dict[str, dict[str, float]]:
    """Nanoseconds a logit by tile size: median and quartiles."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype).requires_grad_()
    weight, other = (torch.randn(VOCABULARY, HIDDEN, generator=generator).to(dtype) / 2 for _ in range(2))
    weight.requires_grad_()
    runs: dict[float, list[float]] = {size: [] for size in MEGABYTES}
    used = chunked._CPU_TILE_BYTES
    try:
        for repetition in range(1 + repetitions):
            for size in MEGABYTES:
                chunked._CPU_TILE_BYTES = int(size * 2**20)
                seconds = one_pass(hidden, weight, LMHead(other), loss)
                if repetition:  # the first turn warms up
                    runs[size].append(seconds * 1e9 / (TOKENS * VOCABULARY))
    finally:
        chunked._CPU_TILE_BYTES = used
    return {f"{size:g}": machine.spread(values) for size, values in runs.items()}


def main() -> None:
    """The command line."""
    options = machine.options(__doc__, repetitions=9)
    torch.set_num_threads(options.threads)
    used = chunked._CPU_TILE_BYTES / 2**20
    table = Table(box=SIMPLE, title=f"nanoseconds a logit, median; the library's tile is {used:g} MB")
    for heading in ("", *(f"{size:g} MB" for size in MEGABYTES)):
        table.add_column(heading, justify="right" if heading else "left")
    cases = []
    for dtype in (torch.float32, torch.bfloat16):
        for loss in LOSSES:
            found = case(dtype, loss, options.repetitions)
            name = str(dtype).removeprefix("torch.")
            cases.append({"dtype": name, "loss": loss, "tile_mb": found})
            table.add_row(f"{name} {loss}", *(f"{row['median']:.2f}" for row in found.values()))
    Console().print(table)
    machine.write(RESULTS, vars(options) | {"tokens": TOKENS, "vocabulary": VOCABULARY}, {"cases": cases})


if __name__ == "__main__":
    main()
