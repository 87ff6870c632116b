"""The tables of a comparison: one tidy row per run, decoding and metric, and a Markdown page for reading."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tutelage.compare.intervals import Estimate
from tutelage.compare.plan import Cell, Choice, value_of
from tutelage.compare.records import RunRecord, Score
from tutelage.compare.summary import FinalRun, Line, Method, Reference
from tutelage.eval.results import REWARD, with_interval
from tutelage.eval.statistics import Interval, seed_summary
from tutelage.train.metrics import TRAINING_PHASES

COLUMNS = (
    "method", "label", "phase", "searched", "seed", "split", "step", "decoding", "metric", "headline", "value", "low", "high",
    "steps", "tokens", "seconds", *(f"seconds_{phase}" for phase in TRAINING_PHASES), "threads", "run",
)  # fmt: skip
_REWARD_DIGITS = (3, 1)  # of a reward, of the metric beside it
PAGE_ONLY = ("grid", "seeds", "steps", "tokens")


@dataclass(frozen=True)
class Grid:
    """A table for reading.

    Attributes:
        title: a line above it.
        header: its columns; the first is text, the others figures.
        rows: as many cells each.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As a pipe table under its title."""
        lines = [self.header, ("---", *["---:"] * (len(self.header) - 1)), *self.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"**{self.title}**\n\n{table}\n"

    def rich(self) -> Table:
        """For the terminal, without the columns that only the page has room for."""
        table = Table(title=escape(self.title), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        shown = [number for number, name in enumerate(self.header) if name not in PAGE_ONLY]
        for number in shown:
            table.add_column(escape(self.header[number]), justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*(escape(row[number]) for number in shown))
        return table


def search_rows(cell: Cell, label: str, record: RunRecord, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The tidy rows of a run that only served the search."""
    about = _about(cell.variant, label, record, cell.folder.name, keys)
    return [{**about, "phase": "search", "searched": True, **_score(score)} for score in record.scores]


def final_rows(run: FinalRun, label: str, searched: bool, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The tidy rows of a run that is compared: validation, then test.

    Args:
        run: the run.
        label: of its method.
        searched: whether it also served the search.
        keys: every key that was searched: each is a column.
    """
    about = _about(run.variant, label, run.record, run.cell, keys)
    about |= {"phase": "final", "searched": searched}
    return [{**about, **_score(score)} for score in run.record.scores] + [
        {**about, "split": "test", **_score(score)} for score in run.test.scores
    ]


def curve_rows(run: FinalRun, label: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The tidy rows of a run's evaluations on validation; `tokens` and `seconds` are those until then."""
    about = _about(run.variant, label, run.record, run.cell, keys)
    for phase in TRAINING_PHASES:
        del about[f"seconds_{phase}"]
    return [
        {**about, "step": point.step, "tokens": point.tokens, "seconds": point.seconds, **_score(score)}
        for point in run.record.curve
        for score in point.scores
    ]


def reference_rows(reference: Reference, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The tidy rows of the initial student or of a teacher."""
    about = {**dict.fromkeys(COLUMNS), "method": reference.name, "label": reference.name, "phase": "reference"}
    about |= {"searched": False, "split": "test", "run": reference.model, **dict.fromkeys(keys)}
    return [{**about, **_score(score)} for score in reference.test.scores]


def _about(method: str, label: str, record: RunRecord, run: str, keys: Sequence[str]) -> dict[str, Any]:
    """Every column that is the same in all rows of a run."""
    return {
        **dict.fromkeys(COLUMNS),
        "method": method,
        "label": label,
        "split": "validation",
        "step": record.steps,
        "seed": record.config["seed"],
        "steps": record.steps,
        "tokens": record.tokens,
        "seconds": record.total_seconds,
        **{f"seconds_{phase}": record.seconds[phase] for phase in TRAINING_PHASES},
        "threads": record.threads,
        "run": run,
        **{key: value_of(record.config, key) for key in keys},
    }


def _score(score: Score) -> dict[str, Any]:
    return score.model_dump()


def line_rows(at_steps: Sequence[Line], at_time: Sequence[Line]) -> list[dict[str, Any]]:
    """The summary's rows: `budget` says whether a line is at equal "steps" (test split) or "time" (validation)."""
    rows = []
    for budget, lines in (("steps", at_steps), ("time", at_time)):
        for line in lines:
            row: dict[str, Any] = {
                "budget": budget,
                "method": line.method,
                "decoding": line.decoding,
                "metric": line.metric,
            }
            row |= {"seeds": line.runs, "steps": line.steps, "tokens": line.tokens, "seconds": line.seconds}
            mean = Estimate(line.over_seeds.mean, line.over_seeds.interval)
            for name, estimate in (("value", mean), ("gain", line.gain), ("ratio", line.ratio)):
                interval = None if estimate is None else estimate.interval
                row[name] = None if estimate is None else estimate.value
                row[f"{name}_low"] = None if interval is None else interval.low
                row[f"{name}_high"] = None if interval is None else interval.high
            rows.append(row)
    return rows


def write(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes rows with equal keys as `path`.csv and `path`.parquet; columns of mixed kinds become text."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import csv

    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        kinds = {type(value) for value in values if value is not None}
        plain = len(kinds) <= 1 or kinds <= {int, float}
        if not plain or kinds & {dict, list, tuple}:
            values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        columns[name] = pa.array([float(v) for v in values] if kinds == {int, float} and None not in values else values)
    table = pa.table(columns)
    csv.write_csv(table, path.with_name(f"{path.name}.csv"))
    pq.write_table(table, path.with_name(f"{path.name}.parquet"))


def choices_grid(choices: Iterable[Choice], digits: int = 1) -> Grid:
    """What was chosen for each method, among what, and by which score, shown with so many digits."""
    rows = []
    for choice in choices:
        chosen = ", ".join(f"{key} = {value}" for key, value in choice.point.items()) or "as given"
        tried = "; ".join(
            f"{', '.join(str(value) for value in point.values())}: {with_interval(score, digits=digits)}"
            for point, score in choice.tried
        )
        score = with_interval(choice.score, digits=digits) + (" (edge)" if choice.edges else "")
        rows.append((choice.variant, chosen, score, tried or "–"))
    return Grid("Hyperparameters, chosen on validation", ("method", "chosen", "score", "grid"), tuple(rows))


def lines_grid(title: str, lines: Sequence[Line], references: Sequence[Reference] = (), baseline: str = "") -> Grid:
    """Methods at equal steps or at equal time, and the models that were not trained.

    Args:
        title: says which, and what the intervals are over.
        lines: by method and decoding.
        references: initial student and teachers.
        baseline: name of the method whose gain divides the others'.
    """
    metric = lines[0].metric
    header = ("method", "decoding", metric, "gain", f"gain / {baseline}", "seeds", "steps", "tokens", "seconds")
    rows: list[tuple[str, ...]] = [
        (
            line.method,
            line.decoding,
            with_interval(line.over_seeds.mean, line.over_seeds.interval),
            _estimate(line.gain),
            "1" if line.method == baseline else _estimate(line.ratio, digits=2),
            str(line.runs),
            f"{line.steps:,}",
            f"{line.tokens:,.0f}",
            f"{line.seconds:,.1f}",
        )
        for line in lines
    ]
    for reference in references:
        for score in reference.test.scores:
            if score.headline:
                value = with_interval(score.value, _interval(score))
                rows.append((reference.name, score.decoding, value, *["–"] * 6))
    return Grid(title, header, tuple(rows))


def rewards_grid(methods: Sequence[Method], references: Sequence[Reference]) -> Grid | None:
    """The reward beside the metric, on the test split: where the one rises and the other falls, the student games it.

    Args:
        methods: those whose runs measured a reward, all of them, have a line for each decoding.
        references: likewise.

    Returns:
        None where no reward was measured.
    """
    rows: list[tuple[str, ...]] = []
    metric = ""
    spellings = {method.variant.name: _reward_of(method) for method in methods}
    several = len(set(spellings.values()) - {None}) > 1
    for method in methods:
        name = method.variant.name
        shown = f"{name}, by {spellings[name]}" if several else name
        for decoding, pairs in _rewarded(method).items():
            metric = pairs[0][1].metric
            both = [seed_summary([score.value for score in each]) for each in zip(*pairs, strict=True)]
            cells = (with_interval(s.mean, s.interval, digits) for s, digits in zip(both, _REWARD_DIGITS, strict=True))
            rows.append((shown, decoding, *cells, str(len(pairs))))
    for reference in references:
        for decoding, pair in _rewards(reference.test.scores).items():
            cells = (with_interval(s.value, _interval(s), d) for s, d in zip(pair, _REWARD_DIGITS, strict=True))
            rows.append((reference.name, decoding, *cells, "–"))
    title = "Reward, on the test split [95%: over seeds (Student's t); of models that were not trained, over examples (bootstrap)]"
    return Grid(title, ("method", "decoding", "reward", metric, "seeds"), tuple(rows)) if metric else None


def reward_notes(methods: Sequence[Method], references: Sequence[Reference]) -> list[str]:
    """What the table of rewards lacks, and why."""
    measured = [method for method in methods if _reward_of(method) is not None]
    found = [
        f"{method.variant.name} has no reward on the test split: a run of an earlier version did not measure it."
        for method in measured
        if not _rewarded(method)
    ]
    if len({_reward_of(method) for method in measured}) > 1 and not all(
        _rewards(each.test.scores) for each in references
    ):
        found.append("Where methods have several rewards on one task, models that were not trained have none.")
    return found


def _reward_of(method: Method) -> str | None:
    """The spelling of what a method's runs measure."""
    config = method.runs[0].record.config
    reward: str | None = config["rl"]["reward"] if config["eval"].get("reward", True) else None
    return reward


def _rewarded(method: Method) -> dict[str, list[tuple[Score, Score]]]:
    """Decoding -> reward and headline metric of every run; without those decodings in which a run lacks one."""
    runs = [_rewards(run.test.scores) for run in method.runs]
    return {decoding: [run[decoding] for run in runs] for decoding in runs[0] if all(decoding in run for run in runs)}


def _rewards(scores: Sequence[Score]) -> dict[str, tuple[Score, Score]]:
    """Decoding -> reward and headline metric; without those decodings that lack one."""
    rewards = {score.decoding: score for score in scores if score.metric == REWARD}
    return {s.decoding: (rewards[s.decoding], s) for s in scores if s.headline and s.decoding in rewards}


def _interval(score: Score) -> Interval | None:
    return None if score.low is None or score.high is None else Interval(score.low, score.high)


def _estimate(estimate: Estimate | None, digits: int = 1) -> str:
    return "–" if estimate is None else with_interval(estimate.value, estimate.interval, digits)


def page(title: str, about: Sequence[str], grids: Sequence[Grid], remarks: Sequence[str]) -> str:
    """The Markdown page."""
    parts = [f"# {title}\n", *(f"{line}\n" for line in about), *(grid.markdown() for grid in grids)]
    if remarks:
        parts.append("**Notes**\n\n" + "\n".join(f"- {remark}" for remark in remarks) + "\n")
    return "\n".join(parts)


def show(console: Console, grids: Sequence[Grid], remarks: Sequence[str]) -> None:
    """Prints the tables and the notes."""
    for grid in grids:
        console.print(grid.rich())
    for remark in remarks:
        console.print(escape(remark), style="yellow" if remark.startswith("Warning") else "", highlight=False)
