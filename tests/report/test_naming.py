from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.report.conftest import write_run
from tutelage.compare import table
from tutelage.errors import UserError
from tutelage.report.collect import collect
from tutelage.report.naming import names


def write_table(comparison: Path, runs: Mapping[str, tuple[str, int, float]]) -> list[Path]:
    """The table of a comparison as `tutelage compare` writes it, from folder -> (label, seed, learning rate)."""
    empty: dict[str, Any] = dict.fromkeys(table.COLUMNS)
    rows = [{**empty, "label": "initial student", "run": "student/model", "train.learning_rate": None}]
    for run, (label, seed, rate) in runs.items():
        one = {**empty, "label": label, "seed": seed, "run": run, "train.learning_rate": rate}
        rows += [{**one, "metric": metric} for metric in ("accuracy", "valid_format")]
    comparison.mkdir(parents=True, exist_ok=True)
    table.write(rows, comparison / "runs")
    return [comparison / "runs" / run for run in runs]


def test_names_are_as_long_as_it_takes() -> None:
    assert names([Path("/a/x/gkd"), Path("/a/y/gkd")]) == ["x/gkd", "y/gkd"]
    assert names([Path("/a/gkd"), Path("/a/sft")]) == ["gkd", "sft"]
    assert names([Path("/gkd")]) == ["gkd"]


def test_runs_of_a_comparison_are_called_by_label_and_seed(tmp_path: Path) -> None:
    runs = {"a1": ("GKD, jsd(0.5)", 0, 0.001), "b2": ("GKD, jsd(0.5)", 1, 0.001), "c3": ("SFT", 0, 0.001)}
    folders = write_table(tmp_path, runs)
    expected = ["GKD, jsd(0.5), seed 0", "GKD, jsd(0.5), seed 1", "SFT, seed 0"]
    assert names(folders) == expected
    # A folder that its table does not know, and one beside no table, keep theirs.
    assert names([*folders, tmp_path / "runs" / "d4", tmp_path / "alone"]) == [*expected, "d4", "alone"]


def test_runs_of_a_search_are_told_apart_by_what_was_searched(tmp_path: Path) -> None:
    runs = {"a1": ("GKD", 0, 0.001), "b2": ("GKD", 0, 0.0003), "c3": ("GKD", 1, 0.001)}
    assert names(write_table(tmp_path, runs)) == [
        "GKD (learning_rate 0.001), seed 0", "GKD (learning_rate 0.0003), seed 0", "GKD, seed 1",
    ]  # fmt: skip


def test_runs_of_two_comparisons_that_are_alike_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [write_table(tmp_path / name, {run: ("GKD", 0, 0.001)})[0] for name, run in (("x", "a1"), ("y", "b2"))]
    assert names(folders) == [f"GKD (learning_rate 0.001), seed 0, {run}" for run in ("a1", "b2")]


def test_a_report_calls_runs_by_these_names(tmp_path: Path) -> None:
    write_table(tmp_path, {"a1": ("GKD", 5, 0.001)})
    (found,) = collect([write_run(tmp_path / "runs" / "a1")])
    assert (found.name, found.folder.name) == ("GKD, seed 5", "a1")


def test_a_table_of_other_columns_names_nothing_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    (folder,) = write_table(tmp_path, {"a1": ("GKD", 0, 0.001)})
    (tmp_path / "runs.csv").write_text("run,score\na1,5\n")
    assert names([folder]) == ["a1"]
    (tmp_path / "runs.csv").write_bytes(b"run\n\xff\n")
    with pytest.raises(UserError, match=r"runs\.csv is damaged: .*start the comparison again"):
        names([folder])


def test_the_folder_of_a_comparison_stands_for_the_runs_that_it_compares(tmp_path: Path) -> None:
    rows = [
        {**dict.fromkeys(table.COLUMNS), "label": "GKD", "seed": seed, "run": run, "phase": phase}
        for run, seed, phase in (("a1", 0, "search"), ("b2", 0, "final"), ("c3", 1, "final"))
    ]
    table.write(rows, tmp_path / "runs")
    alone = write_run(tmp_path / "alone")
    for run in ("a1", "b2", "c3"):
        write_run(tmp_path / "runs" / run)
    assert [run.name for run in collect([alone, tmp_path])] == ["alone", "GKD, seed 0", "GKD, seed 1"]
    with pytest.raises(UserError, match="is given twice"):
        collect([tmp_path, tmp_path / "runs" / "c3"])
