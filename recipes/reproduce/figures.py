"""The figure of a claim: its panels side by side, every point with its 95% interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from layout import Panel

from tutelage.compare.plot import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHAPES = ("o", "s", "D", "^", "v")
MOST_IN_A_ROW = 3
APART = 0.16  # between the series of one name, in names


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Writes the panels as one PNG.

    Args:
        panels: from left to right, in rows of at most three; those over names are drawn with the names down the left side.
        path: of the file; its folder exists.
    """
    from matplotlib.figure import Figure  # takes a second to import

    longest = max(len(points) for panel in panels for points in panel.series.values())
    over_names = any(_is_over_names(panel) for panel in panels)
    height = 1.3 + 0.42 * longest if over_names else 3.4
    rows = math.ceil(len(panels) / MOST_IN_A_ROW)
    columns = math.ceil(len(panels) / rows)
    size = ((6.2 if over_names else 4.4) * columns, height * rows)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in places[len(panels) :]:
        axes.remove()
    for axes, panel in zip(places, panels, strict=False):
        _over_names(axes, panel) if _is_over_names(panel) else _over_numbers(axes, panel)
        axes.set_title(panel.title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x" if over_names else "y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        if len(panel.series) > 1:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _is_over_names(panel: Panel) -> bool:
    return any(isinstance(x, str) for points in panel.series.values() for x in points)


def _over_names(axes: Axes, panel: Panel) -> None:
    """Names down the left side, values to the right."""
    names = list(dict.fromkeys(x for points in panel.series.values() for x in points))
    for number, (label, points) in enumerate(panel.series.items()):
        shift = (number - (len(panel.series) - 1) / 2) * APART
        for place, name in enumerate(names):
            if name in points:
                value, interval = points[name]
                if interval is not None:
                    axes.plot([interval.low, interval.high], [place + shift] * 2, color=COLOURS[number], linewidth=1.2)
                once = label if place == 0 else None
                axes.plot(value, place + shift, SHAPES[number], color=COLOURS[number], markersize=5, label=once)
    axes.set_yticks(range(len(names)), [str(name) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(panel.y_label)
    if panel.y_label.startswith("gain"):
        axes.axvline(0, color="black", linewidth=0.8)


def _over_numbers(axes: Axes, panel: Panel) -> None:
    """Numbers along the bottom, points joined."""
    for number, (label, points) in enumerate(panel.series.items()):
        along = sorted(x for x in points if not isinstance(x, str))
        values = [points[x][0] for x in along]
        axes.plot(along, values, "-" + SHAPES[number], color=COLOURS[number], markersize=4, linewidth=1.2, label=label)
        for x in along:
            interval = points[x][1]
            if interval is not None:
                axes.plot([x, x], [interval.low, interval.high], color=COLOURS[number], linewidth=1)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
