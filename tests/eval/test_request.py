"""`tutelage eval` from a folder on disk to tables and files."""

import io
import json
import platform
import sys

import pytest
import torch
from rich.console import Console

from tutelage.errors import UserError
from tutelage.eval.harness import HarnessTasks
from tutelage.eval.request import EvalRequest, run, versions
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


def test_a_reward_is_measured_where_it_is_named(folder, rows, tmp_path) -> None:
    printed = io.StringIO()
    request = request_for(folder, rows, tmp_path, split="train", rl={"reward": "rouge1"}, temperatures=(0.0,))
    evaluation = run(request, console=Console(file=printed, width=200))
    rewards = [each.reward for each in evaluation.completions]
    assert len(rewards) == 6
    assert evaluation.row("greedy").reward.value == pytest.approx(sum(rewards) / 6)
    assert "reward [95%]" in printed.getvalue()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["rows"][0]["reward"]["value"] == pytest.approx(sum(rewards) / 6)
    assert results["request"]["rl"]["reward"] == "rouge1"


def test_a_wrong_reward_is_refused_before_loading(rows, tmp_path) -> None:
    with pytest.raises(UserError, match=r"rl\.reward=rouge3: no reward of the jsonl task; did you mean 'rouge[12L]'"):
        run(request_for("/no/such/model", rows, tmp_path, rl={"reward": "rouge3"}))


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


def test_a_harness_that_is_not_installed_is_refused_before_loading(rows, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(UserError, match="harness=mmlu needs lm-evaluation-harness"):
        run(request_for("/no/such/model", rows, tmp_path, harness=("mmlu",)))


@pytest.fixture
def mmlu(monkeypatch) -> HarnessTasks:
    """A harness that has the task "mmlu"."""
    found = HarnessTasks(("mmlu",), manager=None)
    monkeypatch.setattr("tutelage.eval.request.find_harness_tasks", lambda tasks, include: {("mmlu",): found}[tasks])
    return found


def test_a_harness_that_fails_loses_no_result_of_the_task(make_model, rows, tmp_path, monkeypatch, mmlu) -> None:
    def harness(model, tasks, **options):
        raise RuntimeError("no data of mmlu")

    monkeypatch.setattr("tutelage.eval.request.run_harness", harness)
    load.save(make_model("llama"), tmp_path / "model")
    printed = io.StringIO()
    request = request_for(tmp_path / "model", rows, tmp_path, split="train", limit=2, harness=("mmlu",))
    with pytest.raises(RuntimeError, match="no data of mmlu"):
        run(request, console=Console(file=printed, width=100))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["decoding"], row["examples"]) for row in results["rows"]] == [("greedy", 2), ("T=1", 2)]
    assert results["harness"] == []
    assert len((tmp_path / "out" / "completions.jsonl").read_text().splitlines()) == 4
    assert "exact_match [95%]" in printed.getvalue()


def test_the_scores_of_the_harness_join_the_results_of_the_task(make_model, rows, tmp_path, monkeypatch, mmlu) -> None:
    score = HarnessScore("mmlu", "acc,none", 0.25, 0.01)
    monkeypatch.setattr("tutelage.eval.request.run_harness", lambda model, tasks, **options: (score,))
    load.save(make_model("llama"), tmp_path / "model")
    printed = io.StringIO()
    request = request_for(tmp_path / "model", rows, tmp_path, split="train", limit=2, harness=("mmlu",))
    evaluation = run(request, console=Console(file=printed, width=100))
    assert (len(evaluation.rows), evaluation.harness) == (2, (score,))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (len(results["rows"]), [found["value"] for found in results["harness"]]) == (2, [0.25])
    assert printed.getvalue().count("exact_match [95%]") == printed.getvalue().count("mmlu, acc,none") == 1


def test_the_device_named_is_the_one_that_was_chosen(make_model, rows, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device="cuda:0": f"GPU {torch.device(device).index}")
    load.save(make_model("llama"), tmp_path / "model")
    run(request_for(tmp_path / "model", rows, tmp_path, split="train", limit=1), console=Console(file=io.StringIO()))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["versions"]["device"] == (platform.processor() or platform.machine())
    assert versions(torch.device("cuda:1"))["device"] == "GPU 1"


def test_harness_alone_needs_no_task(make_model, tmp_path, monkeypatch, mmlu) -> None:
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
    assert asked == {"tasks": mmlu, "batch_rows": 64, "limit": 2, "seed": 7}
    assert "0.2500" in printed.getvalue()
