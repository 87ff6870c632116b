"""The paper's claims at the size of two processor cores: experiments, tables, and a verdict on each claim.

    make reproduce                                              # the arithmetic parts, from the models the package carries
    make reproduce PARTS="methods rl"                           # some
    make reproduce PARTS=multi30k MULTI30K=FOLDER               # after recipes/multi30k/prepare.py and teacher.yaml

A part is a comparison (`PART.yaml`, some of them over another file: `OVER`). Finished runs are never trained
again, and what was interrupted goes on. Each part's tables go to docs/results/reproduction/PART; the verdicts in
docs/results/reproduction/README.md are made from all tables that are there, without training anything: `--parts` with nothing behind it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diversity
import torch
import verdicts
from rich.console import Console

from tutelage.compare import compare
from tutelage.compare.cell import Job
from tutelage.compare.execute import run_spawned
from tutelage.console import make_console
from tutelage.errors import UserError
from tutelage.run import run as train
from tutelage.train import config_io
from tutelage.train.config import Config
from tutelage.train.signals import Interrupted

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ARITHMETIC = (
    "methods",
    "baselines",
    "control",
    "rates",
    "divergences",
    "divergences_more",
    "fractions_few",
    "fractions",
    "low_data",
    "low_data_more",
    "rl",
    "rl_hard",
    "rl_one_rate",
    "rl_rates",
    "rl_gamed",
    "self",
    "self_large",
    "self_more",
    "self_rates",
    "sizes",
    "later",
    "later_more",
    "teachers",
)
MULTI30K = ("multi30k", "multi30k_long", "multi30k_all", "multi30k_low_data")
# Samples the students of another part.
DIVERSITY = {"diversity": "divergences", "diversity_more": "divergences_more", "multi30k_diversity": "multi30k"}
PARTS = (*ARITHMETIC, *MULTI30K, *DIVERSITY)
# At a time, each on a core.
PROCESSES = 2
# Run only when named, so that the others end within 90 minutes: for no claim of their own, more methods for a claim, an earlier recipe for
# one, on data that has to be there, or in 200 steps what "fractions_few" does in 350.
MORE = (
    "baselines",
    "control",
    "divergences_more",
    "diversity_more",
    "later_more",
    "low_data_more",
    "rl_gamed",
    "rl_hard",
    "rl_one_rate",
    "self_large",
    "self_more",
    "teachers",
)
ASKED_FOR = ("rates", "rl_rates", "self_rates", "fractions", "later", "sizes", *MORE, *MULTI30K, "multi30k_diversity")
# A part's recipe goes over this one.
OVER = dict.fromkeys(ARITHMETIC, "arithmetic.base.yaml") | {
    "multi30k_long": "multi30k.yaml",
    "multi30k_low_data": "multi30k_all.yaml",
}
# Trained before the part, once.
FIRST = {
    "sizes": ("sizes_small.yaml", "sizes_large.yaml"),
    "multi30k": ("multi30k_student.yaml",),
    "multi30k_long": ("multi30k_student.yaml",),
}
TABLES = ("runs.csv", "curves.csv", "summary.csv", "results.md", "results.png", "curves.png")


def recipe(part: str, multi30k: Path | None) -> dict[str, Any]:
    """The comparison of a part, ready for `tutelage.compare.compare`.

    Args:
        part: one of `PARTS`, but for those of `DIVERSITY`.
        multi30k: where its data lies.

    Raises:
        UserError: Multi30k without data.
    """
    chosen = read(HERE / f"{part}.yaml")
    if part in OVER:
        chosen = config_io.deep_merge(read(HERE / OVER[part]), chosen)
    if part not in MULTI30K:
        return chosen
    if multi30k is None:
        raise UserError(f"part {part}: say where its data lies: --multi30k FOLDER, or make reproduce MULTI30K=FOLDER")
    return config_io.deep_merge(chosen, {"base": {"task": {"data": str(multi30k)}}})


def first(part: str, multi30k: Path | None) -> list[dict[str, Any]]:
    """The training runs that a part starts from: configurations.

    Args:
        part: one of `PARTS`.
        multi30k: where its data lies.
    """
    data = {"task": {"data": str(multi30k)}} if part in MULTI30K else {}
    return [config_io.deep_merge(config_io.load_yaml(HERE / name), data) for name in FIRST.get(part, ())]


def read(path: Path) -> dict[str, Any]:
    """A YAML file whose base has nested keys only."""
    raw = config_io.load_yaml(path)
    return {**raw, "base": config_io.nest(raw["base"])} if isinstance(raw.get("base"), Mapping) else raw


def run(part: str, options: argparse.Namespace, console: Console) -> int:
    """Runs a part and keeps its tables; its exit code."""
    console.rule(part)
    kept = options.results / part
    if part in DIVERSITY:
        diversity.measure(DIVERSITY[part], recipe(DIVERSITY[part], options.multi30k), kept, console, PROCESSES)
        return 0
    chosen = recipe(part, options.multi30k)
    for name in TABLES:  # another part's, which would be taken for this one's where none of its runs finishes
        (Path(chosen["output"]) / name).unlink(missing_ok=True)
    result = compare(chosen, console=console)
    keep_tables(result.recipe.output, kept)
    return result.exit_code


def keep_tables(comparison: Path, folder: Path) -> None:
    """Copies the tables and plots of a comparison; those that it does not have are removed, lest older ones be judged for its."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TABLES:
        (folder / name).unlink(missing_ok=True)
        if (comparison / name).exists():
            shutil.copyfile(comparison / name, folder / name)


def before_all(parts: Sequence[str], options: argparse.Namespace, console: Console) -> None:
    """The models that the parts start from, several at a time; those that are there are left as they are.

    Raises:
        UserError: one of them failed.
        Interrupted: as `run_spawned`.
    """
    configs = [config_io.build({**raw, "resume": True}) for part in parts for raw in first(part, options.multi30k)]
    left = {config.output: config for config in configs if not _is_trained(config)}
    jobs = [Job(f"training {folder}", folder, config, "trained", None, 1) for folder, config in left.items()]
    failures = run_spawned(jobs, train_alone, PROCESSES, console) if jobs else []
    if failures:
        raise UserError("; ".join(f"{failure.label} failed: {failure.error}" for failure in failures))


def train_alone(job: Job) -> None:
    """The work of a process of `before_all`."""
    torch.set_num_threads(job.threads)  # threads of two processes on the same cores wait for each other
    train(job.config, console=Console(quiet=True))


def _is_trained(config: Config) -> bool:
    return (config.output / "model" / "config.json").exists()  # a student is saved whole or not at all


def once(raw: Mapping[str, Any], console: Console) -> None:
    """A training run, unless its student is there; an interrupted one goes on.

    Args:
        raw: its configuration.
        console: for progress.
    """
    config = config_io.build({**raw, "resume": True})
    if not _is_trained(config):
        console.print(f"training {config.output}", highlight=False, soft_wrap=True)
        train(config, console=console)


def check_multi30k(parts: Sequence[str], multi30k: Path | None) -> None:
    """That given data is used.

    Raises:
        UserError: none of the parts reads it.
    """
    those = [part for part in PARTS if DIVERSITY.get(part, part) in MULTI30K]
    if multi30k is not None and not set(parts) & set(those):
        raise UserError(
            f"--multi30k {multi30k}: no chosen part reads it; these do, and run only when named: {', '.join(those)}. For one of them: "
            f"make reproduce PARTS=multi30k MULTI30K={multi30k}"
        )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=[part for part in PARTS if part not in ASKED_FOR])
    parser.add_argument("--multi30k", type=Path, help="folder of the Multi30k data, for the parts that are named so")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results" / "reproduction")
    options = parser.parse_args()
    console = make_console()
    try:
        check_multi30k(options.parts, options.multi30k)
        for part in options.parts:
            recipe(DIVERSITY.get(part, part), options.multi30k)  # before the other parts' long work
        before_all(options.parts, options, console)
        failed = [part for part in options.parts if run(part, options, console)]
        page = verdicts.write(options.results)
    except UserError as error:
        sys.exit(f"error: {error}")
    except Interrupted as stop:
        console.print(str(stop), soft_wrap=True, highlight=False, markup=False)
        return 128 + stop.signal_number
    console.print(f"verdicts: {page}", soft_wrap=True, highlight=False)
    if failed:
        console.print(f"some runs failed in: {', '.join(failed)}; the same command tries them again", style="red")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
