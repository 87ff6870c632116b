"""benchmarks/loss_compile.py at a size that takes no time, and without a compiler: Dynamo traces, PyTorch runs the graphs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # what the script sets ends with the test
    script = importlib.import_module("loss_compile")
    small = {"VOCABULARIES": (40,), "TOKENS": 6, "CALLS": 2, "BACKEND": "eager", "RESULTS": tmp_path / "compile.json"}
    for name, value in small.items():
        monkeypatch.setattr(script, name, value)
    return script


def test_every_form_is_compared_timed_and_written(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/loss_compile.py", "--repetitions", "3", "--threads", "1"])
    script.main()
    record = json.loads(script.RESULTS.read_text())
    assert record["command"] == "python benchmarks/loss_compile.py --repetitions 3 --threads 1"
    assert record["settings"]["tile_mb"] == 12
    assert [(row["divergence"], row["vocabulary"], row["rows"]) for row in record["cases"]] == [
        (name, 40, 6) for name in ("forward_kl", "reverse_kl", "jsd(0.5)")
    ]
    for row in record["cases"]:
        eager, compiled, formula = (row["forms"][name] for name in (script.EAGER, script.COMPILED, script.FORMULA))
        assert "compilation_seconds" not in eager
        assert compiled["graphs"] > 1  # the looks for infinite values
        assert formula["graphs"] == 1
        for form in (compiled, formula):
            assert form["compilation_seconds"] > 0
            assert form["largest_error"] < 1e-5
        for form in (eager, compiled, formula):
            assert 0 < form["nanoseconds_per_logit"]["min"] <= form["nanoseconds_per_logit"]["median"]


def test_the_tile_is_the_one_of_the_library(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "TOKENS", 1024)
    # 12 MB are 8 tensors of that many rows in float32.
    assert [script.tile_rows(vocabulary) for vocabulary in (49152, 151936)] == [8, 2]


def test_another_formula_stops_the_script(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(script.FORMULAS, "forward_kl", script.reverse_kl)
    with pytest.raises(SystemExit, match=r"formula, compiled, forward_kl, vocabulary 40: off by"):
        script.case("forward_kl", 40, 3)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd(0.5)"])
def test_the_formulas_are_the_gradients_of_their_values(script: ModuleType, divergence: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 7, dtype=torch.float64, generator=generator) for _ in range(2))
    student.requires_grad_()
    values, derivative = script.FORMULAS[divergence](student, teacher)
    (expected,) = torch.autograd.grad(values.sum(), student)
    torch.testing.assert_close(derivative.detach(), expected)
