"""Line charts, trajectories and stacked bars as inline SVG: text stays text, colours come from the page's style sheet.

Series differ by colour and by dash; both hang on the series' slot (`look`). Every chart has a title and a description in words
for screen readers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
from markupsafe import Markup

SLOTS = 8  # colours in the style sheet, and as many dashes
_WIDTH, _HEIGHT = 380, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 10, 12, 38
_SMOOTH_FROM = 60  # points; fewer are drawn as they are
_MARKERS_TO = 16
_FIRST_RADIUS, _LAST_RADIUS = 2.0, 5.0  # pixels, of a trajectory's markers
_LABEL_CHARACTERS = 6  # of a tick's label; 11 px text of more reaches from the axis to its name
_DODGE = 3.0  # pixels between the intervals of two series, at most


class Point(NamedTuple):
    """A point of a curve, with the ends of its interval where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
        label: its name.
        slot: picks colour and dash.
        points: by ascending x, all finite.
        hollow: drawn thin with hollow markers: the state before training.
    """

    label: str
    slot: int
    points: tuple[Point, ...]
    hollow: bool = False


class Moment(NamedTuple):
    """Two measures at a step."""

    step: int
    x: float
    y: float


@dataclass(frozen=True)
class Trajectory:
    """How two measures move together.

    Attributes:
        label: its name.
        slot: picks colour and dash.
        moments: by ascending step, all finite.
    """

    label: str
    slot: int
    moments: tuple[Moment, ...]


@dataclass(frozen=True)
class Scale:
    """A linear map from data to pixels.

    Attributes:
        low, high: the data's range.
        start, end: where these two lie, in pixels.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that span low..high: multiples of 1, 2 or 5 times a power of ten.

    Raises:
        ValueError: low is not below high.
    """
    if not low < high:
        raise ValueError(f"ticks need low < high, got {low} and {high}")
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def tick_labels(marks: Sequence[float]) -> list[str]:
    """The marks of one axis as texts of one kind: "0.0125", or "1.25e-4" where one would run into the axis' name."""
    labels = [_number(mark) for mark in marks]
    if all(len(label) <= _LABEL_CHARACTERS and "e" not in label for label in labels):
        return labels
    return [_scientific(mark) for mark in marks]


def running_mean(points: Sequence[Point], window: int) -> list[Point]:
    """Means of y over `window` neighbours centred on each point; fewer at the ends."""
    half, count = window // 2, len(points)
    around = np.ones(2 * half + 1)
    # Every window is added up by itself: differences of running totals lose what is small behind one huge value.
    sums = np.convolve([point.y for point in points], around)[half : half + count]
    counts = np.convolve(np.ones(count), around)[half : half + count]
    return [Point(point.x, y) for point, y in zip(points, (sums / counts).tolist(), strict=True)]


def line_chart(title: str, series: Sequence[Series], *, x_label: str, y_label: str) -> Markup:
    """A chart of curves over one pair of axes.

    Curves of 60 points and more are drawn faintly, with their running mean over a thirtieth of the points on top.

    Args:
        title: what it shows; hidden in the drawing, read aloud.
        series: those with points are drawn; at least one has some.
        x_label, y_label: of the axes.

    Raises:
        ValueError: no points, or one that is not finite.
    """
    points = [point for curve in series for point in curve.points]
    if not points or not all(math.isfinite(point.x) and math.isfinite(point.y) for point in points):
        raise ValueError(f"chart {title!r} needs points, all of them finite")
    ends = [y for point in points for y in (point.y, point.low, point.high) if y is not None and math.isfinite(y)]
    svg = _canvas(title, _describe(series, y_label), _WIDTH, _HEIGHT)
    x, y = _axes(svg, [point.x for point in points], ends, x_label, y_label)
    dodge = _dodge(series, x)
    for curve in series:
        if curve.points:
            _curve(svg, curve, x, y, dodge)
    return _markup(svg)


def trajectory_chart(title: str, trajectories: Sequence[Trajectory], *, x_label: str, y_label: str) -> Markup:
    """A chart of one measure against another, joined in the order of the steps; the later a moment, the larger its marker.

    Args:
        title: what it shows; hidden in the drawing, read aloud.
        trajectories: those with moments are drawn; at least one has some.
        x_label, y_label: of the axes.

    Raises:
        ValueError: no moments, or one that is not finite.
    """
    moments = [moment for trajectory in trajectories for moment in trajectory.moments]
    if not moments or not all(math.isfinite(moment.x) and math.isfinite(moment.y) for moment in moments):
        raise ValueError(f"chart {title!r} needs moments, all of them finite")
    drawn = [trajectory for trajectory in trajectories if trajectory.moments]
    svg = _canvas(title, _describe_ways(drawn, x_label, y_label), _WIDTH, _HEIGHT)
    x, y = _axes(svg, [moment.x for moment in moments], [moment.y for moment in moments], x_label, y_label)
    for trajectory in drawn:
        colour = f"s{trajectory.slot % SLOTS}"
        points = [Point(moment.x, moment.y) for moment in trajectory.moments]
        SubElement(svg, "path", {"class": f"line way {look(trajectory.slot)}", "d": _path(points, x, y)})
        last = max(1, len(points) - 1)
        for place, moment in enumerate(trajectory.moments):
            words = f"{trajectory.label}, step {moment.step:,}: {x_label} {_number(moment.x)}, {y_label} {_number(moment.y)}"
            radius = _FIRST_RADIUS + (_LAST_RADIUS - _FIRST_RADIUS) * place / last
            _marker(svg, x(moment.x), y(moment.y), radius, colour, words)
    return _markup(svg)


def stacked_bars(title: str, bars: Mapping[str, Mapping[str, float]], slots: Mapping[str, int], unit: str) -> Markup:
    """Horizontal bars, one a label, cut into parts.

    Args:
        title: read aloud.
        bars: label -> part -> size, not negative; at least one is above 0.
        slots: part -> colour.
        unit: of the sizes.

    Raises:
        ValueError: nothing to draw.
    """
    longest = max((math.fsum(parts.values()) for parts in bars.values()), default=0.0)
    if not longest > 0:
        raise ValueError(f"chart {title!r} has nothing to draw")
    marks = ticks(0, longest)
    width, row = 760, 44
    x = Scale(0, marks[-1], 8, width - 12)
    described = "; ".join(
        f"{label}: " + ", ".join(f"{part} {size:.1f} {unit}" for part, size in parts.items())
        for label, parts in bars.items()
    )
    svg = _canvas(title, described, width, row * len(bars) + 42)
    bottom = row * len(bars) + 4
    for mark in marks:
        _line(svg, x(mark), 0, x(mark), bottom, "grid")
        _text(svg, x(mark), bottom + 16, _number(mark), "tick middle")
    for i, (label, parts) in enumerate(bars.items()):
        _text(svg, x(0), i * row + 14, label, "bar-label")
        start = 0.0
        for part, size in parts.items():
            segment = SubElement(
                svg, "rect", {"class": f"part f{slots[part] % SLOTS}", "x": _px(x(start)), "y": str(i * row + 19),
                "width": _px(x(start + size) - x(start)), "height": "18"},
            )  # fmt: skip
            SubElement(segment, "title").text = f"{label}, {part}: {size:.1f} {unit}"
            start += size
    _text(svg, width / 2, bottom + 32, unit, "axis-label middle")
    return _markup(svg)


def swatch(slot: int) -> Markup:
    """A short piece of a series' line, for legends."""
    svg = Element("svg", {"class": "swatch", "viewBox": "0 0 30 10", "aria-hidden": "true"})
    SubElement(svg, "path", {"class": f"line {look(slot)}", "d": "M1 5H29"})
    return _markup(svg)


def look(slot: int) -> str:
    """The classes of a line's colour and dash: every slot below the square of `SLOTS` has a pair of its own."""
    return f"s{slot % SLOTS} d{(slot + slot // SLOTS) % SLOTS}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    """What an axis spans: from 0 where that costs less than half of it, never a single value."""
    low, high = min(values), max(values)
    if 0 < low < high / 2:
        low = 0.0
    if low == high:
        return (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    return low, high


def _describe(series: Sequence[Series], y_label: str) -> str:
    parts = []
    for curve in series:
        if curve.points:
            values = [point.y for point in curve.points]
            parts.append(
                f"{_name(curve)}: first {_number(values[0])}, "
                f"last {_number(values[-1])}, lowest {_number(min(values))}, highest {_number(max(values))}"
            )
    return f"{y_label}. " + "; ".join(parts) + "."


def _name(curve: Series) -> str:
    return f"{curve.label} before training" if curve.hollow else curve.label


def _describe_ways(trajectories: Sequence[Trajectory], x_label: str, y_label: str) -> str:
    parts = []
    for trajectory in trajectories:
        ends = [
            f"{x_label} {_number(moment.x)} and {y_label} {_number(moment.y)} at step {moment.step:,}"
            for moment in (trajectory.moments[0], trajectory.moments[-1])
        ]
        parts.append(f"{trajectory.label}: from {ends[0]} to {ends[1]}")
    return "; ".join(parts) + "."


def _axes(
    svg: Element, across: Sequence[float], up: Sequence[float], x_label: str, y_label: str
) -> tuple[Scale, Scale]:
    """Both axes with their grid, over these values."""
    low, high = _range(across)
    x = Scale(low, high, _LEFT, _WIDTH - _RIGHT)
    y_ticks = ticks(*_range(up))
    y = Scale(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    x_ticks = [mark for mark in ticks(low, high) if low <= mark <= high]
    _grid(svg, x, y, x_ticks, y_ticks, x_label, y_label)
    return x, y


def _grid(
    svg: Element, x: Scale, y: Scale, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str
) -> None:
    for mark, text in zip(y_ticks, tick_labels(y_ticks), strict=True):
        _line(svg, x.start, y(mark), x.end, y(mark), "grid")
        _text(svg, x.start - 6, y(mark) + 4, text, "tick end")
    for mark, text in zip(x_ticks, tick_labels(x_ticks), strict=True):
        _line(svg, x(mark), y.start, x(mark), y.start + 4, "axis")
        _text(svg, x(mark), y.start + 17, text, "tick middle")
    _line(svg, x.start, y.start, x.end, y.start, "axis")
    _text(svg, (x.start + x.end) / 2, _HEIGHT - 4, x_label, "axis-label middle")
    label = _text(svg, 0, 0, y_label, "axis-label middle")
    label.set("transform", f"translate(10 {_px((y.start + y.end) / 2)}) rotate(-90)")


def _dodge(series: Sequence[Series], x: Scale) -> float:
    """Pixels between the intervals of two slots: the last one's stays in the plane's margin, and nearer to its own point than to
    the next, within a quarter of the way there."""
    gaps = [x(b.x) - x(a.x) for curve in series for a, b in pairwise(curve.points) if b.x > a.x]
    reach = min([gap / 4 for gap in gaps] + [_RIGHT - 1])
    return min(_DODGE, reach / max([1, *(curve.slot for curve in series)]))


def _curve(svg: Element, curve: Series, x: Scale, y: Scale, dodge: float) -> None:
    hollow = " hollow" if curve.hollow else ""
    colour, line = f"s{curve.slot % SLOTS}{hollow}", f"line {look(curve.slot)}{hollow}"
    points: Sequence[Point] = curve.points
    if len(points) >= _SMOOTH_FROM:
        SubElement(svg, "path", {"class": f"{line} faint", "d": _path(points, x, y)})
        points = running_mean(points, len(points) // 30)
    for point in points:
        if point.low is not None and point.high is not None:
            across = x(point.x) + dodge * curve.slot
            _line(svg, across, y(point.low), across, y(point.high), f"interval {colour}")
    if len(points) > 1:
        SubElement(svg, "path", {"class": line, "d": _path(points, x, y)})
    if len(points) <= _MARKERS_TO:
        for point in points:
            words = f"{_name(curve)}, {_number(point.x)}: {_number(point.y)}"
            _marker(svg, x(point.x), y(point.y), 3, colour, words)


def _path(points: Sequence[Point], x: Scale, y: Scale) -> str:
    return "M" + "L".join(f"{_px(x(point.x))} {_px(y(point.y))}" for point in points)


def _marker(svg: Element, x: float, y: float, radius: float, colour: str, words: str) -> None:
    place = {"cx": _px(x), "cy": _px(y), "r": _px(radius)}
    marker = SubElement(svg, "circle", {"class": f"marker {colour}", **place})
    SubElement(marker, "title").text = words


def _canvas(title: str, description: str, width: int, height: int) -> Element:
    svg = Element("svg", {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": f"{title}. {description}"})
    SubElement(svg, "title").text = title
    SubElement(svg, "desc").text = description
    return svg


def _line(svg: Element, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
    SubElement(svg, "line", {"class": kind, "x1": _px(x1), "y1": _px(y1), "x2": _px(x2), "y2": _px(y2)})


def _text(svg: Element, x: float, y: float, text: str, kind: str) -> Element:
    element = SubElement(svg, "text", {"class": kind, "x": _px(x), "y": _px(y)})
    element.text = text
    return element


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _number(value: float) -> str:
    """Four significant digits, thousands grouped: "1,200", "0.0125"."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _scientific(value: float) -> str:
    """Three significant digits: "1.5e-4", "2e6", "0"."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return "0" if value == 0 else f"{float(mantissa):g}e{int(exponent)}"


def _markup(svg: Element) -> Markup:
    # ElementTree has escaped every text and attribute.
    return Markup(tostring(svg, encoding="unicode", short_empty_elements=False))
