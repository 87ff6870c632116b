"""When the tests of the browser may be skipped; needs none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser import chromium

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("installed", "asked", "skipped"), [(False, "", True), (False, "1", False), (True, "", False), (True, "1", False)]
)
def test_a_missing_browser_is_skipped_but_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, installed: bool, asked: str, skipped: bool
) -> None:
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr(chromium.shutil, "which", lambda name: f"/bin/{name}" if installed else None)
    monkeypatch.setenv("NEEDS_BROWSER", asked)
    assert chromium.may_skip() is skipped


def test_the_target_asks_for_it() -> None:
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    recipe = lines[next(i for i, line in enumerate(lines) if line.startswith("test-browser:")) + 1]
    assert recipe.startswith("\tNEEDS_BROWSER=1 ")
    assert "-m browser" in recipe
