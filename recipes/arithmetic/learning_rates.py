"""Chooses the learning rate of each method of the quickstart, and the divergence of GKD, on the validation split.

    python recipes/arithmetic/learning_rates.py --jobs 2

Every cell (method, learning rate, seed) is a run of the quickstart's own configuration, in a process of its own. Cells
that are finished are kept, so that a stopped search goes on where it was. The rows are written beside this file.

    python recipes/arithmetic/learning_rates.py --train-size 10000

asks the same where worked answers are plentiful: the student is first fine-tuned on 10,000 problems by student.yaml.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from tutelage.quickstart.settings import Method, Settings, configuration
from tutelage.run import run
from tutelage.train import config_io
from tutelage.train.config import Config, identity

HERE = Path(__file__).parent
RATES = (0.005, 0.01, 0.02)
METHODS = (
    Method("supervised_kd", "supervised KD", "supervised_kd", "forward_kl", 0.0),
    Method("gkd_forward_kl", "on-policy GKD, forward KL", "gkd", "forward_kl", 0.0),
    Method("gkd_jsd", "on-policy GKD, JSD(0.5)", "gkd", "jsd(0.5)", 0.0),
)
CARRIED_TRAIN_SIZE = Settings().train_size


@dataclass(frozen=True)
class Cell:
    """One run of the search.

    Attributes:
        method: with its learning rate.
        settings: of the quickstart; no evaluation during training.
        seed: of the run.
        folder: of all cells.
        threads: for this process.
    """

    method: Method
    settings: Settings
    seed: int
    folder: Path
    threads: int

    @property
    def output(self) -> Path:
        """The run's folder."""
        return self.folder / f"{self.method.name}-{self.method.matrix_learning_rate:g}-{self.seed}"

    @property
    def record(self) -> Path:
        """The row of a finished cell."""
        return self.output / "cell.json"

    @property
    def config(self) -> Config:
        """The run, without progress bars."""
        config = configuration(self.settings, self.method, self.output, self.seed)
        return config.model_copy(update={"log": config.log.model_copy(update={"progress": False})})

    @property
    def finished(self) -> bool:
        """Whether its row is there, and of this very configuration."""
        run_record = self.output / "run.json"
        return self.record.exists() and json.loads(run_record.read_text()) == identity(self.config)


def run_cell(cell: Cell) -> dict[str, Any]:
    """Trains, evaluates on the validation split, and writes the cell's row last of all."""
    torch.set_num_threads(cell.threads)
    transformers_logging.disable_progress_bar()
    cell.record.unlink(missing_ok=True)  # of another configuration
    result = run(cell.config)
    assert result.after is not None  # eval.final is validation
    row = {
        "method": cell.method.name,
        "matrix_learning_rate": cell.method.matrix_learning_rate,
        "seed": cell.seed,
        "train_size": cell.settings.train_size,
        "prompt_size": cell.settings.prompt_size,
        "steps": cell.settings.steps,
        "problems": cell.settings.validation_size,
        **{found.decoding: found.value for found in result.after.rows},
        "seconds": sum(sum(record["seconds"].values()) for record in result.records),
        "threads": cell.threads,
    }
    cell.record.write_text(json.dumps(row))
    return row


def search(cells: Sequence[Cell], jobs: int, console: Console) -> list[dict[str, Any]]:
    """The rows of all cells, in their order; runs those that are missing, `jobs` at a time."""
    missing = [cell for cell in cells if not cell.finished]
    console.print(f"{len(cells)} cells, {len(cells) - len(missing)} of them finished")
    # Spawned, one process a cell: a cell must not inherit another's random state or memory.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        running = [pool.submit(run_cell, cell) for cell in missing]
        for done, future in enumerate(as_completed(running), 1):
            row = future.result()
            console.print(
                f"{done}/{len(missing)}  {row['method']}  {row['matrix_learning_rate']:g}  seed {row['seed']}: "
                f"greedy {row['greedy']:.1f}, T=1 {row['T=1']:.1f}, {row['seconds']:.0f} s"
            )
    return [json.loads(cell.record.read_text()) for cell in cells]


def summarise(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds by method and learning rate; `score`, the mean of greedy and T = 1, is what is chosen by."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["matrix_learning_rate"]), []).append(row)
    summary = []
    for (method, rate), group in groups.items():
        means = {key: fmean(row[key] for row in group) for key in ("greedy", "T=1", "seconds")}
        score = (means["greedy"] + means["T=1"]) / 2
        summary.append({"method": method, "matrix_learning_rate": rate, "seeds": len(group), **means, "score": score})
    return summary


def choose(summary: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The best line of supervised KD, and the best of GKD over learning rates and divergences."""
    sides = {"supervised_kd": ("supervised_kd",), "on_policy_gkd": ("gkd_forward_kl", "gkd_jsd")}
    found = {side: [line for line in summary if line["method"] in names] for side, names in sides.items()}
    return {side: max(lines, key=lambda line: line["score"]) for side, lines in found.items() if lines}


def student_of(train_size: int, folder: Path) -> Path:
    """The student fine-tuned on so many problems: the carried one, or one trained by student.yaml now."""
    if train_size == CARRIED_TRAIN_SIZE:
        return Settings().student
    output = folder / "student"
    if not (output / "model").exists():
        recipe = config_io.load_yaml(HERE / "student.yaml")
        own = {"output": str(output), "overwrite": True, "task": {"options": {"train_size": train_size}}}
        run(config_io.build(config_io.deep_merge(recipe, own)))
    return output / "model"


def show(summary: Sequence[dict[str, Any]], chosen: dict[str, dict[str, Any]], console: Console) -> None:
    """The table of means, the choices marked."""
    table = Table("method", "rate", "seeds", "greedy", "T=1", "mean of both", "seconds")
    for line in summary:
        figures = (f"{line[key]:.1f}" for key in ("greedy", "T=1", "score"))
        style = "bold green" if line in chosen.values() else ""
        rate = f"{line['matrix_learning_rate']:g}"
        table.add_row(line["method"], rate, str(line["seeds"]), *figures, f"{line['seconds']:.0f}", style=style)
    console.print(table)
    for side, line in chosen.items():
        console.print(f"{side}: {line['method']} at matrix_learning_rate {line['matrix_learning_rate']:g}")
    rates = {line["matrix_learning_rate"] for line in summary}
    edge = [side for side, line in chosen.items() if line["matrix_learning_rate"] in (min(rates), max(rates))]
    if edge:
        console.print(f"[yellow]at the edge of the grid, widen it with --rates:[/] {', '.join(edge)}")


def main() -> None:
    """Searches, writes the rows, prints the choice."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--seeds", type=int, default=2, help="runs of every method and learning rate")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="peak rates of the matrices")
    parser.add_argument("--methods", nargs="+", choices=[m.name for m in METHODS], default=[m.name for m in METHODS])
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--train-size", type=int, default=CARRIED_TRAIN_SIZE, help="problems with worked answers")
    parser.add_argument("--prompt-size", type=int, default=defaults.prompt_size, help="problems of on-policy training")
    parser.add_argument("--limit", type=int, default=500, help="validation problems")
    parser.add_argument("--teacher", type=Path, default=defaults.teacher)
    parser.add_argument("--student", type=Path, help="default: fine-tuned on --train-size problems")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning_rates"), help="folder of the cells")
    parser.add_argument("--output", type=Path, help="default: learning_rates[-TRAIN_SIZE].json beside this file")
    options = parser.parse_args()

    console = Console(highlight=False)
    folder = options.runs / f"{options.train_size}x{options.steps}"
    settings = replace(
        defaults,
        teacher=options.teacher,
        student=options.student or student_of(options.train_size, folder),
        train_size=options.train_size,
        prompt_size=options.prompt_size,
        steps=options.steps,
        evaluate_every=0,
        validation_size=options.limit,
    )
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    cells = [
        Cell(replace(method, matrix_learning_rate=rate), settings, seed, folder, threads)
        for method in METHODS
        if method.name in options.methods
        for rate in options.rates
        for seed in range(options.seeds)
    ]
    rows = search(cells, options.jobs, console)
    summary = summarise(rows)
    chosen = choose(summary)
    suffix = "" if options.train_size == CARRIED_TRAIN_SIZE else f"-{options.train_size}"
    path = options.output or HERE / f"learning_rates{suffix}.json"
    path.write_text(json.dumps({"chosen": chosen, "means": summary, "rows": rows}, indent=1) + "\n")
    show(summary, chosen, console)
    console.print(f"rows: {path}")


if __name__ == "__main__":
    main()
