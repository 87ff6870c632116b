"""What the loss's memory budget costs on a CPU: the time of one pass over the bytes for the vocabulary-wide buffers, by its parts.

    .venv/bin/python benchmarks/loss_budget.py                                  # --dtype bfloat16 --loss forward_kl

The size is the one where a budget of 256 MB makes the most chunks: 1,024 tokens, hidden 1024 / 2048, vocabulary 151,936.
Budgets take turns; results/budget.json, or budget_DTYPE_LOSS.json, keeps the figures. Two minutes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import machine
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from tutelage.fused import chunked, linear_divergence
from tutelage.types import LMHead

RESULTS = Path(__file__).resolve().parent / "results"  # loss_plot.py takes loss*.json for its own
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LOSSES = ("jsd(0.5)", "forward_kl", "reverse_kl")
TOKENS, STUDENT, TEACHER, VOCABULARY = 1024, 1024, 2048, 151936
MEGABYTES = (256, 512, 1400)
PARTS = {"elementwise": (chunked._Pass, "_tiles"), "gradients": (chunked._Gradients, "add")}
NAMES = ("total", "projections", *PARTS)


@contextmanager
def clocked(seconds: dict[str, float]) -> Iterator[None]:
    """Adds the time of the loss's parts to `seconds` while it lasts."""
    plain = {name: getattr(owner, method) for name, (owner, method) in PARTS.items()}

    def timed(name: str) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            started = time.perf_counter()
            result = plain[name](*args)
            seconds[name] += time.perf_counter() - started
            return result

        return wrapper

    for name, (owner, method) in PARTS.items():
        setattr(owner, method, timed(name))
    try:
        yield
    finally:
        for name, (owner, method) in PARTS.items():
            setattr(owner, method, plain[name])


def measure(repetitions: int, dtype: str = "float32", loss: str = "jsd(0.5)") -> dict[int, dict[str, dict[str, float]]]:
    """Seconds of a pass by budget in MB and by part: median, quartiles and range; the first turn warms up."""
    generator = torch.Generator().manual_seed(0)

    def normal(rows: int, size: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(rows, size, generator=generator) * scale).to(DTYPES[dtype])

    hidden, other = (normal(TOKENS, size) for size in (STUDENT, TEACHER))
    weight, fixed = (normal(VOCABULARY, size, 2 / size**0.5) for size in (STUDENT, TEACHER))
    hidden.requires_grad_()
    weight.requires_grad_()
    runs: dict[int, dict[str, list[float]]] = {budget: defaultdict(list) for budget in MEGABYTES}
    for repetition in range(1 + repetitions):
        for budget in MEGABYTES:
            hidden.grad = weight.grad = None
            models = (hidden, LMHead(weight)), (other, LMHead(fixed))
            seconds: dict[str, float] = defaultdict(float)
            with clocked(seconds):
                total = one_pass(*models, loss, budget)
            if repetition:
                for name, value in {"total": total, "projections": total - sum(seconds.values()), **seconds}.items():
                    runs[budget][name].append(value)
    return {budget: {name: machine.spread(runs[budget][name]) for name in NAMES} for budget in MEGABYTES}


def one_pass(
    student: tuple[torch.Tensor, LMHead], teacher: tuple[torch.Tensor, LMHead], loss: str, budget: int
) -> float:
    """Seconds of a forward and a backward pass."""
    weights = torch.full((TOKENS,), 1 / TOKENS)
    options: dict[str, Any] = {"implementation": "chunked", "budget_bytes": budget * 2**20}
    started = time.perf_counter()
    linear_divergence(*student, *teacher, loss, weights, **options).backward()
    return time.perf_counter() - started


def main() -> None:
    """The command line."""
    options = machine.options(__doc__, repetitions=3, dtype=tuple(DTYPES), loss=LOSSES)
    torch.set_num_threads(options.threads)
    found = measure(options.repetitions, options.dtype, options.loss)
    table = Table(box=SIMPLE, title=f"{options.loss}, {options.dtype}: seconds, median")
    for heading in ("budget, MB", *NAMES):
        table.add_column(heading, justify="right")
    for budget, parts in found.items():
        table.add_row(str(budget), *(f"{parts[name]['median']:.2f}" for name in NAMES))
    Console().print(table)
    is_usual = (options.dtype, options.loss) == ("float32", LOSSES[0])
    name = "budget" if is_usual else f"budget_{options.dtype}_{options.loss}"
    settings = vars(options) | {"size": [TOKENS, STUDENT, TEACHER, VOCABULARY]}
    machine.write(RESULTS / f"{name}.json", settings, {"seconds by budget in MB": found})


if __name__ == "__main__":
    main()
