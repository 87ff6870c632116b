"""`tutelage eval` from a folder on disk to tables and files."""

import io
import json

import pytest
from rich.console import Console

from tutelage.errors import UserError
from tutelage.eval.request import EvalRequest, run
from tutelage.eval.results import HarnessScore
from tutelage.models import load
from tutelage.train.config import TaskConfig


@pytest.fixture
def rows(tmp_path):
    """A JSONL file of six rows; the first completion is a single word."""
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"w{i} w{i + 1}", "completion": f"w{i + 2}"} for i in range(6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def folder(tmp_path, model):
    load.save(model, tmp_path / "model")
    return tmp_path / "model"


def request_for(folder, rows, tmp_path, **options) -> EvalRequest:
    task = TaskConfig(name="jsonl", data=str(rows), options={"metric": "exact_match"})
    settings = {"max_new_tokens": 4, "bootstrap": 20, "device": "cpu", "output": tmp_path / "out", **options}
    return EvalRequest(model=str(folder), task=task, **settings)


def test_a_folder_is_evaluated_shown_and_saved(folder, rows, tmp_path) -> None:
    printed = io.StringIO()
    request = request_for(folder, rows, tmp_path, split="train", teacher=str(folder), samples_per_prompt=2, seed=5)
    evaluation = run(request, console=Console(file=printed, width=200))
    assert [row.decoding for row in evaluation.rows] == ["greedy", "T=1"]
    assert evaluation.divergence["references"].forward_kl.value == pytest.approx(0.0, abs=1e-6)

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["request"]["seed"] == 5
    assert results["versions"].keys() >= {"python", "torch", "transformers", "tutelage"}
    assert [row["value"] for row in results["rows"]] == [row.value for row in evaluation.rows]
    assert results["divergence"]["T=1"]["agreement"]["value"] == 1.0
    lines = [json.loads(line) for line in (tmp_path / "out" / "completions.jsonl").read_text().splitlines()]
    assert [(line["decoding"], line["text"]) for line in lines] == [
        (c.decoding, c.text) for c in evaluation.completions
    ]
    assert len(lines) == 6 + 12

    text = printed.getvalue()
    assert "exact_match [95%]" in text
    assert "forward KL" in text
    assert "greedy, example 0" in text


def test_limit_and_beams(folder, rows, tmp_path) -> None:
    request = request_for(folder, rows, tmp_path, split="train", limit=3, num_beams=2, temperatures=(0.0,))
    evaluation = run(request, console=Console(file=io.StringIO()))
    assert [(row.decoding, row.examples) for row in evaluation.rows] == [("greedy", 3), ("beam 2", 3)]


def test_an_output_that_is_a_file_is_refused_before_loading(rows, tmp_path) -> None:
    request = request_for("/no/such/model", rows, tmp_path)
    (tmp_path / "out").write_text("taken")
    with pytest.raises(UserError, match="cannot write to the output folder"):
        run(request)


@pytest.mark.parametrize(
    ("name", "value"), [("train_fraction", 0.5), ("train_fraction_seed", 7), ("fixed_examples", 5)]
)
def test_a_share_of_the_training_examples_is_no_business_of_an_evaluation(rows, tmp_path, name, value) -> None:
    task = TaskConfig(name="jsonl", data=str(rows), **{name: value})
    with pytest.raises(UserError, match=rf"task.{name}={value} is for training.*set limit"):
        run(EvalRequest(model=str(tmp_path / "none"), task=task, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_completions_past_the_last_position_are_refused(make_model, rows, tmp_path) -> None:
    load.save(make_model("llama"), tmp_path / "model")
    request = request_for(tmp_path / "model", rows, tmp_path, split="train", max_new_tokens=63)
    with pytest.raises(UserError, match="64 positions, but the longest prompt has 2 tokens and 63 may follow"):
        run(request)


def test_harness_alone_needs_no_task(make_model, tmp_path, monkeypatch) -> None:
    load.save(make_model("llama"), tmp_path / "model")
    asked = {}

    def harness(model, tasks, **options):
        asked.update(tasks=tasks, **options)
        return (HarnessScore("mmlu", "acc,none", 0.25, 0.01),)

    monkeypatch.setattr("tutelage.eval.request.run_harness", harness)
    printed = io.StringIO()
    request = EvalRequest(model=str(tmp_path / "model"), harness=("mmlu",), limit=2, seed=7)
    evaluation = run(request, console=Console(file=printed, width=100))
    assert evaluation.harness == (HarnessScore("mmlu", "acc,none", 0.25, 0.01),)
    assert evaluation.rows == ()
    assert asked == {"tasks": ("mmlu",), "batch_rows": 64, "limit": 2, "seed": 7, "include": None}
    assert "0.2500" in printed.getvalue()
