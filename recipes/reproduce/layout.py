"""What a verdict consists of, and its tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tables import DECODINGS, Estimated, Incomplete, Part, shown


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe table: columns of figures to the right, the first one and those with words to the left."""
    columns = [[row[number] for row in rows] for number in range(len(header))]
    rule = ["---:" if number and all(map(_is_figure, column)) else "---" for number, column in enumerate(columns)]
    lines = [header, rule, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _is_figure(cell: str) -> bool:
    """Whether a cell begins with a figure, or is the dash for none."""
    return cell[:1] in "0123456789-–"


@dataclass(frozen=True)
class Panel:
    """One plot of a claim's figure.

    Attributes:
        title, x_label, y_label: texts; no x_label where x is a name.
        series: name -> x -> estimate. Where x is a number the points are joined.
    """

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Mapping[Any, Estimated]]


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Attributes:
        claim: its number.
        title: the claim.
        published: what the paper found.
        checks: whether each thing held that the criterion asks for.
        criterion: what had to hold.
        table: header and rows.
        found: what the outcome rests on; several things in several lines.
        parts: whose tables it is made from.
        panels: of its figure.
    """

    claim: int
    title: str
    published: str
    checks: Sequence[bool]
    criterion: str
    table: tuple[Sequence[str], Sequence[Sequence[str]]]
    found: str
    parts: tuple[str, ...]
    panels: tuple[Panel, ...]

    def __post_init__(self) -> None:
        """Raises Incomplete where nothing was checked."""
        if not self.checks:
            raise Incomplete("no run to judge it by")

    @property
    def outcome(self) -> str:
        """All, some or none of what the claim says."""
        if all(self.checks):
            return "reproduced"
        return "reproduced in part" if any(self.checks) else "not reproduced"

    @property
    def anchor(self) -> str:
        """For links within the page."""
        return f"claim-{self.claim}"

    @property
    def figure(self) -> str:
        """The file of its figure, beside the page."""
        return f"claim-{self.claim}.png"


def values_table(part: Part, methods: list[str]) -> tuple[list[str], list[list[str]]]:
    """The headline metric on test by method and decoding; the initial students and the teacher below."""
    rows = [[m, *(shown(*part.line(m, d).value) for d in DECODINGS)] for m in methods]
    for name, shown_as in {**part.initial_students, **part.teachers}.items():
        values = [part.reference(name, d) for d in DECODINGS]
        if None not in values:
            rows.append([shown_as, *(shown(value) for value in values if value is not None)])
    return [f"{part.metric} on the test split [over seeds]", *DECODINGS], rows


def metric_panel(part: Part, title: str = "", numbers: Mapping[str, float] | None = None, x_label: str = "") -> Panel:
    """The headline metric on test by method, or over the number that a method stands for."""
    series = {d: {(numbers or {}).get(m, m): part.line(m, d).value for m in part.methods} for d in DECODINGS}
    return Panel(title, x_label, f"{part.metric}, test", series)
