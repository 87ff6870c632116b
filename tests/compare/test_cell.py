"""Runs of the real thing, with tiny models."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from rich.console import Console

from tests.compare.conftest import raw
from tests.conftest import build_module, tokenizer
from tutelage.compare import cell as cells
from tutelage.compare import compare, plan
from tutelage.compare.cell import Job
from tutelage.compare.config import read
from tutelage.compare.records import EvaluationProtocol
from tutelage.errors import UserError
from tutelage.models.language_model import LanguageModel
from tutelage.run import run
from tutelage.train.setup import prepare

QUIET = Console(file=io.StringIO())
PROTOCOL = EvaluationProtocol(limit=2, temperatures=(0.0,), num_beams=1, resamples=5)


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


def test_runs_and_references_are_rewarded(models: Path, tmp_path: Path) -> None:
    rl = {
        "method": "rl_gkd",
        "rl": {"reward": "tests.compare.conftest:half", "alpha": 0.5},
        "rollout.samples_per_prompt": 2,
    }
    recipe = raw(models, tmp_path / "out", seeds=[0])
    recipe["methods"] = [{"name": "rl", **rl}]
    result = compare(recipe, console=QUIET, in_processes=False)
    assert result.failures == ()
    tests = [result.methods[0].runs[0].test, *(reference.test for reference in result.references)]
    for scores in (result.methods[0].runs[0].record.scores, *(test.scores for test in tests)):
        found = [(score.decoding, score.value, score.low) for score in scores if score.metric == "reward"]
        assert found == [("greedy", 0.5, None), ("T=1", 0.5, None)]  # all alike: no interval


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


def save_model(folder: Path, family: str, *, vocab: int | None = None, ends: list[int] | None = None) -> None:
    module = build_module(family, dtype=torch.float32, vocab=vocab or len(tokenizer()))
    if ends is not None:
        module.generation_config.eos_token_id = ends
    module.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


@pytest.mark.parametrize("role", ["trained", "initial", "teacher"])
def test_a_model_is_tested_with_the_ends_and_the_vocabulary_of_its_run(
    role: Literal["trained", "initial", "teacher"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(tokenizer())
    save_model(tmp_path / "student", "llama", vocab=size + 8, ends=[2, 7])
    save_model(tmp_path / "teacher", "llama", vocab=size + 3, ends=[2, 5])
    job = replace(make_job(tmp_path, tmp_path / "out", PROTOCOL), model=role)
    parts, _ = prepare(job.config)
    expected = parts.student.model
    shutil.copytree(tmp_path / "student", job.folder / "model")
    asked: list[LanguageModel] = []

    def evaluate(model: LanguageModel, *_: Any, **__: Any) -> None:
        asked.append(model)
        raise UserError("far enough")

    monkeypatch.setattr(cells, "evaluate", evaluate)
    with pytest.raises(UserError, match="far enough"):
        cells.work(job)
    (model,) = asked
    assert (model.eos_ids, model.vocab_size) == (expected.eos_ids, expected.vocab_size) == ({2, 5, 7}, size + 3)
    assert model.device.type == "cpu"


def test_a_test_past_the_last_position_is_an_error(models: Path, tmp_path: Path) -> None:
    job = make_job(models, tmp_path, PROTOCOL)
    config = job.config.model_copy(update={"rollout": job.config.rollout.model_copy(update={"max_new_tokens": 96})})
    with pytest.raises(
        UserError, match=r"has 96 positions, but it is to read prompts of up to \d+ and completions of up to 96"
    ):
        cells.work(replace(job, config=config, model="initial"))


def test_the_outline_of_a_student_is_of_what_it_is_made_of(models: Path, tmp_path: Path) -> None:
    config = make_job(models, tmp_path).config
    assert cells.outline_of_student(config).name == str(models / "student")
    layers = config.student_model.model_copy(update={"init": "teacher_layers", "layers": 1})
    thinned = config.model_copy(update={"student": None, "student_model": layers})
    assert cells.outline_of_student(thinned).name == str(models / "teacher")


def test_a_job_computes_with_its_threads_and_gives_them_back(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []

    def train(job: Job) -> None:
        seen.append(torch.get_num_threads())
        raise UserError("far enough")

    monkeypatch.setattr(cells, "_train", train)
    with pytest.raises(UserError, match="far enough"):
        cells.work(replace(make_job(models, tmp_path), threads=before + 1))
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
