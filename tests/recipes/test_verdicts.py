"""The page of verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.recipes.conftest import write


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


def test_words_stand_to_the_left(scripts: dict[str, Any]) -> None:
    rows = [["1", "On-policy wins", "2 of 3", "–"], ["2", "4 temperatures", "-1.5 [-2.0, -1.0] (chosen)", "4.0"]]
    table = scripts["layout"].markdown(["claim", "", "checks", "gain"], rows)
    assert table.splitlines()[1] == "| --- | --- | ---: | ---: |"
