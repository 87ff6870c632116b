from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from tests.compare.conftest import BASE, Worker, raw_recipe, rows_of
from tutelage.compare.cell import Job
from tutelage.compare.comparison import Comparison, ComparisonResult, usable_cores
from tutelage.compare.config import read
from tutelage.compare.execute import run_here
from tutelage.errors import UserError
from tutelage.train import config_io

Run = Callable[..., ComparisonResult]
GRID = {"search": {"train.learning_rate": [0.001, 0.01, 0.1]}}


def best_in_the_middle(job: Job) -> float:
    """0.01 is best; gkd gains twice what kd does; each seed adds a point."""
    quality = {0.001: 0.5, 0.01: 1.0, 0.1: 0.25}[job.config.train.learning_rate]
    return 10 + 10 * quality * (2 if job.config.method == "gkd" else 1) + job.config.seed


def test_search_then_comparison(run_comparison: Run, tmp_path: Path) -> None:
    worker = Worker(best_in_the_middle)
    result = run_comparison(worker, **GRID)
    assert result.exit_code == 0
    assert [(choice.variant, choice.point, choice.edges) for choice in result.choices] == [
        ("kd", {"train.learning_rate": 0.01}, ()),
        ("gkd", {"train.learning_rate": 0.01}, ()),
    ]
    # 2 methods x 3 rates with seed 0, then seed 1 at the chosen rate: seed 0 is there already. On-policy runs, which take longer, first.
    assert [label.split()[0] for label in worker.trained[:6]] == ["gkd"] * 3 + ["kd"] * 3
    assert worker.trained[6:] == ["gkd (learning_rate 0.01), seed 1", "kd (learning_rate 0.01), seed 1"]
    assert sorted(worker.tested) == [
        "gkd (learning_rate 0.01), seed 0", "gkd (learning_rate 0.01), seed 1", "initial student",
        "kd (learning_rate 0.01), seed 0", "kd (learning_rate 0.01), seed 1", "teacher",
    ]  # fmt: skip
    kd, gkd = result.equal_steps
    assert (kd.over_seeds.mean, gkd.over_seeds.mean) == (20.5, 30.5)
    assert kd.gain is not None
    assert gkd.ratio is not None
    assert kd.gain.value == 10.5
    assert kd.gain.interval is not None
    # Student's t with one degree of freedom: 12.7, but 9.52 where 20 resamples are all there is.
    assert kd.gain.interval.high == pytest.approx(10.5 + 9.5173 * 0.5, rel=1e-4)
    assert gkd.ratio.value == 20.5 / 10.5
    # gkd's steps take three times as long: kd's 4 seconds are two thirds of the way to its first evaluation, which is after 6.
    at_time = [(line.steps, line.over_seeds.mean) for line in result.equal_time]
    assert at_time == [(4, 20.5), (1, pytest.approx(10.0 + 2 / 3 * 10.25))]


def test_the_same_command_does_nothing_again(run_comparison: Run) -> None:
    first = run_comparison(Worker(best_in_the_middle), **GRID)
    again = Worker(best_in_the_middle)
    assert run_comparison(again, **GRID) == first
    assert again.trained == again.tested == []


def test_more_seeds_train_only_what_is_new(run_comparison: Run) -> None:
    run_comparison(Worker())
    more = Worker()
    run_comparison(more, seeds=[0, 1, 2])
    assert more.trained == more.tested == ["gkd, seed 2", "kd, seed 2"]


def test_the_page_names_the_seeds_of_each_method_that_has_others(run_comparison: Run) -> None:
    methods = [
        {"name": "gkd", "method": "gkd", "divergences": ["forward_kl"]},
        {"name": "gkd", "method": "gkd", "divergences": ["jsd(0.5)"], "seeds": [0]},
        {"name": "kd", "method": "supervised_kd", "seeds": [0, 1]},
    ]
    result = run_comparison(Worker(), methods=methods, baseline="kd")
    page = (result.recipe.output / "results.md").read_text()
    assert "Seeds: 0, 1; of gkd jsd(0.5): 0. Validation" in page


def test_another_way_to_test_trains_nothing(run_comparison: Run) -> None:
    run_comparison(Worker())
    other = Worker()
    run_comparison(other, test_limit=7)
    assert other.trained == []
    assert len(other.tested) == 2 + 4


def test_what_a_kill_leaves_is_gone_on_from(run_comparison: Run, tmp_path: Path) -> None:
    whole = run_comparison(Worker(best_in_the_middle), **GRID, output=str(tmp_path / "whole"))
    killed = Worker(best_in_the_middle, stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        run_comparison(killed, **GRID)
    rest = Worker(best_in_the_middle)
    result = run_comparison(rest, **GRID)
    assert len(killed.trained) == 3
    assert len(killed.trained) + len(rest.trained) == 8
    assert not set(killed.trained) & set(rest.trained)
    assert result.equal_steps == whole.equal_steps


def test_methods_with_one_configuration_share_their_runs(run_comparison: Run) -> None:
    worker = Worker()
    result = run_comparison(worker, methods=[{"name": "a", "method": "gkd"}, {"name": "b", "method": "gkd"}])
    assert worker.trained == ["a, seed 0", "a, seed 1"]
    assert [len(method.runs) for method in result.methods] == [2, 2]


@pytest.mark.parametrize("alone", [False, True])
def test_of_several_teachers_the_reference_is_called_the_first(
    alone: bool, run_comparison: Run, tmp_path: Path
) -> None:
    mixed = {"name": "mixed", "method": "gkd", "other_teachers": ["tiny-other"]}
    methods = [mixed, {"name": "gkd", "method": "gkd"}] if alone else [mixed]
    worker = Worker()
    result = run_comparison(worker, methods=methods)
    assert [(reference.name, reference.model) for reference in result.references] == [
        ("initial student", "tiny-student"), ("first teacher", "tiny-teacher"),
    ]  # fmt: skip
    assert worker.tested.count("first teacher") == 1
    assert "| first teacher | greedy | 90.0 [89.0, 91.0] | – |" in (tmp_path / "compare" / "results.md").read_text()


def test_fresh_weights_are_an_initial_student_for_each_seed(run_comparison: Run) -> None:
    worker = Worker()
    result = run_comparison(worker, base={"student_model": {"init": "config"}})
    assert [reference.name for reference in result.references] == [
        "initial student, seed 0", "initial student, seed 1", "teacher",
    ]  # fmt: skip
    for method in result.methods:
        names = [run.initial.name for run in method.runs if run.initial is not None]
        assert names == ["initial student, seed 0", "initial student, seed 1"]
    assert [line.gain.value for line in result.equal_steps if line.gain is not None] == [40.0, 40.0]


def test_what_a_method_does_without_is_noted(run_comparison: Run, tmp_path: Path) -> None:
    methods = [{"name": "plain", "method": "sft"}, {"name": "gkd", "method": "gkd"}]
    run_comparison(Worker(), base={"loss": {"teacher_temperature": 0.5}}, methods=methods)
    page = (tmp_path / "compare" / "results.md").read_text()
    assert "- plain is without loss.teacher_temperature, teacher of the base, which would have no effect on it." in page


def test_other_data_in_the_same_place_trains_and_tests_anew(tmp_path: Path) -> None:
    base = {**BASE, "task": {"name": "jsonl", "data": str(tmp_path)}}
    recipe = read(raw_recipe(tmp_path / "compare", base=base))

    def done(completion: str) -> tuple[int, int]:
        for split in ("train", "validation", "test"):
            (tmp_path / f"{split}.jsonl").write_text(json.dumps({"prompt": "a", "completion": completion}))
        worker = Worker()
        Comparison(recipe, Console(file=io.StringIO()), worker, run_here).run()
        return len(worker.trained), len(worker.tested)

    assert [done(content) for content in ("one", "one", "other")] == [(4, 6), (0, 0), (4, 6)]


@pytest.mark.parametrize(
    "changed",
    [{"options": {"metric": "rougeL"}}, {"use_chat": "never"}, {"max_prompt_tokens": 9}, {"skip_long_prompts": True}],
)
def test_another_prompt_or_metric_tests_the_references_anew(changed: dict[str, Any], tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    task = {"name": "jsonl", "data": str(tmp_path), "options": {"metric": "exact_match"}}

    def tested(base: dict[str, Any], methods: list[dict[str, Any]]) -> list[str]:
        worker = Worker()
        recipe = read(raw_recipe(tmp_path / "compare", base={**BASE, "task": base}, methods=methods, seeds=[0]))
        Comparison(recipe, Console(file=io.StringIO()), worker, run_here).run()
        return worker.tested

    kd = {"name": "kd", "method": "supervised_kd"}
    assert sorted(tested(task, [kd])) == ["initial student", "kd, seed 0", "teacher"]
    assert sorted(tested(config_io.deep_merge(task, changed), [kd])) == ["initial student", "kd, seed 0", "teacher"]
    # Of two methods, one of which is as before, the other one needs references of its own.
    other = {"name": "other", "method": "gkd", "task": changed}
    assert tested(task, [kd, other]) == ["other, seed 0"]


def test_methods_that_see_more_of_the_training_split_share_the_references(run_comparison: Run) -> None:
    few = {"name": "few", "method": "supervised_kd", "task.fixed_examples": 5}
    share = {"task.options.train_size": 30, "task.train_fraction": 0.5, "task.train_fraction_seed": 1}
    worker = Worker()
    result = run_comparison(worker, methods=[few, {"name": "share", "method": "gkd", **share}])
    assert sorted(worker.tested) == [
        "few, seed 0", "few, seed 1", "initial student", "share, seed 0", "share, seed 1", "teacher",
    ]  # fmt: skip
    assert [line.gain.value for line in result.equal_steps if line.gain is not None] == [40.0, 40.0]


def test_a_failed_run_does_not_stop_the_others(run_comparison: Run, tmp_path: Path) -> None:
    worker = Worker(breaks=("kd, seed 1",))
    printed = io.StringIO()
    result = run_comparison(worker, printed)
    assert result.exit_code == 1
    assert [(failure.label, failure.error) for failure in result.failures] == [("kd, seed 1", "the loss is nan")]
    assert [len(method.runs) for method in result.methods] == [1, 2]
    assert "kd, seed 1: failed: the loss is nan" in printed.getvalue()
    assert "Warning: failed: kd, seed 1: the loss is nan" in (tmp_path / "compare" / "results.md").read_text()
    repaired = Worker()
    assert run_comparison(repaired).exit_code == 0
    assert repaired.trained == ["kd, seed 1"]


def test_a_rate_that_fails_is_not_chosen(run_comparison: Run) -> None:
    breaks = (
        "gkd (learning_rate 0.01), seed 0",
        *(f"kd (learning_rate {rate}), seed 0" for rate in (0.001, 0.01, 0.1)),
    )
    result = run_comparison(Worker(best_in_the_middle, breaks), **GRID)
    assert [(choice.variant, choice.point) for choice in result.choices] == [("gkd", {"train.learning_rate": 0.001})]
    assert "Warning: kd is not in the tables: none of its runs finished." in result.notes
    assert "Warning: gkd was not chosen at train.learning_rate = 0.01: a run there failed." in result.notes
    assert any("at the end of the grid for gkd (train.learning_rate = 0.001)" in note for note in result.notes)


@pytest.mark.parametrize(("exported", "threads"), [(None, 4), ("1", 1), ("64", 4)])
def test_threads_are_a_share_of_the_cores_and_within_omp_num_threads(
    exported: str | None, threads: int, run_comparison: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: int(exported or 1))
    if exported is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", exported)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    printed = io.StringIO()
    run_comparison(Worker(), printed, jobs=2)
    assert f"2 at a time, threads each: {threads}" in printed.getvalue()


def test_the_cores_of_a_process_are_those_it_may_run_on(run_comparison: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7, 9}, raising=False)
    assert usable_cores() == 4
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    printed = io.StringIO()
    run_comparison(Worker(), printed, jobs=None)
    assert "2 at a time, threads each: 2" in printed.getvalue()
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == 64


def test_nothing_finished_still_ends_with_the_reasons(run_comparison: Run) -> None:
    breaks = tuple(f"{method}, seed {seed}" for method in ("kd", "gkd") for seed in (0, 1))
    result = run_comparison(Worker(breaks=breaks))
    assert (result.methods, result.equal_steps, len(result.failures)) == ((), (), 4)


def test_everything_is_checked_before_anything_runs(run_comparison: Run) -> None:
    worker = Worker()
    with pytest.raises(UserError, match=r"method gkd: train\.warmup_steps is 4"):
        run_comparison(worker, search={"train.warmup_steps": [0, 4]}, methods=[{"name": "gkd"}])
    with pytest.raises(UserError, match="method kd: the arithmetic task has no option"):
        run_comparison(worker, base={"task": {"options": {"sizes": 3}}})
    with pytest.raises(
        UserError, match="select_by=reverse_kl, greedy: the largest value is chosen, of a metric of the"
    ):
        run_comparison(worker, select_by="reverse_kl, greedy")
    assert worker.trained == []


def test_the_tidy_tables(run_comparison: Run, tmp_path: Path) -> None:
    run_comparison(Worker(best_in_the_middle), **GRID)
    folder = tmp_path / "compare"
    rows = rows_of(folder / "runs.csv")
    # Two references; four runs of the search that were not chosen; four final runs on validation and on test.
    counts = {phase: sum(row["phase"] == phase for row in rows) for phase in ("reference", "search", "final")}
    assert counts == {"reference": 2, "search": 4, "final": 8}
    (row,) = (r for r in rows if (r["method"], r["seed"], r["split"], r["phase"]) == ("gkd", "1", "test", "final"))
    assert (row["value"], row["low"], row["high"], row["train.learning_rate"]) == ("31", "30", "32", "0.01")
    assert (row["steps"], row["tokens"], row["seconds"], row["seconds_rollout"]) == ("4", "40", "12", "3")
    assert row["searched"] == "false"
    assert (folder / "runs" / row["run"] / "record.json").exists()
    assert pq.read_table(folder / "runs.parquet").num_rows == len(rows)
    curves = rows_of(folder / "curves.csv")
    assert [(r["step"], r["seconds"], r["value"]) for r in curves if (r["method"], r["seed"]) == ("gkd", "0")] == [
        ("0", "0", "10"), ("2", "6", "20"), ("4", "12", "30"),
    ]  # fmt: skip
    lines = rows_of(folder / "summary.csv")
    assert [(r["budget"], r["method"], r["value"]) for r in lines] == [
        ("steps", "kd", "20.5"), ("steps", "gkd", "30.5"), ("time", "kd", "20.5"), ("time", "gkd", "16.833333333333332"),
    ]  # fmt: skip


def test_the_page_and_the_plots(run_comparison: Run, tmp_path: Path) -> None:
    printed = io.StringIO()
    run_comparison(Worker(best_in_the_middle), printed, **GRID)
    folder = tmp_path / "compare"
    page = (folder / "results.md").read_text()
    assert "| kd | train.learning_rate = 0.01 | 20.0 | 0.001: 15.0; 0.01: 20.0; 0.1: 12.5 |" in page
    assert "| kd | greedy | 20.5 [14.1, 26.9] | 10.5 [5.7, 15.3] | 1 | 2 | 4 | 40 | 4.0 |" in page
    assert "| initial student | greedy | 10.0 [9.0, 11.0] | – |" in page
    assert "after the 4.0 seconds that the quickest method trains for" in page
    assert "20.5 [14.1, 26.9]" in printed.getvalue()
    assert f"in one page: tutelage report {folder}" in printed.getvalue()
    for name in ("results.png", "curves.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert f"![]({name})" in page


def test_without_evaluations_during_training_time_is_not_compared(run_comparison: Run, tmp_path: Path) -> None:
    class Sparse(Worker):
        def __call__(self, job: Job) -> None:
            super().__call__(job)
            path = job.folder / "record.json"
            if path.exists():
                record = json.loads(path.read_text())
                del record["curve"][1]
                path.write_text(json.dumps(record))

    result: Any = run_comparison(Sparse())
    assert result.equal_time == ()
    assert "No table at equal time: it needs evaluations during training (base: eval.every)." in result.notes
    assert not (tmp_path / "compare" / "curves.png").exists()
