"""The closing table of loss.py: seconds and memory of every implementation, beside ours and beside the floor."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

SIZE = ("tokens", "student_hidden", "teacher_hidden", "vocabulary", "dtype")


def show(record: dict[str, Any], console: Console) -> None:
    """One table for each size and dtype."""
    for size, cases in groupby(record["cases"], key=lambda case: tuple(case[name] for name in SIZE)):
        console.print(_table(size, list(cases)))
    console.print("s: median seconds, forward and backward. MB: peak memory above the inputs, the gradients included.")
    console.print(
        "/ floor: to gemm_floor's seconds. gemm_floor_onednn: the same products, projected as Tutelage does in float32."
    )


def _table(size: tuple[Any, ...], cases: list[dict[str, Any]]) -> Table:
    tokens, student, teacher, vocabulary, dtype = size
    table = Table(
        box=SIMPLE,
        title=f"{tokens:,} tokens, hidden {student}/{teacher}, vocabulary {vocabulary:,}, {dtype}",
        caption=f"the head's gradient takes {cases[0]['head_gradient_mb']:,.0f} MB",
    )
    table.add_column("", no_wrap=True)
    for heading in ("s", "quartiles", "/ ours", "/ floor", "MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for case in cases:
        table.add_row(f"[bold]{case['loss']}")
        for name in case["implementations"]:
            table.add_row(f"  {name}", *_cells(name, case["implementations"]))
    return table


def _cells(name: str, rows: dict[str, Any]) -> tuple[str, ...]:
    row = rows[name]
    if "does_not_fit" in row:
        return ("does not fit",)
    ours = rows.get("tutelage_triton", rows.get("tutelage", {})).get("seconds")
    seconds = row["seconds"]
    return (
        f"{seconds['median']:#.3g}",
        f"{seconds['quartile_1']:.2g}-{seconds['quartile_3']:.2g}",
        f"{seconds['median'] / ours['median']:.2f}" if ours else "",
        f"{row['ratio_to_floor']:.2f}" if "ratio_to_floor" in row else "",
        f"{row['peak_mb']:,.0f}" if "peak_mb" in row else "",
    )
