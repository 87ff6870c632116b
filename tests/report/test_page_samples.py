"""The cards of samples."""

import re
from dataclasses import replace
from pathlib import Path

from tests.report.conftest import decoded, evaluation, row, without_evaluations, without_marks, write_run
from tutelage.eval.results import save
from tutelage.report.collect import collect
from tutelage.report.page import Answer, Sample, headings, render, samples, samples_note


def test_runs_of_other_decodings_have_samples_too(tmp_path: Path, run: Path) -> None:
    other = decoded(write_run(tmp_path / "warm"), "T=0.5", "T=1")
    runs = collect([run, other, without_evaluations(write_run(tmp_path / "bare"))])
    (card,) = samples(runs)
    assert [(answer.writer, answer.text) for answer in card.students] == [
        ("gkd, before, greedy", "greedy says 20.0"), ("gkd, after, greedy", "greedy says 60.5"),
        ("warm, before, T=0.5", "T=0.5 says 10.0"), ("warm, after, T=0.5", "T=0.5 says 30.25"),
    ]  # fmt: skip
    note = "The first held-out example, greedy decoding where a run has it, else T=0.5, beside the reference"
    assert f"{note} and the teacher’s own answer." in render(runs)


def test_samples_beside_reference_and_teacher(run: Path) -> None:
    (sample,) = samples(collect([run]))
    assert (sample.prompt_id, sample.prompt) == (7, "2 + 3 =")
    assert sample.answers == [
        Answer("reference", "reference 5"),
        Answer("teacher", "teacher 5"),
        Answer("before", "greedy says 20.0", "wrong"),
        Answer("after", "greedy says 60.5", "right"),
    ]


def test_a_text_has_its_reward_beside_its_mark(run: Path) -> None:
    found = evaluation([row("greedy", 60.5)], 0.5)
    rewarded = replace(found, completions=(replace(found.completions[0], reward=0.8125),))
    save(rewarded, run / "evaluation" / "after", {})
    (sample,) = samples(collect([run]))
    assert sample.students[-1] == Answer("after", "greedy says 60.5", "right", "0.812")
    page = render(collect([run]))
    assert '<span class="mark right">right</span> reward 0.812</dt>' in page
    assert page.count(" reward 0.") == 1  # before training none was measured


def test_several_samples_of_a_prompt_make_one_card_with_the_first(run: Path) -> None:
    for when, value in (("before", 10.0), ("after", 30.25)):
        save(evaluation([row("T=1", value, 40.0)], 0.5), run / "evaluation" / when, {})
    (sample,) = samples(collect([run]))
    assert [answer.text for answer in sample.students] == ["T=1 says 10.0", "T=1 says 30.25"]


def test_examples_of_different_data_have_cards_of_their_own(tmp_path: Path, run: Path) -> None:
    other = write_run(tmp_path / "xsum", prompt="Summarise: ...", reference="a summary", metric="rouge2")
    runs = collect([run, write_run(tmp_path / "gkd-2"), other])
    cards = samples(runs)
    assert [(card.prompt_id, card.prompt, card.reference) for card in cards] == [
        (7, "2 + 3 =", "reference 5"), (7, "Summarise: ...", "a summary"),
    ]  # fmt: skip
    assert [[answer.writer for answer in card.students] for card in cards] == [
        ["gkd, before", "gkd, after", "gkd-2, before", "gkd-2, after"], ["xsum, before", "xsum, after"],
    ]  # fmt: skip
    assert cards[1].teachers == [Answer("teacher", "teacher 5")]
    assert [answer.mark for answer in cards[1].students] == ["0.00", "1.00"]
    assert headings(cards) == ["Example 7 of gkd; gkd-2", "Example 7 of xsum"]
    assert samples_note(cards, {"gkd": "greedy", "xsum": "greedy"}).startswith(
        "The first held-out examples of each run, greedy decoding, beside"
    )
    page = render(runs)
    assert re.findall(r"<h3>(Example.*?)</h3>", page) == headings(cards)


def test_a_card_names_few_runs_and_counts_many() -> None:
    many, one = Sample(7, "2 + 3 =", None, [], [], ["a", "b", "c", "d", "e"]), Sample(7, "3 + 3 =", None, [], [], ["f"])
    assert headings([many, one]) == ["Example 7 of a and 4 more runs", "Example 7 of f"]
    assert headings([many, Sample(8, "3 + 3 =", None, [], [], ["f"])]) == ["Example 7", "Example 8"]


def test_a_run_without_marks_shows_its_reference_and_the_note_says_no_more(tmp_path: Path) -> None:
    run = without_marks(write_run(tmp_path / "sft", method="sft", teacher=None))
    runs = collect([run])
    (sample,) = samples(runs)
    assert sample.answers[0] == Answer("reference", "reference 5")
    assert [answer.writer for answer in sample.answers] == ["reference", "before", "after"]
    note = "The first held-out example, greedy decoding, beside the reference."
    assert samples_note([sample], {"sft": "greedy"}) == note
    assert note in render(runs)


def test_the_note_says_what_all_cards_or_some_have() -> None:
    teacher = [Answer("teacher", "5")]
    whole, bare = Sample(0, "2 + 3 =", "5", teacher, [], []), Sample(1, "3 + 3 =", None, [], [], [])
    first = "The first 2 held-out examples, T=1 decoding"
    assert samples_note([bare, replace(bare, prompt_id=2)], {"a": "T=1"}) == f"{first}."
    both = [whole, replace(whole, prompt_id=1)]
    assert samples_note(both, {"a": "T=1"}) == f"{first}, beside the reference and the teacher’s own answer."
    partly = Sample(1, "3 + 3 =", "6", [], [], [])
    assert samples_note([whole, partly], {"a": "T=1"}) == (
        f"{first}, beside the reference and the teacher’s own answer where it was kept."
    )


def test_teachers_that_differ_are_told_apart(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other")
    for path in (other / "marks").iterdir():
        path.write_text(path.read_text().replace("teacher 5", "teacher V"))
    (sample,) = samples(collect([run, other]))
    assert sample.teachers == [Answer("gkd, teacher", "teacher 5"), Answer("other, teacher", "teacher V")]
    (same,) = samples(collect([run, write_run(tmp_path / "same")]))
    assert same.teachers == [Answer("teacher", "teacher 5")]
