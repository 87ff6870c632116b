"""A whole comparison: search on validation, final runs, one look at the test split, tables and plots."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from rich.console import Console

from tutelage.compare import measures, plan, plot, references, summary, table
from tutelage.compare.cell import Job
from tutelage.compare.config import ComparisonRecipe
from tutelage.compare.execute import Execute, Failure, Work
from tutelage.compare.plan import Cell, Choice, Variant
from tutelage.compare.records import EvaluationProtocol, RunRecord
from tutelage.compare.summary import FinalRun, Line, Method, Reference
from tutelage.eval.results import REWARD
from tutelage.train.methods import resolve
from tutelage.train.setup import make_writable, pick_device

CORES_A_JOB = 2


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison came to.

    Attributes:
        recipe: as it was run.
        choices: the hyperparameters of each method; those without any finished point are left out.
        methods: those with at least one finished run, in the recipe's order.
        references: initial students and teachers, on the test split.
        equal_steps: on the test split.
        equal_time: on validation; empty without evaluations during training.
        notes: what a reader must know.
        failures: runs that did not finish; the same command tries them again.
    """

    recipe: ComparisonRecipe
    choices: tuple[Choice, ...]
    methods: tuple[Method, ...]
    references: tuple[Reference, ...]
    equal_steps: tuple[Line, ...]
    equal_time: tuple[Line, ...]
    notes: tuple[str, ...]
    failures: tuple[Failure, ...]

    @property
    def exit_code(self) -> int:
        """0; 1 where a run failed."""
        return 1 if self.failures else 0


class Comparison:
    """A recipe on its way to its tables. Every configuration and every task is checked when it is made.

    Args:
        recipe: what to compare.
        console: for progress and tables.
        work: does a job.
        execute: runs the jobs.

    Raises:
        UserError: a method's configuration, a task or the output folder is wrong.
    """

    def __init__(self, recipe: ComparisonRecipe, console: Console, work: Work, execute: Execute) -> None:
        self.recipe, self.console, self.work, self.execute = recipe, console, work, execute
        self.variants = plan.expand(recipe)
        self.baseline = recipe.baseline or self.variants[0].name
        self.search = plan.search_cells(recipe, self.variants)
        self.possible = [cell for v in self.variants for point in v.grid for cell in plan.final_cells(recipe, v, point)]
        measures.check_tasks(self.possible, recipe.selection)
        measures.check_selection(self.search, recipe.selection)
        self.rewards = references.common_rewards(self.possible)
        make_writable(recipe.output)
        cores = usable_cores()
        on_gpu = any(pick_device(cell.config.train.device).type != "cpu" for cell in self.possible)
        self.parallel = recipe.jobs or (1 if on_gpu else max(1, cores // CORES_A_JOB))
        self.threads = threads_of_a_run(cores, self.parallel)
        self.protocol = EvaluationProtocol(
            limit=recipe.test_limit,
            temperatures=recipe.test_temperatures or recipe.temperatures,
            num_beams=recipe.num_beams,
            resamples=recipe.resamples,
        )

    def run(self) -> ComparisonResult:
        """Runs what is not finished, and makes the tables of all that is.

        Raises:
            UserError: a finished run of the search has not measured what hyperparameters are chosen by.
            Interrupted: as `execute.run_spawned`.
        """
        measures.check_measured(self._records(self.search), self.recipe)
        (self.recipe.output / "recipe.yaml").write_text(_yaml(self.recipe), encoding="utf-8")
        failures = self._run_all("search", [self._job(cell, tested=False) for cell in self.search])
        records = self._records(self.search)
        chosen = {v.name: plan.choose(self.recipe, v, records) for v in self.variants}
        finals = [
            (variant, choice, plan.final_cells(self.recipe, variant, choice.point))
            for variant in self.variants
            if (choice := chosen[variant.name]) is not None
        ]
        cells = [cell for _, _, several in finals for cell in several]
        untrained = references.jobs(cells, self.rewards, self.recipe.output, self.protocol, self.threads)
        jobs = [*untrained.values(), *(self._job(cell, tested=True) for cell in cells)]
        failures += self._run_all("comparison", jobs)
        tested = {key: references.tested(key, job) for key, job in untrained.items() if job.test_record is not None}
        named = references.named(list(tested.values()))
        initials = {key: reference for key, reference in zip(tested, named, strict=True) if key[0] == "initial"}
        methods = [
            Method(variant, choice, runs)
            for variant, choice, several in finals
            if (runs := tuple(run for cell in several if (run := self._final(cell, initials)) is not None))
        ]
        result = self._result([choice for _, choice, _ in finals], methods, named, plan.notes(cells), failures)
        _write(result, self.search, self._records(self.search), self.console)
        return result

    def _result(
        self,
        choices: Sequence[Choice],
        methods: Sequence[Method],
        named: Sequence[Reference],
        planned: Sequence[str],
        failures: list[Failure],
    ) -> ComparisonResult:
        at_steps = summary.equal_steps(methods, self.baseline)
        timed = bool(methods) and summary.has_curves(methods)
        at_time = summary.equal_time(methods, self.baseline) if timed else []
        notes = [*planned, *summary.notes(methods, at_steps, at_time, self.baseline)]
        if methods and not timed:
            notes.append("No table at equal time: it needs evaluations during training (base: eval.every).")
        missing = [v.name for v in self.variants if v.name not in {method.variant.name for method in methods}]
        notes += [f"Warning: {name} is not in the tables: none of its runs finished." for name in missing]
        notes += table.reward_notes(methods, named)
        notes += [f"Warning: failed: {failure.label}: {failure.error}" for failure in failures]
        return ComparisonResult(
            self.recipe,
            tuple(choices),
            tuple(methods),
            tuple(named),
            tuple(at_steps),
            tuple(at_time),
            tuple(notes),
            tuple(failures),
        )

    def _job(self, cell: Cell, *, tested: bool) -> Job:
        test = self.protocol if tested else None
        return Job(cell.label, cell.folder, cell.config, "trained", test, self.threads)

    def _run_all(self, phase: str, jobs: Sequence[Job]) -> list[Failure]:
        """Runs the jobs that are not finished, equal ones once."""
        several: dict[Path, Job] = {}
        for job in jobs:
            several.setdefault(job.folder, job)
        # The long ones first, so that at the end no process is left alone with one.
        left = sorted((job for job in several.values() if not job.finished), key=_length, reverse=True)
        if jobs:
            threads = f"{self.parallel} at a time, threads each: {self.threads}"
            self.console.print(
                f"{phase}: {len(several)} runs, finished: {len(several) - len(left)}"
                + (f"; {threads}" if left else ""),
                highlight=False,
            )
        return self.execute(left, self.work, self.parallel, self.console) if left else []

    def _records(self, cells: Sequence[Cell]) -> dict[str, RunRecord]:
        found = {cell.folder.name: self._job(cell, tested=False).run_record for cell in cells}
        return {name: record for name, record in found.items() if record is not None}

    def _final(self, cell: Cell, initials: Mapping[tuple[str, ...], Reference]) -> FinalRun | None:
        job = self._job(cell, tested=True)
        record, test = job.run_record, job.test_record
        if record is None or test is None:
            return None
        initial = initials.get(references.key("initial", cell.config, self.rewards))
        return FinalRun(cell.variant, cell.folder.name, record, test, initial)


def _length(job: Job) -> float:
    """How long a job takes, roughly: the sequences it trains on, those that the student writes twice; 0 without training."""
    if job.model != "trained" or job.run_record is not None:
        return 0
    return job.config.train.steps * job.config.train.batch_size * (1 + resolve(job.config).student_data_fraction)


def usable_cores() -> int:
    """CPUs that this process may run on: under taskset or a job scheduler, fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_of_a_run(cores: int, parallel: int) -> int:
    """Threads of each of `parallel` runs on `cores` cores: its share of them, and no more than OMP_NUM_THREADS where that is set."""
    share = max(1, cores // parallel)
    return min(share, torch.get_num_threads()) if "OMP_NUM_THREADS" in os.environ else share


def _yaml(recipe: ComparisonRecipe) -> str:
    return yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True), sort_keys=False)


def _write(
    result: ComparisonResult, searched: Sequence[Cell], records: Mapping[str, RunRecord], console: Console
) -> None:
    """Tables, page and plots, in the comparison's folder and on the console."""
    output = result.recipe.output
    variants: dict[str, Variant] = {v.name: v for v in plan.expand(result.recipe)}
    keys = plan.searched_keys(list(variants.values()))
    runs = [run for method in result.methods for run in method.runs]
    final = {run.cell for run in runs}
    rows = [row for reference in result.references for row in table.reference_rows(reference, keys)]
    for cell in searched:
        name = cell.folder.name
        if name in records and name not in final:
            rows += table.search_rows(cell, variants[cell.variant].label, records[name], keys)
    for run in runs:
        rows += table.final_rows(run, variants[run.variant].label, run.cell in records, keys)
    if rows:
        table.write(rows, output / "runs")
    digits = 3 if any(metric == REWARD for metric, _ in result.recipe.selection) else 1
    grids = [table.choices_grid(result.choices, digits)] if any(choice.tried for choice in result.choices) else []
    if result.methods:
        curves = [row for run in runs for row in table.curve_rows(run, variants[run.variant].label, keys)]
        table.write(curves, output / "curves")
        table.write(table.line_rows(result.equal_steps, result.equal_time), output / "summary")
        plot.draw_results(result.methods, result.equal_steps, result.references, output / "results.png")
        grids += _line_grids(result)
    plots = [name for name, there in (("results.png", result.methods), ("curves.png", result.equal_time)) if there]
    if result.equal_time:
        plot.draw_curves(result.methods, output / "curves.png")
    page = table.page("Comparison", [*_about(result), *(f"![]({name})" for name in plots)], grids, result.notes)
    (output / "results.md").write_text(page, encoding="utf-8")
    table.show(console, grids, result.notes)
    console.print(f"tables and plots: {output}", highlight=False, soft_wrap=True)
    if result.methods:
        report = f"tutelage report {shlex.quote(str(output))}"
        console.print(f"curves, samples and marks of these runs in one page: {report}", highlight=False, soft_wrap=True)


def _line_grids(result: ComparisonResult) -> list[table.Grid]:
    baseline = result.recipe.baseline or plan.expand(result.recipe)[0].name
    steps = (
        "At equal steps, on the test split [95%: the metric over seeds (Student's t), gains and their ratios over seeds (Student's t) "
        "and examples (bootstrap)]"
    )
    grids = [table.lines_grid(steps, result.equal_steps, result.references, baseline)]
    rewarded = table.rewards_grid(result.methods, result.references)
    grids += [] if rewarded is None else [rewarded]
    if result.equal_time:
        budget = summary.time_budget(result.methods)
        time = (
            f"At equal time, on validation: after the {budget:,.1f} seconds that the quickest method trains for, between two "
            "evaluations linearly; the slower ones are in the middle of their learning-rate schedule there [95%, over seeds]"
        )
        grids.append(table.lines_grid(time, result.equal_time, (), baseline))
    return grids


def _about(result: ComparisonResult) -> list[str]:
    recipe = result.recipe
    chosen_by = " and ".join(recipe.select_by) or "the headline metric over all decodings"
    return [
        f"Seeds: {_seeds(recipe)}. Validation: {_examples(recipe.validation_limit)} examples; test: "
        f"{_examples(recipe.test_limit)}, evaluated once for each run after hyperparameters were chosen.",
        f"Hyperparameters are the best on validation by {chosen_by} (search seeds: {', '.join(map(str, recipe.search_seeds))}). "
        "Seconds are those of training steps (rollouts, rewards, teacher, update, ...), without evaluations and checkpoints; tokens "
        "those of the completions trained on, not of prompts.",
    ]


def _seeds(recipe: ComparisonRecipe) -> str:
    """The seeds of all, then those of methods that have others."""
    usual = tuple(recipe.seeds)
    own = [f"of {v.name}: {', '.join(map(str, v.seeds))}" for v in plan.expand(recipe) if tuple(v.seeds) != usual]
    return "; ".join([", ".join(map(str, usual)), *own])


def _examples(limit: int | None) -> str:
    return "all" if limit is None else f"the first {limit:,}"
