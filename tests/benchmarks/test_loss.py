"""benchmarks/loss.py end to end at a size that takes no time, and its measure of memory."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

from tutelage.fused import base

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = ["tutelage", "reference", "gemm_floor"]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the folder, as its scripts do."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("loss") / "loss.json"
    command = [sys.executable, str(FOLDER / "loss.py"), "--sizes", "5,8/8,37", "--dtypes", "float32"]
    command += ["--losses", "jsd(0.5)", "--implementations", *NAMES, "--repetitions", "3", "--threads", "1"]
    done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "5 tokens, hidden 8/8, vocabulary 37, float32" in done.stdout
    return json.loads(output.read_text())


def test_the_record_says_what_was_run(record: dict[str, Any]) -> None:
    assert record["command"].startswith("python benchmarks/loss.py --sizes 5,8/8,37 --dtypes float32")
    assert record["command"].endswith("--output loss.json")
    assert record["machine"]["cores"] >= 1
    assert record["settings"]["repetitions"] == 3
    assert record["settings"]["implementations"] == NAMES
    assert record["versions"]["tutelage"]["torch"] == torch.__version__


def test_every_implementation_is_compared_with_float64(record: dict[str, Any]) -> None:
    errors = record["agreement"]["errors"]["jsd(0.5)"]
    assert list(errors) == ["tutelage", "reference"]
    for found in errors.values():
        assert list(found) == ["value", "hidden_gradient", "weight_gradient"]
        assert all(error < 1e-5 for error in found.values())


def test_the_case_has_the_times_of_all(record: dict[str, Any]) -> None:
    (case,) = record["cases"]
    size = ("tokens", "student_hidden", "teacher_hidden", "vocabulary", "dtype", "loss")
    assert [case[name] for name in size] == [5, 8, 8, 37, "float32", "jsd(0.5)"]
    assert case["head_gradient_mb"] == 37 * 8 * 4 / 2**20
    rows = case["implementations"]
    assert list(rows) == NAMES
    for row in rows.values():
        assert len(row["runs"]) == 3
        assert row["seconds"]["min"] <= row["seconds"]["median"] <= row["seconds"]["max"]
        assert row["ratio_to_floor"] == row["seconds"]["median"] / rows["gemm_floor"]["seconds"]["median"]
    assert rows["tutelage"]["value"] == pytest.approx(rows["reference"]["value"], rel=1e-5)
    assert 0 < rows["tutelage"]["value"] < 0.6931  # of a Jensen-Shannon divergence: ln 2
    assert rows["gemm_floor"]["value"] is None
    assert "peak_mb" not in rows["gemm_floor"]


def test_the_case_says_how_far_its_values_are_apart(record: dict[str, Any]) -> None:
    (case,) = record["cases"]
    found, rows = case["largest_value_deviation"], case["implementations"]
    assert (found["of"], found["from"]) == ("tutelage", "reference")
    value, expected = rows["tutelage"]["value"], rows["reference"]["value"]
    assert found["relative"] == abs(value - expected) / abs(expected)
    assert record["case_value_tolerances"] == {"float32": 1e-4, "bfloat16": 2e-2}


def of_values(**values: float | None) -> dict[str, Any]:
    """Rows of a case; None for one that did not fit."""
    return {name: {"does_not_fit": "..."} if value is None else {"value": value} for name, value in values.items()}


def test_the_values_of_a_case_are_compared(load: Any) -> None:
    loss = load("loss")
    exact, half = (loss.Case.of("5,8/8,37", dtype, "jsd(0.5)") for dtype in ("float32", "bfloat16"))
    rows = of_values(tutelage=0.5, reference=0.50001, liger=0.49998) | {"gemm_floor": {"value": None}}
    found = loss.compare_values(exact, rows)
    assert (found["of"], found["from"]) == ("liger", "reference")
    assert found["relative"] == pytest.approx(3e-5 / 0.50001)
    far = of_values(reference=None, trl_gkd=0.4999, tutelage=0.5, liger=0.497)
    assert loss.compare_values(half, far) == {"of": "liger", "from": "tutelage", "relative": pytest.approx(6e-3)}
    with pytest.raises(SystemExit) as stopped:
        loss.compare_values(exact, far)
    assert str(stopped.value).splitlines() == [
        "error: 5 x 8/8 x 37 float32 jsd(0.5): not all values are within 0.0001 of tutelage's, 0.5:",
        "trl_gkd: 0.4999, off by 2.0e-04",
        "liger: 0.497, off by 6.0e-03",
    ]
    with pytest.raises(SystemExit, match="liger: nan, off by nan"):
        loss.compare_values(half, of_values(tutelage=0.5, liger=float("nan")))
    assert loss.compare_values(exact, of_values(tutelage=0.5, reference=None)) is None


def parse(load: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    monkeypatch.setattr("sys.argv", ["loss.py", "--trl-python", sys.executable, *words])
    return load("loss").parse()


def test_the_onednn_floor_runs_in_float32_on_a_cpu_and_when_named(
    load: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not {"gemm_floor_onednn", "tutelage_statistics"} & set(parse(load, monkeypatch).implementations)
    named = ("--implementations", "tutelage", "gemm_floor", "gemm_floor_onednn")
    assert parse(load, monkeypatch, *named, "--dtypes", "float32").implementations == list(named[1:])
    for words in ((), ("--dtypes", "float32", "--device", "cuda")):
        with pytest.raises(SystemExit, match="2"):
            parse(load, monkeypatch, *named, *words)
        assert "gemm_floor_onednn: float32 on a CPU only; add --dtypes float32" in capsys.readouterr().err


def test_memory_is_measured_of_all_losses_or_of_those_named(
    load: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("--implementations", "tutelage", "reference", "gemm_floor")
    assert parse(load, monkeypatch, *run).memory_of == ["tutelage", "reference"]
    chosen = parse(load, monkeypatch, *run, "--memory-of", "tutelage")
    assert chosen.memory_of == ["tutelage"]
    assert load("loss").Benchmark(chosen, Path(), Progress())._memory("reference", None) == {}
    with pytest.raises(SystemExit, match="2"):
        parse(load, monkeypatch, *run, "--memory-of", "gemm_floor", "liger")
    assert (
        "--memory-of gemm_floor liger: choose from the losses that run, tutelage reference" in capsys.readouterr().err
    )


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN does its projections")
def test_the_onednn_floor_projects_as_the_library(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    implementations = load("loss_implementations")
    generator = torch.Generator().manual_seed(0)
    shapes = {"hidden": (5, 8), "weight": (37, 8), "teacher_hidden": (5, 12), "teacher_weight": (37, 12)}
    problem = implementations.Problem(
        **{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    )
    monkeypatch.setattr(implementations, "_FLOOR_BYTES", 3 * 2 * 37 * 4)  # chunks of 3 and 2 tokens
    logits = []
    blocks = base.project_in_blocks
    monkeypatch.setattr(base, "project_in_blocks", lambda *arguments: logits.append(blocks(*arguments).clone()))
    assert implementations.IMPLEMENTATIONS["gemm_floor_onednn"].prepare(problem, "forward_kl")() is None
    student, teacher = problem.hidden @ problem.weight.T, problem.teacher_hidden @ problem.teacher_weight.T
    for found, expected in zip(logits, (student[:3], teacher[:3], student[3:], teacher[3:]), strict=True):
        torch.testing.assert_close(found, expected)
    problem.hidden = problem.hidden.bfloat16()
    with pytest.raises(ValueError, match=r"float32 on a CPU, not torch.bfloat16 on cpu"):
        implementations.IMPLEMENTATIONS["gemm_floor_onednn"].prepare(problem, "forward_kl")


def test_the_table_has_the_floors_and_liger_compiled(record: dict[str, Any], load: Any) -> None:
    (case,) = record["cases"]
    rows = case["implementations"]
    others = {"liger_compiled": rows["reference"], "gemm_floor_onednn": rows["gemm_floor"] | {"ratio_to_floor": 0.87}}
    console = Console(width=200, record=True, file=io.StringIO())
    load("loss_table").show({"cases": [{**case, "implementations": rows | others}]}, console)
    lines = {line.split()[0]: line for line in console.export_text().splitlines() if line.strip()}
    assert lines["gemm_floor_onednn"].rstrip().endswith("0.87")
    assert lines["liger_compiled"].split()[1:] == lines["reference"].split()[1:]


@pytest.fixture
def inputs(tmp_path: Path, load: Any) -> Path:
    """1024 tokens and a vocabulary of 10240: each full tensor of float32 logits takes 40 MB, more than malloc keeps."""
    load("loss").Case.of("1024,8/8,10240", "float32", "forward_kl").write_inputs(tmp_path / "inputs.pt", seed=0)
    return tmp_path / "inputs.pt"


def test_peak_memory_counts_the_logits(inputs: Path, load: Any) -> None:
    peak = load("loss_worker").Worker("reference", "cpu").memory(str(inputs), "forward_kl")["peak_mb"]
    assert 4 * 40 < peak < 16 * 40  # at least both models' logits and log-probabilities


def test_what_needs_more_memory_than_there_is_is_said_so(
    inputs: Path, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker: ModuleType = load("loss_worker")
    read, little = worker._kilobytes, (worker._SPARE_BYTES + 8 * 2**20) // 1024
    monkeypatch.setattr(worker, "_kilobytes", lambda *field: little if "MemAvailable" in field else read(*field))
    asked = worker.Worker("reference", "cpu")
    assert "allocate" in asked.answer("seconds", inputs=str(inputs), loss="forward_kl")["does_not_fit"]
    monkeypatch.undo()
    assert asked.answer("seconds", inputs=str(inputs), loss="forward_kl")["value"] > 0


def test_a_wrong_gradient_stops_the_benchmark(tmp_path: Path, load: Any) -> None:
    loss = load("loss")

    class Wrong:
        def ask(self, do: str, inputs: Path, name: str) -> dict[str, Any]:
            expected = loss.exact(inputs, name)
            expected["weight_gradient"] *= 1.001
            return {key: tensor.tolist() for key, tensor in expected.items()}

    with pytest.raises(SystemExit, match=r"liger, reverse_kl: the weight gradient is off by 1.0e-03"):
        loss.check_agreement({"liger": Wrong()}, ["reverse_kl"], tmp_path, 0)
