"""How results are shown and saved."""

import dataclasses
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from tutelage.eval.results import (
    Completion,
    Decoding,
    Evaluation,
    HarnessScore,
    Row,
    changed_keys,
    metric_name,
    read,
    save,
    shortened,
    show,
    temperature_of,
    with_interval,
)
from tutelage.eval.signals import Estimate
from tutelage.eval.statistics import Interval


@pytest.fixture
def evaluation() -> Evaluation:
    row = Row(
        decoding="T=1", examples=2, samples_per_prompt=2, metric="accuracy", value=50.0, interval=Interval(25.0, 75.0),
        values={"accuracy": 50.0, "format": 75.0}, pass_at_k={1: 50.0, 2: 62.5}, mean_length=3.25,
        finish={"stop": 0.75, "length": 0.25}, self_bleu=31.5, distinct_2=0.875, seconds=1.5,
    )  # fmt: skip
    text = Completion("T=1", 0, 0, "what is [bold]?", "ü [/red]", 4, "stop", 1.0)
    return Evaluation("tiny", "words", (row,), (text,), harness=(HarnessScore("mmlu", "acc,none", 0.25, None),))


def test_tables_fit_a_narrow_terminal_and_brackets_survive(evaluation) -> None:
    printed = io.StringIO()
    show(evaluation, Console(file=printed, width=80))
    text = printed.getvalue()
    cells = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in text.splitlines() if "│" in line[:1]}
    assert cells["accuracy [95%]"] == "50.0 [25.0, 75.0]"
    assert (cells["format"], cells["pass@2"], cells["Self-BLEU"]) == ("75.0", "62.5", "31.5")
    assert (cells["distinct bigrams"], cells["tokens a completion"], cells["ended by itself"]) == ("0.88", "3.2", "75%")
    assert cells["mmlu, acc,none"] == "0.2500"
    assert "what is [bold]?" in text
    assert "ü [/red]" in text


def test_a_reward_has_a_line_and_comes_back_from_its_file(evaluation, tmp_path) -> None:
    row = dataclasses.replace(evaluation.rows[0], reward=Estimate(0.48251, Interval(0.4, 0.55)))
    text = dataclasses.replace(evaluation.completions[0], reward=0.25)
    evaluation = dataclasses.replace(evaluation, rows=(row,), completions=(text,))
    printed = io.StringIO()
    show(evaluation, Console(file=printed, width=80))
    assert "│ reward [95%] " in printed.getvalue()
    assert " 0.483 [0.400, 0.550] │" in printed.getvalue()
    save(evaluation, tmp_path, {})
    found, _ = read(tmp_path)
    assert (found.rows[0].reward, found.completions[0].reward) == (row.reward, 0.25)
    # An evaluation of a version that measured none.
    content = json.loads((tmp_path / "results.json").read_text())
    del content["rows"][0]["reward"]
    (tmp_path / "results.json").write_text(json.dumps(content))
    found, _ = read(tmp_path)
    assert found.rows[0].reward is None


def test_a_long_completion_is_cut_in_the_terminal_and_nowhere_else(evaluation, tmp_path) -> None:
    long = dataclasses.replace(evaluation.completions[0], prompt="¤" * 300, text="§" * 301 + "end")
    evaluation = dataclasses.replace(evaluation, completions=(long,))
    printed = io.StringIO()
    show(evaluation, Console(file=printed, width=80))
    text = printed.getvalue()
    assert (text.count("¤"), text.count("§"), text.count("…")) == (300, 300, 1)
    assert shortened(long.prompt) == long.prompt
    assert shortened(long.text) == "§" * 300 + "…"
    save(evaluation, tmp_path, {})
    assert json.loads((tmp_path / "completions.jsonl").read_text(encoding="utf-8"))["text"] == long.text


def test_printed_it_is_a_line_of_figures(evaluation) -> None:
    assert repr(evaluation) == "Evaluation(tiny on words: accuracy: T=1 50.0 [25.0, 75.0]; completions: 1)"
    assert repr(dataclasses.replace(evaluation, rows=(), task="", completions=())) == (
        "Evaluation(tiny on no task: completions: 0)"
    )
    assert "ü" not in repr({"before": evaluation})


def test_saved_files_hold_everything_once(evaluation, tmp_path) -> None:
    save(evaluation, tmp_path / "deep" / "folder", {"request": {"seed": 3}})
    results = json.loads((tmp_path / "deep" / "folder" / "results.json").read_text())
    assert results["request"] == {"seed": 3}
    assert results["rows"][0]["interval"] == {"low": 25.0, "high": 75.0}
    assert results["rows"][0]["pass_at_k"] == {"1": 50.0, "2": 62.5}
    assert "completions" not in results
    (line,) = (tmp_path / "deep" / "folder" / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["text"] == "ü [/red]"
    assert "ü" in line


def test_what_is_saved_is_read_back(evaluation, tmp_path) -> None:
    odd = dataclasses.replace(evaluation.completions[0], text="a\u2028b\r\nc", mark=None, reference="ä\u2029")
    evaluation = dataclasses.replace(evaluation, completions=(*evaluation.completions, odd))
    assert read(tmp_path) is None
    save(evaluation, tmp_path, {"config": {"seed": 3}})
    found = read(tmp_path)
    assert found is not None
    assert found[0] == evaluation
    assert found[1]["config"] == {"seed": 3}


@pytest.mark.parametrize("name", ["results.json", "completions.jsonl"])
def test_a_kill_while_it_is_saved_leaves_what_was_there(name: str, evaluation, tmp_path, monkeypatch) -> None:
    write = Path.write_text

    def killed(path: Path, text: str, **options) -> int:
        write(path, text[: len(text) // 2], **options)
        if name in path.name:
            raise KeyboardInterrupt
        return write(path, text, **options)

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        save(evaluation, tmp_path, {})
    assert read(tmp_path) is None
    monkeypatch.undo()
    save(evaluation, tmp_path, {"seed": 1})
    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        save(dataclasses.replace(evaluation, model="another", completions=()), tmp_path, {"seed": 2})
    monkeypatch.undo()
    found = read(tmp_path)
    assert found is not None
    assert (found[0], found[1]["seed"]) == (evaluation, 1)


def test_a_kill_between_the_two_files_leaves_no_mixture(evaluation, tmp_path, monkeypatch) -> None:
    save(evaluation, tmp_path, {})

    def killed(source: Path, target: Path) -> None:
        if target.name == "results.json":
            raise KeyboardInterrupt
        source.rename(target)

    monkeypatch.setattr("tutelage.eval.results.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(dataclasses.replace(evaluation, model="another", completions=()), tmp_path, {})
    assert read(tmp_path) is None
    monkeypatch.undo()
    save(evaluation, tmp_path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["completions.jsonl", "results.json"]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({}, {"final": "auto", "limit": 200, "temperatures": [0.0, 1.0], "samples_per_prompt": 1}, []),
        ({"final": "test"}, {}, ["eval.final"]),
        (
            {"limit": 3, "temperatures": [1.0]},
            {"limit": None, "temperatures": [0.5]},
            ["eval.limit", "eval.temperatures"],
        ),
        ({"marks": 1, "bootstrap": 0}, {"marks": 2, "bootstrap": 10}, []),
    ],
)
def test_what_keeps_two_evaluations_from_being_compared(one, other, expected) -> None:
    assert changed_keys(one, other) == changed_keys(other, one) == expected


def test_files_of_a_version_without_references_are_read(evaluation, tmp_path) -> None:
    save(evaluation, tmp_path, {})
    path = tmp_path / "completions.jsonl"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content.pop("reference") is None
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    found = read(tmp_path)
    assert found is not None
    assert found[0] == evaluation


def test_row_by_label(evaluation) -> None:
    assert evaluation.row("T=1").value == 50.0
    with pytest.raises(KeyError, match="there are \\['T=1'\\]"):
        evaluation.row("greedy")


@pytest.mark.parametrize(
    ("decoding", "label", "sampled"),
    [(Decoding(), "greedy", False), (Decoding(0.7), "T=0.7", True), (Decoding(num_beams=4), "beam 4", False)],
)
def test_labels(decoding: Decoding, label: str, sampled: bool) -> None:
    assert (decoding.label, decoding.is_sampled) == (label, sampled)


@pytest.mark.parametrize(
    ("decoding", "temperature"), [(Decoding(), 0.0), (Decoding(0.7), 0.7), (Decoding(num_beams=4), None)]
)
def test_a_label_tells_the_temperature(decoding: Decoding, temperature: float | None) -> None:
    assert temperature_of(decoding.label) == temperature
    assert temperature_of("references") is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((None,), "–"),
        ((12.34,), "12.3"),
        ((-1e-9, Interval(-1e-9, 0.04)), "0.0 [0.0, 0.0]"),
        ((math.inf,), "inf"),
    ],
)
def test_with_interval(arguments, expected) -> None:
    assert with_interval(*arguments) == expected


@pytest.mark.parametrize(
    ("metric", "heading"), [("bleu", "BLEU"), ("rougeL", "ROUGE-L"), ("exact_match", "Exact match"), ("chrf", "chrF")]
)
def test_metric_name(metric: str, heading: str) -> None:
    assert metric_name(metric) == heading
