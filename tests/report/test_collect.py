from pathlib import Path

import pytest

from tests.report.conftest import mark_every_step, without_marks, write_run
from tutelage.errors import UserError
from tutelage.report.collect import collect, references, teacher_texts


def test_a_run_is_what_its_folder_holds(run: Path) -> None:
    (found,) = collect([run])
    assert (found.name, found.config.method, found.divergence, found.student_data_fraction) == (
        "gkd",
        "gkd",
        "jsd(0.5)",
        1.0,
    )
    assert (found.steps, found.tokens, found.config.seed) == (3, 300, 5)
    assert found.seconds == {"rollout": 6.0, "teacher": 1.5, "update": 4.5}
    assert found.evaluated == [("accuracy", "greedy"), ("accuracy", "T=1")]
    before, after = found.rows("T=1")
    assert before is not None
    assert after is not None
    assert (before.value, after.value) == (10.0, 30.25)
    assert found.rows("T=1", "accuracy") == (before, after)
    assert found.rows("T=1", "rouge2") == (None, None)
    assert list(found.marks) == [0, 3]
    assert [token.divergence for token in found.marks[3][0].tokens] == [0.01, 0.45, 0.0, 0.15]
    assert found.marked_divergence == pytest.approx({0: 0.305, 3: 0.1525})
    assert teacher_texts(found) == {(7, "2 + 3 ="): "teacher 5", (8, "2 + 3 ="): "teacher 5"}
    assert references(found) == {(7, "2 + 3 ="): "reference 5"}


def test_references_are_in_the_evaluations_of_runs_without_marks_and_in_the_marks_of_earlier_versions(
    run: Path,
) -> None:
    for path in (run / "evaluation").rglob("completions.jsonl"):
        path.write_text(path.read_text().replace(', "reference": "reference 5"', ""))
    (earlier,) = collect([run])
    assert earlier.after is not None
    assert {completion.reference for completion in earlier.after.completions} == {None}
    assert references(earlier) == {(7, "2 + 3 ="): "reference 5"}
    (unmarked,) = collect([without_marks(write_run(run / "sft", reference="five"))])
    assert references(unmarked) == {(7, "2 + 3 ="): "five"}
    assert teacher_texts(unmarked) == {}


def test_options_of_the_run_come_before_those_of_its_method(tmp_path: Path) -> None:
    given = {"method": "imitkd", "divergence": "reverse_kl", "student_data_fraction": 0.25}
    (found,) = collect([write_run(tmp_path / "a", **given)])
    assert (found.divergence, found.student_data_fraction) == ("reverse_kl", 0.25)


def test_a_reward_alone_has_no_divergence(tmp_path: Path) -> None:
    for name, alpha, teacher, expected in (
        ("reward", 0.0, None, None),
        ("measured", 0.0, "tiny-teacher", "jsd(0.9)"),
        ("both", 0.5, "tiny-teacher", "jsd(0.9)"),
    ):
        rl = {"reward": "accuracy", "alpha": alpha}
        (found,) = collect([write_run(tmp_path / name, method="rl_gkd", teacher=teacher, rl=rl)])
        assert (name, found.divergence) == (name, expected)


def test_of_many_marked_steps_twelve_are_kept_and_all_are_measured(run: Path) -> None:
    (found,) = collect([mark_every_step(run, 27)])
    # Of the files 0 to 26, those at 0, 26/11, 52/11, ..., 26, rounded down.
    assert list(found.marks) == [0, 20, 40, 70, 90, 110, 140, 160, 180, 210, 230, 260]
    assert found.marks[230][0].tokens[0].divergence == 0.23
    assert found.marked_divergence == {10 * i: i / 100 for i in range(27)}


@pytest.mark.parametrize(("count", "kept"), [(2, 2), (12, 12), (13, 12)])
def test_twelve_marked_steps_and_fewer_are_kept_whole(run: Path, count: int, kept: int) -> None:
    (found,) = collect([mark_every_step(run, count)])
    assert (len(found.marks), len(found.marked_divergence)) == (kept, count)
    assert (min(found.marks), max(found.marks)) == (0, 10 * (count - 1))


def test_a_run_that_only_began(run: Path) -> None:
    for path in [*run.rglob("*.jsonl"), *run.rglob("results.json")]:
        path.unlink()
    (found,) = collect([run])
    assert (found.steps, found.tokens, found.seconds, found.evaluated, found.marks) == (0, 0, {}, [], {})
    assert (found.before, found.after) == (None, None)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.yaml").unlink(), r"holds no run \(no config.yaml\); name the folder"),
        (lambda run: (run / "metrics.jsonl").write_text("{\n{}\n"), r"metrics.jsonl, line 1: not valid JSON"),
        (lambda run: (run / "evaluation/after/results.json").write_text("{"), "evaluation/after is damaged"),
        (lambda run: (run / "evaluation/after/results.json").write_text("{}"), "evaluation/after is damaged"),
        (lambda run: (run / "marks/step-00000003.jsonl").write_text("{}"), r"step-00000003.jsonl, line 1"),
    ],
)
def test_damage_is_named(run: Path, damage, message: str) -> None:
    damage(run)
    with pytest.raises(UserError, match=message):
        collect([run])


def test_folders_must_be_runs_and_named_once(run: Path) -> None:
    with pytest.raises(UserError, match="at least one folder"):
        collect([])
    with pytest.raises(UserError, match="given twice"):
        collect([run, run / ".." / run.name])
    with pytest.raises(UserError, match="is no folder"):
        collect([run / "elsewhere"])


def test_a_method_of_a_later_version_is_shown_as_it_stands(run: Path) -> None:
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("method: gkd", "method: of_tomorrow"))
    (found,) = collect([run])
    assert (found.config.method, found.divergence, found.student_data_fraction) == ("of_tomorrow", None, None)
