"""The page of verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.recipes.conftest import FIXED, write


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
    assert "Tables: [later](later/results.md), [later_more](later_more/results.md)." in page
    assert "other runs (later_more)" not in page  # no difference is computed


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


def test_words_stand_to_the_left(scripts: dict[str, Any]) -> None:
    rows = [["1", "On-policy wins", "2 of 3", "–"], ["2", "4 temperatures", "-1.5 [-2.0, -1.0] (chosen)", "4.0"]]
    table = scripts["layout"].markdown(["claim", "", "checks", "gain"], rows)
    assert table.splitlines()[1] == "| --- | --- | ---: | ---: |"
