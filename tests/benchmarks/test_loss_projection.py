"""benchmarks/loss_projection.py at a size that takes no time."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from tutelage.fused import base

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN is what it measures")
def test_every_form_is_measured_and_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    script = importlib.import_module("loss_projection")
    for name, value in (("CHUNKS", ((5, 8, 40),)), ("MEGABYTES", (1, 2)), ("RESULTS", tmp_path / "projection.json")):
        monkeypatch.setattr(script, name, value)
    seen = []
    blocks = base.project_in_blocks
    monkeypatch.setattr(base, "project_in_blocks", lambda *a: seen.append(base.BLOCK_BYTES // 2**20) or blocks(*a))
    before = base.BLOCK_BYTES
    monkeypatch.setattr("sys.argv", ["/somewhere/loss_projection.py", "--repetitions", "3", "--threads", "1"])
    script.main()
    assert seen == [1, 2] * 4  # a turn to warm up, then three
    assert before == base.BLOCK_BYTES
    record = json.loads((tmp_path / "projection.json").read_text())
    assert record["command"] == "python benchmarks/loss_projection.py --repetitions 3 --threads 1"
    assert record["settings"] == {"repetitions": 3, "threads": 1, "dtype": "float32"}
    (case,) = record["cases"]
    assert list(case["seconds"]) == ["plain product", "1", "2"]
    assert all(0 < row["min"] <= row["median"] <= row["max"] for row in case["seconds"].values())
