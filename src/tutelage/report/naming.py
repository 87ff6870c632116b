"""What a report calls its runs: the runs of a comparison by method and seed, all others by their folders."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from tutelage.errors import UserError

_NEEDED = ("label", "seed", "run")  # columns of a comparison's table; behind the last: what was searched

_Row = Mapping[str, str]


def names(folders: Sequence[Path]) -> list[str]:
    """A name for each of these different, absolute paths.

    A run of a finished comparison is called by its method's label and seed, "GKD, seed 0"; where several share these, by the
    hyperparameters that were searched too, and by its folder at last. Any other run is called by the shortest end of its path that
    no other has, "seed-0/gkd".

    Raises:
        UserError: the table of a comparison is damaged.
    """
    tables = {folder.parent: _table(folder.parent) for folder in folders}
    ends = _ends(folders)
    spellings = [_spellings(tables[path.parent].get(path.name), end) for path, end in zip(folders, ends, strict=True)]
    found = [short for short, *_ in spellings]
    for longer in (1, 2):
        found = [
            spelling[longer] if found.count(name) > 1 else name for name, spelling in zip(found, spellings, strict=True)
        ]
    return found


def runs_of(folder: Path) -> list[Path]:
    """The runs that a folder stands for: those that a finished comparison compares, without those of its search, else itself.

    Raises:
        UserError: the table of the comparison is damaged.
    """
    rows = _table(folder / "runs").values()
    return [folder / "runs" / row["run"] for row in rows if row.get("phase") == "final"] or [folder]


def _spellings(row: _Row | None, end: str) -> tuple[str, str, str]:
    """Names of a run from the shortest to the one that no other run has."""
    if row is None:
        return end, end, end
    columns = list(row)
    searched = columns[columns.index("run") + 1 :]
    point = ", ".join(f"{key.rpartition('.')[2]} {row[key]}" for key in searched if row[key])
    label, seed = row["label"], f"seed {row['seed']}"
    long = f"{label} ({point}), {seed}" if point else f"{label}, {seed}"
    return f"{label}, {seed}", long, f"{long}, {end}"


def _table(runs: Path) -> Mapping[str, _Row]:
    """A row for each run of the comparison that this folder is of, by the run's own folder; empty where it is of none."""
    path = runs.parent / "runs.csv"
    if runs.name != "runs" or not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is damaged: {error}; start the comparison again to have it written anew") from error
    return {row["run"]: row for row in rows if all(row.get(name) for name in _NEEDED)}


def _ends(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of these different paths that tell them apart."""
    depth = 1
    while len(found := ["/".join(folder.parts[-depth:]) for folder in folders]) > len(set(found)):
        depth += 1
    return found
