"""The plot of loss.py's results: time relative to the four GEMMs, and peak memory, of every implementation.

    .venv/bin/python benchmarks/loss_plot.py                          # benchmarks/results/loss*.json to docs/assets/loss.png
    .venv/bin/python benchmarks/loss_plot.py RESULTS.json ... --plot PLOT.png

One row of panels for each device and size, one pair of columns for each dtype. A position is a median, a whisker the quartiles.
Several files are parts of one benchmark: they may share a case if each has other implementations of it. A time is drawn
relative to the floor of its own file, whatever the machine did in between.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loss_table import SIZE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parents[1]
# Told apart by every kind of colour vision (Okabe & Ito 2008), and by their shape.
MARKS = {"forward_kl": ("#0072B2", "o"), "reverse_kl": ("#D55E00", "s"), "jsd(0.5)": ("#009E73", "D")}
LABELS = {
    "tutelage": "Tutelage",
    "tutelage_statistics": "Tutelage, with statistics",
    "tutelage_triton": "Tutelage, Triton",
    "reference": "full logits, autograd",
    "trl_gkd": "TRL GKDTrainer",
    "trl_distillation": "TRL DistillationTrainer",
    "liger": "Liger, chunked",
    "liger_compiled": "Liger, chunked, compiled",
    "liger_triton": "Liger, Triton",
    "gemm_floor_onednn": "four GEMMs, oneDNN",
}
FLOOR = "gemm_floor"
OFFSET = 0.22  # between the losses of one implementation, in rows


def load(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The cases of all files, in the order of the plot; ends the script where two files have one implementation of one case.

    Args:
        paths: what loss.py wrote, the floor among the implementations.

    Returns:
        Of each case its `device`, size, dtype, `loss` and `head_gradient_mb` and the `implementations` of all files, without
        the floor; each has its `file` and, where it was timed, `over_floor`: its seconds as multiples of the median of the
        floor in that file.
    """
    joined: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path in paths:
        record = json.loads(path.read_text())
        device = record["settings"]["device"]
        for case in record["cases"]:
            about = {"device": device, **{name: case[name] for name in (*SIZE, "loss")}}
            key = tuple(about.values())
            empty = {**about, "head_gradient_mb": case["head_gradient_mb"], "implementations": {}}
            rows = joined.setdefault(key, empty)["implementations"]
            for name, row in _over_floor(case["implementations"], f"{path}: {_title(key)}").items():
                if name in rows:
                    sys.exit(
                        f"error: {rows[name]['file']} and {path} both have {name} at {_title(key)}: give only one of them"
                    )
                rows[name] = row | {"file": path}
    return [joined[key] for key in sorted(joined, key=_order)]


def _over_floor(rows: dict[str, Any], where: str) -> dict[str, Any]:
    """All implementations but the floor, with their time as multiples of the floor's median."""
    if "seconds" not in rows.get(FLOOR, {}):
        sys.exit(f"error: {where} has no time of {FLOOR}, which all times are drawn relative to")
    floor = rows[FLOOR]["seconds"]["median"]
    found = {name: dict(row) for name, row in rows.items() if name != FLOOR}
    for row in found.values():
        if "seconds" in row:
            row["over_floor"] = {key: value / floor for key, value in row["seconds"].items()}
    return found


def _title(key: tuple[Any, ...]) -> str:
    device, tokens, student, teacher, vocabulary, dtype, loss = key
    return f"{tokens:,} x {student}/{teacher} x {vocabulary:,} {dtype} {loss} on {device}"


def _order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """CPU first, then by vocabulary and tokens; float32 first, then the losses as in the legend."""
    device, tokens, student, teacher, vocabulary, dtype, loss = key
    return device != "cpu", vocabulary, tokens, student, teacher, dtype != "float32", list(MARKS).index(loss)


def draw(cases: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the plot as PNG; makes `path`'s folder.

    Args:
        cases: of `load`.
        path: of the file.
    """
    from matplotlib.figure import Figure  # takes a second to import
    from matplotlib.lines import Line2D

    by_panel: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for case in cases:
        by_panel.setdefault((case["device"], *(case[name] for name in SIZE)), []).append(case)
    sizes = list(dict.fromkeys(key[:-1] for key in by_panel))
    dtypes = sorted({key[-1] for key in by_panel}, key=lambda dtype: dtype != "float32")
    names = [name for name in LABELS if any(name in case["implementations"] for case in cases)]
    inches = (4.0 * 2 * len(dtypes) + 1.5, (0.45 * len(names) + 1.0) * len(sizes) + 0.8)
    figure = Figure(figsize=inches, dpi=130, layout="constrained")
    panels = figure.subplots(len(sizes), 2 * len(dtypes), squeeze=False, sharey=True)
    for row, size in enumerate(sizes):
        for column, dtype in enumerate(dtypes):
            time, memory = panels[row, 2 * column : 2 * column + 2]
            chosen = by_panel.get((*size, dtype), [])
            if chosen:
                _time(time, chosen, names)
                _memory(memory, chosen, names)
            else:
                _empty(time)
                _empty(memory)
        device, tokens, student, teacher, vocabulary = size
        title = f"{device.upper()}, {tokens:,} tokens\nhidden {student} / {teacher}\nvocabulary {vocabulary:,}"
        panels[row, 0].set_ylabel(title)
        panels[row, 0].set_yticks(range(len(names)), [LABELS[name] for name in names])
        panels[row, 0].set_ylim(len(names) - 0.5, -0.5)
    for column, dtype in enumerate(dtypes):
        panels[0, 2 * column].set_title(f"{dtype}: time / four GEMMs", fontsize=10)
        panels[0, 2 * column + 1].set_title(f"{dtype}: peak memory above the inputs, MB", fontsize=10)
    shown = [loss for loss in MARKS if any(case["loss"] == loss for case in cases)]
    handles = [
        Line2D([], [], color=MARKS[loss][0], marker=MARKS[loss][1], linestyle="none", label=loss) for loss in shown
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle("Exact divergence over the vocabulary, forward and backward", fontweight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _time(axes: Axes, cases: list[dict[str, Any]], names: list[str]) -> None:
    _frame(axes, names)
    axes.axvline(1.0, color="black", linewidth=1)
    for case in cases:
        for height, times in _places(case, names, "over_floor"):
            axes.plot(
                [times["quartile_1"], times["quartile_3"]], [height, height], color=MARKS[case["loss"]][0], linewidth=1
            )
            _mark(axes, times["median"], height, case["loss"])
    _absent(axes, cases, names)


def _memory(axes: Axes, cases: list[dict[str, Any]], names: list[str]) -> None:
    _frame(axes, names)
    gradient = cases[0]["head_gradient_mb"]
    axes.axvline(gradient, color="black", linewidth=1, linestyle=":")
    axes.annotate(" gradient of the head", (gradient, 0), xycoords=("data", "axes fraction"), fontsize=7, va="bottom")
    for case in cases:
        for height, peak in _places(case, names, "peak_mb"):
            _mark(axes, peak, height, case["loss"])
    _absent(axes, cases, names)


def _frame(axes: Axes, names: list[str]) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.xaxis.set_minor_formatter("")
    axes.grid(axis="x", which="both", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for height in range(0, len(names), 2):
        axes.axhspan(height - 0.5, height + 0.5, color="#f5f5f5", zorder=-1)


def _empty(axes: Axes) -> None:
    """The panel of a dtype in which the size was not run; the names beside it stay."""
    axes.set_xticks([])
    axes.spines[:].set_visible(False)


def _places(case: dict[str, Any], names: list[str], key: str) -> list[tuple[float, Any]]:
    """Height and `key` of every implementation that has it."""
    offset = (list(MARKS).index(case["loss"]) - 1) * OFFSET
    rows = case["implementations"]
    return [(height + offset, rows[name][key]) for height, name in enumerate(names) if key in rows.get(name, {})]


def _mark(axes: Axes, position: float, height: float, loss: str) -> None:
    colour, shape = MARKS[loss]
    axes.plot(position, height, shape, color=colour, markersize=5, linestyle="none")


def _absent(axes: Axes, cases: list[dict[str, Any]], names: list[str]) -> None:
    """Says of the implementations without a mark why they have none; of a single loss, only that it did not fit."""
    for height, name in enumerate(names):
        rows = {case["loss"]: case["implementations"][name] for case in cases if name in case["implementations"]}
        unfit = [loss for loss, row in rows.items() if "does_not_fit" in row]
        if rows and not unfit:
            continue
        which = "" if len(unfit) == len(rows) else f"{', '.join(unfit)}: "
        axes.annotate(
            f"{which}does not fit" if rows else "not measured",
            (0.98, height),
            xycoords=("axes fraction", "data"),
            fontsize=8,
            color="#555555",
            ha="right",
            va="center",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "results", type=Path, nargs="*", default=sorted((ROOT / "benchmarks" / "results").glob("loss*.json"))
    )
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "assets" / "loss.png")
    options = parser.parse_args()
    draw(load(options.results), options.plot)
    print(f"wrote {options.plot}")


if __name__ == "__main__":
    main()
