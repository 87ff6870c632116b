from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tutelage.quickstart.settings import Settings
from tutelage.train.config import identity

SCRIPT = Path(__file__).parents[2] / "recipes" / "arithmetic" / "learning_rates.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("learning_rates", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["learning_rates"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def row(method: str, rate: float, seed: int, greedy: float, sampled: float) -> dict[str, Any]:
    return {
        "method": method,
        "matrix_learning_rate": rate,
        "seed": seed,
        "greedy": greedy,
        "T=1": sampled,
        "seconds": 10.0 + seed,
    }


def test_the_choice_is_the_best_mean_over_seeds_and_decodings(script: ModuleType) -> None:
    rows = [
        row("supervised_kd", 0.01, 0, 30.0, 20.0), row("supervised_kd", 0.01, 1, 34.0, 24.0),  # 27
        row("supervised_kd", 0.02, 0, 40.0, 20.0), row("supervised_kd", 0.02, 1, 20.0, 20.0),  # 25, best single run
        row("gkd_forward_kl", 0.01, 0, 45.0, 25.0),  # 35, best greedy
        row("gkd_jsd", 0.01, 0, 41.0, 33.0),  # 37
    ]  # fmt: skip
    summary = script.summarise(rows)
    assert summary[0] == {
        "method": "supervised_kd", "matrix_learning_rate": 0.01, "seeds": 2, "greedy": 32.0, "T=1": 22.0,
        "seconds": 10.5, "score": 27.0,
    }  # fmt: skip
    chosen = script.choose(summary)
    assert chosen["supervised_kd"]["matrix_learning_rate"] == 0.01
    assert chosen["on_policy_gkd"]["method"] == "gkd_jsd"


def test_a_side_without_rows_is_left_out(script: ModuleType) -> None:
    assert list(script.choose(script.summarise([row("gkd_jsd", 0.01, 0, 1.0, 1.0)]))) == ["on_policy_gkd"]


def test_a_cell_is_finished_only_for_its_own_configuration(script: ModuleType, tmp_path: Path) -> None:
    method = replace(script.METHODS[0], matrix_learning_rate=0.01)
    cell = script.Cell(method, Settings(), 0, tmp_path, 1)
    assert not cell.finished
    cell.output.mkdir()
    cell.record.write_text("{}")
    (cell.output / "run.json").write_text(json.dumps(identity(cell.config)))
    assert cell.finished
    assert not replace(cell, settings=Settings(steps=7)).finished


def test_a_cell_sees_the_validation_split_only(script: ModuleType, tmp_path: Path) -> None:
    cell = script.Cell(replace(script.METHODS[1], matrix_learning_rate=0.01), Settings(), 3, tmp_path, 1)
    assert (cell.config.eval.final, cell.config.seed, cell.config.method) == ("validation", 3, "gkd")
