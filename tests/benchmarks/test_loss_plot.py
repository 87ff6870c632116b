"""benchmarks/loss_plot.py: files that are parts of one benchmark, and what a panel says of what was not measured."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from matplotlib.axes import Axes

FOLDER = Path(__file__).parents[2] / "benchmarks"
Write = Callable[..., Path]


@pytest.fixture
def plot(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("loss_plot")


def case(
    seconds: dict[str, float], loss: str = "forward_kl", dtype: str = "float32", tokens: int = 5
) -> dict[str, Any]:
    """A case as loss.py writes it; the quartiles lie 10 % on either side, and every loss takes 3 MB."""
    rows: dict[str, Any] = {
        name: {"seconds": {"median": it, "quartile_1": it * 0.9, "quartile_3": it * 1.1, "min": it, "max": it}}
        for name, it in seconds.items()
    }
    for name, row in rows.items():
        if not name.startswith("gemm_floor"):
            row["peak_mb"] = 3.0
    size = {"tokens": tokens, "student_hidden": 8, "teacher_hidden": 12, "vocabulary": 37}
    return {**size, "dtype": dtype, "loss": loss, "head_gradient_mb": 1.0, "implementations": rows}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, *cases: dict[str, Any], device: str = "cpu") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps({"settings": {"device": device}, "cases": cases}))
        return path

    return write


def test_a_file_adds_to_a_case_and_keeps_its_own_floor(plot: ModuleType, write: Write) -> None:
    first = write("a.json", case({"tutelage": 3.0, "gemm_floor": 2.0}))
    second = write("b.json", case({"liger": 6.0, "gemm_floor_onednn": 3.0, "gemm_floor": 4.0}))
    (joined,) = plot.load([first, second])
    rows = joined["implementations"]
    assert {name: row["over_floor"]["median"] for name, row in rows.items()} == {
        "tutelage": 1.5,
        "liger": 1.5,
        "gemm_floor_onednn": 0.75,
    }
    assert rows["liger"]["over_floor"]["quartile_1"] == pytest.approx(1.35)
    assert [rows[name]["file"] for name in ("tutelage", "liger")] == [first, second]


def test_an_implementation_in_two_files_is_an_error(plot: ModuleType, write: Write) -> None:
    first = write("a.json", case({"tutelage": 3.0, "gemm_floor": 2.0}))
    second = write("b.json", case({"liger": 6.0, "tutelage": 4.0, "gemm_floor": 2.0}))
    with pytest.raises(SystemExit) as stopped:
        plot.load([first, second])
    where = "5 x 8/12 x 37 float32 forward_kl on cpu"
    assert str(stopped.value) == f"error: {first} and {second} both have tutelage at {where}: give only one of them"


def test_another_device_is_another_case(plot: ModuleType, write: Write) -> None:
    rows = {"tutelage": 3.0, "gemm_floor": 2.0}
    files = [write("b.json", case(rows), device="cuda"), write("a.json", case(rows))]
    assert [found["device"] for found in plot.load(files)] == ["cpu", "cuda"]


def test_a_case_without_floor_is_an_error(plot: ModuleType, write: Write) -> None:
    path = write("a.json", case({"tutelage": 3.0}))
    with pytest.raises(SystemExit, match=r"a.json: 5 x 8/12 x 37 float32 forward_kl on cpu has no time of gemm_floor"):
        plot.load([path])


@pytest.fixture
def drawn(plot: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Path]], list[Axes]]:
    """Draws these files; the panels, row by row."""

    def draw(paths: list[Path]) -> list[Axes]:
        from matplotlib.figure import Figure

        figures = []
        save = Figure.savefig
        monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure) or save(figure, path))
        plot.draw(plot.load(paths), tmp_path / "assets" / "loss.png")
        assert (tmp_path / "assets" / "loss.png").read_bytes().startswith(b"\x89PNG")
        return figures[0].axes

    return draw


def marks(axes: Axes) -> list[tuple[float, float]]:
    """Position and height, without the whiskers and the vertical line."""
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines if line.get_marker() != "None"
    ]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_times_stand_over_the_floor_and_memory_in_mb(drawn: Any, write: Write) -> None:
    seconds = {"tutelage": 3.0, "liger_compiled": 8.0, "gemm_floor_onednn": 1.0, "gemm_floor": 2.0}
    time, memory = drawn([write("a.json", case(seconds))])
    assert [label.get_text() for label in time.get_yticklabels()] == [
        "Tutelage",
        "Liger, chunked, compiled",
        "four GEMMs, oneDNN",
    ]
    height = -0.22  # the first loss
    assert marks(time) == [(1.5, 0 + height), (4.0, 1 + height), (0.5, 2 + height)]
    assert marks(memory) == [(3.0, 0 + height), (3.0, 1 + height)]
    assert texts(time) == []


def test_a_size_without_a_dtype_leaves_its_panel_empty(drawn: Any, write: Write) -> None:
    rows = {"tutelage": 3.0, "gemm_floor": 2.0}
    panels = drawn([write("a.json", case(rows), case(rows, dtype="bfloat16"), case(rows, dtype="bfloat16", tokens=9))])
    assert [len(marks(axes)) for axes in panels] == [1, 1, 1, 1, 0, 0, 1, 1]
    assert panels[4].get_ylabel() == "CPU, 9 tokens\nhidden 8 / 12\nvocabulary 37"
    assert [label.get_text() for label in panels[4].get_yticklabels()] == ["Tutelage"]


def test_only_what_no_loss_has_is_not_measured(drawn: Any, write: Write) -> None:
    full, part = {"tutelage": 3.0, "liger": 5.0, "gemm_floor": 2.0}, {"tutelage": 3.0, "gemm_floor": 2.0}
    cases = [case(full), case(part, loss="reverse_kl"), case(part, dtype="bfloat16")]
    first, _, second, _ = drawn([write("a.json", *cases)])
    assert texts(first) == []
    assert texts(second) == ["not measured"]


def test_a_row_says_which_losses_do_not_fit(drawn: Any, write: Write) -> None:
    cases = [case({"tutelage": 3.0, "gemm_floor": 2.0}, loss=loss) for loss in ("forward_kl", "reverse_kl")]
    for row in cases:
        row["implementations"] |= {"reference": {"does_not_fit": "..."}, "liger": {"does_not_fit": "..."}}
    cases[0]["implementations"]["liger"] = cases[0]["implementations"]["tutelage"]
    time, _ = drawn([write("a.json", *cases)])
    assert texts(time) == ["does not fit", "reverse_kl: does not fit"]
