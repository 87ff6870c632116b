"""How wide tables are."""

import io
import sys

import pytest

from tutelage.console import make_console


class Window(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "columns", "width"), [(io.StringIO, None, 120), (io.StringIO, "66", 66), (Window, "66", 66)]
)
def test_a_table_in_a_file_is_wide_and_one_in_a_window_is_as_wide_as_that(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], columns: str | None, width: int
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "stdout", stream())
    assert make_console().width == width
