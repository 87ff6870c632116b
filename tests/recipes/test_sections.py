"""What the page of verdicts tells of parts that no claim is judged by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.recipes.conftest import FIXED, write
from tutelage.compare.table import COLUMNS


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


def test_later_methods_have_intervals_and_a_student_to_be_compared_with(
    scripts: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path / "later", {"on-policy GKD": [30.0, 32.0], "DistiLLM": [28.0, 29.0]}, initial=6.5, around=2.0)
    write(tmp_path / "later_more", {"MiniLLM, AdamW": [20.0, 22.0]}, initial=6.5, around=3.0)
    page = scripts["verdicts"].write(tmp_path).read_text()
    for row in (
        "| on-policy GKD | 31.0 [29.0, 33.0] | 30.5 [28.5, 32.5] | 1 |",
        "| MiniLLM, AdamW | 21.0 [18.0, 24.0] | 20.5 [17.5, 23.5] | 1 |",
        "| initial student | 6.5 | 6.0 | – |",
        "| teacher | 98.0 | 97.5 | – |",
    ):
        assert row in page
    assert "half its steps are on the references of the 10,000 problems." in page
    assert "follow a gradient of few samples" not in page
    assert "Tables: [later](later/results.md), [later_more](later_more/results.md)." in page
    assert "other runs (later_more)" not in page  # no difference is computed


def test_later_methods_that_are_noisy_are_told_of(scripts: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "later", {"MiniLLM": [0.5, 1.0], "on-policy GKD": [30.0, 32.0]})
    assert (
        "sampled-token reverse KL gains: alpha 1 of claim 6. Rates" in scripts["verdicts"].write(tmp_path).read_text()
    )
    write(tmp_path / "later_more", {"MiniLLM, AdamW": [20.0, 22.0]})
    assert "ruins this student with AdamW as with Muon. Rates" in scripts["verdicts"].write(tmp_path).read_text()


def test_a_section_without_a_verdict_that_lacks_a_run_says_so(scripts: dict[str, Any], tmp_path: Path) -> None:
    write(
        tmp_path / "sizes",
        {
            "0.1 M, supervised KD, 1,000 answers": [1.0, 2.0],
            "0.4 M, supervised KD, 1,000 answers": [1.0, 2.0],
            "0.4 M, supervised KD, 10,000 answers": [1.0, 2.0],
            "0.1 M, on-policy GKD, 10,000 problems": [1.0, 2.0],
            "0.4 M, on-policy GKD, 10,000 problems": [1.0, 2.0],
        },
    )
    for name in ("later", "methods", "baselines"):
        (write(tmp_path / name, {**FIXED, "on-policy GKD a": [1.0, 2.0, 3.0]}) / "runs.csv").unlink()
    page = scripts["verdicts"].write(tmp_path).read_text()
    lack = "Not complete yet: part {}: no runs.csv with its headline metric."
    for part, heading in (("later", "Later methods"), ("baselines", "Every baseline, on arithmetic")):
        assert f"## {heading}\n\n{lack.format(part)}" in page
    assert "Not complete yet: part sizes: no finished run of 0.1 M, supervised KD, 10,000 answers." in page
    assert "Claim 8 cannot be judged yet: part methods: no finished run of supervised KD." in page


def test_a_reward_that_rises_while_accuracy_falls_is_gamed(scripts: dict[str, Any], tmp_path: Path) -> None:
    values = {"alpha 0 (RL alone)": [10.0, 12.0], "alpha 0.5": [40.0, 42.0], "alpha 1 (GKD alone)": [50.0, 52.0]}
    gains = {
        "alpha 0 (RL alone)": (-30.0, -35.0, -25.0),
        "alpha 0.5": (-1.0, -3.0, 1.0),
        "alpha 1 (GKD alone)": (-9.0, -11.0, -7.0),
    }
    rewards = {
        "alpha 0 (RL alone)": [0.95, 0.952],
        "alpha 0.5": [0.92, 0.922],
        "alpha 1 (GKD alone)": [0.80, 0.802],
        "initial student": [0.9],
    }
    folder = write(
        tmp_path / "rl_gamed", values, gains=gains, rewards=rewards, initial=45.0, distance={"alpha 0.5": [0.5, 0.5]}
    )
    page = scripts["verdicts"].write(tmp_path).read_text()
    body = page.split("## A reward that can be gamed")[1]
    # Student's t with one degree of freedom is 12.706; the standard error of two values is half their difference.
    assert "| alpha 0 (RL alone) | 0.951 [0.938, 0.964] | 10.5 | 11.0 | 0.000 [0.000, 0.000] |" in body
    assert "| alpha 0.5 | 0.921 [0.908, 0.934] | 40.5 | 41.0 | 0.500 [0.500, 0.500] |" in body
    assert "| student before | 0.900 | 44.5 | 45.0 | – |" in body
    change = "accuracy -30.0 [-35.0, -25.0] against the student before it; gamed: surely more reward, surely fewer right answers."
    assert f"- alpha 0 (RL alone): reward 0.051 [0.038, 0.064], {change}" in body
    assert body.count("not surely gamed.") == 2  # accuracy may have stayed; the reward fell
    assert (tmp_path / "rl_gamed.png").read_bytes().startswith(b"\x89PNG")

    (folder / "runs.csv").write_text(
        "".join(line for line in (folder / "runs.csv").read_text().splitlines(True) if "initial student" not in line)
    )
    page = scripts["verdicts"].write(tmp_path).read_text()
    assert "Not complete yet: part rl_gamed: the initial student was not tested with its reward." in page


def test_several_teachers_are_told_of_and_told_apart(scripts: dict[str, Any], tmp_path: Path) -> None:
    folder = write(
        tmp_path / "teachers", {"the better teacher": [30.0, 32.0], "both": [28.0, 29.0]}, initial=6.5, around=2.0
    )
    weaker = write(tmp_path / "other", {"both": [28.0]}, teacher=88.0)
    lines = (folder / "runs.csv").read_text().splitlines(keepends=True)
    renamed = [line.replace("teacher,", "first teacher,", 1) if line.startswith("teacher,") else line for line in lines]
    added = [
        line for line in (weaker / "runs.csv").read_text().splitlines(keepends=True) if line.startswith("teacher,")
    ]
    assert len(added) == 2
    (folder / "runs.csv").write_text(
        "".join([*with_run(renamed, "first teacher,", "strong"), *with_run(added, "teacher,", "weak")])
    )
    body = scripts["verdicts"].write(tmp_path).read_text().split("## Several teachers")[1]
    assert "| both | 28.5 [26.5, 30.5] | 28.0 [26.0, 30.0] | 1 |" in body
    assert "| teacher strong | 98.0 | 97.5 | – |" in body
    assert "| teacher weak | 88.0 | 87.5 | – |" in body
    assert "by the weighted geometric mean of their distributions. " in body


def with_run(lines: list[str], start: str, path: str) -> list[str]:
    """Lines of runs.csv, those that begin so with the model in the column "run"."""
    column = COLUMNS.index("run")
    found = []
    for line in lines:
        cells = line.rstrip("\r\n").split(",")
        if line.startswith(start):
            cells[column] = path
        found.append(",".join(cells) + "\n")
    return found


def test_the_reward_of_the_part_that_is_gamed_sees_words_and_nothing_else(scripts: dict[str, Any]) -> None:
    recall = scripts["gameable"].recall
    assert recall("", "6 + 7 = 13. #### 13", "6 + 7 = 13. #### 13", {}) == 1.0
    assert recall("", "13 ####", "6 + 7 = 13. #### 13", {}) == 2 / 7  # "13." is another word than "13"
    assert recall("", "#### 13 99 = 7 + 6 13. 1 2 3", "6 + 7 = 13. #### 13", {}) == 1.0
    assert recall("", "", "6 + 7 = 13. #### 13", {}) == 0.0
