import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.conftest import (
    mark_every_step,
    record,
    reevaluate,
    row,
    sequence,
    token,
    without_marks,
    write_run,
)
from tutelage.errors import UserError
from tutelage.eval import marks
from tutelage.eval.statistics import Interval
from tutelage.report.collect import (
    collect,
    endings,
    references,
    task_names,
    teacher_texts,
    within_budget,
)
from tutelage.train.metrics import TRAINING_PHASES


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
    assert found.task == ("jsonl", None, "{}")
    assert found.evaluated == [("accuracy", "greedy", found.task), ("accuracy", "T=1", found.task)]
    assert (found.decodings, found.split, found.examples, found.changed) == (["greedy", "T=1"], "validation", 4, ())
    before, after = found.rows("T=1")
    assert before is not None
    assert after is not None
    assert (before.value, after.value) == (10.0, 30.25)
    measure = found.evaluated[1]
    assert found.measured(measure) == (before, after)
    assert found.measured(measure._replace(metric="rouge2")) == (None, None)
    assert found.measured(measure._replace(task=found.task._replace(data="elsewhere"))) == (None, None)
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


@pytest.mark.parametrize(
    ("tokens", "steps", "sequences", "left"),
    [
        (72, list(range(12)), None, 72),  # all: twelve steps of three sequences of one token, twice
        (71, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11], None, 66),
        (30, [0, 2, 5, 8, 11], None, 30),
        (12, [0, 11], None, 12),
        (11, [0, 11], 2, 8),
        (1, [0, 11], 1, 4),  # no run loses its first and its last step
    ],
)
def test_a_page_holds_so_many_marked_tokens_of_all_runs(
    tokens: int, steps: list[int], sequences: int | None, left: int, tmp_path: Path
) -> None:
    runs = [without_marks(write_run(tmp_path / name)) for name in ("a", "b")]
    for run in runs:
        for step in range(12):
            marks.save([sequence([token("x", i / 10)]) for i in range(3)], run, step)
    collected = collect(runs)
    found, kept = within_budget(collected, tokens)
    assert [list(run.marks) for run in found] == [steps, steps]
    assert kept == sequences
    assert sum(len(each.tokens) for run in found for several in run.marks.values() for each in several) == left
    divergences = [each.tokens[0].divergence for each in found[0].marks[11]]
    assert divergences == [0.0, 0.1, 0.2][:sequences]
    assert [len(run.marks) for run in collected] == [12, 12]


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


def test_seconds_of_training_are_those_of_a_comparison(run: Path) -> None:
    spent = dict.fromkeys(TRAINING_PHASES, 1.0) | {"evaluate": 8.0, "checkpoint": 16.0}
    (run / "metrics.jsonl").write_text("".join(json.dumps(record(i, seconds=spent)) + "\n" for i in (1, 2)))
    (found,) = collect([run])
    assert found.training_seconds == 12.0
    assert math.fsum(found.seconds.values()) == 60.0


@pytest.mark.parametrize(
    "changed", [{"final": "test"}, {"limit": 3}, {"temperatures": [0.5]}, {"samples_per_prompt": 2}]
)
def test_an_evaluation_before_training_of_other_examples_is_left_out(changed: dict[str, object], run: Path) -> None:
    reevaluate(run, "after", [row("greedy", 60.5)], **changed)
    (found,) = collect([run])
    assert found.before is None
    assert found.after is not None
    assert found.changed == tuple(f"eval.{key}" for key in changed)
    assert found.split == changed.get("final", "validation")


def test_an_evaluation_before_training_is_held_against_the_configuration_until_there_is_one_after(run: Path) -> None:
    reevaluate(run, "before", [row("greedy", 20.0)], limit=3)
    (run / "evaluation" / "after" / "results.json").unlink()
    (found,) = collect([run])
    assert (found.before, found.after, found.changed) == (None, None, ("eval.limit",))
    reevaluate(run, "before", [row("greedy", 20.0)], bootstrap=0)
    (found,) = collect([run])
    assert found.before is not None
    assert (found.changed, found.examples) == ((), 4)


def test_two_evaluations_alike_stay_beside_each_other_though_the_configuration_went_on(run: Path) -> None:
    for when, value in (("before", 20.0), ("after", 60.5)):
        reevaluate(run, when, [row("greedy", value)], final="test", limit=3)
    (found,) = collect([run])
    assert (found.split, found.changed) == ("test", ())
    assert [each.value for each in found.rows("greedy") if each is not None] == [20.0, 60.5]


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_figures_that_are_not_finite_count_as_missing(odd: float, run: Path) -> None:
    rows = [row("greedy", odd), replace(row("T=1", 30.25, odd), interval=Interval(odd, 31.0))]
    reevaluate(run, "after", rows)
    (found,) = collect([run])
    greedy, sampled = (found.rows(decoding)[1] for decoding in ("greedy", "T=1"))
    assert greedy is not None
    assert sampled is not None
    assert (greedy.value, greedy.interval) == (None, None)
    assert (sampled.value, sampled.interval, sampled.self_bleu) == (30.25, None, None)
    assert [measure.decoding for measure in found.evaluated] == ["greedy", "T=1"]


def test_a_task_without_a_metric_is_evaluated_and_measures_nothing(run: Path) -> None:
    bare = replace(row("greedy", 0.0, metric="none"), value=None, interval=None, values={})
    for when in ("before", "after"):
        reevaluate(run, when, [bare])
    (found,) = collect([run])
    assert (found.decodings, found.evaluated) == (["greedy"], [])


def test_tasks_are_told_apart_by_name_data_and_the_options_in_which_they_differ(tmp_path: Path) -> None:
    tasks = [
        {"name": "jsonl", "data": "sums"},
        {"name": "gsm8k", "options": {"n_shots": 4, "calculator": True}},
        {"name": "gsm8k", "options": {"n_shots": 0, "calculator": True}},
        {"name": "gsm8k", "options": {"n_shots": 0, "calculator": True}},
        {"name": "gsm8k", "options": {"n_shots": 0, "calculator": True, "drop_empty": False}},
    ]
    runs = collect([write_run(tmp_path / str(i), task=task) for i, task in enumerate(tasks)])
    names = task_names(runs)
    assert [names[run.task] for run in runs] == [
        "jsonl, sums", "gsm8k, n_shots=4", "gsm8k, n_shots=0", "gsm8k, n_shots=0", "gsm8k, drop_empty=False, n_shots=0",
    ]  # fmt: skip
    pairs = [("accuracy", runs[0].task), ("accuracy", runs[1].task), ("rouge2", runs[2].task)]
    assert list(endings(pairs, runs).values()) == [" on jsonl, sums", " on gsm8k, n_shots=4", ""]


def test_a_task_of_ones_own_is_called_as_its_evaluations_call_it(run: Path) -> None:
    path = run / "evaluation" / "after" / "results.json"
    for file in (path, run / "evaluation" / "before" / "results.json"):
        file.write_text(file.read_text().replace('"task": "jsonl"', '"task": "riddles"'))
    (found,) = collect([run])
    assert task_names([found]) == {found.task: "riddles"}
