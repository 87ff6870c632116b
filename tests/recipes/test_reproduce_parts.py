"""The parts of the reproduction: every recipe, what is trained before it, and sampling that goes on."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tests.recipes.conftest import FOLDER
from tutelage.compare import config, plan
from tutelage.errors import UserError
from tutelage.train import config_io
from tutelage.train.methods import resolve


def test_models_trained_before_a_part_are_those_it_names(
    scripts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER.parents[1])
    reproduce = scripts["reproduce"]
    for part in reproduce.FIRST:
        configs = [config_io.build(raw) for raw in reproduce.first(part, Path("data"))]
        for training in configs:
            resolve(training)  # every option has an effect
        recipe = reproduce.recipe(part, Path("data"))
        used = {
            str(keys[role])
            for keys in (recipe["base"], *recipe["methods"])
            for role in ("student", "teacher")
            if role in keys
        }
        assert {str(training.output / "model") for training in configs} == {
            path for path in used if path.startswith("runs/reproduce/")
        }


def test_samples_of_a_run_are_reused_if_they_are_of_this_run_and_as_asked(
    scripts: dict[str, Any], tmp_path: Path
) -> None:
    diversity, path = scripts["diversity"], tmp_path / "runs.csv"

    def row(run: str, temperature: float, samples: int) -> dict[str, Any]:
        about = {"method": "m", "seed": 0, "value": 1.0, "examples": diversity.EXAMPLES}
        return about | {"run": run, "temperature": temperature, "samples": samples}

    rows = [row("whole", t, diversity.SAMPLES) for t in diversity.TEMPERATURES]
    rows += [row("torn", diversity.TEMPERATURES[0], diversity.SAMPLES)]
    rows += [row("fewer", t, diversity.SAMPLES - 1) for t in diversity.TEMPERATURES]
    for columns, known in ((diversity.COLUMNS, ["whole"]), (diversity.COLUMNS[:-1], [])):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        assert list(diversity._known(path)) == known


def test_sampling_goes_on_after_an_interruption(
    scripts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two students the second is interrupted; the next time only that one is sampled, and the recipe's order is kept."""
    diversity = scripts["diversity"]
    cells = [SimpleNamespace(folder=tmp_path / name) for name in ("b", "a")]
    for cell in cells:
        cell.folder.mkdir()
        (cell.folder / "record.json").touch()
    monkeypatch.setattr(diversity.config, "read", lambda recipe: None)
    monkeypatch.setattr(
        diversity.plan, "expand", lambda comparison: [SimpleNamespace(grid=[{}], label="on-policy GKD")]
    )
    monkeypatch.setattr(diversity.plan, "final_cells", lambda comparison, variant, point: cells)
    sampled: list[str] = []

    def sample(cell: Any) -> list[dict[str, Any]]:
        if cell.folder.name == "a" and not sampled[1:]:
            sampled.append("interrupted")
            raise KeyboardInterrupt
        sampled.append(cell.folder.name)
        about = {"run": cell.folder.name, "samples": diversity.SAMPLES, "examples": diversity.EXAMPLES}
        return [about | {"temperature": temperature} for temperature in diversity.TEMPERATURES]

    monkeypatch.setattr(diversity, "_sampled", sample)
    with pytest.raises(KeyboardInterrupt):
        diversity.measure("divergences", {}, tmp_path / "kept", Console(quiet=True))
    diversity.measure("divergences", {}, tmp_path / "kept", Console(quiet=True))
    assert sampled == ["b", "interrupted", "a"]
    with (tmp_path / "kept" / "runs.csv").open(newline="") as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["b"] * 4 + ["a"] * 4


def test_diversity_before_the_students_is_refused(scripts: dict[str, Any], tmp_path: Path) -> None:
    recipe = {**scripts["reproduce"].recipe("divergences", None), "output": str(tmp_path / "none")}
    with pytest.raises(UserError, match="run that first: --parts divergences diversity"):
        scripts["diversity"].measure("divergences", recipe, tmp_path / "diversity", Console(quiet=True))


def test_every_part_is_a_comparison(scripts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parents[1])
    for part in (*scripts["reproduce"].ARITHMETIC, *scripts["reproduce"].MULTI30K):
        recipe = config.read(scripts["reproduce"].recipe(part, Path("data")))
        assert len(recipe.seeds) >= 3 or part in ("rates", "self_rates")  # which compare nothing
        assert recipe.base.task.data == ("data" if part.startswith("multi30k") else None)
        for variant in plan.expand(recipe):
            for point in variant.grid:  # every option has an effect in every run
                resolve(config_io.build(config_io.deep_merge(variant.keys, config_io.nest(point))))


def test_multi30k_without_its_data_is_refused(scripts: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--multi30k FOLDER"):
        scripts["reproduce"].recipe("multi30k", None)
