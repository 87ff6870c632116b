import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.report.conftest import HOSTILE, mark_every_step, record, save_diverse, without_marks, write_run
from tutelage.errors import UserError
from tutelage.report import write_report
from tutelage.report.collect import collect
from tutelage.report.page import (
    Answer,
    Sample,
    headings,
    headline,
    marks_note,
    printable,
    render,
    samples,
    samples_note,
    summary,
)


class Tags(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def table(*folders: Path) -> list[dict[str, tuple[str, str]]]:
    found = summary(collect(folders))
    return [dict(zip(found.header, ((c.text, c.before) for c in row), strict=True)) for row in found.rows]


def test_every_number_of_the_summary_comes_from_the_folder(tmp_path: Path) -> None:
    first, second = table(
        write_run(tmp_path / "a", teacher_signal="topk(64)"),
        write_run(tmp_path / "b", steps=5, method="sft", teacher=None, seed=6),
    )
    assert first == {
        "run": ("a", ""),
        "method": ("gkd", ""),
        "divergence": ("jsd(0.5)", ""),
        "teacher signal": ("topk(64)", ""),
        "student data": ("100%", ""),
        "seed": ("5", ""),
        "accuracy (greedy)": ("60.5 [59.5, 61.5]", "20.0 [19.0, 21.0]"),
        "accuracy (T=1)": ("30.2 [29.2, 31.2]", "10.0 [9.0, 11.0]"),
        "forward KL (T=1)": ("0.500 [0.250, 0.750]", "0.750 [0.500, 1.000]"),
        "reverse KL (T=1)": ("1.000", "1.500"),
        "steps": ("3", ""),
        "tokens": ("300", ""),
        "seconds": ("12.0", ""),
    }
    changed = {key: value for key, value in second.items() if value != first[key]}
    assert changed == {
        "run": ("b", ""),
        "method": ("sft", ""),
        "divergence": ("–", ""),
        "teacher signal": ("–", ""),
        "student data": ("0%", ""),
        "seed": ("6", ""),
        "steps": ("5", ""),
        "tokens": ("500", ""),
        "seconds": ("20.0", ""),
    }


def test_what_a_run_lacks_is_a_dash_or_no_column(tmp_path: Path, run: Path) -> None:
    bare = write_run(tmp_path / "bare")
    for path in bare.rglob("results.json"):
        path.unlink()
    (only,) = table(bare)
    assert not [name for name in only if "accuracy" in name or "KL" in name]
    _, beside = table(run, bare)
    assert beside["accuracy (greedy)"] == ("–", "")
    assert "no evaluation" in headline(collect([bare])[0])


def test_a_metric_has_a_column_of_its_own_and_tasks_that_differ_are_named(tmp_path: Path, run: Path) -> None:
    options = {"task": {"name": "summarization", "data": "articles"}}
    sums, articles = table(run, write_run(tmp_path / "xsum", metric="rouge2", **options))
    assert list(sums)[:3] == ["run", "task", "method"]
    assert (sums["task"], articles["task"]) == (("jsonl", ""), ("summarization, articles", ""))
    assert (sums["accuracy (greedy)"], articles["accuracy (greedy)"]) == (
        ("60.5 [59.5, 61.5]", "20.0 [19.0, 21.0]"), ("–", ""),
    )  # fmt: skip
    assert (sums["rouge2 (T=1)"], articles["rouge2 (T=1)"]) == (("–", ""), ("30.2 [29.2, 31.2]", "10.0 [9.0, 11.0]"))


def test_a_reward_alone_has_neither_divergence_nor_signal(tmp_path: Path) -> None:
    options = {"method": "rl_gkd", "rl": {"reward": "accuracy", "alpha": 0.0}}
    (alone,) = table(write_run(tmp_path / "alone", teacher=None, **options))
    assert (alone["divergence"], alone["teacher signal"]) == (("–", ""), ("–", ""))
    (measured,) = table(write_run(tmp_path / "measured", **options))
    assert (measured["divergence"], measured["teacher signal"]) == (("jsd(0.9)", ""), ("hidden", ""))


def test_self_bleu_is_in_the_summary_where_it_was_measured(run: Path) -> None:
    save_diverse(run)
    (only,) = table(run)
    assert (only["Self-BLEU (T=0.5)"], only["Self-BLEU (T=1)"]) == (("95.0", "80.0"), ("60.0", "40.0"))
    assert "Self-BLEU (greedy)" not in only
    assert only["accuracy (T=1)"] == ("30.2 [29.2, 31.2]", "10.0 [9.0, 11.0]")


def test_diversity_has_charts_or_a_sentence_on_how_to_have_them(run: Path) -> None:
    section = re.compile(r'<section id="quality".*?</section>', re.DOTALL)
    (without,) = section.findall(render(collect([run])))
    assert "Self-BLEU against temperature" not in without
    assert "--eval.samples-per-prompt 4" in without
    save_diverse(run)
    (diverse,) = section.findall(render(collect([run])))
    assert "<h3>Self-BLEU against temperature</h3>" in diverse
    assert "<h3>Accuracy against diversity</h3>" in diverse
    assert "--eval.samples-per-prompt" not in diverse


def test_headline(run: Path) -> None:
    expected = "Accuracy (greedy) went from 20.0 [19.0, 21.0] to 60.5 [59.5, 61.5] in 3 steps on 300 tokens."
    assert headline(collect([run])[0]) == expected


def test_samples_beside_reference_and_teacher(run: Path) -> None:
    (sample,) = samples(collect([run]), "greedy")
    assert (sample.prompt_id, sample.prompt) == (7, "2 + 3 =")
    assert sample.answers == [
        Answer("reference", "reference 5"),
        Answer("teacher", "teacher 5"),
        Answer("before", "greedy says 20.0", "wrong"),
        Answer("after", "greedy says 60.5", "right"),
    ]


def test_several_samples_of_a_prompt_make_one_card_with_the_first(run: Path) -> None:
    save_diverse(run)
    (sample,) = samples(collect([run]), "T=1")
    assert [answer.text for answer in sample.students] == ["T=1 says 10.0", "T=1 says 30.25"]


def test_examples_of_different_data_have_cards_of_their_own(tmp_path: Path, run: Path) -> None:
    other = write_run(tmp_path / "xsum", prompt="Summarise: ...", reference="a summary", metric="rouge2")
    runs = collect([run, write_run(tmp_path / "gkd-2"), other])
    cards = samples(runs, "greedy")
    assert [(card.prompt_id, card.prompt, card.reference) for card in cards] == [
        (7, "2 + 3 =", "reference 5"), (7, "Summarise: ...", "a summary"),
    ]  # fmt: skip
    assert [[answer.writer for answer in card.students] for card in cards] == [
        ["gkd, before", "gkd, after", "gkd-2, before", "gkd-2, after"], ["xsum, before", "xsum, after"],
    ]  # fmt: skip
    assert cards[1].teachers == [Answer("teacher", "teacher 5")]
    assert [answer.mark for answer in cards[1].students] == ["0.00", "1.00"]
    assert headings(cards) == ["Example 7 of gkd; gkd-2", "Example 7 of xsum"]
    assert samples_note(cards, "greedy").startswith("The first held-out examples of each run, greedy decoding, beside")
    page = render(runs)
    assert re.findall(r"<h3>(Example.*?)</h3>", page) == headings(cards)


def test_a_card_names_few_runs_and_counts_many() -> None:
    many, one = Sample(7, "2 + 3 =", None, [], [], ["a", "b", "c", "d", "e"]), Sample(7, "3 + 3 =", None, [], [], ["f"])
    assert headings([many, one]) == ["Example 7 of a and 4 more runs", "Example 7 of f"]
    assert headings([many, Sample(8, "3 + 3 =", None, [], [], ["f"])]) == ["Example 7", "Example 8"]


def test_a_run_without_marks_shows_its_reference_and_the_note_says_no_more(tmp_path: Path) -> None:
    run = without_marks(write_run(tmp_path / "sft", method="sft", teacher=None))
    runs = collect([run])
    (sample,) = samples(runs, "greedy")
    assert sample.answers[0] == Answer("reference", "reference 5")
    assert [answer.writer for answer in sample.answers] == ["reference", "before", "after"]
    note = "The first held-out example, greedy decoding, beside the reference."
    assert samples_note([sample], "greedy") == note
    assert note in render(runs)


def test_the_note_says_what_all_cards_or_some_have() -> None:
    teacher = [Answer("teacher", "5")]
    whole, bare = Sample(0, "2 + 3 =", "5", teacher, [], []), Sample(1, "3 + 3 =", None, [], [], [])
    first = "The first 2 held-out examples, T=1 decoding"
    assert samples_note([bare, replace(bare, prompt_id=2)], "T=1") == f"{first}."
    both = [whole, replace(whole, prompt_id=1)]
    assert samples_note(both, "T=1") == f"{first}, beside the reference and the teacher’s own answer."
    partly = Sample(1, "3 + 3 =", "6", [], [], [])
    assert samples_note([whole, partly], "T=1") == (
        f"{first}, beside the reference and the teacher’s own answer where it was kept."
    )


def test_teachers_that_differ_are_told_apart(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other")
    for path in (other / "marks").iterdir():
        path.write_text(path.read_text().replace("teacher 5", "teacher V"))
    (sample,) = samples(collect([run, other]), "greedy")
    assert sample.teachers == [Answer("gkd, teacher", "teacher 5"), Answer("other, teacher", "teacher V")]
    (same,) = samples(collect([run, write_run(tmp_path / "same")]), "greedy")
    assert same.teachers == [Answer("teacher", "teacher 5")]


def test_the_page_says_which_marked_steps_it_leaves_out(tmp_path: Path, run: Path) -> None:
    short = write_run(tmp_path / "short")
    assert marks_note(collect([short])) == ""
    runs = collect([mark_every_step(run, 101), short])
    assert marks_note(runs) == (
        "No more than 12 marked steps of a run are on this page, evenly spaced, the first and the last among them "
        "(gkd: 12 of 101). The folder of a run holds all of them."
    )
    assert f'<p class="note">{marks_note(runs)}</p>' in render(runs)


def test_the_title_names_few_runs_and_counts_many(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"run-{i}") for i in range(5)]
    titles = [re.findall(r"<h1>(.*?)</h1>", render(collect(runs))) for runs in (folders[:1], folders[:2], folders)]
    assert titles == [["Run run-0"], ["Runs run-0; run-1"], ["5 runs"]]


def test_the_page_is_one_file_without_network(run: Path) -> None:
    page = render(collect([run]))
    tags = Tags(page)
    assert tags.count("script") == 2
    for name, attributes in tags.tags:
        for key in ("src", "href"):
            assert (attributes.get(key) or "#").startswith(("#", "data:")), (name, attributes)
    assert "default-src 'none'" in page
    assert not re.search(r"@import|url\(", page)
    ids = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"] for name, attributes in tags.tags if name == "a"} <= {f"#{each}" for each in ids}


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    calm, hostile = (
        Tags(render(collect([write_run(tmp_path / f"{i}" / "run", prompt=prompt)])))
        for i, prompt in enumerate(("2 + 3 =", HOSTILE))
    )
    assert [name for name, _ in hostile.tags] == [name for name, _ in calm.tags]
    assert "<b>&amp;</b></script><script>alert(1)</script>\n\t␇␀ end" in hostile.text
    assert "\x00" not in hostile.text


def test_many_runs_are_rows_and_few_are_columns(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"run-{i}") for i in range(5)]
    first_header = re.compile(r'<table class="summary">.*?<thead>(.*?)</thead>', re.DOTALL)
    for runs, expected in ((folders[:2], ["run-0", "run-1"]), (folders, ["method", "divergence"])):
        match = first_header.search(render(collect(runs)))
        assert match is not None
        assert re.findall(r"<th[^>]*>(.*?)</th>", match[1])[1:3] == expected


def test_a_run_that_only_began_has_a_page(run: Path) -> None:
    for path in [*run.rglob("*.jsonl"), *run.rglob("results.json")]:
        path.unlink()
    tags = Tags(render(collect([run])))
    assert (tags.count("script"), tags.count("svg"), tags.count("article")) == (0, 0, 0)
    assert "0 steps on 0 tokens; no evaluation before and after training to compare." in tags.text


def test_the_file_is_written_and_its_folder_made(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "report.html"
    assert write_report([run], output) == output
    assert output.read_text(encoding="utf-8") == render(collect([run]))
    with pytest.raises(UserError, match=r"cannot write the report .*give --output a file"):
        write_report([run], tmp_path)


def test_printable() -> None:
    assert printable("a\tb\nc\r\x1b[0m\x7f") == "a\tb\nc␍␛[0m␡"
    assert printable("\ud800") == "?"


def test_a_run_with_a_reward_has_a_section_of_it_and_others_have_none(tmp_path: Path, run: Path) -> None:
    rewarded = write_run(tmp_path / "rl", method="rl_gkd", rl={"reward": "accuracy"})
    lines = [record(i, reward=i / 4, reverse_kl=0.5, task_metrics={"accuracy": 25.0 * i}) for i in (1, 2)]
    (rewarded / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pages = [render(collect([folder])) for folder in (rewarded, run)]
    assert [page.count('<section id="reward"') for page in pages] == [1, 0]
    assert [page.count('<a href="#reward">Reward</a>') for page in pages] == [1, 0]
    assert "Reverse KL against the reward. rl: from reward 0.25" in pages[0]  # read aloud
