"""The stored tables as the verdicts read them."""

from __future__ import annotations

import csv
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


def test_a_repetition_that_came_out_otherwise_has_to_hold_too(scripts: dict[str, Any], tmp_path: Path) -> None:
    """Claim 7: the same method and seeds on another processor, whose gain is not sure."""
    itself = "the teacher itself, on-policy GKD, teacher at temperature 0.5"
    write(tmp_path / "self", {itself: [99.0, 99.5]}, gains={itself: (2.4, 0.1, 5.3)}, initial=88.0)
    assert list(judged(scripts, "self_distillation", tmp_path).checks) == [True, True]
    again = {itself: [99.0, 99.6], "carried student, on-policy GKD": [35.0, 36.0]}
    write(tmp_path / "self_more", again, gains={itself: (2.5, -0.1, 5.6)}, initial=88.0)
    verdict = judged(scripts, "self_distillation", tmp_path)
    assert list(verdict.checks) == [False, False]
    both = "2.4 [0.1, 5.3] points ahead of its teacher; repeated (self_more), 2.5 [-0.1, 5.6] points ahead of it."
    assert f"{itself}, greedy: {both}" in verdict.found
    assert "carried student, on-policy GKD, greedy: 62.5 [56.1, 68.9] points behind its teacher." in verdict.found
    assert "the repetition has to hold too" in verdict.criterion


def test_runs_that_came_out_alike_are_no_repetition(scripts: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "divergences", AHEAD)
    write(tmp_path / "divergences_more", {**AHEAD, **ADDED})
    part = scripts["tables"].Part(tmp_path / "divergences")
    assert part.repeated is None
    assert part.repeated_lead(*AHEAD, "greedy") is None
    assert scripts["tables"].Part(tmp_path / "nothing").repeated is None


def test_a_lead_is_sure_only_if_the_repetition_has_it(scripts: dict[str, Any], tmp_path: Path) -> None:
    one, other = AHEAD
    write(tmp_path / "divergences", AHEAD)
    assert judged(scripts, "divergence_depends", tmp_path).checks[0] is True
    write(tmp_path / "divergences_more", {one: [30.0, 31.0, 32.0], other: [25.0, 31.0, 33.0]})
    part = scripts["tables"].Part(tmp_path / "divergences")
    assert part.lead(one, other, "greedy") == (2.0, scripts["tables"].Interval(2.0, 2.0))
    assert part.repeated_lead(one, other, "greedy")[0] == pytest.approx(4 / 3)
    assert not part.surely_ahead(one, other, "greedy")
    verdict = judged(scripts, "divergence_depends", tmp_path)
    assert verdict.checks[0] is False
    assert "among the runs of divergences_more alone, which repeats some of these: best" in verdict.found


def test_claim_4_wants_the_repetition_too(scripts: dict[str, Any], tmp_path: Path) -> None:
    def sampled(name: str, reverse: float) -> None:
        rows = [
            f"on-policy GKD {divergence},{seed},{temperature},accuracy,{value + seed},{alike}"
            for divergence, value, alike in (("forward_kl", 10.0, 50.0), ("reverse_kl", reverse, 60.0))
            for temperature in (0.3, 0.7, 1.0, 1.3)
            for seed in (0, 1)
        ]
        (tmp_path / name).mkdir()
        (tmp_path / name / "runs.csv").write_text("\n".join(["method,seed,temperature,metric,value,self_bleu", *rows]))

    sampled("diversity", 12.0)
    verdict = judged(scripts, "quality_and_diversity", tmp_path)
    assert list(verdict.checks) == [True, True, False]
    assert "accuracy at T = 1.3: 2.0 [2.0, 2.0], Self-BLEU at T = 1: 10.0" in verdict.found
    sampled("diversity_more", 9.0)
    verdict = judged(scripts, "quality_and_diversity", tmp_path)
    assert list(verdict.checks) == [False, True, False]
    again = "arithmetic, repeated (diversity_more alone): reverse minus forward KL: accuracy at T = 1.3: -1.0"
    assert again in verdict.found


def test_several_initial_students_are_listed_with_their_paths(scripts: dict[str, Any], tmp_path: Path) -> None:
    folder = write(tmp_path / "self", {"carried student, on-policy GKD": [30.0, 31.0]}, initial=88.0)
    part = scripts["tables"].Part(folder)
    table = scripts["layout"].values_table(part, part.methods)[1]
    assert [row[0] for row in table] == ["carried student, on-policy GKD", "initial student", "teacher"]
    rows = list(csv.DictReader((folder / "runs.csv").open(newline="")))
    itself = [row | {"run": "models/teacher"} for row in rows if row["method"] == "initial student"]
    carried = [row | {"method": "initial student a/student", "run": "a/student", "value": "6.5"} for row in itself]
    others = [row for row in rows if row["method"] != "initial student"]
    with (folder / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows([*others, *itself, *carried])
    part = scripts["tables"].Part(folder)
    table = scripts["layout"].values_table(part, part.methods)[1]
    assert table[1:] == [
        ["initial student models/teacher", "88.0", "87.5"],
        ["initial student a/student", "6.5", "6.5"],
        ["teacher", "98.0", "97.5"],
    ]


def test_what_is_missing_is_incomplete(scripts: dict[str, Any], tmp_path: Path) -> None:
    tables = scripts["tables"]
    (write(tmp_path / "methods", AHEAD) / "runs.csv").unlink()
    with pytest.raises(tables.Incomplete, match=r"part methods: no runs\.csv with its headline metric"):
        _ = tables.Part(tmp_path / "methods").metric
    for one, other in (({}, {0: 1.0}), ({0: 1.0}, {})):
        with pytest.raises(tables.Incomplete, match="no finished seed"):
            tables.apart(one, other)
