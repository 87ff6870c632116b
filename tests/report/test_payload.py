import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.conftest import HOSTILE, mark_every_step, sequence, token, write_run
from tutelage.eval import marks
from tutelage.eval.marks import Choice, TokenMark
from tutelage.report.collect import collect
from tutelage.report.payload import payload, thresholds, to_script


def test_marks_of_every_step_with_texts_once(run: Path) -> None:
    data = payload(collect([run]))
    (found,) = data["runs"]
    assert (found["name"], found["measures"]) == ("gkd", ["jsd(0.5)", "forward KL", "reverse KL"])
    assert [step["step"] for step in found["steps"]] == [0, 3]
    assert len(data["texts"]) == len(set(data["texts"]))
    first = found["steps"][1]["sequences"][0]
    text, values, written, student, student_p, teacher, teacher_p = first["tokens"][1]
    assert data["texts"][text] == " six"
    assert values == [0.45, 0.9, 1.35]
    assert written == [0.7, 0.05]
    assert [data["texts"][i] for i in student] == [" six", " no", " or", "?", "!"]
    assert [data["texts"][i] for i in teacher] == [" yes", " six", " or", "?", "!"]
    assert (student_p, teacher_p) == ([0.7, 0.2, 0.06, 0.03, 0.01], [0.9, 0.05, 0.03, 0.01, 0.01])
    assert (data["texts"][first["reference"]], data["texts"][first["teacher"]]) == ("reference 5", "teacher 5")
    assert found["steps"][1]["sequences"][1]["reference"] is None
    assert first["mean"] == 0.1525
    assert set(data["scales"]) == {"jsd(0.5)", "forward KL", "reverse KL"}


def test_tokens_that_decode_alike_stay_apart(run: Path) -> None:
    byte = "\ufffd"
    top = (Choice(byte, 0.5, 228), Choice(byte, 0.25, 189), Choice(" a", 0.125, 7))
    marks.save([sequence([TokenMark(byte, 0.5, 1.0, 1.5, 0.25, 0.25, top, top, id=189)])], run, 9)
    data = payload(collect([run]))
    text, _, _, student, _, teacher, _ = data["runs"][0]["steps"][2]["sequences"][0]["tokens"][0]
    assert [data["texts"][i] for i in student] == [byte, byte, " a"]
    assert [i == text for i in student] == [False, True, False]
    assert teacher == student
    assert data["ids"] == {str(student[0]): 228, str(student[1]): 189}


def test_what_the_task_inserted_is_marked_and_shapes_no_scale(run: Path) -> None:
    tokens = [token("x", 0.5), replace(token("y", 100.0), forced=True)]
    marks.save([replace(sequence(tokens), completion="xy")] * 9, run, 9)
    data = payload(collect([run]))
    first = data["runs"][0]["steps"][2]["sequences"][0]
    assert [each[7:] for each in first["tokens"]] == [[], [1]]
    assert data["texts"][first["completion"]] == "xy"
    assert first["mean"] == 0.5
    assert max(data["scales"]["jsd(0.5)"]) < 1
    assert data["runs"][0]["steps"][0]["sequences"][0]["completion"] is None


def test_a_page_of_a_long_run_holds_twelve_steps(run: Path) -> None:
    (found,) = payload(collect([mark_every_step(run, 101)]))["runs"]
    assert [step["step"] for step in found["steps"]] == [0, 90, 180, 270, 360, 450, 540, 630, 720, 810, 900, 1000]


def test_a_divergence_that_is_a_kl_shares_its_scale(tmp_path: Path) -> None:
    (found,) = payload(collect([write_run(tmp_path / "run", divergence="reverse_kl")]))["runs"]
    assert found["measures"][0] == "jsd(0.5)"  # the marks know what they measured, whatever the configuration says
    folder = write_run(tmp_path / "other")
    for path in (folder / "marks").iterdir():
        path.write_text(path.read_text().replace("jsd(0.5)", "reverse_kl"))
    data = payload(collect([folder]))
    assert data["runs"][0]["measures"] == ["reverse KL", "forward KL", "reverse KL"]
    assert set(data["scales"]) == {"forward KL", "reverse KL"}


def test_infinity_is_null_and_deepest(run: Path) -> None:
    marks.save([sequence([token("x", math.inf)])], run, 9)
    data = payload(collect([run]))
    assert data["runs"][0]["steps"][2]["sequences"][0]["tokens"][0][1] == [None, None, None]
    assert data["runs"][0]["steps"][2]["sequences"][0]["mean"] is None
    assert all(map(math.isfinite, data["scales"]["jsd(0.5)"]))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.81] * 40, [0.01, 0.03, 0.09, 0.27, 0.81]),
        ([0.0] * 90 + [8.1] * 10, [0.1, 0.3, 0.9, 2.7, 8.1]),
        ([0.0, math.inf], [0.012, 0.037, 0.11, 0.33, 1.0]),
    ],
)
def test_thresholds(values: list[float], expected: list[float]) -> None:
    assert thresholds(values) == expected


def test_runs_without_marks_are_left_out(run: Path) -> None:
    for path in (run / "marks").iterdir():
        path.unlink()
    assert payload(collect([run]))["runs"] == []


@pytest.mark.parametrize("text", [HOSTILE, "<!--<script", "\u2028\u2029", "\ud800 lone", '"\\'])
def test_a_script_block_holds_any_text(text: str) -> None:
    script = to_script({"text": text})
    assert not set("<>&\u2028\u2029") & set(script)
    script.encode("utf-8")
    assert json.loads(script) == {"text": text}
