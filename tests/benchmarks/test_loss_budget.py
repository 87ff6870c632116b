"""benchmarks/loss_budget.py at a size that takes no time."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tutelage.fused import chunked

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(("dtype", "loss"), [("float32", "jsd(0.5)"), ("bfloat16", "forward_kl")])
def test_the_parts_are_the_whole_and_the_library_is_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch, dtype: str, loss: str
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    script = importlib.import_module("loss_budget")
    for name, value in (("TOKENS", 6), ("STUDENT", 4), ("TEACHER", 8), ("VOCABULARY", 40), ("MEGABYTES", (1, 2))):
        monkeypatch.setattr(script, name, value)
    tiles = chunked._Pass._tiles
    found = script.measure(1, dtype, loss)
    assert list(found) == [1, 2]
    for parts in found.values():
        assert list(parts) == ["total", "projections", "elementwise", "gradients"]
        total, *rest = (parts[name]["median"] for name in parts)
        assert total == pytest.approx(sum(rest))
        assert all(seconds > 0 for seconds in rest)
    assert chunked._Pass._tiles is tiles
