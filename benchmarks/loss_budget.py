"""What the loss's memory budget costs on a CPU: the time of one pass over the bytes for the vocabulary-wide buffers, by its parts.

    .venv/bin/python benchmarks/loss_budget.py

The size is the one where a budget of 256 MB makes the most chunks: 1,024 tokens, hidden 1024 / 2048, vocabulary 151,936, float32.
Budgets take turns; results/budget.json keeps the figures. Two minutes.
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

RESULTS = Path(__file__).resolve().parent / "results" / "budget.json"  # loss_plot.py takes loss*.json for its own
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


def measure(repetitions: int) -> dict[int, dict[str, dict[str, float]]]:
    """Seconds of a pass by budget in MB and by part: median, quartiles and range; the first turn warms up."""
    generator = torch.Generator().manual_seed(0)
    hidden, other = (torch.randn(TOKENS, size, generator=generator) for size in (STUDENT, TEACHER))
    weight, fixed = (torch.randn(VOCABULARY, size, generator=generator) * 2 / size**0.5 for size in (STUDENT, TEACHER))
    hidden.requires_grad_()
    weight.requires_grad_()
    runs: dict[int, dict[str, list[float]]] = {budget: defaultdict(list) for budget in MEGABYTES}
    for repetition in range(1 + repetitions):
        for budget in MEGABYTES:
            hidden.grad = weight.grad = None
            models = (hidden, LMHead(weight)), (other, LMHead(fixed))
            seconds: dict[str, float] = defaultdict(float)
            with clocked(seconds):
                total = one_pass(*models, budget)
            if repetition:
                for name, value in {"total": total, "projections": total - sum(seconds.values()), **seconds}.items():
                    runs[budget][name].append(value)
    return {budget: {name: machine.spread(runs[budget][name]) for name in NAMES} for budget in MEGABYTES}


def one_pass(student: tuple[torch.Tensor, LMHead], teacher: tuple[torch.Tensor, LMHead], budget: int) -> float:
    """Seconds of a forward and a backward pass."""
    weights = torch.full((TOKENS,), 1 / TOKENS)
    options: dict[str, Any] = {"implementation": "chunked", "budget_bytes": budget * 2**20}
    started = time.perf_counter()
    linear_divergence(*student, *teacher, "jsd(0.5)", weights, **options).backward()
    return time.perf_counter() - started


def main() -> None:
    """The command line."""
    options = machine.options(__doc__, repetitions=3)
    torch.set_num_threads(options.threads)
    found = measure(options.repetitions)
    table = Table(box=SIMPLE, title="seconds, median")
    for heading in ("budget, MB", *NAMES):
        table.add_column(heading, justify="right")
    for budget, parts in found.items():
        table.add_row(str(budget), *(f"{parts[name]['median']:.2f}" for name in NAMES))
    Console().print(table)
    size = [TOKENS, STUDENT, TEACHER, VOCABULARY]
    settings = vars(options) | {"size": size, "dtype": "float32", "loss": "jsd(0.5)"}
    machine.write(RESULTS, settings, {"seconds by budget in MB": found})


if __name__ == "__main__":
    main()
