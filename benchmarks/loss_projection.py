"""How a chunk of tokens should be projected in float32 on a CPU: one plain product, or oneDNN for some rows of the head at a time.

    .venv/bin/python benchmarks/loss_projection.py

The chunks are those that the default budget makes at the sizes of loss.py, and all tokens at once. Forms take turns; the block that the
library uses is marked; results/projection.json keeps the figures. Two minutes.
"""

from __future__ import annotations

import time
from pathlib import Path

import machine
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from tutelage.fused import base

RESULTS = Path(__file__).resolve().parent / "results" / "projection.json"
CHUNKS = (  # tokens, hidden, vocabulary
    (205, 1024, 151936), (205, 2048, 151936), (1024, 1024, 151936), (512, 576, 49152), (512, 896, 49152), (2048, 896, 49152),
)  # fmt: skip
MEGABYTES = (1, 2, 4, 8, 16)  # of a block
PLAIN = "plain product"


def measure(tokens: int, hidden: int, vocabulary: int, repetitions: int) -> dict[str, dict[str, float]]:
    """Seconds by form, the plain product or the MB of a block; the first turn warms up."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(tokens, hidden, generator=generator)
    weight = torch.randn(vocabulary, hidden, generator=generator)
    out = torch.empty(tokens, vocabulary)
    forms = (PLAIN, *MEGABYTES)
    runs: dict[int | str, list[float]] = {form: [] for form in forms}
    used = base.BLOCK_BYTES
    try:
        for repetition in range(1 + repetitions):
            for form in forms:
                started = time.perf_counter()
                if isinstance(form, int):
                    base.BLOCK_BYTES = form * 2**20
                    base.project_in_blocks(states, weight, None, out)
                else:
                    torch.mm(states, weight.T, out=out)
                if repetition:
                    runs[form].append(time.perf_counter() - started)
    finally:
        base.BLOCK_BYTES = used
    return {str(form): machine.spread(seconds) for form, seconds in runs.items()}


def main() -> None:
    """The command line."""
    options = machine.options(__doc__, repetitions=7)
    torch.set_num_threads(options.threads)
    table = Table(box=SIMPLE, title=f"GFLOP/s at the median; the library's blocks have {base.BLOCK_BYTES // 2**20} MB")
    for heading in ("tokens, hidden, vocabulary", PLAIN, *(f"{size} MB" for size in MEGABYTES)):
        table.add_column(heading, justify="right")
    cases = []
    for tokens, hidden, vocabulary in CHUNKS:
        found = measure(tokens, hidden, vocabulary, options.repetitions)
        cases.append({"tokens": tokens, "hidden": hidden, "vocabulary": vocabulary, "seconds": found})
        work = 2e-9 * tokens * hidden * vocabulary
        cells = (f"{work / seconds['median']:.0f}" for seconds in found.values())
        table.add_row(f"{tokens}, {hidden:,}, {vocabulary:,}", *cells)
    Console().print(table)
    machine.write(RESULTS, vars(options) | {"dtype": "float32"}, {"cases": cases})


if __name__ == "__main__":
    main()
