"""The report in a real Chromium: `make test-browser`. Elsewhere skipped where none is installed (CHROMIUM names one)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.browser.chromium import Browser, find, may_skip
from tests.report.conftest import HOSTILE, sequence, token, write_run
from tutelage.eval import marks
from tutelage.eval.marks import Choice, MarkedSequence, TokenMark
from tutelage.report import write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(may_skip(), reason="no Chromium; install one, or name it in CHROMIUM"),
]
LONG = 10_000
FOCUSED = "document.activeElement.getAttribute('aria-label')"
STOPS = (
    "[...document.querySelectorAll('.tokens')].map((box) =>"
    " [...box.querySelectorAll('[tabindex=\"0\"]')].map((e) => e.textContent))"
)
PANEL = "document.getElementById('panel').innerText"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find()
    assert executable is not None, "no Chromium; install one, or name it in CHROMIUM"
    with Browser(executable, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(autouse=True)
def quiet(browser: Browser) -> Iterator[None]:
    """No page may log an error or ask for anything over the network."""
    yield
    assert browser.problems == []
    assert browser.requests == []


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of two steps with two sequences of four tokens each."""
    folder = tmp_path_factory.mktemp("runs")
    return write_report([write_run(folder / "gkd"), write_run(folder / "kd", seed=6)], folder / "report.html")


@pytest.fixture(scope="module")
def long_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sequence of 10,000 tokens."""
    folder = tmp_path_factory.mktemp("long")
    run = write_run(folder / "run")
    tokens = [token(" word" if i % 8 else "\n", (i % 97) / 100) for i in range(LONG)]
    marks.save([sequence(tokens)], run, 9)
    return write_report([run], folder / "report.html")


def test_tokens_are_coloured_by_band_and_labelled(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.run("[...document.querySelectorAll('#sequences .token')].map((e) => e.className)") == [
        "token b0", "token b4", "token b0", "token b3", "token b3", "token b0", "token b4", "token b0",
    ]  # fmt: skip
    texts = browser.run("[...document.querySelectorAll('#sequences .token')].slice(0, 4).map((e) => e.textContent)")
    assert texts == ["five", "·six", "⏎", "</s>"]
    labels = "[...document.querySelectorAll('#sequences .token')].slice(0, 3).map((e) => e.getAttribute('aria-label'))"
    assert browser.run(labels) == [
        "five, 0.01 nats, token 1 of 4",
        "six, 0.45 nats, token 2 of 4",
        "line end, 0 nats, token 3 of 4",
    ]
    assert browser.run("[...document.querySelectorAll('#scale li')].length") == 6


def test_the_keyboard_walks_the_tokens(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.run(STOPS) == [["five"], ["</s>"]]
    browser.run("document.querySelector('.token[tabindex=\"0\"]').focus()")
    assert browser.run(FOCUSED) == "five, 0.01 nats, token 1 of 4"
    walk = [
        ("End", "</s>, 0.15 nats, token 4 of 4"),
        ("ArrowLeft", "line end, 0 nats, token 3 of 4"),
        ("Home", "five, 0.01 nats, token 1 of 4"),
        ("ArrowLeft", "five, 0.01 nats, token 1 of 4"),
        ("ArrowRight", "six, 0.45 nats, token 2 of 4"),
        ("n", "six, 0.45 nats, token 3 of 4"),  # the same token of the other sequence
        ("p", "six, 0.45 nats, token 2 of 4"),
        ("ArrowDown", "</s>, 0.15 nats, token 4 of 4"),  # a line end comes before it
        ("ArrowUp", "five, 0.01 nats, token 1 of 4"),
    ]
    for key, expected in walk:
        browser.press(key)
        assert browser.run(FOCUSED) == expected, key
        assert expected.split(", ")[-1] in browser.run(PANEL)
    assert browser.run(STOPS) == [["five"], ["·six"]]  # in the second, the last it had
    browser.press("Tab")
    assert browser.run(FOCUSED) == "six, 0.45 nats, token 3 of 4"
    assert browser.run("document.querySelectorAll('[aria-selected=true]').length") == 1


def test_both_models_show_on_focus_hover_and_click(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.point("#sequences .token:nth-child(2)", click=False)
    panel = browser.run(PANEL)
    assert "jsd(0.5)\t0.45 nats" in panel
    assert "forward KL\t0.9 nats" in panel
    assert "student, 70.0% for this token\n·six\t70.0%" in panel
    assert "teacher, 5.0% for this token\n·yes\t90.0%" in panel
    browser.point("#sequences .token:nth-child(1)", click=True)
    assert browser.run(FOCUSED) == "five, 0.01 nats, token 1 of 4"
    assert browser.run("document.getElementById(document.activeElement.getAttribute('aria-describedby')).innerText")
    browser.press("Escape")
    assert "next token" in browser.run(PANEL)


def test_a_narrow_window_shows_the_panel_while_it_is_wanted(browser: Browser, page: Path) -> None:
    browser.open(page, 400)
    visible = "getComputedStyle(document.getElementById('panel')).display !== 'none'"
    assert not browser.run(visible)
    browser.point("#sequences .token:nth-child(2)", click=True)
    assert browser.run(visible)
    assert browser.run("document.activeElement.getBoundingClientRect().bottom < panel.getBoundingClientRect().top")
    for part in ("#panel .hint", "#panel .number"):
        browser.point(part, click=True)
        assert browser.run(visible), part
    browser.press("Escape")
    assert not browser.run(visible)
    browser.point("#sequences .token:nth-child(2)", click=True)
    browser.point("#panel .hint", click=True)
    browser.point("#marks-title", click=True)
    assert not browser.run(visible)
    browser.point("#sequences .token:nth-child(2)", click=True)
    browser.point("#panel .close", click=True)
    assert not browser.run(visible)
    browser.point("#sequences .token:nth-child(2)", click=True)
    assert browser.run(visible)
    browser.point("#marks-title", click=True)
    assert not browser.run(visible)
    browser.point("#sequences .token:nth-child(2)", click=True)
    assert browser.run(visible)


def test_the_worst_tokens_come_first_and_jump(browser: Browser, page: Path) -> None:
    browser.open(page)
    worst = browser.run("[...document.querySelectorAll('#worst button')].map((e) => e.getAttribute('aria-label'))")
    assert worst[:3] == [
        "six, 0.45 nats, example 7, token 2",
        "six, 0.45 nats, example 8, token 3",
        "</s>, 0.15 nats, example 7, token 4",
    ]
    browser.point("#worst li:nth-child(2) button", click=True)
    assert browser.run(FOCUSED) == "six, 0.45 nats, token 3 of 4"


def choose(browser: Browser, control: str, value: str) -> None:
    browser.run(
        f"(() => {{ const e = document.getElementById('{control}'); e.value = '{value}'; "
        "e.dispatchEvent(new Event('input', {bubbles: true})) })()"
    )


def test_step_measure_sequence_and_run_are_chosen(browser: Browser, page: Path) -> None:
    browser.open(page)
    first = "document.querySelector('#sequences .token').getAttribute('aria-label')"
    count = "document.querySelectorAll('#sequences .token').length"
    browser.point("#sequences .token:nth-child(2)", click=True)
    choose(browser, "step", "0")
    assert browser.run("document.getElementById('step-value').textContent") == "0"
    assert browser.run(first) == "five, 0.02 nats, token 1 of 4"
    # The panel goes on showing the same token at the other step.
    assert "jsd(0.5)\t0.9 nats" in browser.run(PANEL)
    choose(browser, "measure", "2")
    assert browser.run(first) == "five, 0.06 nats, token 1 of 4"
    choose(browser, "shown", "1")
    assert (browser.run(count), browser.run(first)) == (4, "</s>, 0.9 nats, token 1 of 4")
    choose(browser, "shown", "worst")
    assert browser.run(count) == 8
    choose(browser, "run", "1")
    assert browser.run(first) == "five, 0.01 nats, token 1 of 4"


def test_the_panel_does_not_take_another_prompt_of_the_same_number_for_its_own(
    browser: Browser, tmp_path: Path
) -> None:
    runs = [write_run(tmp_path / "sums"), write_run(tmp_path / "articles", prompt="Summarise: ...")]
    browser.open(write_report(runs, tmp_path / "report.html"))
    browser.point("#sequences .token:nth-child(2)", click=True)
    assert "jsd(0.5)\t0.45 nats" in browser.run(PANEL)
    choose(browser, "run", "1")
    assert "Left, right: next token." in browser.run(PANEL)


def test_the_slider_answers_to_keys(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.getElementById('step').focus()")
    browser.press("Home")
    assert browser.run("document.getElementById('step').getAttribute('aria-valuetext')") == "step 0"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1240])
def test_nothing_sticks_out_and_texts_have_contrast(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    colours = browser.run(
        "['.note', '#scale .b5', '#scale .b4', '#scale .b1', '#sequences header', 'nav a'].map((s) => { let e = document.querySelector(s);"
        "const ink = getComputedStyle(e).color; while (getComputedStyle(e).backgroundColor === 'rgba(0, 0, 0, 0)')"
        "e = e.parentElement; return [ink, getComputedStyle(e).backgroundColor] })"
    )
    for ink, ground in colours:
        assert contrast(ink, ground) >= 4.5, (ink, ground)


def contrast(ink: str, ground: str) -> float:
    """Contrast of two CSS colours. Source: WCAG 2.2, definition of contrast ratio."""
    lights = sorted(map(luminance, (ink, ground)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return math.fsum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_hostile_texts_run_nothing(browser: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", prompt=HOSTILE)
    marks.save([sequence([token(HOSTILE, 0.5)], prompt=HOSTILE)], run, 9)
    browser.open(write_report([run], tmp_path / "report.html"))
    shown = "document.querySelector('#sequences .token').textContent"
    assert browser.run(shown) == "<b>&amp;</b></script><script>alert(1)</script>⏎⇥␇␀·end"
    assert browser.run("document.scripts.length") == 2
    assert browser.run("document.querySelector('#sequences .prompt').textContent") == HOSTILE


def test_ten_thousand_tokens(browser: Browser, long_page: Path) -> None:
    browser.open(long_page)
    assert browser.run("document.querySelectorAll('#sequences .token').length") == LONG
    assert browser.run("document.querySelectorAll('#worst button').length") == 30
    browser.run("document.querySelector('.token[tabindex=\"0\"]').focus()")
    browser.press("End")
    assert browser.run(FOCUSED) == f"word, 0.08 nats, token {LONG} of {LONG}"
    box = browser.run(
        "(() => { const b = document.activeElement.getBoundingClientRect(); return [b.top, b.bottom] })()"
    )
    assert 0 <= box[0] < box[1] <= 900
    browser.press("ArrowUp")
    assert browser.run(FOCUSED) == f"word, 0 nats, token {LONG - 8} of {LONG}"  # seven words and a line end make a line


def texts_of(browser: Browser, selector: str, attribute: str | None = None) -> list[str]:
    """The texts of all elements of a selector, or one of their attributes."""
    value = "e.textContent" if attribute is None else f"e.getAttribute({attribute!r})"
    found: list[str] = browser.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => {value})")
    return found


def open_marks(browser: Browser, folder: Path, *sequences: MarkedSequence) -> None:
    """The report of a run that ends with these sequences."""
    run = write_run(folder / "run")
    marks.save(sequences, run, 9)
    browser.open(write_report([run], folder / "report.html"))


def test_one_row_is_the_written_token_where_several_decode_alike(browser: Browser, tmp_path: Path) -> None:
    byte = "\ufffd"
    top = (Choice(byte, 0.5, 228), Choice(byte, 0.25, 189), Choice(" a", 0.125, 7))
    open_marks(browser, tmp_path, sequence([TokenMark(byte, 0.5, 1.0, 1.5, 0.25, 0.25, top, top, id=189)]))
    browser.point("#sequences .token", click=True)
    assert texts_of(browser, "#tops .student .text") == ["\ufffd 228", "\ufffd 189", "·a"]
    assert texts_of(browser, "#tops .written .text") == ["\ufffd 189"] * 2
    assert texts_of(browser, "#tops .teacher .text", "aria-label") == [
        "incomplete character, id 228", "incomplete character, id 189, this token", "a",
    ]  # fmt: skip


def test_sequences_are_ordered_by_their_worst_token_or_by_their_mean(browser: Browser, tmp_path: Path) -> None:
    long = sequence([token("x", 2.0), *[token("y", 0.0)] * 9], prompt_id=1)
    forced = [token("x", 0.1), replace(token("y", 9.0), forced=True)]
    open_marks(
        browser, tmp_path, sequence(forced, prompt_id=0), long, sequence([token("x", 0.5)] * 2, prompt_id=2)
    )  # fmt: skip
    assert texts_of(browser, "#shown option")[:3] == [
        "all, in order",
        "all, worst token first",
        "all, highest mean first",
    ]
    orders = {}
    for order in ("order", "worst", "mean"):
        choose(browser, "shown", order)
        orders[order] = [text.split(" · ")[0] for text in texts_of(browser, ".sequence header")]
    examples = {order: [int(text.removeprefix("example ")) for text in found] for order, found in orders.items()}
    assert examples == {"order": [0, 1, 2], "worst": [1, 2, 0], "mean": [2, 1, 0]}


def test_inserted_tokens_are_named_and_not_counted(browser: Browser, tmp_path: Path) -> None:
    tokens = [token("3", 0.5), replace(token(" 19", 7.0), forced=True), token(" x", 0.25)]
    end = [*tokens[:1], replace(token("</s>", 7.0), forced=True)]
    open_marks(browser, tmp_path, sequence(tokens), sequence(end, prompt_id=8))
    assert texts_of(browser, ".sequence header") == [
        "example 7 · 3 tokens, 1 of them inserted · ended by itself · mean 0.375 nats",
        "example 8 · 2 tokens, 1 of them inserted · ended behind a stop text · mean 0.5 nats",
    ]
    assert texts_of(browser, "#sequences .forced", "aria-label") == [
        "19, inserted by the task, token 2 of 3", "</s>, inserted by the task, token 2 of 2",
    ]  # fmt: skip
    assert texts_of(browser, "#worst b") == ["3", "3", "·x"]
    assert texts_of(browser, "#scale li")[-1] == "tokeninserted by the task, not counted"
    browser.point("#sequences .forced", click=True)
    assert "example 7, token 2 of 3, inserted by the task" in browser.run(PANEL)
    choose(browser, "step", "0")
    assert "inserted" not in texts_of(browser, "#scale li")[-1]


def test_every_text_can_be_seen_and_said(browser: Browser, tmp_path: Path) -> None:
    cases = {
        "": ("∅", "empty"),
        "  ": ("··", "space space"),
        "\n\n": ("⏎⏎", "line end line end"),
        "\r": ("␍", "carriage return"),
        "\u00a0": ("⍽", "no-break space"),
        "\u3000": ("□", "ideographic space"),
        "\u200b": ("⟨U+200B⟩", "U+200B"),
        " a\u00a0b\nc": ("·a⍽b⏎c", "a no-break space b line end c"),
        "a\u202eb": ("a⟨U+202E⟩b", "a U+202E b"),
        "می\u200cروم": ("می\u200cروم", "می\u200cروم"),  # a joiner inside a word is its spelling
    }
    open_marks(browser, tmp_path, sequence([token(text, 0.5) for text in cases]))
    assert texts_of(browser, "#sequences .token") == [seen for seen, _ in cases.values()]
    labels = texts_of(browser, "#sequences .token", "aria-label")
    assert [label.split(", ")[0] for label in labels] == [said for _, said in cases.values()]


def test_what_is_seen_is_said_and_the_completion_is_a_text(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.open(page)
    browser.point("#sequences .token:nth-child(3)", click=True)
    assert texts_of(browser, "#panel h3", "aria-label") == ["line end"]
    rows = texts_of(browser, "#tops .student th[scope=row]", "aria-label")
    assert rows == ["line end, this token", "no", "or", "?", "!"]
    assert texts_of(browser, "#panel .values th[scope=row]") == ["jsd(0.5)", "forward KL", "reverse KL"]
    assert texts_of(browser, ".sequence .unseen") == ["student: five six\n</s>", "student: </s>\n sixfive"]
    box = browser.run(
        "(() => { const b = document.querySelector('.unseen').getBoundingClientRect(); return b.width })()"
    )
    assert box == 1
    open_marks(browser, tmp_path, replace(sequence([token("\ufffd", 0.5)] * 2), completion="é"))
    assert texts_of(browser, ".sequence .unseen") == ["student: é"]


def test_text_from_right_to_left_runs_and_is_walked_that_way(browser: Browser, tmp_path: Path) -> None:
    arabic = sequence([token("سلام", 0.1), token(" دنیا", 0.2), token(" خوب", 0.3)], prompt="بگو")
    open_marks(browser, tmp_path, arabic, sequence([token("five", 0.1), token(" six", 0.2)], prompt_id=8))
    direction = "[...document.querySelectorAll('{}')].map((e) => getComputedStyle(e).direction)"
    assert browser.run(direction.format(".tokens")) == ["rtl", "ltr"]
    assert browser.run(direction.format(".sequence .prompt")) == ["rtl", "ltr"]
    browser.point(".tokens", click=False)
    lefts = browser.run(
        "[...document.querySelectorAll('#sequences .token')].map((e) => e.getBoundingClientRect().left)"
    )
    assert lefts[0] > lefts[1] > lefts[2]
    assert lefts[3] < lefts[4]
    assert set(texts_of(browser, "#samples pre", "dir")) == {"auto"}
    browser.run("document.querySelector('.tokens .token').focus()")
    for key, position in (("ArrowLeft", 2), ("ArrowLeft", 3), ("ArrowRight", 2), ("ArrowRight", 1)):
        browser.press(key)
        assert browser.run(FOCUSED).endswith(f"token {position} of 3"), key
    browser.run("document.querySelectorAll('.tokens')[1].querySelector('.token').focus()")
    browser.press("ArrowRight")
    assert browser.run(FOCUSED) == "six, 0.2 nats, token 2 of 2"
