"""The verdict on claim 6, from tables whose answer is known."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.recipes.conftest import FOLDER, judged, write


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


def test_claim_6_judges_the_alpha_that_is_best_on_validation(scripts: dict[str, Any], tmp_path: Path) -> None:
    """On test alpha 0.9 would meet everything; validation chooses 0.5, which meets only what it has no part in."""
    values = {"alpha 0": [27.0, 28.0], "alpha 0.5": [24.0, 25.0], "alpha 0.9": [30.0, 31.0], "alpha 1": [25.0, 26.0]}
    distance = {"alpha 0": [2.0, 2.0], "alpha 0.5": [0.3, 0.3], "alpha 0.9": [0.2, 0.2], "alpha 1": [0.2, 0.2]}
    write(tmp_path / "rl", values, distance=distance, validation={"alpha 0.5": [33.0, 34.0], "alpha 0.9": [32.0, 33.0]})
    verdict = judged(scripts, "reward_and_quality", tmp_path)
    assert list(verdict.checks) == [False, False, False, True]
    assert "alpha 0.5, chosen on validation, has -1.0 [-1.0, -1.0] points of reward over GKD alone" in verdict.found
    assert "of all alphas inside, chosen or not, the first criterion holds for alpha 0.9." in verdict.found


def test_claim_6_tells_of_the_recipes_before(scripts: dict[str, Any], tmp_path: Path) -> None:
    values = {"alpha 0": [27.0, 28.0], "alpha 0.5": [30.0, 31.0], "alpha 1": [25.0, 26.0]}
    write(tmp_path / "rl", values)
    alone = judged(scripts, "reward_and_quality", tmp_path)
    assert "recipe before" not in alone.found
    assert "first attempt" not in alone.found
    earlier = {"alpha 0": [9.0, 9.0], "alpha 0.5": [26.0, 24.0], "alpha 0.9": [40.0, 40.0], "alpha 1": [25.0, 25.0]}
    write(tmp_path / "rl_hard", earlier, validation={"alpha 0.9": [0.0, 0.0]}, around=2.0)
    write(tmp_path / "rl_weak_start", earlier, gains={"alpha 0": (-3.0, -4.0, -2.0)})
    verdict = judged(scripts, "reward_and_quality", tmp_path)
    assert list(alone.checks) == [True, True, True, True]
    # Alpha 0.5 of the recipe before is neither richer nor nearer, and its reward alone ends with less.
    assert list(verdict.checks) == [*alone.checks, False, False, True, False]
    hard = "problems of medium difficulty, the teacher's whole distribution, one rate"
    assert [row[0] for row in verdict.table[1]] == [
        *(f"easy problems, sampled-token teacher: {m}" for m in values),
        *(f"{hard}: {m}" for m in earlier),
    ]
    assert verdict.parts == ("rl", "rl_hard", "rl_weak_start")
    lead = "alpha 0.5, chosen on validation, has 0.0 [-12.7, 12.7] points of reward over GKD alone"
    assert (
        f"{hard}: {lead}; of all alphas inside, chosen or not, the first criterion holds for alpha 0.9."
        in verdict.found
    )
    assert f"{hard}: reward alone ends 16.0 [16.0, 16.0] points behind GKD alone." in verdict.found
    assert "At one learning rate" not in verdict.found
    write(tmp_path / "rl_one_rate", values, distance={m: [d, d] for m, d in zip(values, (2.0, 0.1, 0.2), strict=True)})
    verdict = judged(scripts, "reward_and_quality", tmp_path)
    assert verdict.parts == ("rl", "rl_one_rate", "rl_hard", "rl_weak_start")
    assert len(verdict.checks) == 8  # none for the runs at one rate
    nearer = "its distance from the teacher less that one's is -0.100 [-0.100, -0.100] nats, over paired seeds"
    shared = "the first criterion holds for it (not counted: shares the runs of alpha 0.5 and 0.9)."
    assert f"{nearer}; {shared}" in verdict.found
    assert (
        "In the first attempt (rl_weak_start), from the carried student, 1 of 4 alphas ended below it" in verdict.found
    )


def test_claim_6_says_what_the_recipe_before_lacks(scripts: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "rl", {"alpha 0": [27.0, 28.0], "alpha 0.5": [30.0, 31.0], "alpha 1": [25.0, 26.0]})
    write(tmp_path / "rl_hard", {"alpha 0": [9.0, 9.0]})
    lack = "one rate: cannot be judged yet: part rl_hard: no finished run at alpha 0, at alpha 1, or between."
    verdict = judged(scripts, "reward_and_quality", tmp_path)
    assert lack in verdict.found
    assert len(verdict.checks) == 4


def test_claim_6_has_a_greedy_side(scripts: dict[str, Any], tmp_path: Path) -> None:
    values = {"alpha 0": [27.0, 28.0, 29.0], "alpha 0.5": [30.0, 31.0, 32.0], "alpha 1": [25.0, 26.0, 27.0]}
    folder = write(tmp_path / "rl", values)
    text = (folder / "runs.csv").read_text()
    runs = list(csv.DictReader(text.splitlines()))
    for row in runs:
        if (row["method"], row["decoding"], row["split"], row["metric"]) == ("alpha 0.5", "greedy", "test", "accuracy"):
            row["value"] = str(float(row["value"]) - 9)
    with (folder / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, runs[0])
        writer.writeheader()
        writer.writerows(runs)
    verdict = judged(scripts, "reward_and_quality", tmp_path)
    assert list(verdict.checks) == [True, True, False, True]
    leads = "4.0 [4.0, 4.0] points behind alpha 1 and 6.0 [6.0, 6.0] points behind alpha 0"
    assert f"greedy: alpha 0.5 is {leads}; it gains 1.0 [0.5, 1.5] points" in verdict.found


def test_claim_6_says_what_was_tried_before(scripts: dict[str, Any], tmp_path: Path) -> None:
    values = {"alpha 0": [27.0, 28.0], "alpha 0.5": [30.0, 31.0], "alpha 1": [25.0, 26.0]}
    write(tmp_path / "rl", values)
    verdict = judged(scripts, "reward_and_quality", tmp_path)
    assert "set up after five settings had not met it: [trials](../rl-trials.json)" in verdict.criterion
    assert (FOLDER.parents[1] / "docs" / "results" / "rl-trials.json").exists()
    # The rates that the page names are those of the recipes.
    tried = yaml.safe_load((FOLDER / "rl_rates.yaml").read_text())["search"]["train.learning_rate"]
    taken = [method["train.learning_rate"] for method in yaml.safe_load((FOLDER / "rl.yaml").read_text())["methods"]]
    assert (tried, taken) == ([0.0001, 0.0003, 0.001], [0.0001, 0.0003, 0.0003, 0.0001])
    assert "(rl_rates.yaml: 0.0001, 0.0003 and 0.001) both ends took 0.0001, the smallest" in verdict.found


def test_claim_6_tells_of_a_reward_that_is_not_the_metric(scripts: dict[str, Any], tmp_path: Path) -> None:
    values = {"alpha 0": [27.0, 28.0], "alpha 0.5": [30.0, 31.0], "alpha 1": [25.0, 26.0]}
    write(tmp_path / "rl", values)
    gamed = {"alpha 0": [10.0, 11.0], "alpha 0.5": [50.0, 52.0], "alpha 0.9": [52.0, 53.0], "alpha 1": [55.0, 56.5]}
    rewards = {"alpha 0": [0.9, 0.92], "alpha 0.5": [0.84, 0.842], "alpha 0.9": [0.83, 0.83], "alpha 1": [0.8, 0.82]}
    folder = write(
        tmp_path / "rl_gamed",
        gamed,
        rewards={**rewards, "initial student": [0.75]},
        initial=45.0,
        gains={"alpha 0.5": (6.0, 4.0, 8.0)},
    )
    found = judged(scripts, "reward_and_quality", tmp_path).found
    assert (
        "(rl_gamed, below), T = 1: alpha 0 has 0.100 [0.100, 0.100] more of it than alpha 1 and is 45.2 [42.1, 48.4] points behind it in "
        "accuracy; alpha 0.5, the best inside on validation, has 0.091 [0.078, 0.104] more reward than the student before it and gains "
        "6.0 [4.0, 8.0] points (not counted:"
    ) in found
    rows = [
        line for line in (folder / "runs.csv").read_text().splitlines(keepends=True) if "initial student" not in line
    ]
    (folder / "runs.csv").write_text("".join(rows))
    found = judged(scripts, "reward_and_quality", tmp_path).found
    assert "(rl_gamed) not all is there: part rl_gamed: the initial student was not tested with its reward." in found
