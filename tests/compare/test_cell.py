"""Runs of the real thing, with tiny models."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.compare.conftest import raw
from tutelage.compare import cell as cells
from tutelage.compare import compare, plan
from tutelage.compare.cell import Job
from tutelage.compare.config import read
from tutelage.compare.records import EvaluationProtocol
from tutelage.run import run
from tutelage.train.setup import prepare

QUIET = Console(file=io.StringIO())


def test_end_to_end(models: Path, tmp_path: Path) -> None:
    result = compare(raw(models, tmp_path / "out"), console=QUIET, in_processes=False)
    assert result.exit_code == 0
    assert [[run.record.config["seed"] for run in method.runs] for method in result.methods] == [[0, 1], [0, 1]]
    for method in result.methods:
        for each in method.runs:
            assert [point.step for point in each.record.curve] == [0, 1, 2, 3]
            assert len(each.test.replicates["T=1"]) == 30
            assert each.initial is not None
            assert each.initial.test.examples == each.test.examples
            folder = tmp_path / "out" / "runs" / each.cell
            assert not (folder / "checkpoints").exists()
            lines = (folder / "test" / "completions.jsonl").read_text().splitlines()
            assert [json.loads(line)["decoding"] for line in lines] == ["greedy"] * 5 + ["T=1"] * 5
    assert len(list((tmp_path / "out" / "starts").glob("*/evaluation"))) == 2  # one for each seed: both methods read it
    first = result.methods[0].runs[0]
    assert first.record.tokens == sum(
        json.loads(line)["tokens"]
        for line in (tmp_path / "out/runs" / first.cell / "metrics.jsonl").read_text().splitlines()
    )
    scores = {(score.metric, score.decoding) for score in first.record.scores}
    assert {("accuracy", "greedy"), ("step_accuracy", "T=1"), ("reverse_kl", "references")} <= scores
    assert {reference.name for reference in result.references} == {"initial student", "teacher"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")}
    assert compare(raw(models, tmp_path / "out"), console=QUIET, in_processes=False) == result
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")} == before


def make_job(models: Path, output: Path, test: EvaluationProtocol | None = None) -> Job:
    recipe = read(raw(models, output))
    cell = plan.make_cell(recipe, plan.expand(recipe)[1], {}, 0)
    return Job(cell.label, cell.folder, cell.config, "trained", test, 1)


def test_a_run_that_was_killed_goes_on(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, killed = make_job(models, tmp_path / "whole"), make_job(models, tmp_path / "killed")
    cells.work(whole)
    with monkeypatch.context() as patched:
        saved = []

        def save_two(parts: Any, step: int) -> None:
            original(parts, step)
            saved.append(step)
            if step == 2:
                raise RuntimeError("killed")

        original = run.__globals__["loop"].save
        patched.setattr(run.__globals__["loop"], "save", save_two)
        with pytest.raises(RuntimeError, match="killed"):
            cells.work(killed)
        assert saved == [1, 2]
    assert not killed.finished
    cells.work(killed)
    assert killed.finished
    assert killed.folder.name == whole.folder.name
    expected, record = whole.run_record, killed.run_record
    assert expected is not None
    assert record is not None
    assert (record.scores, record.tokens) == (expected.scores, expected.tokens)
    assert [point.scores for point in record.curve] == [point.scores for point in expected.curve]
    weights = [(job.folder / "model" / "model.safetensors").read_bytes() for job in (whole, killed)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("seed", [0, 1])
def test_fresh_weights_of_the_initial_student_are_those_of_the_run(models: Path, tmp_path: Path, seed: int) -> None:
    recipe = read(raw(models, tmp_path, base={"student_model": {"init": "config"}}))
    cell = plan.make_cell(recipe, plan.expand(recipe)[1], {}, seed)
    parts, _ = prepare(cell.config)
    initial = cells._model(Job("initial student", tmp_path, cell.config, "initial", None, 1))
    expected = parts.student.module.state_dict()
    found = initial.module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_search_never_sees_the_test_split(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tutelage.tasks.arithmetic import Arithmetic

    asked = []
    original = Arithmetic.examples
    monkeypatch.setattr(Arithmetic, "examples", lambda self, split: asked.append(split) or original(self, split))
    cells.work(make_job(models, tmp_path))
    assert set(asked) == {"train", "validation"}
    cells.work(make_job(models, tmp_path, EvaluationProtocol(limit=2, temperatures=(0.0,), num_beams=2, resamples=5)))
    assert asked.count("test") == 1
    tested = make_job(
        models, tmp_path, EvaluationProtocol(limit=2, temperatures=(0.0,), num_beams=2, resamples=5)
    ).test_record
    assert tested is not None
    assert set(tested.replicates) == {"greedy", "beam 2"}
