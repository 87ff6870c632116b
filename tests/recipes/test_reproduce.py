"""The verdicts on the other claims, from tables whose answer is known."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.conftest import AHEAD, FIXED, judged, write


def test_claim_2_compares_with_the_better_of_the_fixed(scripts: dict[str, Any], tmp_path: Path) -> None:
    values = {"supervised KD, 10,000 answers": [40.0, 41.0, 42.0], "ImitKD, 10,000 answers": [44.0, 45.0, 46.0]}
    write(tmp_path / "low_data", {**values, "on-policy GKD, 500 problems": [42.0, 43.0, 44.0]})
    verdict = judged(scripts, "low_data", tmp_path)
    assert verdict.outcome == "not reproduced"
    assert "2.0 [2.0, 2.0] points behind ImitKD, 10,000 answers" in verdict.found


def test_claim_2_asks_it_of_every_task(scripts: dict[str, Any], tmp_path: Path) -> None:
    fixed = {
        "supervised KD, 29,000 translations": [27.0, 28.0, 29.0],
        "ImitKD, 29,000 translations": [26.0, 27.0, 28.0],
    }
    write(tmp_path / "multi30k_low_data", {**fixed, "on-policy GKD, 1,450 sentences": [30.0, 31.0, 32.0]})
    assert judged(scripts, "low_data", tmp_path).outcome == "reproduced"
    values = {"supervised KD, 10,000 answers": [40.0, 41.0, 42.0], "ImitKD, 10,000 answers": [44.0, 45.0, 46.0]}
    write(tmp_path / "low_data", {**values, "on-policy GKD, 500 problems": [42.0, 43.0, 44.0]})
    verdict = judged(scripts, "low_data", tmp_path)
    assert verdict.outcome == "reproduced in part"
    assert "Multi30k, greedy: 3.0 [3.0, 3.0] points ahead of supervised KD, 29,000 translations" in verdict.found


def test_claim_3_wants_another_best_on_another_task(scripts: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "divergences", AHEAD)
    alone = judged(scripts, "divergence_depends", tmp_path)
    assert alone.outcome == "reproduced in part"
    assert "No other task was compared under several divergences." in alone.found
    other = {"on-policy GKD forward_kl": [1.0, 2.0, 3.0], "on-policy GKD jsd(0.1)": [4.0, 5.0, 6.0]}
    write(tmp_path / "multi30k", FIXED | other)
    verdict = judged(scripts, "divergence_depends", tmp_path)
    assert verdict.outcome == "reproduced"
    best = "Multi30k, few outputs, greedy: best on-policy GKD jsd(0.1), surely ahead of on-policy GKD forward_kl"
    assert best in verdict.found


def test_claim_3_wants_a_sure_lead_on_the_other_task(scripts: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "divergences", AHEAD)
    other = {"on-policy GKD forward_kl": [1.0, 6.0, 3.0], "on-policy GKD jsd(0.1)": [4.0, 2.0, 6.0]}
    write(tmp_path / "multi30k", FIXED | other)
    verdict = judged(scripts, "divergence_depends", tmp_path)
    assert verdict.outcome == "reproduced in part"
    assert "best on-policy GKD jsd(0.1), surely ahead of none" in verdict.found


def test_claim_3_is_open_without_forward_kl(scripts: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "divergences", {"on-policy GKD reverse_kl": [28.0, 29.0, 30.0]})
    with pytest.raises(scripts["tables"].Incomplete, match="no finished run of on-policy GKD forward_kl"):
        judged(scripts, "divergence_depends", tmp_path)


def test_claim_3_fails_where_nobody_is_surely_behind(scripts: dict[str, Any], tmp_path: Path) -> None:
    values = {"on-policy GKD forward_kl": [30.0, 31.0, 32.0], "on-policy GKD reverse_kl": [33.0, 28.0, 30.0]}
    write(tmp_path / "divergences", values)
    assert judged(scripts, "divergence_depends", tmp_path).outcome == "not reproduced"


def samples(scripts: dict[str, Any], folder: Path, lead: float) -> None:
    """A table of samples in which reverse KL is ahead at T = 1, more when it is hotter, less when it is colder."""
    folder.mkdir()
    with (folder / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, scripts["diversity"].COLUMNS)
        writer.writeheader()
        for method, ahead in (("forward_kl", 0.0), ("reverse_kl", lead)):
            for seed in range(3):
                for temperature, scale in (("0.3", 0.1), ("1.0", 1.0), ("1.3", 2.0)):
                    row = {"method": f"on-policy GKD {method}", "seed": seed, "temperature": temperature}
                    value = 30 + seed + ahead * scale
                    writer.writerow(row | {"metric": "accuracy", "value": value, "self_bleu": 40 + seed + ahead})


def test_claim_4_reads_the_samples(scripts: dict[str, Any], tmp_path: Path) -> None:
    samples(scripts, tmp_path / "diversity", 5.0)
    verdict = judged(scripts, "quality_and_diversity", tmp_path)
    assert verdict.outcome == "reproduced"
    assert (
        "arithmetic: reverse minus forward KL: accuracy at T = 1.3: 10.0 [10.0, 10.0], Self-BLEU at T = 1: 5.0"
        in verdict.found
    )
    assert "0.5 points at T = 0.3 and 10.0 at T = 1.3" in verdict.found
    assert verdict.parts == ("divergences", "diversity")


def test_claim_4_asks_it_of_every_task(scripts: dict[str, Any], tmp_path: Path) -> None:
    samples(scripts, tmp_path / "diversity", 5.0)
    samples(scripts, tmp_path / "multi30k_diversity", -5.0)
    verdict = judged(scripts, "quality_and_diversity", tmp_path)
    assert verdict.outcome == "reproduced in part"
    assert "Multi30k: reverse minus forward KL: accuracy at T = 1.3: -10.0 [-10.0, -10.0]" in verdict.found
    assert ["Multi30k: reverse_kl", "30.5 / 36.0", "26.0 / 36.0", "21.0 / 36.0"] in verdict.table[1]


def test_claim_4_pairs_no_samples_of_two_parts(scripts: dict[str, Any], tmp_path: Path) -> None:
    """Paired, every seed is ahead by 5; with three seeds a point apart Welch's interval is 2.27 to either side."""
    samples(scripts, tmp_path / "diversity", 5.0)
    path, more = tmp_path / "diversity" / "runs.csv", tmp_path / "diversity_more"
    header, *rows = path.read_text().splitlines()
    forward, reverse = ([row for row in rows if name in row] for name in ("forward_kl", "reverse_kl"))
    more.mkdir()
    for file, some in ((path, forward), (more / "runs.csv", reverse)):
        file.write_text("\n".join([header, *some]))
    verdict = judged(scripts, "quality_and_diversity", tmp_path)
    assert "Self-BLEU at T = 1: 5.0 [2.7, 7.3]" in verdict.found
    page = scripts["verdicts"].section(verdict, tmp_path)
    assert page.count("on-policy GKD reverse_kl: other runs (diversity_more) than the rest of diversity") == 1
    more.joinpath("runs.csv").unlink()
    with pytest.raises(scripts["tables"].Incomplete, match="no samples of reverse_kl"):
        judged(scripts, "quality_and_diversity", tmp_path)


@pytest.mark.parametrize(("last", "outcome"), [(9.0, "reproduced"), (5.0, "not reproduced")])
def test_claim_5_is_a_slope(scripts: dict[str, Any], tmp_path: Path, last: float, outcome: str) -> None:
    """Where answers are plenty, and then beside a rising one where they are few."""
    write(
        tmp_path / "fractions", {"fraction 0": [5.0, 6.0], "fraction 0.5": [7.0, 8.0], "fraction 1": [last, last + 1]}
    )
    verdict = judged(scripts, "more_student_data", tmp_path)
    assert verdict.outcome == outcome
    assert (
        f"problems, greedy: {last - 5:.1f} [{last - 5:.1f}, {last - 5:.1f}] points from fraction 0 to 1"
        in verdict.found
    )
    assert "answers to 1,000 of 10,000 problems: no table yet" in verdict.found
    rising = {"fraction 0": [5.0, 6.0], "fraction 1": [15.0, 16.0]}
    write(tmp_path / "fractions_few", rising)
    both = judged(scripts, "more_student_data", tmp_path)
    assert both.outcome == ("reproduced" if outcome == "reproduced" else "reproduced in part")
    assert both.parts == ("fractions_few", "fractions")
    assert "answers to 1,000 of 10,000 problems, greedy: 10.0 [10.0, 10.0]" in both.found
    assert "no table yet" not in both.found


def test_claim_5_is_open_without_an_end(scripts: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "fractions", {"fraction 0": [5.0, 6.0], "fraction 0.75": [9.0, 10.0]})
    with pytest.raises(scripts["tables"].Incomplete, match="no finished run of fraction 0 or 1"):
        judged(scripts, "more_student_data", tmp_path)


@pytest.mark.parametrize(
    ("middle", "checks", "words"),
    [
        ([13.0, 14.0], [True, True, False, False], "surely ahead of fraction 1: fraction 0.5 by 3.0 [3.0, 3.0]."),
        ([11.0, 17.0], [True, True, True, True], "surely ahead of fraction 1: none."),  # of two seeds one is behind
    ],
)
def test_claim_5_looks_for_a_fraction_above_the_last(
    scripts: dict[str, Any], tmp_path: Path, middle: list[float], checks: list[bool], words: str
) -> None:
    values = {"fraction 0": [5.0, 6.0], "fraction 0.5": middle, "fraction 1": [10.0, 11.0]}
    write(tmp_path / "fractions_few", values)
    verdict = judged(scripts, "more_student_data", tmp_path)
    assert list(verdict.checks) == checks
    assert words in verdict.found
    assert "One learning rate serves all fractions." in verdict.found


def test_claim_7_compares_with_the_teacher(scripts: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "self", {"a, on-policy GKD": [61.0, 62.0, 63.0], "b": [70.0, 70.0, 70.0]}, teacher=50.0)
    verdict = judged(scripts, "self_distillation", tmp_path)
    assert verdict.outcome == "reproduced"
    assert "a, on-policy GKD, greedy: 12.0 [9.5, 14.5] points ahead of its teacher." in verdict.found
    assert "a, on-policy GKD, T=1: 12.0 [9.5, 14.5] points ahead of its teacher." in verdict.found


@pytest.mark.parametrize(("low", "outcome"), [(0.5, "reproduced"), (-0.5, "not reproduced")])
def test_claim_7_reads_the_gain_of_the_teacher_itself(
    scripts: dict[str, Any], tmp_path: Path, low: float, outcome: str
) -> None:
    """Its seeds alone, all 62 against 60, would make it sure; the examples do not."""
    name = "the teacher itself, on-policy GKD, teacher at temperature 0.5"
    write(tmp_path / "self", {name: [62.0, 62.0, 62.0]}, teacher=60.0, gains={name: (2.0, low, 4.5)})
    verdict = judged(scripts, "self_distillation", tmp_path)
    assert verdict.outcome == outcome
    assert f"{name}, T=1: 2.0 [{low}, 4.5] points ahead of its teacher." in verdict.found
    assert "sharpened to temperature 0.5 is compared with its teacher sampled at T = 1" in verdict.found
    assert f"Greedily, which no sharpening helps, it is 2.0 [{low}, 4.5] points ahead of its teacher." in verdict.found


def test_claim_7_is_decided_by_the_larger_repetition(scripts: dict[str, Any], tmp_path: Path) -> None:
    name = "the teacher itself, on-policy GKD, teacher at temperature 0.5"
    write(tmp_path / "self", {name: [62.0, 63.0, 64.0]}, teacher=60.0, gains={name: (3.0, -0.5, 6.5)})
    write(tmp_path / "self_large", {name: [61.0, 62.0]}, teacher=60.0, gains={name: (1.5, 0.5, 2.5)})
    verdict = judged(scripts, "self_distillation", tmp_path)
    assert list(verdict.checks) == [True, True]
    assert f"4,000 other problems, six seeds: {name}, T=1: 1.5 [0.5, 2.5] points ahead of its teacher." in verdict.found
    assert f"\n{name}, T=1: 3.0 [-0.5, 6.5] points ahead of its teacher (before, not counted)." in verdict.found
    assert "set up before they ran" in verdict.criterion
    assert [row[0] for row in verdict.table[1]] == [
        f"4,000 other problems, six seeds: {name}", "4,000 other problems, six seeds: teacher", name, "teacher",
    ]  # fmt: skip
    assert verdict.parts == ("self_large", "self")
