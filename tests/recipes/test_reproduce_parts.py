"""The parts of the reproduction: every recipe, what is trained before it, and sampling that goes on."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.recipes.conftest import FOLDER
from tutelage.compare import config, plan
from tutelage.compare.cell import Job
from tutelage.compare.execute import Failure
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


def test_samples_of_a_run_are_reused_if_they_are_as_asked(scripts: dict[str, Any], tmp_path: Path) -> None:
    diversity = scripts["diversity"]
    about = {"method": "m", "seed": 0, "value": 1.0, "examples": diversity.EXAMPLES, "run": "r"}

    def read(columns: Sequence[str], temperatures: Sequence[float], samples: int) -> list[dict[str, str]]:
        with (tmp_path / diversity.SAMPLED).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(about | {"temperature": t, "samples": samples} for t in temperatures)
        return diversity._read(SimpleNamespace(folder=tmp_path))

    columns, temperatures, samples = diversity.COLUMNS, diversity.TEMPERATURES, diversity.SAMPLES
    assert diversity._read(SimpleNamespace(folder=tmp_path)) == []
    assert [row["temperature"] for row in read(columns, temperatures, samples)] == [str(t) for t in temperatures]
    assert read(columns, temperatures[:1], samples) == []
    assert read(columns, temperatures, samples - 1) == []
    assert read([name for name in columns if name != "seed"], temperatures, samples) == []


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
        assert len(recipe.seeds) >= 3 or part in ("rates", "rl_rates", "self_rates")  # which compare nothing
        assert recipe.base.task.data == ("data" if part.startswith("multi30k") else None)
        for variant in plan.expand(recipe):
            for point in variant.grid:  # every option has an effect in every run
                left_out = ("teacher", "teacher_model") if variant.name == "SFT" else ()
                keys = {name: value for name, value in variant.keys.items() if name not in left_out}
                resolve(config_io.build(config_io.deep_merge(keys, config_io.nest(point))))


def test_multi30k_without_its_data_is_refused(scripts: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--multi30k FOLDER"):
        scripts["reproduce"].recipe("multi30k", None)


def test_multi30k_that_no_part_reads_is_refused_before_any_work(
    scripts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reproduce = scripts["reproduce"]
    for work in ("before_all", "run"):
        monkeypatch.setattr(reproduce, work, lambda *_: pytest.fail("worked"))
    for parts in ([], ["--parts"], ["--parts", "methods", "rl"]):
        monkeypatch.setattr("sys.argv", ["reproduce.py", "--multi30k", "data", *parts, "--results", str(tmp_path)])
        with pytest.raises(SystemExit) as refused:
            reproduce.main()
        assert "multi30k, multi30k_long, multi30k_all, multi30k_low_data, multi30k_diversity." in str(refused.value)
        assert "make reproduce PARTS=multi30k MULTI30K=data" in str(refused.value)
    assert list(tmp_path.iterdir()) == []
    reproduce.check_multi30k(["methods", "multi30k_diversity"], Path("data"))
    reproduce.check_multi30k(["methods"], None)


def test_tables_of_an_older_comparison_do_not_stay(scripts: dict[str, Any], tmp_path: Path) -> None:
    """One whose runs all failed has a page and no summary."""
    comparison, kept = tmp_path / "comparison", tmp_path / "kept"
    for folder in (comparison, kept):
        folder.mkdir()
    for name in (*scripts["reproduce"].TABLES, "notes.txt"):
        (kept / name).write_text("old")
    (comparison / "results.md").write_text("new")
    scripts["reproduce"].keep_tables(comparison, kept)
    assert {path.name: path.read_text() for path in kept.iterdir()} == {"results.md": "new", "notes.txt": "old"}


def test_earlier_recipes_run_only_when_named(scripts: dict[str, Any]) -> None:
    reproduce = scripts["reproduce"]
    assert {"rl_hard", *reproduce.MORE} < set(reproduce.ASKED_FOR) < set(reproduce.PARTS)
    assert "rl_hard" in scripts["verdicts"].PARTS


def test_models_that_parts_start_from_are_trained_once_and_before_all(
    scripts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reproduce, trained = scripts["reproduce"], []
    failures: list[Failure] = []

    def run_spawned(jobs: Sequence[Job], work: Any, parallel: int, console: Console) -> list[Failure]:
        trained.extend(str(job.folder) for job in jobs)
        return failures

    monkeypatch.setattr(reproduce, "run_spawned", run_spawned)
    options, quiet = SimpleNamespace(multi30k=None), Console(quiet=True)
    there = tmp_path / "runs/reproduce/student-large/model"
    there.mkdir(parents=True)
    (there / "config.json").touch()
    reproduce.before_all(["methods", "rl", "sizes"], options, quiet)
    assert trained == ["runs/reproduce/student-small"]
    failures.append(Failure("training student-small", Path("student-small"), "out of memory"))
    with pytest.raises(UserError, match="training student-small failed: out of memory"):
        reproduce.before_all(["sizes"], options, quiet)


def test_a_training_before_the_parts_has_the_threads_of_its_job(
    scripts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(scripts["reproduce"], "train", lambda config, console: seen.append(torch.get_num_threads()))
    try:
        torch.set_num_threads(2)
        scripts["reproduce"].train_alone(SimpleNamespace(config=None, threads=1))
    finally:
        torch.set_num_threads(before)
    assert seen == [1]
