import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.report.conftest import (
    HOSTILE,
    decoded,
    mark_every_step,
    record,
    reevaluate,
    row,
    save_diverse,
    without_evaluations,
    write_run,
)
from tutelage.errors import UserError
from tutelage.eval.signals import Estimate
from tutelage.eval.statistics import Interval
from tutelage.report import write_report
from tutelage.report.collect import collect
from tutelage.report.page import (
    headline,
    marks_note,
    printable,
    render,
    samples,
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
        "evaluated on": ("validation, 4 examples", ""),
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
    bare = without_evaluations(write_run(tmp_path / "bare"))
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


def test_a_measured_reward_has_a_column(tmp_path: Path, run: Path) -> None:
    other = write_run(tmp_path / "rewarded")
    for when, reward in (("before", 0.125), ("after", 0.5)):
        estimate = Estimate(reward, Interval(reward - 0.1, reward + 0.1))
        reevaluate(other, when, [replace(row("T=1", 10.0), reward=estimate)])
    without, measured = table(run, other)
    assert (without["reward (T=1)"], measured["reward (T=1)"]) == (
        ("–", ""), ("0.500 [0.400, 0.600]", "0.125 [0.025, 0.225]"),
    )  # fmt: skip
    assert "reward (greedy)" not in without


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


@pytest.mark.parametrize(
    ("missing", "told"),
    [("after", "was 20.0 [19.0, 21.0] before training"), ("before", "is 60.5 [59.5, 61.5] after training")],
)
def test_one_evaluation_is_told_by_itself_and_the_steps_that_are_left(missing: str, told: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "gkd", **{"train.steps": 1200})
    (run / "evaluation" / missing / "results.json").unlink()
    assert headline(collect([run])[0]) == f"3 of 1,200 steps on 300 tokens; Accuracy (greedy) {told}."
    assert table(run)[0]["steps"] == ("3 of 1,200", "")


def test_the_headline_says_why_an_evaluation_is_left_out(run: Path) -> None:
    reevaluate(run, "after", [row("greedy", 60.5)], final="test", limit=3)
    assert headline(collect([run])[0]) == (
        "3 steps on 300 tokens; Accuracy (greedy) is 60.5 [59.5, 61.5] after training; the evaluation before training had another "
        "eval.final, eval.limit and is left out."
    )
    (only,) = table(run)
    assert (only["evaluated on"], only["accuracy (greedy)"]) == (("test, 4 examples", ""), ("60.5 [59.5, 61.5]", ""))
    assert [answer.writer for answer in samples(collect([run]))[0].students] == ["after"]


def test_a_task_without_a_metric_has_samples_and_no_column(run: Path) -> None:
    bare = replace(row("greedy", 0.0, metric="none"), value=None, interval=None, values={})
    for when in ("before", "after"):
        reevaluate(run, when, [bare])
    (only,) = table(run)
    assert [name for name in only if "none" in name] == []
    runs = collect([run])
    assert headline(runs[0]) == "3 steps on 300 tokens; evaluated, but without a metric's value to compare."
    assert [answer.text for answer in samples(runs)[0].students] == ["greedy says None"] * 2


def test_a_metric_that_is_not_finite_is_a_dash(run: Path) -> None:
    reevaluate(run, "after", [row("greedy", math.nan), row("T=1", 30.25)])
    (only,) = table(run)
    assert (only["accuracy (greedy)"], only["accuracy (T=1)"]) == (
        ("–", "20.0 [19.0, 21.0]"), ("30.2 [29.2, 31.2]", "10.0 [9.0, 11.0]"),
    )  # fmt: skip
    runs = collect([run])
    assert headline(runs[0]).startswith("Accuracy (T=1) went from 10.0")
    assert 'id="summary"' in render(runs)


def test_seconds_are_of_training_and_the_rest_is_in_the_section_of_time(run: Path) -> None:
    seconds = {"rollout": 1.0, "update": 1.0, "evaluate": 90.0, "checkpoint": 8.0}
    (run / "metrics.jsonl").write_text(json.dumps(record(1, seconds=seconds)) + "\n")
    (only,) = table(run)
    assert only["seconds"] == ("2.0", "")
    match = re.search(r'<section id="time".*?</section>', render(collect([run])), re.DOTALL)
    assert match is not None
    assert re.findall(r"<th[^>]*>(?:<span[^>]*></span>)?([^<]*)</th>", match[0])[:8] == [
        "seconds", "rollout", "update", "evaluate", "checkpoint", "all", "training", "tokens/s",
    ]  # fmt: skip
    assert re.findall(r"<td>(.*?)</td>", match[0]) == [
        "1.0 (1%)", "1.0 (1%)", "90.0 (90%)", "8.0 (8%)", "100.0", "2.0", "50", "2",
    ]  # fmt: skip


def test_tasks_that_share_a_metric_have_columns_of_their_own(tmp_path: Path, run: Path) -> None:
    few, many = (
        write_run(tmp_path / name, task={"name": "arithmetic", "options": {"max_steps": steps}})
        for name, steps in (("few", 2), ("many", 5))
    )
    sums, short, long = table(run, few, many)
    assert [each["task"][0] for each in (sums, short, long)] == [
        "jsonl", "arithmetic, max_steps=2", "arithmetic, max_steps=5",
    ]  # fmt: skip
    column = "accuracy (greedy) on arithmetic, max_steps=5"
    assert [each[column][0] for each in (sums, short, long)] == ["–", "–", "60.5 [59.5, 61.5]"]
    assert sums["accuracy (greedy) on jsonl"][0] == "60.5 [59.5, 61.5]"
    assert "accuracy (greedy)" not in sums


def test_the_distance_is_shown_on_what_each_run_wrote_nearest_to_temperature_one(tmp_path: Path, run: Path) -> None:
    greedy = decoded(write_run(tmp_path / "greedy"), "greedy")
    warm = decoded(write_run(tmp_path / "warm"), "greedy", "T=0.7", "T=2")
    both, cold, other = table(run, greedy, warm)
    assert [name for name in both if name.startswith("forward KL")] == [
        "forward KL (T=1)", "forward KL (greedy)", "forward KL (T=0.7)",
    ]  # fmt: skip
    measured = ("0.500 [0.250, 0.750]", "0.500 [0.250, 0.750]")
    assert (cold["forward KL (T=1)"], cold["forward KL (greedy)"]) == (("–", ""), measured)
    assert (other["forward KL (greedy)"], other["forward KL (T=0.7)"]) == (measured, measured)
    assert both["forward KL (greedy)"] == ("0.500 [0.250, 0.750]", "0.750 [0.500, 1.000]")


def test_the_page_says_which_marked_steps_it_leaves_out(tmp_path: Path, run: Path) -> None:
    short = write_run(tmp_path / "short")
    assert marks_note(collect([short])) == ""
    runs = collect([mark_every_step(run, 101), short])
    assert marks_note(runs) == (
        "No more than 12 marked steps of a run are on this page, evenly spaced, the first and the last among them "
        "(gkd: 12 of 101). The folder of a run holds all of them."
    )
    assert f'<p class="note">{marks_note(runs)}</p>' in render(runs)
    assert marks_note(runs, 3) == (
        "No more than 12 marked steps of a run are on this page, evenly spaced, the first and the last among them "
        "(gkd: 12 of 101). Of a step, the first 3 sequences. The folder of a run holds all of them."
    )
    assert marks_note(runs[1:], 1) == "Of a marked step, the first sequence. The folder of a run holds all of them."


def test_a_page_of_many_runs_holds_fewer_marks_of_each(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutelage.report.collect.MARKED_TOKENS", 8)  # of 32: two sequences of four tokens, twice a run
    page = render(collect([run, write_run(tmp_path / "other")]))
    assert "Of a marked step, the first sequence. The folder of a run holds all of them." in page
    match = re.search(r'<script type="application/json" id="marks-data">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    data = json.loads(match[1])
    found = [[(step["step"], len(step["sequences"])) for step in each["steps"]] for each in data["runs"]]
    assert found == [[(0, 1), (3, 1)]] * 2
    assert [answer.writer for answer in samples(collect([run]))[0].answers][:2] == ["reference", "teacher"]


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
    assert "0 of 3 steps on 0 tokens; no evaluation before and after training to compare." in tags.text


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
    assert "Reverse KL against the reward, in training. rl: from reward 0.25" in pages[0]  # read aloud
