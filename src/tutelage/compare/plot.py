"""The plots of a comparison: the methods on the test split, and their curves over steps and over seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from tutelage.compare.summary import Line, Method, Reference
from tutelage.eval.statistics import seed_summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Told apart by every kind of colour vision (Okabe & Ito 2008); dashes tell apart what comes after the eighth.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B8A800")
DASHES = ("-", "--", ":", "-.")
REFERENCE = "#777777"


def draw_results(methods: Sequence[Method], lines: Sequence[Line], references: Sequence[Reference], path: Path) -> None:
    """Bars: the metric on the test split by method, one panel for each decoding, with 95% intervals over seeds.

    Args:
        methods: in the order of the bars.
        lines: of `summary.equal_steps`.
        references: drawn as lines across.
        path: a PNG; its folder exists.
    """
    from matplotlib.figure import Figure  # takes a second to import

    decodings = tuple(dict.fromkeys(line.decoding for line in lines))
    size = (max(4.0, 0.7 * len(methods) + 1.5) * len(decodings), 4.4)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    for axes, decoding in zip(figure.subplots(1, len(decodings), squeeze=False)[0], decodings, strict=True):
        for place, line in enumerate(line for line in lines if line.decoding == decoding):
            found = line.over_seeds
            ends = (
                []
                if found.interval is None
                else [[found.mean - found.interval.low], [found.interval.high - found.mean]]
            )
            axes.bar(place, found.mean, 0.7, color=_style(place)[0], yerr=ends or None, capsize=3)
            axes.annotate(
                f"{found.mean:.1f}",
                (place, 0),
                (0, 3),
                textcoords="offset points",
                ha="center",
                color="white",
                fontsize=8,
            )
        for reference, dash in zip(references, DASHES[1:] * len(references), strict=False):
            for score in reference.test.scores:
                if score.headline and score.decoding == decoding:
                    axes.axhline(score.value, color=REFERENCE, linestyle=dash, linewidth=1, label=reference.name)
        axes.set_xticks(range(len(methods)), [method.variant.label for method in methods], rotation=35, ha="right")
        axes.set_title(f"test, {decoding}", fontsize=10)
        axes.set_ylabel(lines[0].metric)
        _dress(axes)
        if references:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def draw_curves(methods: Sequence[Method], path: Path) -> None:
    """Curves on validation: over steps and over seconds of training, mean over the seeds with 95% intervals.

    Args:
        methods: whose runs were evaluated at the same steps.
        path: a PNG; its folder exists.
    """
    from matplotlib.figure import Figure

    scores = methods[0].runs[0].record.curve[-1].scores
    figure = Figure(figsize=(11, 3.8 * len(scores)), dpi=150, layout="constrained")
    for (by_step, by_second), score in zip(figure.subplots(len(scores), 2, squeeze=False), scores, strict=True):
        for place, method in enumerate(methods):
            points = list(zip(*(run.record.curve for run in method.runs), strict=True))
            values = [[s.value for point in at for s in point.scores if s.decoding == score.decoding] for at in points]
            summaries = [seed_summary(each) for each in values]
            steps = [at[0].step for at in points]
            seconds = [fmean(point.seconds for point in at) for at in points]
            colour, dash = _style(place)
            for axes, places in ((by_step, steps), (by_second, seconds)):
                means = [each.mean for each in summaries]
                axes.plot(places, means, dash, color=colour, marker="o", markersize=3, label=method.variant.label)
                low = [each.interval.low if each.interval else each.mean for each in summaries]
                high = [each.interval.high if each.interval else each.mean for each in summaries]
                axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
        for axes, label in ((by_step, "optimiser steps"), (by_second, "seconds of training")):
            axes.set_xlabel(label)
            axes.set_ylabel(score.metric)
            axes.set_title(f"validation, {score.decoding}", fontsize=10)
            _dress(axes)
        by_step.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _style(place: int) -> tuple[str, str]:
    """Colour and dash of the method at a place of the recipe, the same in every plot."""
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]


def _dress(axes: Axes) -> None:
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
