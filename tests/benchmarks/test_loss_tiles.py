"""benchmarks/loss_tiles.py at a size that takes no time."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from tutelage.fused import chunked

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_every_size_is_measured_and_the_library_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    script = importlib.import_module("loss_tiles")
    for name, value in (("TOKENS", 6), ("VOCABULARY", 40), ("MEGABYTES", (1.5, 12))):
        monkeypatch.setattr(script, name, value)
    seen = []
    plan = chunked.plan
    monkeypatch.setattr(chunked, "plan", lambda *a: seen.append(chunked._CPU_TILE_BYTES / 2**20) or plan(*a))
    before = chunked._CPU_TILE_BYTES
    found = script.case(torch.float32, "forward_kl", 3)
    assert list(found) == ["1.5", "12"]
    assert seen == [1.5, 12.0] * 4  # a turn to warm up, then three
    assert before == chunked._CPU_TILE_BYTES
    assert all(0 < row["min"] <= row["median"] <= row["max"] for row in found.values())
