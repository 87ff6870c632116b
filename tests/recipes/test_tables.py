"""The stored tables as the verdicts read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.recipes.conftest import AHEAD, judged, write


def test_a_part_with_more_methods_adds_those_that_the_other_lacks(scripts: dict[str, Any], tmp_path: Path) -> None:
    write(
        tmp_path / "divergences_more",
        {method: [1.0, 1.0, 1.0] for method in AHEAD} | {"on-policy GKD jsd(0.1)": [33.0, 34.0, 35.0]},
    )
    alone = scripts["tables"].Part(tmp_path / "divergences")
    assert alone.is_there
    assert alone.per_seed("on-policy GKD forward_kl", "accuracy", "greedy") == {0: 1.0, 1: 1.0, 2: 1.0}
    write(tmp_path / "divergences", AHEAD)
    both = scripts["tables"].Part(tmp_path / "divergences")
    assert both.methods == [*AHEAD, "on-policy GKD jsd(0.1)"]
    assert both.per_seed("on-policy GKD forward_kl", "accuracy", "greedy") == {0: 30.0, 1: 31.0, 2: 32.0}
    assert both.line("on-policy GKD reverse_kl", "greedy").value[0] == 29.0
    verdict = judged(scripts, "divergence_depends", tmp_path)
    assert "greedy: best on-policy GKD jsd(0.1)" in verdict.found
    page = scripts["verdicts"].section(verdict, tmp_path)
    assert "Tables: [divergences](divergences/results.md), [divergences_more](divergences_more/results.md)." in page
    assert "- on-policy GKD jsd(0.1): other runs (divergences_more) than the rest of divergences, not paired by" in page


ADDED = {"on-policy GKD jsd(0.1)": [30.5, 31.5, 32.5]}


def test_runs_that_came_out_alike_are_paired_across_parts(scripts: dict[str, Any], tmp_path: Path) -> None:
    """Paired, every seed is ahead by 0.5; unpaired, the seeds' spread hides it."""
    tables, ours, other = scripts["tables"], "on-policy GKD jsd(0.1)", "on-policy GKD forward_kl"
    write(tmp_path / "same" / "divergences", AHEAD)
    write(tmp_path / "same" / "divergences_more", {**AHEAD, **ADDED})
    same = tables.Part(tmp_path / "same" / "divergences")
    assert same.lead(ours, other, "greedy") == (0.5, tables.Interval(0.5, 0.5))
    assert tables.about_other_runs(same.folder) == ""
    write(tmp_path / "apart" / "divergences", AHEAD)
    write(tmp_path / "apart" / "divergences_more", {**AHEAD, other: [30.0, 31.0, 32.1], **ADDED})
    parted = tables.Part(tmp_path / "apart" / "divergences")
    lead, ends = parted.lead(ours, other, "greedy")
    # Variances of 1, three seeds: four degrees of freedom, 2.776 * sqrt(2 / 3).
    assert (lead, ends.low, ends.high) == pytest.approx((0.5, 0.5 - 2.2669, 0.5 + 2.2669), abs=1e-3)
    assert parted.lead("on-policy GKD reverse_kl", other, "greedy") == (-2.0, tables.Interval(-2.0, -2.0))
    assert tables.about_other_runs(parted.folder).startswith(f"{ours}: other runs (divergences_more)")


def test_parts_without_a_common_run_are_not_paired(scripts: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "later", AHEAD, initial=5.0)
    write(tmp_path / "later_more", ADDED, initial=5.0)
    origins = scripts["tables"].origins(tmp_path / "later", "runs.csv")
    assert origins == {**dict.fromkeys(AHEAD, "later"), **dict.fromkeys(ADDED, "later_more")}
    alone = scripts["tables"].origins(tmp_path / "nothing", "runs.csv")
    assert alone == {}


def test_welchs_interval(scripts: dict[str, Any]) -> None:
    apart, interval = scripts["tables"].apart, scripts["tables"].Interval
    # Variances 4 and 1 of three values: 2.94 degrees of freedom, taken as 2, whose t is 4.3027; the standard error sqrt(5 / 3).
    lead, ends = apart({0: 8.0, 1: 10.0, 2: 12.0}, {0: 4.0, 1: 5.0, 2: 6.0})
    assert (lead, ends.low, ends.high) == pytest.approx((5.0, 5 - 5.5547, 5 + 5.5547), abs=1e-3)
    assert apart({0: 8.0}, {0: 4.0, 1: 6.0}) == (3.0, None)
    assert apart({0: 8.0, 1: 8.0}, {0: 4.0, 1: 4.0}) == (4.0, interval(4.0, 4.0))


def test_a_folder_without_the_table_is_not_there(scripts: dict[str, Any], tmp_path: Path) -> None:
    tables = scripts["tables"]
    (tmp_path / "divergences").mkdir()
    (tmp_path / "diversity").mkdir()
    assert not tables.Part(tmp_path / "divergences").is_there
    assert judged(scripts, "quality_and_diversity", tmp_path) is None
    write(tmp_path / "divergences_more", AHEAD)
    part = tables.Part(tmp_path / "divergences")
    assert part.methods == list(AHEAD)
    assert part.per_seed("on-policy GKD forward_kl", "accuracy", "greedy") == {0: 30.0, 1: 31.0, 2: 32.0}
