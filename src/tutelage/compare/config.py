"""The recipe of a comparison: one base, several methods, seeds, a small search on validation, one look at the test split."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from tutelage.errors import UserError, closest, nearest
from tutelage.eval.results import Decoding
from tutelage.section import Section
from tutelage.train import config_io
from tutelage.train.config import Recipe

SomeSection = TypeVar("SomeSection", bound=Section)

# A grid of values for each key, or the points themselves where keys move together.
Search = dict[str, list[Any]] | list[dict[str, Any]]

# Keys of a run that the comparison sets: each run's own, or the same for all.
_OWN = {
    "output": "output of the comparison",
    "seed": "seeds",
    "resume": "nothing: a comparison always goes on where it was",
    "overwrite": "another output: a comparison never deletes a run",
    "eval.final": "nothing: runs are evaluated on the validation split, and once on the test split",
    "eval.limit": "validation_limit",
    "eval.temperatures": "temperatures",
}


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class MethodEntry(Recipe):
    """One method of the comparison: a name, and the keys in which its runs differ from the base."""

    name: str
    """What tables and `baseline` call it."""
    label: str | None = None
    """What plots call it; None: the name."""
    divergences: tuple[str, ...] = ()
    """One method for each of these divergences."""
    fractions: tuple[float, ...] = ()
    """One method for each of these student data fractions."""
    search: Search | None = None
    """The method's own grid; None: the comparison's."""
    seeds: tuple[int, ...] | None = Field(None, min_length=1)
    """The method's own seeds; None: the comparison's."""

    @model_validator(mode="after")
    def _check(self) -> MethodEntry:
        given = self.model_fields_set
        for many, one in (("divergences", "divergence"), ("fractions", "student_data_fraction")):
            if {many, one} <= given:
                raise UserError(f"method {self.name} has both {many} and {one}; keep one")
        _refuse_repeated(f"seeds of method {self.name}", self.seeds or ())
        return self


class ComparisonOptions(Section):
    """The keys of a comparison that the command line can change: all but the methods and their grids."""

    base: Recipe = Recipe()
    """What all runs have in common: any keys of a training recipe; a method does without those that have no effect on it."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Every method is trained once with each of these, at its chosen hyperparameters."""
    search_seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Every point of a grid is trained once with each of these."""
    select_by: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    """The hyperparameters are the best by this on validation: "METRIC, DECODING" as in "accuracy, greedy", or the mean of
    several; "reward, T=1" for the reward of methods that have one; empty: the mean of the task's headline metric over all decodings."""
    baseline: str | None = None
    """The method whose gain over the initial student the others' gains are divided by; None: the first."""
    temperatures: tuple[float, ...] = Field((0.0, 1.0), min_length=1)
    """Decodings on validation, and on test unless test_temperatures says otherwise; 0: greedy."""
    test_temperatures: tuple[float, ...] | None = Field(None, min_length=1)
    """Decodings on test; None: temperatures."""
    num_beams: int = Field(1, ge=1)
    """Width of one more decoding on test, beam search; 1: none."""
    validation_limit: int | None = Field(200, ge=1)
    """Examples of the validation split; None: all."""
    test_limit: int | None = Field(None, ge=1)
    """Examples of the test split; None: all."""
    resamples: int = Field(1000, ge=1)
    """Bootstrap resamples behind the 95% intervals."""
    jobs: int | None = Field(None, ge=1)
    """Runs at a time, each with its share of the cores, or OMP_NUM_THREADS where that is set and less; None: one for two cores, and
    one where there is a GPU."""
    output: Path = Path("runs/compare")
    """The comparison's folder; finished runs in it are never trained again."""

    @property
    def decodings(self) -> tuple[str, ...]:
        """Labels of the decodings on validation."""
        return tuple(Decoding(temperature).label for temperature in self.temperatures)

    @property
    def selection(self) -> tuple[tuple[str, str], ...]:
        """`select_by` as pairs (metric, decoding)."""
        return tuple(_metric_and_decoding(spelled) for spelled in self.select_by)


class ComparisonRecipe(ComparisonOptions):
    """A whole comparison."""

    methods: tuple[MethodEntry, ...] = Field(min_length=1)
    """What is compared."""
    search: Search = Field(default_factory=dict)
    """The grid of every method that has none of its own: {key: [values, ...]}, or a list of points {key: value, ...} where
    several keys move together; empty: nothing is searched."""

    @model_validator(mode="after")
    def _check(self) -> ComparisonRecipe:
        _check_temperatures("temperatures", self.temperatures)
        _check_temperatures("test_temperatures", self.test_temperatures or ())
        for metric, decoding in self.selection:
            if decoding not in self.decodings:
                raise UserError(
                    f"select_by={metric}, {decoding}: validation is not decoded so; {nearest(decoding, self.decodings)} "
                    f"(temperatures={list(self.temperatures)})"
                )
        _refuse_repeated("seeds", self.seeds)
        _refuse_repeated("search_seeds", self.search_seeds)
        return self


def _refuse_repeated(where: str, seeds: tuple[int, ...]) -> None:
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{where}={list(seeds)} has a seed twice; give each once")


def _check_temperatures(where: str, temperatures: Sequence[float]) -> None:
    """Raises UserError for a temperature that nothing can be sampled at, and for two decodings that tables could not tell apart."""
    if not all(0 <= temperature < math.inf for temperature in temperatures):  # nan is neither
        raise UserError(f"{where}={list(temperatures)}: a temperature is 0 (greedy) or above")
    if len({Decoding(temperature).label for temperature in temperatures}) < len(temperatures):
        raise UserError(f"{where}={list(temperatures)} has a temperature twice; give each once")


def read(recipe: Path | Mapping[str, Any], options: Mapping[str, Any] | None = None) -> ComparisonRecipe:
    """A recipe from a YAML file or a mapping, checked.

    Args:
        recipe: the file, or what it would hold; dotted names stand for nested ones at every level.
        options: nested keys of `ComparisonOptions` that replace the recipe's.

    Raises:
        UserError: the file cannot be read, a key is unknown (names the nearest), a value is wrong, or a key of a run is given
            that the comparison sets.
    """
    raw = config_io.load_yaml(recipe) if isinstance(recipe, Path) else dict(recipe)
    raw = config_io.nest(raw)
    if isinstance(raw.get("base"), Mapping):
        raw["base"] = config_io.nest(raw["base"])
    raw = config_io.deep_merge(raw, options or {})
    _check_keys(raw)
    base = _section(Recipe, raw.get("base", {}), "base")
    entries = raw.get("methods")
    if not isinstance(entries, list | tuple) or not entries:
        raise UserError(f"methods: saw {entries!r}, needs a list of methods, as in [{{name: gkd, method: gkd}}]")
    methods = [_section(MethodEntry, entry, _where(entry, i)) for i, entry in enumerate(entries, 1)]
    checked = config_io.validate(ComparisonRecipe, {**raw, "base": base, "methods": tuple(methods)})
    for where, section in (("base", base), *((f"method {entry.name}", entry) for entry in methods)):
        _refuse_own_keys(where, section)
    for where, search in (("search", checked.search), *((f"search of method {m.name}", m.search) for m in methods)):
        _check_search(where, search)
    return checked


def _check_keys(raw: Mapping[str, Any]) -> None:
    """Raises UserError for a key that no comparison has, before anything is said of the keys that are missing for it."""
    own = ComparisonRecipe.model_fields
    for key in raw:
        if key in own:
            continue
        if key in _OWN:
            raise UserError(f"{key} is set by the comparison; drop it, and use {_OWN[key]}")
        if key in Recipe.model_fields:
            raise UserError(f"unknown key {key}; did you mean base.{key}?")
        known = own if closest(key, own) is not None else config_io.keys(ComparisonRecipe)
        raise UserError(config_io.unknown_key(key, known))


def points(search: Search) -> tuple[dict[str, Any], ...]:
    """The points of a grid; one, without keys, where nothing is searched."""
    if isinstance(search, list):
        return tuple(search) or ({},)
    grid: list[dict[str, Any]] = [{}]
    for key, values in search.items():
        grid = [{**point, key: value} for point in grid for value in values]
    return tuple(grid)


def _where(entry: Any, number: int) -> str:
    name = entry.get("name") if isinstance(entry, Mapping) else None
    return f"methods, entry {number}" + (f" ({name})" if name else "")


def _section(kind: type[SomeSection], raw: Any, where: str) -> SomeSection:
    """A section inside the recipe, its errors with their place; keys in them are the section's own."""
    if not isinstance(raw, Mapping):
        raise UserError(f"{where}: saw {raw!r}, needs a mapping of keys to values")
    try:
        return config_io.validate(kind, raw)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _refuse_own_keys(where: str, section: Recipe) -> None:
    for key in _given(section):
        if key in _OWN:
            raise UserError(f"{where}: {key} is set by the comparison; drop it, and use {_OWN[key]}")


def _given(section: Section, prefix: str = "") -> Iterator[str]:
    """Dotted names of the keys that were given, not left at their default."""
    for name in section.model_fields_set:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _given(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _check_search(where: str, search: Search | None) -> None:
    known = config_io.keys(Recipe)
    if isinstance(search, dict) and not all(search.values()):
        raise UserError(
            f"{where}: {next(key for key in search if not search[key])} has no values; give some, or drop it"
        )
    for key in {key for point in points(search or {}) for key in point}:
        if key in _OWN:
            raise UserError(f"{where}: {key} is set by the comparison; drop it, and use {_OWN[key]}")
        if key not in known and not key.startswith("task.options."):
            raise UserError(f"{where}: {config_io.unknown_key(key, known)}")
    if isinstance(search, list) and len({tuple(sorted(point)) for point in search}) > 1:
        raise UserError(f"{where}: its points name different keys; every point of a list gives all of them")


def _metric_and_decoding(spelled: str) -> tuple[str, str]:
    metric, comma, decoding = (part.strip() for part in spelled.partition(","))
    if not comma:
        raise UserError(f'select_by={spelled}: needs a metric and a decoding, as in "accuracy, greedy"')
    return metric, decoding
