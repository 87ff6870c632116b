"""The stored tables of the reproduction, and the few statistics that the verdicts need."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, variance

from tutelage.eval.statistics import Interval, seed_summary, student_t_quantile

GREEDY, SAMPLED = "greedy", "T=1"
DECODINGS = (GREEDY, SAMPLED)
INITIAL = "initial student"  # where a comparison has several, their names end with their paths
Row = Mapping[str, str]
Estimated = tuple[float, Interval | None]


class Incomplete(Exception):  # noqa: N818 - the claim stays open, nothing is wrong
    """A claim cannot be judged: a run that its criterion speaks of is not in the tables."""


@dataclass(frozen=True)
class Line:
    """One method in one decoding on the test split, as `tutelage compare` summed it up.

    Attributes:
        method: its name.
        value: the headline metric, mean over seeds, with its Student-t interval.
        gain: over the initial student, with its bootstrap interval over seeds and examples; not a number without that student.
        seeds: how many.
        seconds: of training.
    """

    method: str
    value: Estimated
    gain: Estimated
    seeds: int
    seconds: float


class Part:
    """The tables of a part; where a part "NAME_more" has been run too, also what only that one has.

    Args:
        folder: with runs.csv and summary.csv.
    """

    def __init__(self, folder: Path) -> None:
        self.name, self.folder = folder.name, folder

    @property
    def is_there(self) -> bool:
        """Whether the part, or the one with more, has been run."""
        return bool(with_more(self.folder, "summary.csv"))

    @cached_property
    def runs(self) -> list[Row]:
        """Every run, decoding and metric."""
        return read_with_more(self.folder, "runs.csv")

    @cached_property
    def lines(self) -> dict[tuple[str, str], Line]:
        """By method and decoding, at equal steps."""
        return self._lines("steps")

    def _lines(self, budget: str) -> dict[tuple[str, str], Line]:
        found = {}
        for row in read_with_more(self.folder, "summary.csv"):
            if row["budget"] == budget:
                value, gain = _estimate(row, "value"), _estimate(row, "gain")
                line = Line(row["method"], value, gain, int(row["seeds"]), float(row["seconds"]))
                found[row["method"], row["decoding"]] = line
        return found

    def line(self, method: str, decoding: str) -> Line:
        """Of a method in a decoding. Raises Incomplete where none of its runs finished."""
        if (method, decoding) not in self.lines:
            raise Incomplete(f"part {self.name}: no finished run of {method}")
        return self.lines[method, decoding]

    def gain(self, method: str, decoding: str) -> Estimated:
        """Of a method in a decoding. Raises Incomplete where it, or its initial student, was not tested."""
        found = self.line(method, decoding).gain
        if math.isnan(found[0]):
            raise Incomplete(f"part {self.name}: the initial student of {method} was not tested")
        return found

    def gain_at_equal_time(self, method: str, decoding: str) -> float | None:
        """On validation, at the last evaluation within the seconds that the quickest method trains for; None without one."""
        line = self._lines("time").get((method, decoding))
        return None if line is None or math.isnan(line.gain[0]) else line.gain[0]

    @property
    def methods(self) -> list[str]:
        """Names, in the order of the recipe."""
        return list(dict.fromkeys(method for method, _ in self.lines))

    def per_seed(self, method: str, metric: str, decoding: str, split: str = "test") -> dict[int, float]:
        """Seed -> value of a compared run. Raises Incomplete where there is none."""
        found = {
            int(row["seed"]): float(row["value"])
            for row in self.runs
            if (row["method"], row["metric"], row["decoding"], row["split"], row["phase"])
            == (method, metric, decoding, split, "final")
        }
        if not found:
            raise Incomplete(f"part {self.name}: no finished run of {method} with {metric}, {decoding}, {split}")
        return found

    @cached_property
    def _from(self) -> dict[str, str]:
        return origins(self.folder, "runs.csv")

    def lead(self, one: str, other: str, decoding: str, metric: str | None = None) -> Estimated:
        """One method minus another on the test split: `difference` where they are of one set of runs, else `apart`.

        Args:
            one, other: methods.
            decoding: of both.
            metric: None: the headline.
        """
        values = [self.per_seed(method, metric or self.metric, decoding) for method in (one, other)]
        return (difference if self._from[one] == self._from[other] else apart)(*values)

    def seconds_a_step(self, method: str) -> dict[int, float]:
        """Seed -> seconds. Raises Incomplete where there is none."""
        found = {
            int(row["seed"]): float(row["seconds"]) / int(row["steps"])
            for row in self.runs
            if row["method"] == method and row["phase"] == "final"
        }
        if not found:
            raise Incomplete(f"part {self.name}: no finished run of {method}")
        return found

    def reference(self, name: str, decoding: str, metric: str | None = None) -> float | None:
        """A metric of "initial student" or "teacher" on the test split, the headline where none is named; None where it has none."""
        for row in self.runs:
            asked = row["headline"].lower() == "true" if metric is None else row["metric"] == metric
            if row["method"] == name and row["decoding"] == decoding and asked:
                return float(row["value"])
        return None

    @property
    def metric(self) -> str:
        """The task's headline metric. Raises Incomplete without any run."""
        found = next((row["metric"] for row in self.runs if row["headline"].lower() == "true"), None)
        if found is None:
            raise Incomplete(f"part {self.name}: no runs.csv with its headline metric")
        return found

    @property
    def initial_students(self) -> dict[str, str]:
        """Name -> how tables name it: with its path where there are several, of which one may have no path in its name."""
        paths = {row["method"]: row["run"] for row in self.runs if row["method"].startswith(INITIAL)}
        return {name: name if len(paths) == 1 else f"{INITIAL} {path}" for name, path in paths.items()}

    @property
    def teachers(self) -> dict[str, str]:
        """Name -> how tables name it: "teacher"; with their paths where runs have several."""
        starts = ("teacher", "first teacher")  # "first": of the several that one run has
        paths = {
            row["method"]: row["run"]
            for row in self.runs
            if row["phase"] == "reference" and row["method"].startswith(starts)
        }
        return {name: "teacher" if len(paths) == 1 else f"teacher {path}" for name, path in paths.items()}

    @cached_property
    def repeated(self) -> Part | None:
        """The part "NAME_more" where it has trained some of the same methods anew, with the same seeds, and they came out otherwise."""
        folder = repetition(self.folder, "runs.csv")
        return None if folder is None else Part(folder)

    def is_added(self, method: str) -> bool:
        """Whether the method's runs are those of "NAME_more"."""
        return self._from[method] != self.name

    def repeated_lead(self, one: str, other: str, decoding: str) -> Estimated | None:
        """`lead` among the runs of the repetition alone; None where that has not trained both."""
        more = self.repeated
        return more.lead(one, other, decoding) if more and {one, other} <= set(more.methods) else None

    def surely_ahead(self, one: str, other: str, decoding: str) -> bool:
        """Whether the lead of one over the other is positive with its interval, in the repetition too."""
        again = self.repeated_lead(one, other, decoding)
        return positive(self.lead(one, other, decoding)[1]) and (again is None or positive(again[1]))


def with_more(folder: Path, name: str) -> list[Path]:
    """The folders of a part and of the part "NAME_more" that have a table of this name."""
    return [path for path in (folder, folder.with_name(f"{folder.name}_more")) if (path / name).exists()]


def read_with_more(folder: Path, name: str) -> list[Row]:
    """The rows of a part's table, then those that "NAME_more" has of other methods."""
    found: list[Row] = []
    for path in with_more(folder, name):
        there = {row["method"] for row in found}
        found += [row for row in read(path / name) if row["method"] not in there]
    return found


def origins(folder: Path, name: str) -> dict[str, str]:
    """Method -> the part that its runs are paired with others in.

    The methods that only "NAME_more" has are paired with those of "NAME" where the runs that both have came out alike, bit for bit: not if
    they ran on two machines. A pair by seed would then join trajectories that have nothing but a number in common.

    Args:
        folder: of "NAME".
        name: of a table with a row for each run.
    """
    several = {path.name: read(path / name) for path in with_more(folder, name)}
    alike = _alike(list(several.values()))
    found: dict[str, str] = {}
    for part, rows in several.items():
        for row in rows:
            if row["seed"]:  # not of an initial student or a teacher
                found.setdefault(row["method"], folder.name if alike else part)
    return found


def repetition(folder: Path, name: str) -> Path | None:
    """The folder of "NAME_more" where runs that it shares with "NAME" came out otherwise; None else.

    Args:
        folder: of "NAME".
        name: of a table with a row for each run.
    """
    folders = with_more(folder, name)
    several = [read(path / name) for path in folders]
    if _alike(several):
        return None
    one, more = ({row["method"] for row in rows if row["seed"]} for rows in several)
    return folders[1] if one & more else None


def _alike(tables: Sequence[Sequence[Row]]) -> bool:
    """Whether the runs that tables share have the same values in all; not, where they share none."""
    if len(tables) < 2:
        return True
    about = ("method", "seed", "split", "decoding", "temperature", "metric")
    one, other = (
        {
            tuple(row.get(name) for name in about): (row["value"], row.get("self_bleu"))
            for row in rows
            if row["seed"] and row.get("phase") in ("final", None)
        }
        for rows in tables
    )
    shared = one.keys() & other.keys()
    return bool(shared) and all(one[key] == other[key] for key in shared)


def about_other_runs(folder: Path) -> str:
    """A sentence on the methods of "NAME_more" that cannot be paired with those of "NAME"; "" where all can."""
    added = [method for method, part in origins(folder, "runs.csv").items() if part != folder.name]
    if not added:
        return ""
    return (
        f"{'; '.join(added)}: other runs ({folder.name}_more) than the rest of {folder.name}, not paired by seed with them; a difference "
        "between the two is unpaired (Welch)."
    )


def read(path: Path) -> list[Row]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _estimate(row: Row, name: str) -> Estimated:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    value = float(row[name]) if row[name] else math.nan
    return value, Interval(float(low), float(high)) if low and high else None


def shown(value: float, interval: Interval | None = None, digits: int = 1) -> str:
    """ "12.3 [10.1, 14.5]"."""
    ends = "" if interval is None else f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
    return f"{value:.{digits}f}{ends}"


def shown_lead(value: float, interval: Interval | None) -> str:
    """ "3.0 [1.0, 5.0] points ahead of", or "behind"."""
    if value >= 0:
        return f"{shown(value, interval)} points ahead of"
    return f"{shown(-value, None if interval is None else Interval(-interval.high, -interval.low))} points behind"


def above(one: Interval | None, other: Interval | None) -> bool:
    """Whether the one lies above the other, without a common point; an unknown interval is above none."""
    return one is not None and other is not None and one.low > other.high


def positive(interval: Interval | None) -> bool:
    """Whether all of it is above 0; an unknown one is not."""
    return interval is not None and interval.low > 0


def negative(interval: Interval | None) -> bool:
    """Whether all of it is below 0; an unknown one is not."""
    return interval is not None and interval.high < 0


def over_seeds(values: Mapping[int, float]) -> Estimated:
    """Mean with its Student-t interval. Raises Incomplete without any value."""
    if not values:
        raise Incomplete("runs to compare have no finished seed in common")
    summary = seed_summary(list(values.values()))
    return summary.mean, summary.interval


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> Estimated:
    """Mean over the seeds that both have of one minus the other, with its Student-t interval."""
    return over_seeds({seed: one[seed] - other[seed] for seed in one if seed in other})


def apart(one: Mapping[int, float], other: Mapping[int, float]) -> Estimated:
    """Mean of one minus the mean of the other, of runs that are not paired, with Welch's interval.

    Raises Incomplete without a value of either.

    Source: Welch 1947; the degrees of freedom (Satterthwaite's) are rounded down to a whole number, which widens the interval.
    """
    if not one or not other:
        raise Incomplete("runs to compare have no finished seed")
    lead = fmean(one.values()) - fmean(other.values())
    if min(len(one), len(other)) < 2:
        return lead, None
    shares = [(variance(values.values()) / len(values), len(values) - 1) for values in (one, other)]
    squared = sum(share for share, _ in shares)
    if squared == 0:
        return lead, Interval(lead, lead)
    degrees = math.floor(squared**2 / sum(share**2 / free for share, free in shares))
    half = student_t_quantile(0.95, max(1, degrees)) * math.sqrt(squared)
    return lead, Interval(lead - half, lead + half)


def slope(points: Mapping[float, Mapping[int, float]]) -> Estimated:
    """Least-squares slope of value over x, one for each seed, with the Student-t interval of their mean.

    Args:
        points: x -> seed -> value.
    """
    seeds = set.intersection(*(set(values) for values in points.values()))
    centre = fmean(points)
    scatter = sum((x - centre) ** 2 for x in points)
    return over_seeds({seed: sum((x - centre) * points[x][seed] for x in points) / scatter for seed in seeds})
