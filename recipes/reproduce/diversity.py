"""Claim 4: quality against diversity over sampling temperatures, of the students that another part trained."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from tutelage.compare import config, plan
from tutelage.errors import UserError
from tutelage.eval.evaluate import evaluate
from tutelage.models import load
from tutelage.models.options import ModelConfig
from tutelage.tasks import load_task
from tutelage.tasks.encode import encode_split
from tutelage.train.prompts import encoding_of

TEMPERATURES = (0.3, 0.7, 1.0, 1.3)
SAMPLES = 4
EXAMPLES = 300
# In the folder of a run, so that a student that is trained anew is sampled anew.
SAMPLED = "diversity.csv"
COLUMNS = ("method", "seed", "temperature", "metric", "value", "self_bleu", "distinct_2", "examples", "samples", "run")


def measure(part: str, recipe: dict[str, Any], folder: Path, console: Console, processes: int = 1) -> None:
    """Samples every finished student of a comparison on validation and writes runs.csv; the same students are not sampled again.

    Args:
        part: whose students.
        recipe: of that part.
        folder: for the table.
        console: for the progress bar.
        processes: students sampled at a time; 1: in this process.

    Raises:
        UserError: the part has not run.
    """
    comparison = config.read(recipe)
    cells = [
        cell
        for variant in plan.expand(comparison)
        for cell in plan.final_cells(comparison, variant, variant.grid[0])
        if variant.label.startswith("on-policy") and (cell.folder / "record.json").exists()
    ]
    if not cells:
        raise UserError(
            f"{folder.name} samples the students of the part {part}; run that first: --parts {part} {folder.name}"
        )
    left = [cell for cell in cells if not _read(cell)]
    for _ in track(_sample_all(left, processes), "sampling", total=len(left), console=console, transient=True):
        pass  # each student's samples lie in its folder: an interrupted part goes on from there
    _write(folder / "runs.csv", [row for cell in cells for row in _read(cell)])


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The whole table or, if interrupted, the one before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(path)


def _read(cell: plan.Cell) -> list[dict[str, str]]:
    """The rows of a student; none where it was not sampled as this file says."""
    path = cell.folder / SAMPLED
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    asked = [(str(t), str(EXAMPLES), str(SAMPLES)) for t in TEMPERATURES]
    found = [(row["temperature"], row["examples"], row["samples"]) for row in rows]
    return rows if tuple(reader.fieldnames or ()) == COLUMNS and found == asked else []


def _sample_all(cells: Sequence[plan.Cell], processes: int) -> Iterator[None]:
    """Samples each student, several at a time."""
    if processes == 1:
        yield from map(_sample, cells)
        return
    with ProcessPoolExecutor(processes, get_context("forkserver"), torch.set_num_threads, (1,)) as pool:
        yield from pool.map(_sample, cells)


def _sample(cell: plan.Cell) -> None:
    _write(cell.folder / SAMPLED, _sampled(cell))


def _sampled(cell: plan.Cell) -> list[dict[str, Any]]:
    """A row for each temperature."""
    settings = cell.config
    task = load_task(settings.task.name, data=settings.task.data, **settings.task.options)
    model = load.load(str(cell.folder / "model"), ModelConfig(dtype="float32"), torch.device("cpu"))
    prompts = encode_split(task, "validation", encoding_of(settings, model, task), EXAMPLES, show_progress=False)
    found = evaluate(
        model,
        task,
        prompts,
        temperatures=TEMPERATURES,
        samples_per_prompt=SAMPLES,
        batch_rows=settings.eval.batch_rows,
        seed=settings.seed,
        bootstrap=0,
    )
    return [
        {
            "method": cell.variant,
            "seed": settings.seed,
            "temperature": temperature,
            "metric": row.metric,
            "value": row.value,
            "self_bleu": row.self_bleu,
            "distinct_2": row.distinct_2,
            "examples": row.examples,
            "samples": SAMPLES,
            "run": cell.folder.name,
        }
        for temperature, row in zip(TEMPERATURES, found.rows, strict=True)
    ]
