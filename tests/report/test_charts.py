import math
import re
from importlib import resources
from xml.etree.ElementTree import Element, fromstring

import pytest

from tutelage.report.charts import (
    SLOTS,
    Moment,
    Point,
    Scale,
    Series,
    Trajectory,
    line_chart,
    look,
    running_mean,
    stacked_bars,
    swatch,
    tick_labels,
    ticks,
    trajectory_chart,
)


def draw(*series: Series) -> Element:
    return fromstring(line_chart("Loss", series, x_label="step", y_label="nats"))


def of_class(svg: Element, name: str) -> list[Element]:
    return [element for element in svg.iter() if name in element.get("class", "").split()]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0, 24, [0, 5, 10, 15, 20, 25]),
        (0.012, 0.047, [0.01, 0.02, 0.03, 0.04, 0.05]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (980, 1020, [980, 990, 1000, 1010, 1020]),
    ],
)
def test_ticks_are_round_and_span_the_data(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def test_ticks_need_a_span() -> None:
    with pytest.raises(ValueError, match="low < high"):
        ticks(1, 1)


@pytest.mark.parametrize(
    ("marks", "labels"),
    [
        ([0, 0.0005, 0.001], ["0", "0.0005", "0.001"]),
        ([0, 5e-05, 0.0001, 0.00015], ["0", "5e-5", "1e-4", "1.5e-4"]),
        ([-0.00025, 0], ["-2.5e-4", "0"]),
        ([0, 20_000, 40_000], ["0", "20,000", "40,000"]),
        ([0, 500_000, 1_000_000], ["0", "5e5", "1e6"]),
    ],
)
def test_labels_of_an_axis_are_short_and_of_one_kind(marks: list[float], labels: list[str]) -> None:
    assert tick_labels(marks) == labels


def test_labels_of_a_learning_rate_leave_room_for_the_axis_name() -> None:
    svg = draw(Series("a", 0, tuple(Point(step, 1.75e-4 * step / 3) for step in range(4))))
    labels = [e.text or "" for e in of_class(svg, "end")]
    assert labels == ["0", "5e-5", "1e-4", "1.5e-4", "2e-4"]
    # A digit of the sheet's 11 px text is 6.2 px wide; the name stands in the first 13 px.
    assert all(54 - 6.2 * len(label) > 13 for label in labels)


def test_a_scale_is_linear() -> None:
    scale = Scale(10, 20, 100, 0)
    assert [scale(value) for value in (10, 15, 20)] == [100, 50, 0]


def test_points_lie_where_the_axes_say() -> None:
    svg = draw(Series("a", 0, (Point(0, 0), Point(50, 4), Point(100, 10))))
    assert svg.get("viewBox") == "0 0 380 230"
    markers = [(float(m.get("cx", "")), float(m.get("cy", ""))) for m in of_class(svg, "marker")]
    # The plane spans 60..370 across and 192..12 upwards.
    assert markers == [(60, 192), (215, 120), (370, 12)]
    (line,) = of_class(svg, "line")
    assert line.get("d") == "M60 192L215 120L370 12"
    labels = {e.text: (e.get("x"), e.get("y")) for e in of_class(svg, "tick")}
    assert labels["10"] == ("54", "16")
    assert labels["100"] == ("370", "209")


def test_an_axis_starts_at_zero_only_where_little_is_lost() -> None:
    near = draw(Series("a", 0, (Point(1, 90), Point(2, 100))))
    far = draw(Series("a", 0, (Point(1, 20), Point(2, 100))))
    texts = [next(e.text for e in of_class(svg, "end")) for svg in (near, far)]
    assert texts == ["90", "0"]


def test_a_constant_curve_and_a_single_point_are_drawn() -> None:
    svg = draw(Series("a", 0, (Point(5, 2),)))
    (marker,) = of_class(svg, "marker")
    assert marker.get("cy") == "102"
    assert of_class(svg, "line") == []


def test_intervals_of_two_series_stand_beside_each_other() -> None:
    points = (Point(0, 5, 0, 10), Point(1, 5, 2, 8))
    svg = draw(Series("a", 0, points), Series("b", 1, points))
    bars = [(e.get("x1"), e.get("y1"), e.get("y2")) for e in of_class(svg, "interval")]
    assert bars == [("60", "192", "12"), ("370", "156", "48"), ("63", "192", "12"), ("373", "156", "48")]


def test_intervals_stay_near_their_points_and_in_the_drawing() -> None:
    # The plane spans 60..370 of 380: eleven points are 31 apart, a quarter of which is 7.75; two are 310 apart.
    for count, reach in ((11, 7.75), (2, 9)):
        points = tuple(Point(i, 5, 0, 10) for i in range(count))
        svg = draw(*(Series(str(slot), slot, points) for slot in range(13)))
        shifts = [float(e.get("x1", "")) - 60 for e in of_class(svg, "interval")][::count]
        assert shifts == pytest.approx([reach * slot / 12 for slot in range(13)], abs=0.051)  # rounded to a tenth


def test_no_two_of_many_series_look_alike() -> None:
    points = (Point(0, 1), Point(1, 2))
    svg = draw(*(Series(str(slot), slot, points) for slot in range(20)))
    looks = [line.get("class", "").split()[1:] for line in of_class(svg, "line")]
    assert len({tuple(each) for each in looks}) == 20
    assert (looks[0], looks[8]) == (["s0", "d0"], ["s0", "d1"])
    assert {tuple(fromstring(swatch(slot))[0].get("class", "").split()[1:]) for slot in range(20)} == {
        tuple(each) for each in looks
    }
    way = trajectory_chart("KL", [Trajectory("a", 8, (Moment(1, 0, 0), Moment(2, 1, 1)))], x_label="x", y_label="y")
    assert of_class(fromstring(way), "way")[0].get("class") == "line way s0 d1"
    assert len({look(slot) for slot in range(64)}) == 64


def test_the_style_sheet_has_every_colour_and_dash() -> None:
    sheet = resources.files("tutelage.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    colours, dashes = (re.findall(pattern, sheet) for pattern in (r"\.s(\d) \{ --c", r"\.d(\d) \{ --d: ([\d ]+);"))
    assert colours == [str(slot) for slot in range(SLOTS)]
    assert [number for number, _ in dashes] == [str(slot) for slot in range(1, SLOTS)]  # d0 is a whole line
    assert len({dash for _, dash in dashes}) == SLOTS - 1


def test_many_points_are_smoothed_and_few_are_not() -> None:
    noisy = tuple(Point(i, i % 2) for i in range(90))
    svg = draw(Series("a", 0, noisy))
    faint, strong = of_class(svg, "line")
    assert "faint" in faint.get("class", "")
    assert faint.get("d") != strong.get("d")
    assert len(of_class(draw(Series("a", 0, noisy[:59])), "line")) == 1


def test_running_mean() -> None:
    points = [Point(i, y) for i, y in enumerate((0.0, 3.0, 6.0, 3.0))]
    assert [p.y for p in running_mean(points, 3)] == [1.5, 3.0, 4.0, 4.5]
    assert running_mean(points, 1) == points


def test_a_running_mean_keeps_what_is_small_behind_a_spike() -> None:
    ys = [1.0, 2.0, 1e30, *(0.1 * i for i in range(200))]
    smooth = running_mean([Point(i, y) for i, y in enumerate(ys)], 7)
    expected = [math.fsum(near) / len(near) for near in (ys[max(0, i - 3) : i + 4] for i in range(len(ys)))]
    assert [p.y for p in smooth] == pytest.approx(expected, rel=1e-12)
    assert [p.x for p in smooth] == list(range(203))


def test_a_running_mean_reads_a_point_once_however_wide_its_window() -> None:
    reads = 0

    class Counted:
        x = 0.0

        @property
        def y(self) -> float:
            nonlocal reads
            reads += 1
            return 2.0

    assert {p.y for p in running_mean([Counted()] * 300, 30)} == {2.0}  # type: ignore[list-item]
    assert reads == 300


def test_points_before_training_say_so_when_pointed_at() -> None:
    points = (Point(0, 1), Point(1, 3))
    svg = draw(Series("a", 0, points, hollow=True), Series("a", 0, points))
    assert [m.findtext("title") for m in of_class(svg, "marker")] == [
        "a before training, 0: 1", "a before training, 1: 3", "a, 0: 1", "a, 1: 3",
    ]  # fmt: skip


def test_words_for_screen_readers_and_hostile_labels() -> None:
    svg = draw(Series("a<b>&\"'", 2, (Point(0, 0.5), Point(1, 2.25))), Series("old", 3, (Point(0, 1),), hollow=True))
    assert svg.get("role") == "img"
    title, description = svg.find("title"), svg.find("desc")
    assert title is not None
    assert description is not None
    assert title.text == "Loss"
    assert description.text == (
        "nats. a<b>&\"': first 0.5, last 2.25, lowest 0.5, highest 2.25; "
        "old before training: first 1, last 1, lowest 1, highest 1."
    )
    assert svg.get("aria-label") == f"Loss. {description.text}"


@pytest.mark.parametrize("points", [(), (Point(0, math.inf),), (Point(0, math.nan),)])
def test_nothing_to_draw_is_an_error(points: tuple[Point, ...]) -> None:
    with pytest.raises(ValueError, match="finite"):
        draw(Series("a", 0, points))


def test_bars_are_stacked_to_scale() -> None:
    chart = stacked_bars(
        "Time", {"a": {"write": 30.0, "mark": 10.0}, "b": {"mark": 5.0}}, {"write": 0, "mark": 1}, "seconds"
    )
    svg = fromstring(chart)
    parts = [(e.get("class"), float(e.get("x", "")), float(e.get("width", ""))) for e in of_class(svg, "part")]
    unit = (760 - 20) / 40
    assert parts == [("part f0", 8, 30 * unit), ("part f1", 8 + 30 * unit, 10 * unit), ("part f1", 8, 5 * unit)]
    with pytest.raises(ValueError, match="nothing to draw"):
        stacked_bars("Time", {"a": {}}, {}, "seconds")


def test_a_trajectory_keeps_the_order_of_its_steps_and_grows() -> None:
    way = Trajectory("a", 1, (Moment(10, 0, 0), Moment(20, 100, 4), Moment(30, 50, 10)))
    svg = fromstring(trajectory_chart("KL", [way, Trajectory("b", 2, ())], x_label="reward", y_label="nats"))
    # The plane spans 60..370 across and 192..12 upwards.
    (line,) = of_class(svg, "way")
    assert line.get("d") == "M60 192L370 120L215 12"
    assert [m.get("r") for m in of_class(svg, "marker")] == ["2", "3.5", "5"]
    assert {m.get("class") for m in of_class(svg, "marker")} == {"marker s1"}
    assert [m.findtext("title") for m in of_class(svg, "marker")][1] == "a, step 20: reward 100, nats 4"
    assert (svg.findtext("title"), svg.findtext("desc")) == (
        "KL", "a: from reward 0 and nats 0 at step 10 to reward 50 and nats 10 at step 30.",
    )  # fmt: skip


@pytest.mark.parametrize("moments", [(), (Moment(1, math.nan, 0),), (Moment(1, 0, math.inf),)])
def test_a_trajectory_needs_finite_moments(moments: tuple[Moment, ...]) -> None:
    with pytest.raises(ValueError, match="moments, all of them finite"):
        trajectory_chart("KL", [Trajectory("a", 0, moments)], x_label="reward", y_label="nats")
