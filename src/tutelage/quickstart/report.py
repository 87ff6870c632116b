"""What the quickstart says and writes: header, table, examples, what the figures mean, results.json, examples.md."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tutelage import __version__
from tutelage.eval.results import with_interval
from tutelage.eval.statistics import PairedDifference
from tutelage.quickstart.experiment import DECODINGS, Outcome, System
from tutelage.quickstart.settings import ADAMW_SHARE, SEARCHED_STEPS, Settings

EXAMPLES_SHOWN = 3
EXAMPLES_WRITTEN = 20


def print_header(console: Console, settings: Settings, output: Path) -> None:
    """Says what will happen, and how long it takes."""
    size = f"{settings.train_size:,}"
    console.print(
        "[bold]Tutelage quickstart[/]: distil a small teacher into a student a quarter of its size, in two ways\n\n"
        f"The task: arithmetic word problems with worked answers. The student was fine-tuned on {size} of them. From "
        f"that same student, {settings.steps} steps each, under the same teacher:"
    )
    console.print(
        _grid(
            (f"[bold]{settings.supervised.label}[/]", f"on the {size} worked answers"),
            (
                f"[bold]{settings.on_policy.label}[/]",
                f"on what the student itself writes for {settings.prompt_size:,} problems without answers",
            ),
        )
    )
    console.print(
        f"Both then meet {settings.test_size:,} problems that neither has seen. About {_duration(settings.steps)} on two "
        f"cores; no network. Everything goes to {escape(str(output))}. Interrupted, the same command goes on where it was."
    )


def _duration(steps: int) -> str:
    """On two cores: a minute of evaluations and half a second for a step of both methods (docs/results/quickstart.json)."""
    minutes = round(1 + steps / 120)
    return "a minute" if minutes == 1 else f"{minutes} minutes"


def print_outcome(console: Console, outcome: Outcome, output: Path) -> None:
    """The table, the first test problems, what the figures mean, and where to go from here."""
    console.print()
    console.print(_systems_table(outcome))
    console.print(f"\n[bold]The first {EXAMPLES_SHOWN} test problems, greedy[/]  (✓ the reference's line, ✗ another)")
    for index in range(min(EXAMPLES_SHOWN, len(outcome.examples))):
        console.print()
        console.print(_example_table(outcome, index))
    console.print("\n[bold]What this shows, and what it does not[/]")
    console.print(_grid(*(("•", escape(point)) for point in reading(outcome))))
    # Soft wrap: a command broken by a line end could not be copied.
    console.print(_pointers(outcome, output), soft_wrap=True)


def write(outcome: Outcome, output: Path) -> None:
    """Writes results.json and examples.md."""
    text = json.dumps(_content(outcome), indent=2, ensure_ascii=False)
    (output / "results.json").write_text(text + "\n", encoding="utf-8")
    (output / "examples.md").write_text("".join(_markdown(outcome)), encoding="utf-8")


def reading(outcome: Outcome) -> list[str]:
    """What the figures at hand mean, and where they would be others."""
    settings = outcome.settings
    first, second = outcome.supervised.training, outcome.on_policy.training
    assert first is not None
    assert second is not None
    verdicts = [f"{decoding}, on-policy GKD {verdict(found)}" for decoding, found in outcome.difference.items()]
    return [
        f"On the same test problems: {'; '.join(verdicts)}.",
        f"This is the regime of few outputs and many prompts. There are {settings.train_size:,} worked answers; the student was "
        "fine-tuned on them and supervised KD shows it the same ones again. On-policy GKD needs no answers: the student "
        f"writes its own, to {settings.prompt_size:,} problems, and the teacher marks its mistakes.",
        "Where worked answers are plentiful this turns round: with 3,000 of them supervised KD was ahead at equal steps "
        "(docs/LOG.md, one seed), and its steps are cheaper. Try it first there. The same holds where the teacher may write answers: "
        "trained on the teacher's to all 10,000 problems (--method seqkd), the student gained one and a half times what on-policy GKD gave "
        "it (docs/results/reproduction, three seeds).",
        f"Steps are matched ({first.steps} each), time is not: {first.total_seconds:.0f} s supervised, "
        f"{second.total_seconds:.0f} s on-policy, where the student first writes what it is marked on.",
        f"The learning rate of each method is the best of four on the validation split (one seed) at {SEARCHED_STEPS} steps, found by "
        "make reproduce PARTS=rates; more methods and seeds are in docs/results/reproduction. The test split is used once: for the table "
        "above.",
        "The intervals hold the choice of test problems, not the luck of one training run. "
        f"For another: --seed {outcome.seed + 1}.",
    ]


def verdict(found: PairedDifference) -> str:
    """How on-policy GKD stands: a difference whose interval holds zero is none."""
    difference = with_interval(abs(found.difference))
    ends = f"[{found.interval.low:+.1f}, {found.interval.high:+.1f}]"
    if found.interval.low > 0:
        return f"is ahead by {difference} points {ends}"
    if found.interval.high < 0:
        return f"is behind by {difference} points {ends}"
    return f"cannot be told from supervised KD ({found.difference:+.1f} points {ends})"


def _grid(*rows: tuple[str, str]) -> Padding:
    """Two columns without lines; the second wraps under itself."""
    grid = Table.grid(padding=(0, 1))
    for row in rows:
        grid.add_row(*row)
    return Padding(grid, (0, 0, 0, 2))


def _systems_table(outcome: Outcome) -> Table:
    title = f"accuracy on {outcome.settings.test_size:,} test problems, % [95% interval]"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for column in ("parameters", *DECODINGS, "training"):
        table.add_column(column, justify="right", no_wrap=True)
    for system in outcome.systems:
        rows = [system.evaluation.row(decoding) for decoding in DECODINGS]
        seconds = f"{system.training.total_seconds:.0f} s" if system.training else "–"
        cells = [with_interval(row.value, row.interval) for row in rows]
        table.add_row(
            system.label,
            f"{system.parameters / 1e6:.2f} M",
            *cells,
            seconds,
            end_section=system is outcome.before or system is outcome.on_policy,
        )
    gains = [with_interval(found.difference, found.interval) for found in outcome.difference.values()]
    table.add_row("difference", "", *gains, "", style="bold")
    return table


def _answers(outcome: Outcome, index: int) -> dict[str, str]:
    """Who answered a test problem -> the greedy answer; the reference first."""
    said = {"reference": outcome.references[index]}
    for system in outcome.systems[1:]:
        said[system.label] = _greedy(system, index)
    return said


def _greedy(system: System, index: int) -> str:
    assert system.evaluation.completions[index].decoding == "greedy"
    return system.evaluation.completions[index].text


def _lines(outcome: Outcome, index: int) -> Iterator[tuple[tuple[str, bool | None], ...]]:
    """The answers to a problem line by line: (line, whether it is the reference's); None where there is no line."""
    wanted = answer_lines(outcome.references[index])
    answers = [answer_lines(text) for text in _answers(outcome, index).values()]
    for row in zip_longest(wanted, *answers):
        yield tuple((line or "", None if line is None else line == row[0]) for line in row[1:])


def answer_lines(text: str) -> list[str]:
    """ "12 + 7 = 19. 19 - 4 = 15. #### 15" -> ["12 + 7 = 19", "19 - 4 = 15", "#### 15"]."""
    return [line for line in text.strip().split(". ") if line]


def _example_table(outcome: Outcome, index: int) -> Table:
    question = str(outcome.examples[index]["question"])
    table = Table(title=question, title_justify="left", title_style="", box=None)
    for name in _answers(outcome, index):
        table.add_column(name, width=17, header_style="dim")
    for reference, *others in _lines(outcome, index):
        table.add_row(Text(reference[0]), *(_marked(*cell) for cell in others))
    return table


def _marked(line: str, right: bool | None) -> Text:
    if right is None:
        return Text()
    return Text(f"{line} ✓", "green") if right else Text(f"{line} ✗", "red")


def _markdown(outcome: Outcome) -> Iterator[str]:
    yield "# Greedy answers to the first test problems\n\n✓: the line is the reference's; ✗: it is not.\n"
    signs = {None: "", True: " ✓", False: " ✗"}
    for index in range(min(EXAMPLES_WRITTEN, len(outcome.examples))):
        names = list(_answers(outcome, index))
        yield f"\n**{index + 1}.** {outcome.examples[index]['question']}\n\n"
        yield f"| {' | '.join(names)} |\n|{' --- |' * len(names)}\n"
        for reference, *others in _lines(outcome, index):
            yield f"| {' | '.join([reference[0], *(line + signs[right] for line, right in others)])} |\n"


def _pointers(outcome: Outcome, output: Path) -> str:
    program = "tutelage" if shutil.which("tutelage") else os.path.relpath(Path(sys.executable).with_name("tutelage"))
    shown, student, steps = escape(str(output)), outcome.settings.on_policy.name, outcome.settings.steps
    return (
        f"\n[bold]Done in {outcome.seconds / 60:.1f} minutes[/]\n"
        f"  {shown}/plot.png       validation curves and test results\n"
        f"  {shown}/report.html    both runs, with the teacher's mark on every token: open it in a browser\n"
        f"  {shown}/results.json   every figure; test/ holds every answer\n"
        f"  {shown}/examples.md    {EXAMPLES_WRITTEN} problems with all answers\n"
        f"  {shown}/{student}/model   the student, an ordinary Hugging Face folder\n\n"
        "[bold]Next[/]\n"
        "  evaluate any Hugging Face model on any of the tasks:\n"
        f"    {program} eval {shown}/{student}/model --task.name arithmetic --split validation\n"
        "  train longer, or change any other key of the run:\n"
        f"    {program} train {shown}/{student}/config.yaml --train.steps {3 * steps} --output runs/longer\n"
        "  your own models on your own data, one JSON object with prompt and completion a line:\n"
        f"    {program} train --student STUDENT --teacher TEACHER --task.data rows.jsonl --output runs/mine"
    )


def _content(outcome: Outcome) -> dict[str, Any]:
    settings = outcome.settings
    return {
        "version": __version__,
        "seed": outcome.seed,
        "settings": {
            **asdict(settings),
            "teacher": str(settings.teacher),
            "student": str(settings.student),
            "adamw_share": ADAMW_SHARE,
        },
        "seconds": outcome.seconds,
        "systems": {system.name: _system(system) for system in outcome.systems},
        "on_policy_minus_supervised": {decoding: asdict(found) for decoding, found in outcome.difference.items()},
        "reading": reading(outcome),
    }


def _system(system: System) -> Mapping[str, Any]:
    content: dict[str, Any] = {"label": system.label, "folder": str(system.folder), "parameters": system.parameters}
    for decoding in DECODINGS:
        row = system.evaluation.row(decoding)
        assert row.interval is not None
        content[decoding] = {
            row.metric: row.value,
            **asdict(row.interval),
            **{name: value for name, value in row.values.items() if name != row.metric},
        }
    if system.training is not None:
        training = system.training
        content["training"] = {
            "steps": training.steps,
            "seconds": {"total": training.total_seconds, **training.seconds},
            "validation": [{"step": point.step, **point.accuracy} for point in training.curve],
        }
    return content
