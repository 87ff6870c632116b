"""The verdicts on the paper's claims, from tables whose answer is known."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tutelage.compare.table import COLUMNS

SUMMARY = (
    "budget", "method", "decoding", "metric", "seeds", "steps", "tokens", "seconds",
    "value", "value_low", "value_high", "gain", "gain_low", "gain_high",
)  # fmt: skip


# Added to every accuracy: a mix-up of decodings or splits shows wherever figures are compared or read.
APART = {("greedy", "test"): 0.0, ("T=1", "test"): -0.5, ("greedy", "validation"): 50.0, ("T=1", "validation"): 70.0}


def write(folder: Path, values: Mapping[str, Sequence[float]], *, gains: Mapping[str, tuple[float, ...]] | None = None,
          seconds: Mapping[str, float] | None = None, teacher: float = 98.0, distance: Mapping[str, Sequence[float]] | None = None,
) -> Path:  # fmt: skip
    """A part's tables: each method's accuracy by seed, the same in both decodings and on both splits but for a constant."""
    folder.mkdir(parents=True)
    runs, summary = [], []
    for method, per_seed in values.items():
        gain = (gains or {}).get(method, (1.0, 0.5, 1.5))
        for decoding in ("greedy", "T=1"):
            estimate = dict(zip(("gain", "gain_low", "gain_high"), gain, strict=True))
            mean = sum(per_seed) / len(per_seed) + APART[decoding, "test"]
            summary.append(
                {
                    "budget": "steps",
                    "method": method,
                    "decoding": decoding,
                    "metric": "accuracy",
                    "seeds": len(per_seed),
                }
                | {"steps": 10, "tokens": 1, "seconds": 1, "value": mean, **estimate}
            )
            about = {"method": method, "phase": "final", "decoding": decoding, "steps": 10}
            for seed, value in enumerate(per_seed):
                row = about | {"seed": seed, "seconds": 10 * (seconds or {}).get(method, 1.0)}
                for split in ("validation", "test"):
                    shifted = value + APART[decoding, split]
                    runs.append(row | {"split": split, "metric": "accuracy", "headline": True, "value": shifted})
                far = (distance or {}).get(method, [0.0] * len(per_seed))[seed]
                runs.append(row | {"split": "validation", "metric": "reverse_kl", "headline": False, "value": far})
    for decoding in ("greedy", "T=1"):
        about = {"method": "teacher", "phase": "reference", "split": "test", "decoding": decoding}
        runs.append(about | {"metric": "accuracy", "headline": True, "value": teacher + APART[decoding, "test"]})
    for name, columns, rows in (("runs.csv", COLUMNS, runs), ("summary.csv", SUMMARY, summary)):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    return folder


def judged(scripts: dict[str, Any], judge: str, folder: Path) -> Any:
    parts = {name: scripts["tables"].Part(folder / name) for name in scripts["verdicts"].PARTS}
    return getattr(scripts["claims"], judge)(parts)


FIXED = {"supervised KD": [20.0, 21.0, 22.0], "SeqKD": [20.0, 21.0, 22.0]}


@pytest.mark.parametrize(
    ("ours", "outcome"),
    [
        ((16.0, 14.0, 18.0), "reproduced"),
        ((16.0, 11.0, 21.0), "not reproduced"),  # its interval overlaps that of supervised KD
        ((14.0, 13.0, 15.0), "not reproduced"),  # 1.4 times
    ],
)
def test_claim_1_wants_the_factor_and_intervals_apart(
    scripts: dict[str, Any], tmp_path: Path, ours: tuple[float, ...], outcome: str
) -> None:
    values = {**FIXED, "on-policy GKD jsd(0.5)": [26.0, 27.0, 28.0]}
    gains = {"supervised KD": (10.0, 8.0, 12.0), "SeqKD": (9.0, 7.0, 11.0), "on-policy GKD jsd(0.5)": ours}
    write(tmp_path / "methods", values, gains=gains)
    assert judged(scripts, "on_policy_wins", tmp_path).outcome == outcome


def test_claim_1_is_not_won_by_losing(scripts: dict[str, Any], tmp_path: Path) -> None:
    values = {**FIXED, "on-policy GKD jsd(0.5)": [19.0, 19.0, 19.0]}
    # -6 and -4 are both above 1.5 times -5, their intervals apart from its.
    for name, ours in (("worse", (-6.0, -6.1, -5.9)), ("better", (-4.0, -4.1, -3.9))):
        gains = {"supervised KD": (-5.0, -5.1, -4.9), "SeqKD": (-5.0, -5.1, -4.9), "on-policy GKD jsd(0.5)": ours}
        write(tmp_path / name / "methods", values, gains=gains)
        verdict = judged(scripts, "on_policy_wins", tmp_path / name)
        assert verdict.outcome == "not reproduced"
        assert "jsd(0.5) gains nothing, criterion not met" in verdict.found


def test_claim_1_takes_the_divergence_that_is_best_on_validation(scripts: dict[str, Any], tmp_path: Path) -> None:
    values = {**FIXED, "on-policy GKD a": [26.0, 27.0, 28.0], "on-policy GKD b": [25.0, 26.0, 27.0]}
    gains = {"supervised KD": (10.0, 8.0, 12.0), "SeqKD": (9.0, 7.0, 11.0)}
    # On test b would pass and a would not.
    gains |= {"on-policy GKD a": (12.0, 11.5, 13.0), "on-policy GKD b": (30.0, 28.0, 32.0)}
    write(tmp_path / "methods", values, gains=gains)
    verdict = judged(scripts, "on_policy_wins", tmp_path)
    assert verdict.outcome == "not reproduced"
    assert "on-policy GKD a gains 1.20 times what supervised KD does and 1.33 times" in verdict.found


def test_claim_1_judges_both_regimes(scripts: dict[str, Any], tmp_path: Path) -> None:
    values = {**FIXED, "on-policy GKD jsd(0.5)": [26.0, 27.0, 28.0]}
    few = {"supervised KD": (10.0, 8.0, 12.0), "SeqKD": (9.0, 7.0, 11.0), "on-policy GKD jsd(0.5)": (16.0, 14.0, 18.0)}
    write(tmp_path / "multi30k", values, gains=few)
    write(tmp_path / "multi30k_all", values, gains=few | {"on-policy GKD jsd(0.5)": (-3.0, -4.0, -2.0)})
    verdict = judged(scripts, "on_policy_wins", tmp_path)
    assert verdict.outcome == "reproduced in part"
    ours = "Multi30k, outputs to all prompts: on-policy GKD jsd(0.5)"
    assert [ours, "-3.0 [-4.0, -2.0] (chosen)", "-3.0 [-4.0, -2.0] (chosen)"] in verdict.table[1]
    assert verdict.parts == ("multi30k", "multi30k_all")


def test_claim_1_names_the_studies_of_smollm2(scripts: dict[str, Any], tmp_path: Path) -> None:
    values = {**FIXED, "on-policy GKD jsd(0.9)": [26.0, 27.0, 28.0]}
    gains = {
        "supervised KD": (10.0, 8.0, 12.0),
        "SeqKD": (9.0, 7.0, 11.0),
        "on-policy GKD jsd(0.9)": (16.0, 14.0, 18.0),
    }
    names = {
        "smollm2-aeslc-small-27": "SmolLM2, aeslc, small settings, 27 of 30 layers",
        "smollm2-gsm8k-5": "SmolLM2, gsm8k, 5 of 30 layers",
    }
    parts = {name: scripts["tables"].Part(tmp_path / name) for name in (*scripts["verdicts"].PARTS, *names)}
    for name in names:
        write(tmp_path / name, values, gains=gains)
    verdict = scripts["claims"].on_policy_wins(parts)
    assert verdict.parts == tuple(names)
    for task in names.values():
        assert (
            f"{task}, greedy: on-policy GKD jsd(0.9) gains 1.60 times what supervised KD does and 1.78 times"
            in verdict.found
        )


def test_claim_1_judges_the_comparisons_that_are_whole(scripts: dict[str, Any], tmp_path: Path) -> None:
    values = {**FIXED, "on-policy GKD jsd(0.5)": [26.0, 27.0, 28.0]}
    gains = {"on-policy GKD jsd(0.5)": (16.0, 14.0, 18.0)}
    write(tmp_path / "methods", values, gains=gains)
    write(tmp_path / "multi30k", FIXED)  # no run of on-policy GKD finished
    verdict = judged(scripts, "on_policy_wins", tmp_path)
    assert verdict.outcome == "reproduced"
    lack = "part multi30k: no finished run of on-policy GKD"
    assert f"Multi30k, few outputs: cannot be judged yet: {lack}" in verdict.found
    write(tmp_path / "alone" / "multi30k", FIXED)
    with pytest.raises(scripts["tables"].Incomplete, match=lack):
        judged(scripts, "on_policy_wins", tmp_path / "alone")
    with pytest.raises(scripts["tables"].Incomplete, match="no run to judge it by"):
        judged(scripts, "cost", tmp_path / "alone")


def test_claim_1_says_what_speaks_against_it(scripts: dict[str, Any], tmp_path: Path) -> None:
    values = {**FIXED, "SeqKD, 10,000 problems": [50.0], "on-policy GKD jsd(0.5)": [26.0, 27.0, 28.0]}
    gains = {"SeqKD, 10,000 problems": (38.0, 36.0, 40.0), "on-policy GKD jsd(0.5)": (16.0, 14.0, 18.0)}
    folder = write(tmp_path / "methods", values, gains=gains)
    rows = list(csv.DictReader((folder / "summary.csv").open(newline="")))
    slower = [{**row, "budget": "time", "gain": -2.5} for row in rows if row["method"].startswith("on-policy")]
    with (folder / "summary.csv").open("a", newline="") as file:
        others = [{**row, "budget": "time"} for row in rows if not row["method"].startswith("on-policy")]
        csv.DictWriter(file, SUMMARY).writerows(slower + others)
    found = judged(scripts, "on_policy_wins", tmp_path).found
    assert "SeqKD, 10,000 problems, gains 38.0 [36.0, 40.0]" in found
    assert "gains at equal time (validation): on-policy GKD jsd(0.5) -2.5, supervised KD 1.0, SeqKD 1.0" in found


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


AHEAD = {"on-policy GKD forward_kl": [30.0, 31.0, 32.0], "on-policy GKD reverse_kl": [28.0, 29.0, 30.0]}


def test_claim_3_wants_another_best_on_another_task(scripts: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "divergences", AHEAD)
    alone = judged(scripts, "divergence_depends", tmp_path)
    assert alone.outcome == "reproduced in part"
    assert "no other task was compared" in alone.found
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
        "arithmetic: reverse minus forward KL: accuracy at T = 1.3 10.0 [10.0, 10.0], Self-BLEU at T = 1 5.0"
        in verdict.found
    )
    assert "0.5 points at T = 0.3 and 10.0 at T = 1.3" in verdict.found
    assert verdict.parts == ("divergences", "diversity")


def test_claim_4_asks_it_of_every_task(scripts: dict[str, Any], tmp_path: Path) -> None:
    samples(scripts, tmp_path / "diversity", 5.0)
    samples(scripts, tmp_path / "multi30k_diversity", -5.0)
    verdict = judged(scripts, "quality_and_diversity", tmp_path)
    assert verdict.outcome == "reproduced in part"
    assert "Multi30k: reverse minus forward KL: accuracy at T = 1.3 -10.0 [-10.0, -10.0]" in verdict.found
    assert ["Multi30k: reverse_kl", "30.5 / 36.0", "26.0 / 36.0", "21.0 / 36.0"] in verdict.table[1]


@pytest.mark.parametrize(("last", "outcome"), [(9.0, "reproduced"), (5.0, "not reproduced")])
def test_claim_5_is_a_slope(scripts: dict[str, Any], tmp_path: Path, last: float, outcome: str) -> None:
    """Where answers are plenty, and then beside a rising one where they are few."""
    write(
        tmp_path / "fractions", {"fraction 0": [5.0, 6.0], "fraction 0.5": [7.0, 8.0], "fraction 1": [last, last + 1]}
    )
    verdict = judged(scripts, "more_student_data", tmp_path)
    assert verdict.outcome == outcome
    assert f"greedy {last - 5:.1f} [{last - 5:.1f}, {last - 5:.1f}]" in verdict.found
    assert "answers to 1,000 of 10,000 problems: no table yet" in verdict.found
    rising = {"fraction 0": [5.0, 6.0], "fraction 1": [15.0, 16.0]}
    write(tmp_path / "fractions_few", rising)
    both = judged(scripts, "more_student_data", tmp_path)
    assert both.outcome == ("reproduced" if outcome == "reproduced" else "reproduced in part")
    assert both.parts == ("fractions_few", "fractions")
    assert "answers to 1,000 of 10,000 problems: greedy 10.0 [10.0, 10.0]" in both.found
    assert "no table yet" not in both.found


def test_claim_5_is_open_without_an_end(scripts: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "fractions", {"fraction 0": [5.0, 6.0], "fraction 0.75": [9.0, 10.0]})
    with pytest.raises(scripts["tables"].Incomplete, match="no finished run of fraction 0 or 1"):
        judged(scripts, "more_student_data", tmp_path)


@pytest.mark.parametrize(
    ("far", "alone", "outcome"),
    [(0.2, 27.0, "reproduced"), (0.3, 27.0, "reproduced in part"), (0.2, 20.0, "reproduced in part")],
)
def test_claim_6_wants_reward_without_distance_and_more_of_it_from_reward_alone(
    scripts: dict[str, Any], tmp_path: Path, far: float, alone: float, outcome: str
) -> None:
    values = {"alpha 0": [alone, alone + 1], "alpha 0.5": [30.0, 31.0], "alpha 1": [25.0, 26.0]}
    distance = {"alpha 0": [2.0, 2.0], "alpha 0.5": [far, far], "alpha 1": [0.2, 0.2]}
    write(tmp_path / "rl", values, distance=distance)
    assert judged(scripts, "reward_and_quality", tmp_path).outcome == outcome


def test_claim_6_counts_a_smaller_distance_at_no_less_reward(scripts: dict[str, Any], tmp_path: Path) -> None:
    values = {"alpha 0": [20.0, 21.0], "alpha 0.5": [25.0, 26.0], "alpha 1": [25.0, 26.0]}
    distance = {"alpha 0": [2.0, 2.0], "alpha 0.5": [0.1, 0.1], "alpha 1": [0.2, 0.2]}
    write(tmp_path / "rl", values, distance=distance)
    verdict = judged(scripts, "reward_and_quality", tmp_path)
    assert verdict.outcome == "reproduced in part"  # there is an alpha, but its reward is not above that of GKD alone
    assert "the first criterion holds for alpha 0.5" in verdict.found


def test_claim_7_compares_with_the_teacher(scripts: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "self", {"a, on-policy GKD": [61.0, 62.0, 63.0], "b": [70.0, 70.0, 70.0]}, teacher=50.0)
    verdict = judged(scripts, "self_distillation", tmp_path)
    assert verdict.outcome == "reproduced"
    assert (
        "a, on-policy GKD, greedy: 12.0 [9.5, 14.5] points ahead of its teacher; a, on-policy GKD, T=1: 12.0"
        in verdict.found
    )


def test_claim_8_is_a_ratio_of_seconds(scripts: dict[str, Any], tmp_path: Path) -> None:
    values = {**FIXED, "on-policy GKD jsd(0.5)": [26.0, 27.0, 28.0]}
    write(tmp_path / "methods", values, seconds={"supervised KD": 0.5, "on-policy GKD jsd(0.5)": 1.5})
    verdict = judged(scripts, "cost", tmp_path)
    assert verdict.outcome == "not reproduced"
    assert "3.00 times" in verdict.found


def test_the_page_has_what_there_is_and_says_what_is_missing(scripts: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "fractions", {"fraction 0": [5.0, 6.0], "fraction 1": [9.0, 10.0]})
    page = scripts["verdicts"].write(tmp_path).read_text()
    assert "| [5](#claim-5) | More student data is better | **reproduced** |" in page
    assert "![](claim-5.png)" in page
    assert (tmp_path / "claim-5.png").read_bytes().startswith(b"\x89PNG")
    assert "Without tables as yet: claims 1, 2, 3, 4, 6, 7, 8." in page


def test_a_claim_without_one_of_its_runs_stays_open(scripts: dict[str, Any], tmp_path: Path) -> None:
    values = {"supervised KD": [20.0, 21.0, 22.0], "on-policy GKD jsd(0.5)": [26.0, 27.0, 28.0]}
    write(tmp_path / "methods", values)
    write(tmp_path / "rl", {"alpha 0": [20.0, 21.0], "alpha 0.5": [30.0, 31.0], "alpha 0.75": [29.0, 30.0]})
    page = scripts["verdicts"].write(tmp_path).read_text()
    assert "Claim 1 cannot be judged yet: part methods: no finished run of SeqKD." in page
    assert "Claim 6 cannot be judged yet: part rl: no finished run at alpha 0, at alpha 1, or between." in page
    assert "Without tables as yet: claims 2, 3, 4, 5, 7." in page
    assert "| [8](#claim-8) |" in page


def test_sizes_of_student_say_where_on_policy_is_ahead(scripts: dict[str, Any], tmp_path: Path) -> None:
    gains = {
        "0.1 M, supervised KD, 1,000 answers": (3.0, 2.0, 4.0),
        "0.1 M, supervised KD, 10,000 answers": (9.0, 8.0, 10.0),
        "0.1 M, on-policy GKD, 10,000 problems": (6.0, 5.0, 7.0),
        "0.4 M, supervised KD, 1,000 answers": (5.0, 4.0, 6.0),
        "0.4 M, supervised KD, 10,000 answers": (6.0, 5.0, 7.0),
        "0.4 M, on-policy GKD, 10,000 problems": (6.0, 5.5, 7.0),
    }
    write(tmp_path / "sizes", {method: [1.0, 2.0] for method in gains}, gains=gains)
    page = scripts["verdicts"].write(tmp_path).read_text()
    few, many = "supervised KD, 1,000 answers", "supervised KD, 10,000 answers"
    assert "| 0.1 M parameters, T=1 | 3.0 [2.0, 4.0] | 9.0 [8.0, 10.0] | 6.0 [5.0, 7.0] |" in page
    assert f"0.1 M, greedy: on-policy GKD surely ahead of {few} and behind {many};" in page
    assert "0.4 M, T=1: on-policy GKD surely neither ahead nor behind." in page
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")
