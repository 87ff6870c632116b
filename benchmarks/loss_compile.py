"""Whether torch.compile would speed up the elementwise part of the loss on a CPU: one tile, eager and compiled.

    .venv/bin/python benchmarks/loss_compile.py

Three forms take turns on the same logits: `DivergenceLoss.tile`, which the library runs; the same function compiled; and the
textbook formula of the same value and derivative compiled, out of place and without the tile's looks for infinite values, each
of which ends a graph. The script stops if they differ. benchmarks/results/compile.json keeps the figures.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tutelage.divergences import parse
from tutelage.fused import chunked
from tutelage.fused.base import DEFAULT_BUDGET_BYTES
from tutelage.fused.losses import DivergenceLoss
from tutelage.types import LMHead

RESULTS = Path(__file__).resolve().parent / "results" / "compile.json"
VOCABULARIES = (49152, 151936)
TOKENS = 1024  # of the chunk that the tile is cut from
LOGIT_SPREAD = 2.0  # standard deviation of both models' logits
CALLS = 100  # in one turn of a form
TOLERANCE = 1e-4  # of value and derivative, relative to their largest entry
BACKEND = "inductor"
EAGER, COMPILED, FORMULA = "tile, eager", "tile, compiled", "formula, compiled"

Form = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # both models' logits [t, V] -> values [t], derivative [t, V]


def tile(divergence: str, vocabulary: int) -> Form:
    """`DivergenceLoss.tile` with the derivative and without statistics; it overwrites its arguments."""
    teacher_head = LMHead(torch.empty(vocabulary, 1))  # a tile asks it for scale and soft-cap alone
    loss = DivergenceLoss(parse(divergence), torch.empty(0, 1), teacher_head, temperature=1.0)

    def form(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        values, derivative, _ = loss.tile(student, teacher, want_grad=True, want_stats=False)
        assert derivative is not None
        return values, derivative

    return form


def forward_kl(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher || student) and its derivative in the student's logits."""
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(-1), log_q.exp() - p


def reverse_kl(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """KL(student || teacher) and its derivative in the student's logits."""
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    q, log_ratio = log_q.exp(), log_q - log_p
    value = (q * log_ratio).sum(-1)
    return value, q * (log_ratio - value[:, None])


def jsd(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """JSD(0.5) and its derivative in the student's logits."""
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    q, p = log_q.exp(), log_p.exp()
    log_m = ((p + q) / 2).log()
    student_part = (q * (log_q - log_m)).sum(-1)
    value = ((p * (log_p - log_m)).sum(-1) + student_part) / 2
    return value, q * (log_q - log_m - student_part[:, None]) / 2


FORMULAS: dict[str, Form] = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd(0.5)": jsd}


def tile_rows(vocabulary: int) -> int:
    """Of the library's tile in a chunk of float32 logits."""
    bytes_per_token = 2 * vocabulary * torch.float32.itemsize
    return chunked.plan(TOKENS, vocabulary, bytes_per_token, torch.float32, "cpu", DEFAULT_BUDGET_BYTES).tile


def case(divergence: str, vocabulary: int, repetitions: int) -> dict[str, Any]:
    """Nanoseconds a logit of each form; of the compiled ones also the graphs, the seconds of the first call and the error."""
    rows = tile_rows(vocabulary)
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(rows, vocabulary, generator=generator) * LOGIT_SPREAD for _ in range(2)]
    eager = tile(divergence, vocabulary)
    forms = {EAGER: eager, COMPILED: eager, FORMULA: FORMULAS[divergence]}
    found: dict[str, dict[str, Any]] = {EAGER: {}}
    for name in (COMPILED, FORMULA):  # before anything is compiled: `explain` drops all compiled code
        found[name] = {"graphs": torch._dynamo.explain(forms[name])(*_copies(logits)).graph_count}
    expected = eager(*_copies(logits))
    for name in (COMPILED, FORMULA):
        forms[name] = torch.compile(forms[name], dynamic=False, backend=BACKEND)
        started = time.perf_counter()
        results = forms[name](*_copies(logits))
        found[name]["compilation_seconds"] = time.perf_counter() - started
        found[name]["largest_error"] = error = _relative_error(results, expected)
        if not error <= TOLERANCE:
            sys.exit(f"error: {name}, {divergence}, vocabulary {vocabulary:,}: off by {error:.1e} of the largest entry")
    for name, turns in _turns(forms, logits, repetitions).items():
        found[name]["nanoseconds_per_logit"] = machine.spread([1e9 * turn / (rows * vocabulary) for turn in turns])
    return {"divergence": divergence, "vocabulary": vocabulary, "rows": rows, "forms": found}


def _turns(forms: dict[str, Form], logits: list[Tensor], repetitions: int) -> dict[str, list[float]]:
    """Seconds of a call in every turn of `CALLS` of them, A B C, B C A, ...; the first round warms up."""
    names = list(forms)
    runs: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(1 + repetitions):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            seconds = _seconds(forms[name], logits)
            if repetition:
                runs[name].append(seconds)
    return runs


def _seconds(form: Form, logits: list[Tensor]) -> float:
    """Of one of `CALLS` calls. The tile overwrites its arguments: each call gets fresh ones, written outside the clock."""
    arguments = _copies(logits)
    total = 0.0
    for _ in range(CALLS):
        for argument, values in zip(arguments, logits, strict=True):
            argument.copy_(values)
        started = time.perf_counter()
        form(*arguments)
        total += time.perf_counter() - started
    return total / CALLS


def _copies(logits: list[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in logits]


def _relative_error(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> float:
    """The larger of value's and derivative's, each relative to its largest entry; NaN where either is."""
    pairs = zip(found, expected, strict=True)
    return float(torch.stack([(one - other).abs().max() / other.abs().max() for one, other in pairs]).max())


def main() -> None:
    """The command line."""
    options = machine.options(__doc__, repetitions=7)
    torch.set_num_threads(options.threads)
    torch._logging.set_logs(dynamo=logging.ERROR)  # it warns of every graph that ends early; the results count them
    table = Table(box=SIMPLE, title="nanoseconds a logit, median (quartiles), and seconds to compile / graphs")
    for heading in ("", EAGER, COMPILED, "", FORMULA, ""):
        table.add_column(heading, justify="right")
    cases = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # compiled code of earlier runs would take no time to compile
        torch.compile(torch.sin, backend=BACKEND)(torch.ones(8))  # loads the compiler, which is no case's cost
        for vocabulary in VOCABULARIES:
            for divergence in FORMULAS:
                cases.append(case(divergence, vocabulary, options.repetitions))
                table.add_row(f"{divergence}, {vocabulary:,}", *_cells(cases[-1]["forms"]))
    Console().print(table)
    settings = {"dtype": "float32", "tile_mb": chunked._CPU_TILE_BYTES / 2**20, "logit_spread": LOGIT_SPREAD}
    measured = {"calls": CALLS, "tolerance": TOLERANCE, "backend": BACKEND}
    machine.write(RESULTS, vars(options) | settings | measured, {"cases": cases})


def _cells(forms: dict[str, dict[str, Any]]) -> list[str]:
    cells = []
    for form in forms.values():
        time_of = form["nanoseconds_per_logit"]
        cells.append(f"{time_of['median']:.2f} ({time_of['quartile_1']:.2f}-{time_of['quartile_3']:.2f})")
        if "graphs" in form:
            cells.append(f"{form['compilation_seconds']:.0f} s / {form['graphs']}")
    return cells


if __name__ == "__main__":
    main()
