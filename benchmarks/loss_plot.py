"""The plot of loss.py's results: time relative to the four GEMMs, and peak memory, of every implementation.

    .venv/bin/python benchmarks/loss_plot.py                          # benchmarks/results/loss*.json to docs/assets/loss.png
    .venv/bin/python benchmarks/loss_plot.py RESULTS.json ... --plot PLOT.png

One row of panels for each size, one pair of columns for each dtype. A position is a median, a whisker the quartiles. Several files are
parts of one benchmark: each case stands beside the floor of its own run, and where two hold one case the later file counts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
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
    "tutelage_triton": "Tutelage, Triton",
    "reference": "full logits, autograd",
    "trl_gkd": "TRL GKDTrainer",
    "trl_distillation": "TRL DistillationTrainer",
    "liger": "Liger, chunked",
    "liger_compiled": "Liger, chunked, compiled",
    "liger_triton": "Liger, Triton",
}
OFFSET = 0.22  # between the losses of one implementation, in rows


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the plot as PNG; makes `path`'s folder.

    Args:
        records: what loss.py wrote, the floor among the implementations.
        path: of the file.
    """
    from matplotlib.figure import Figure  # takes a second to import

    by_case = {(*(case[name] for name in SIZE), case["loss"]): case for record in records for case in record["cases"]}
    cases = [by_case[key] for key in sorted(by_case, key=lambda key: (key[3], key[0], key[4] != "float32"))]
    sizes = list(dict.fromkeys(tuple(case[name] for name in SIZE[:-1]) for case in cases))
    dtypes = list(dict.fromkeys(case["dtype"] for case in cases))
    names = [name for name in LABELS if any(name in case["implementations"] for case in cases)]
    inches = (4.0 * 2 * len(dtypes) + 1.5, (0.45 * len(names) + 1.0) * len(sizes) + 0.8)
    figure = Figure(figsize=inches, dpi=130, layout="constrained")
    panels = figure.subplots(len(sizes), 2 * len(dtypes), squeeze=False, sharey=True)
    for row, size in enumerate(sizes):
        for column, dtype in enumerate(dtypes):
            chosen = [case for case in cases if tuple(case[name] for name in SIZE) == (*size, dtype)]
            _time(panels[row, 2 * column], chosen, names)
            _memory(panels[row, 2 * column + 1], chosen, names)
        tokens, student, teacher, vocabulary = size
        panels[row, 0].set_ylabel(f"{tokens:,} tokens\nhidden {student} / {teacher}\nvocabulary {vocabulary:,}")
        panels[row, 0].set_yticks(range(len(names)), [LABELS[name] for name in names])
        panels[row, 0].set_ylim(len(names) - 0.5, -0.5)
    for column, dtype in enumerate(dtypes):
        panels[0, 2 * column].set_title(f"{dtype}: time / four GEMMs", fontsize=10)
        panels[0, 2 * column + 1].set_title(f"{dtype}: peak memory above the inputs, MB", fontsize=10)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle("Exact divergence over the vocabulary, forward and backward", fontweight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _time(axes: Axes, cases: list[dict[str, Any]], names: list[str]) -> None:
    _frame(axes, names)
    axes.axvline(1.0, color="black", linewidth=1)
    for case in cases:
        rows, floor = case["implementations"], case["implementations"]["gemm_floor"]["seconds"]["median"]
        for height, seconds in _places(axes, case, names, "seconds"):
            median, low, high = (seconds[key] / floor for key in ("median", "quartile_1", "quartile_3"))
            axes.plot([low, high], [height, height], color=MARKS[case["loss"]][0], linewidth=1)
            _mark(axes, median, height, case["loss"])
        _absent(axes, rows, names)


def _memory(axes: Axes, cases: list[dict[str, Any]], names: list[str]) -> None:
    _frame(axes, names)
    gradient = cases[0]["head_gradient_mb"]
    axes.axvline(gradient, color="black", linewidth=1, linestyle=":")
    axes.annotate(" gradient of the head", (gradient, 0), xycoords=("data", "axes fraction"), fontsize=7, va="bottom")
    for case in cases:
        for height, peak in _places(axes, case, names, "peak_mb"):
            _mark(axes, peak, height, case["loss"])
        _absent(axes, case["implementations"], names)


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


def _places(axes: Axes, case: dict[str, Any], names: list[str], key: str) -> list[tuple[float, Any]]:
    """Height and `key` of every implementation that has it."""
    offset = (list(MARKS).index(case["loss"]) - 1) * OFFSET
    rows = case["implementations"]
    return [(height + offset, rows[name][key]) for height, name in enumerate(names) if key in rows.get(name, {})]


def _mark(axes: Axes, position: float, height: float, loss: str) -> None:
    colour, shape = MARKS[loss]
    known = loss in axes.get_legend_handles_labels()[1]
    axes.plot(position, height, shape, color=colour, markersize=5, linestyle="none", label=None if known else loss)


def _absent(axes: Axes, rows: dict[str, Any], names: list[str]) -> None:
    """Says of the implementations without a mark why they have none."""
    for height, name in enumerate(names):
        if name not in rows or "does_not_fit" in rows[name]:
            axes.annotate(
                "does not fit" if name in rows else "not measured",
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
    draw([json.loads(path.read_text()) for path in options.results], options.plot)
    print(f"wrote {options.plot}")


if __name__ == "__main__":
    main()
