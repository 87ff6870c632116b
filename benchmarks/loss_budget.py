"""What the loss's memory budget costs on a CPU: the time of one pass over the bytes for the vocabulary-wide buffers, by its parts.

    .venv/bin/python benchmarks/loss_budget.py

The size is the one where a budget of 256 MB makes the most chunks: 1,024 tokens, hidden 1024 / 2048, vocabulary 151,936, float32.
Budgets take turns; results/budget.json keeps the figures. Two minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import date
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


def clocked(seconds: dict[str, float], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, its time added to `seconds[name]`."""

    def wrapper(*args: Any) -> Any:
        started = time.perf_counter()
        result = function(*args)
        seconds[name] += time.perf_counter() - started
        return result

    return wrapper


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds: dict[str, float] = defaultdict(float)
    for name, (owner, method) in PARTS.items():
        setattr(owner, method, clocked(seconds, name, getattr(owner, method)))
    generator = torch.Generator().manual_seed(0)
    hidden, other = (torch.randn(TOKENS, size, generator=generator) for size in (STUDENT, TEACHER))
    weight, fixed = (torch.randn(VOCABULARY, size, generator=generator) * 2 / size**0.5 for size in (STUDENT, TEACHER))
    hidden.requires_grad_()
    weight.requires_grad_()
    runs: dict[int, dict[str, list[float]]] = {budget: defaultdict(list) for budget in MEGABYTES}
    for repetition in range(1 + options.repetitions):
        for budget in MEGABYTES:
            hidden.grad = weight.grad = None
            seconds.clear()
            student, teacher = (hidden, LMHead(weight)), (other, LMHead(fixed))
            weights = torch.full((TOKENS,), 1 / TOKENS)
            started = time.perf_counter()
            loss = linear_divergence(
                *student, *teacher, "jsd(0.5)", weights, implementation="chunked", budget_bytes=budget * 2**20
            )
            loss.backward()
            total = time.perf_counter() - started
            if repetition:  # the first turn warms up
                found = {"total": total, **seconds, "projections": total - sum(seconds.values())}
                for name, value in found.items():
                    runs[budget][name].append(value)
    table = Table(box=SIMPLE, title="seconds, median")
    names = ("total", "projections", *PARTS)
    for heading in ("budget, MB", *names):
        table.add_column(heading, justify="right")
    found = {budget: {name: machine.spread(runs[budget][name]) for name in names} for budget in MEGABYTES}
    for budget, parts in found.items():
        table.add_row(str(budget), *(f"{parts[name]['median']:.2f}" for name in names))
    Console().print(table)
    record = {
        "command": "python benchmarks/loss_budget.py",
        "date": date.today().isoformat(),
        "machine": machine.describe(),
        "settings": vars(options)
        | {"size": [TOKENS, STUDENT, TEACHER, VOCABULARY], "dtype": "float32", "loss": "jsd(0.5)"},
        "versions": {"torch": torch.__version__},
        "seconds by budget in MB": found,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
