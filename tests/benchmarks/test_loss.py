"""benchmarks/loss.py end to end at a size that takes no time, and its measure of memory."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

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


def test_the_plot_shows_every_case(record: dict[str, Any], tmp_path: Path, load: Any) -> None:
    load("loss_plot").draw([record], tmp_path / "assets" / "loss.png")
    assert (tmp_path / "assets" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_joins_parts_with_other_implementations(
    record: dict[str, Any], tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plot = load("loss_plot")
    (case,) = record["cases"]
    rows = {name: row for name, row in case["implementations"].items() if name != "reference"}
    other = {"cases": [{**case, "tokens": 7, "implementations": rows}]}
    drawn = []
    monkeypatch.setattr(plot, "_mark", lambda axes, position, height, loss: drawn.append(position))
    plot.draw([record, other], tmp_path / "loss.png")
    # Time and memory of each: two implementations in the first part, one in the second.
    assert len(drawn) == 2 * 2 + 2 * 1


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
