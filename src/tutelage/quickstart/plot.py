"""The quickstart's plot: validation accuracy over the steps, and the four models on the test split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.quickstart.experiment import DECODINGS, Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Told apart by every kind of colour vision (Okabe & Ito 2008).
COLOURS = {"teacher": "#555555", "before": "#999999", "supervised": "#0072B2", "on_policy": "#D55E00"}
GRID = {"color": "#dddddd", "linewidth": 0.8}


def draw(outcome: Outcome, path: Path) -> None:
    """Writes the plot as PNG; `path`'s folder exists."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(11, 4.4), dpi=150, layout="constrained")
    curves, bars = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _curves(curves, outcome)
    _bars(bars, outcome)
    for axes in (curves, bars):
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", **GRID)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    settings = outcome.settings
    figure.suptitle(
        f"One student, {settings.train_size:,} worked answers, {settings.steps} steps: on whose sequences should it be distilled?",
        fontsize=12,
        fontweight="bold",
    )
    figure.savefig(path)


def _curves(axes: Axes, outcome: Outcome) -> None:
    for system, colour in (
        (outcome.supervised, COLOURS["supervised"]),
        (outcome.on_policy, COLOURS["on_policy"]),
    ):
        assert system.training is not None
        curve = system.training.curve
        for decoding, style in zip(DECODINGS, ("-", "--"), strict=True):
            axes.plot(
                [point.step for point in curve],
                [point.accuracy[decoding] for point in curve],
                style,
                color=colour,
                marker="o",
                markersize=3.5,
                label=f"{system.label}, {decoding}",
            )
    axes.set_title(f"validation, {outcome.settings.validation_size} problems", fontsize=10)
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel("accuracy, %")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _bars(axes: Axes, outcome: Outcome) -> None:
    for position, (system, colour) in enumerate(zip(outcome.systems, COLOURS.values(), strict=True)):
        for decoding, offset, hatch in zip(DECODINGS, (-0.2, 0.2), ("", "///"), strict=True):
            row = system.evaluation.row(decoding)
            assert row.value is not None
            assert row.interval is not None
            axes.bar(
                position + offset,
                row.value,
                width=0.38,
                color=colour if not hatch else "white",
                edgecolor=colour,
                hatch=hatch,
                yerr=[[row.value - row.interval.low], [row.interval.high - row.value]],
                error_kw={"ecolor": "black", "capsize": 3, "linewidth": 1},
                label=decoding if position == 0 else None,
            )
            axes.annotate(
                f"{row.value:.1f}", (position + offset, row.interval.high), (0, 3), textcoords="offset points",
                ha="center", fontsize=8,
            )  # fmt: skip
    axes.set_xticks(range(4), [system.label.replace(" ", "\n") for system in outcome.systems])
    axes.set_title(f"test, {outcome.settings.test_size:,} problems, 95% intervals", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
