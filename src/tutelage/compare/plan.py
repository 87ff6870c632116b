"""What a comparison runs: methods spread over their grids and seeds, each run in a folder named by its configuration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tutelage.compare import fingerprints
from tutelage.compare.config import ComparisonRecipe, MethodEntry, points
from tutelage.compare.records import RunRecord
from tutelage.errors import UserError, nearest
from tutelage.train import config_io
from tutelage.train.checks import check_mixture
from tutelage.train.config import Config, Recipe, identity
from tutelage.train.methods import IdleOptionError, resolve


@dataclass(frozen=True)
class Variant:
    """A method of the comparison, after `divergences` and `fractions` are spelled out.

    Attributes:
        name: unique; "gkd jsd(0.5) 0.25".
        label: as plots call it.
        keys: nested keys of its recipe, the base's among them.
        own: those of them that the base does not give alone.
        grid: hyperparameters to choose from, by dotted key; a single point is no choice and needs no search.
        seeds: of its runs.
    """

    name: str
    label: str
    keys: Mapping[str, Any]
    own: Mapping[str, Any]
    grid: tuple[Mapping[str, Any], ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """One training run: a variant at one point of its grid with one seed.

    Attributes:
        variant: its name.
        point: the hyperparameters.
        config: the run's; `config.output` is the cell's folder.
        left_out: dotted keys of the base that have no effect on this run, and that it therefore does without.
    """

    variant: str
    point: Mapping[str, Any]
    config: Config
    left_out: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Named by the configuration: equal runs are one run, whoever asks for them and when."""
        return self.config.output

    @property
    def label(self) -> str:
        """For the progress display."""
        shown = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in self.point.items())
        return f"{self.variant}{f' ({shown})' if shown else ''}, seed {self.config.seed}"


@dataclass(frozen=True)
class Choice:
    """The hyperparameters a variant goes into the comparison with.

    Attributes:
        variant: its name.
        point: the best of the grid.
        score: its mean over search seeds and `select_by`, on validation; None where there was nothing to choose.
        edges: keys whose chosen value is the smallest or the largest of the grid: the best may lie beyond.
        tried: every point of the grid with its score, None where a run of it failed.
    """

    variant: str
    point: Mapping[str, Any]
    score: float | None
    edges: tuple[str, ...]
    tried: tuple[tuple[Mapping[str, Any], float | None], ...]

    @property
    def has_inside(self) -> bool:
        """Whether a key at an edge has a value between its smallest and its largest: of two values, either is an edge."""
        return any(len(_numbers(key, [point for point, _ in self.tried])) > 2 for key in self.edges)


def expand(recipe: ComparisonRecipe) -> tuple[Variant, ...]:
    """The methods of a recipe, `divergences` and `fractions` spelled out, in its order.

    Raises:
        UserError: two have one name, `baseline` names none of them, or a value of a grid is wrong.
    """
    variants = [variant for entry in recipe.methods for variant in _variants(recipe, entry)]
    names = [variant.name for variant in variants]
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated:
        raise UserError(f"methods: two are called {repeated[0]!r}; give each a name of its own")
    if recipe.baseline is not None and recipe.baseline not in names:
        raise UserError(f"baseline={recipe.baseline} is none of the methods; {nearest(recipe.baseline, names)}")
    return tuple(variants)


def _variants(recipe: ComparisonRecipe, entry: MethodEntry) -> Iterator[Variant]:
    base = recipe.base.model_dump(exclude_unset=True)
    own = entry.model_dump(exclude_unset=True)
    for key in ("name", "label", "divergences", "fractions", "search", "seeds"):
        own.pop(key, None)
    try:
        grid = tuple(_read(point) for point in points(recipe.search if entry.search is None else entry.search))
    except UserError as error:
        raise UserError(f"method {entry.name}: {error}") from error
    seeds = recipe.seeds if entry.seeds is None else entry.seeds
    for divergence in entry.divergences or (None,):
        for fraction in entry.fractions or (None,):
            more: dict[str, Any] = {}
            name, label = [entry.name], [entry.label or entry.name]
            if divergence is not None:
                more["divergence"] = divergence
                name.append(divergence)
                label.append(divergence)
            if fraction is not None:
                more["student_data_fraction"] = fraction
                name.append(f"{fraction:g}")
                label.append(f"fraction {fraction:g}")
            keys = {**own, **more}
            yield Variant(" ".join(name), ", ".join(label), config_io.deep_merge(base, keys), keys, grid, seeds)


def _read(point: Mapping[str, Any]) -> dict[str, Any]:
    """A point with the values that a run has for it: YAML takes 1e-4, which has no dot, for text."""
    values = config_io.validate(Recipe, point).model_dump()
    return {key: value_of(values, key) for key in point}


def search_cells(recipe: ComparisonRecipe, variants: Sequence[Variant]) -> list[Cell]:
    """The runs of the search: every point of every grid that has more than one, with every search seed."""
    return [
        make_cell(recipe, variant, point, seed)
        for variant in variants
        if len(variant.grid) > 1
        for point in variant.grid
        for seed in recipe.search_seeds
    ]


def final_cells(recipe: ComparisonRecipe, variant: Variant, point: Mapping[str, Any]) -> list[Cell]:
    """The runs of a variant that are compared: its chosen point with each of its seeds."""
    return [make_cell(recipe, variant, point, seed) for seed in variant.seeds]


def make_cell(recipe: ComparisonRecipe, variant: Variant, point: Mapping[str, Any], seed: int) -> Cell:
    """The run of a variant at a point of its grid with a seed.

    Raises:
        UserError: its configuration is wrong; names the variant.
    """
    ours = {
        "seed": seed,
        "eval.final": "validation",
        "eval.limit": recipe.validation_limit,
        "eval.temperatures": recipe.temperatures,
        "log.progress": False,
        "log.samples": 0,
    }
    try:
        own = config_io.deep_merge(variant.own, config_io.nest(point))
        given = config_io.deep_merge(config_io.deep_merge(variant.keys, own), config_io.nest(ours))
        config, left_out = _build(given, own)
        check_mixture(config, resolve(config))
        config = config.model_copy(update={"output": recipe.output / "runs" / address(config)})
    except UserError as error:
        raise UserError(f"method {variant.name}: {error}") from error
    return Cell(variant.name, point, config, left_out)


def _build(given: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[Config, tuple[str, ...]]:
    """The configuration of the nested keys `given`, and the dotted keys that it does without.

    The base is for all methods: what it gives, and this method has no use for, is for the others. What is among its `own` keys has
    an effect, or is an error.
    """
    left_out: list[str] = []
    while True:
        try:
            return config_io.build(given), tuple(left_out)
        except IdleOptionError as error:
            if _holds(own, error.option):
                raise
            given = _without(given, error.option)
            left_out.append(error.option)


def _holds(keys: Mapping[str, Any], dotted: str) -> bool:
    first, _, rest = dotted.partition(".")
    return first in keys and (not rest or _holds(keys[first], rest))


def _without(keys: Mapping[str, Any], dotted: str) -> dict[str, Any]:
    first, _, rest = dotted.partition(".")
    others = {key: value for key, value in keys.items() if key != first}
    return {**others, first: _without(keys[first], rest)} if rest else others


def notes(cells: Sequence[Cell]) -> list[str]:
    """What a reader must know of how the runs were made out of the recipe: keys of the base that a method does without."""
    left_out: dict[str, dict[str, None]] = {}
    for cell in cells:
        left_out.setdefault(cell.variant, {}).update(dict.fromkeys(cell.left_out))
    return [
        f"{name} is without {', '.join(keys)} of the base, which would have no effect on it."
        for name, keys in left_out.items()
        if keys
    ]


def address(config: Config) -> str:
    """A name for all that shapes a run and what is measured on validation; how the test split is evaluated is not in it.

    Keys at their defaults are left out, so that a later version with more keys finds the same runs. What the keys name on this
    machine goes in by its content, models by samples of their files: a student trained anew in the same folder is another
    student, and data written anew is other data.

    Raises:
        UserError: a model's folder is missing, or the function of `rl.reward` cannot be imported.
    """
    set_keys = config.model_dump(mode="json", exclude_defaults=True)
    content: dict[str, Any] = {
        "trajectory": _common(identity(config), set_keys),
        "validation": {key: config.model_dump(mode="json")["eval"][key] for key in ("every", "limit", "temperatures")},
        "weights": [fingerprints.of_model(model) for model in (config.student, config.teacher, *config.other_teachers)],
    }
    if config.eval.samples_per_prompt > 1:
        content["validation"]["samples_per_prompt"] = config.eval.samples_per_prompt
    if not config.eval.teacher_divergence:
        content["validation"]["teacher_divergence"] = False
    if config.rl.reward is not None and not config.eval.reward:
        content["validation"]["reward"] = False
    files = fingerprints.of_data(config.task) | fingerprints.of_reward(config.rl.reward)
    if files:
        content["files"] = files
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def choose(recipe: ComparisonRecipe, variant: Variant, records: Mapping[str, RunRecord]) -> Choice | None:
    """The best point of a variant's grid on validation; None where every point has a failed run.

    Args:
        recipe: says by what, and with which seeds.
        variant: with its grid.
        records: finished runs, by `Cell.folder.name`.
    """
    if len(variant.grid) == 1:
        return Choice(variant.name, variant.grid[0], None, (), ())
    tried: list[tuple[Mapping[str, Any], float | None]] = []
    for point in variant.grid:
        names = [make_cell(recipe, variant, point, seed).folder.name for seed in recipe.search_seeds]
        finished = [records[name] for name in names if name in records]
        complete = len(finished) == len(names)
        tried.append((point, fmean(map(selector(recipe), finished)) if complete else None))
    scored = [(score, point) for point, score in tried if score is not None]
    if not scored:
        return None
    best, point = max(scored, key=lambda pair: pair[0])
    return Choice(variant.name, point, best, edges(point, variant.grid), tuple(tried))


def selector(recipe: ComparisonRecipe) -> Any:
    """The function record -> number that `select_by` stands for."""

    def mean_of(record: RunRecord) -> float:
        if not recipe.selection:
            return fmean(score.value for score in record.scores if score.headline)
        found = {(score.metric, score.decoding): score.value for score in record.scores}
        return fmean(found[wanted] for wanted in recipe.selection)

    return mean_of


def edges(point: Mapping[str, Any], grid: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The keys of a point whose value is the smallest or the largest of several numbers on the grid."""
    found = []
    for key, value in point.items():
        values = _numbers(key, grid)
        if len(values) > 1 and value in (min(values), max(values)):
            found.append(key)
    return tuple(found)


def _numbers(key: str, grid: Sequence[Mapping[str, Any]]) -> set[float]:
    """The different numbers among a key's values on the grid; True and False are none."""
    values = (point[key] for point in grid)
    return {value for value in values if isinstance(value, int | float) and not isinstance(value, bool)}


def value_of(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key in a dumped configuration; None where a mapping has no such name."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part)
    return value


def searched_keys(variants: Sequence[Variant]) -> tuple[str, ...]:
    """Every key that some grid varies, in the order of the recipe."""
    return tuple(dict.fromkeys(key for variant in variants for point in variant.grid for key in point))


def _common(whole: Any, kept: Any) -> Any:
    """The part of `whole` whose keys are in `kept` too, at every depth."""
    if isinstance(whole, dict) and isinstance(kept, dict):
        return {key: _common(whole[key], kept[key]) for key in whole if key in kept}
    return whole
