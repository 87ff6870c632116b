"""The page itself: tables, samples and charts put into the templates, written as one file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tutelage import __version__
from tutelage.errors import UserError
from tutelage.eval.evaluate import RIGHT_OR_WRONG
from tutelage.eval.results import Completion, Evaluation, metric_name, temperature_of, with_interval, with_reward
from tutelage.eval.signals import Estimate, TeacherDivergence
from tutelage.report import figures
from tutelage.report.charts import SLOTS, swatch
from tutelage.report.collect import (
    ExampleKey,
    RunData,
    collect,
    endings,
    evaluated,
    references,
    task_names,
    teacher_texts,
    within_budget,
)
from tutelage.report.payload import payload, to_script

_SAMPLES = 12
_NAMED = 4  # runs that the title names
_DISTANCES = {"forward_kl": "forward KL", "reverse_kl": "reverse KL"}


@dataclass(frozen=True)
class Cell:
    """A cell of the summary: what a run came to, and what it came from."""

    text: str
    before: str = ""


@dataclass(frozen=True)
class Summary:
    """The summary table.

    Attributes:
        header: names of the columns, the first of which names the run.
        rows: one a run, in the order of the columns.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Answer:
    """A text of a sample card: who wrote it, how the task marked it and what the reward gave it (each empty where there is none)."""

    writer: str
    text: str
    mark: str = ""
    reward: str = ""


@dataclass(frozen=True)
class Sample:
    """One example with everything that was written for it.

    Attributes:
        prompt_id, prompt: the example.
        reference: the ground truth, where a run has kept it.
        teachers: the teacher's own answer, where a run has kept it; each teacher's, where the runs' differ.
        students: what the students wrote before and after training.
        runs: names of the runs whose students these are.
    """

    prompt_id: int
    prompt: str
    reference: str | None
    teachers: Sequence[Answer]
    students: Sequence[Answer]
    runs: Sequence[str]

    @property
    def answers(self) -> list[Answer]:
        """All of them, what the students are measured by first."""
        models = [Answer("reference", self.reference)] if self.reference is not None else []
        return [*models, *self.teachers, *self.students]


def write_report(runs: Sequence[Path], output: Path) -> Path:
    """Writes the report of one or several runs: one HTML file that needs no network.

    Args:
        runs: run folders, as `tutelage train` leaves them, unfinished ones too, and folders of finished comparisons.
        output: the file; its folder is made.

    Returns:
        `output`.

    Raises:
        UserError: a folder that holds no run or damaged files, or an output that cannot be written.
    """
    text = render(collect(runs))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write the report {output}: {error.strerror or error}; give --output a file that can be written"
        ) from error
    return output


def render(runs: Sequence[RunData]) -> str:
    """The page of these runs."""
    loader = PackageLoader("tutelage.report")
    # Every text is escaped unless it is Markup: prompts and completions may hold anything.
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["printable"] = printable
    environment.globals["asset"] = lambda name: Markup(loader.get_source(environment, name)[0])
    shown, sequences = within_budget(runs)
    marked = payload(shown)
    cards = samples(runs)
    return environment.get_template("report.html").render(
        title=_title(runs),
        version=__version__,
        runs=runs,
        legend=[(run.name, swatch(slot)) for slot, run in enumerate(runs)],
        headlines=[headline(run) for run in runs],
        summary=summary(runs),
        curves=[*figures.evaluation_figures(runs), *figures.curve_figures(runs)],
        reward=figures.reward_figures(runs),
        quality=figures.quality_figures(runs),
        diversity_hint=figures.diversity_hint(runs),
        time=figures.time_figure(runs),
        phases={phase: slot % SLOTS for phase, slot in figures.phases(runs).items()},
        phase_table=figures.phase_table(runs),
        costs=figures.COSTS,
        samples=list(zip(headings(cards), cards, strict=True)),
        samples_note=samples_note(cards, sample_decodings(runs)) if cards else "",
        marked=marked if marked["runs"] else None,
        marks_json=to_script(marked),
        marks_figure=figures.marks_figure(runs),
        marks_note=marks_note(shown, sequences),
        configurations=[configuration(run) for run in runs],
    )


def headline(run: RunData) -> str:
    """The run in one sentence."""
    done = f"{_steps(run)} steps on {run.tokens:,} tokens"
    changed = (
        f"; the evaluation before training had another {', '.join(run.changed)} and is left out" if run.changed else ""
    )
    alone = ""
    for measure in run.evaluated:
        name = f"{metric_name(measure.metric)} ({measure.decoding})"
        before, after = (
            with_interval(row.value, row.interval) if row is not None and row.value is not None else ""
            for row in run.measured(measure)
        )
        if before and after:
            return f"{name} went from {before} to {after} in {done}."
        if before or after:
            alone = alone or f"; {name} {f'was {before} before' if before else f'is {after} after'} training"
    if alone or changed:
        return f"{done}{alone}{changed}."
    if run.decodings:
        return f"{done}; evaluated, but without a metric's value to compare."
    return f"{done}; no evaluation before and after training to compare."


def summary(runs: Sequence[RunData]) -> Summary:
    """The runs side by side; columns that no run can fill are left out."""
    names, found = task_names(runs), evaluated(runs)
    ending = endings([(measure.metric, measure.task) for measure in found], runs)
    columns: dict[str, list[Cell]] = {
        "run": [Cell(run.name) for run in runs],
        **({"task": [Cell(names[run.task]) for run in runs]} if len(names) > 1 else {}),
        "method": [Cell(run.config.method) for run in runs],
        "divergence": [Cell(run.divergence or "–") for run in runs],
        "teacher signal": [Cell(run.config.teacher_signal if run.divergence else "–") for run in runs],
        "student data": [Cell(_fraction(run.student_data_fraction)) for run in runs],
        "seed": [Cell(str(run.config.seed)) for run in runs],
    }
    if any(run.examples is not None for run in runs):
        columns["evaluated on"] = [Cell(_held_out(run)) for run in runs]
    for measure in found:
        decoding = measure.decoding
        columns[f"{measure.metric} ({decoding}){ending[measure.metric, measure.task]}"] = [
            _change(*(with_interval(row.value, row.interval) if row is not None else "–" for row in pair))
            for pair in (run.measured(measure) for run in runs)
        ]
        rows = [run.rows(decoding) for run in runs]
        if any(row is not None and row.self_bleu is not None for pair in rows for row in pair):
            columns[f"Self-BLEU ({decoding})"] = [
                _change(*(with_interval(row.self_bleu if row is not None else None) for row in pair)) for pair in rows
            ]
    for decoding in dict.fromkeys(decoding for run in runs for decoding in run.decodings):
        rewards = [[row.reward if row is not None else None for row in run.rows(decoding)] for run in runs]
        if any(reward is not None for pair in rewards for reward in pair):
            columns[f"reward ({decoding})"] = [_change(*map(with_reward, pair)) for pair in rewards]
    for key, label in _DISTANCES.items():
        for writer in _writers(runs):
            columns[f"{label} ({writer})"] = [
                _change(*(_distance(evaluation, writer, key) for evaluation in (run.before, run.after))) for run in runs
            ]
    columns["steps"] = [Cell(_steps(run)) for run in runs]
    columns["tokens"] = [Cell(f"{run.tokens:,}") for run in runs]
    columns["seconds"] = [Cell(f"{run.training_seconds:,.1f}") for run in runs]
    return Summary(list(columns), list(zip(*columns.values(), strict=True)))


def sample_decodings(runs: Sequence[RunData]) -> dict[str, str]:
    """The decoding setting whose texts the cards show, by the run's name: the first of all runs' where a run has it, else its own
    first. Runs without an evaluation have none."""
    labels = {run.name: run.decodings for run in runs}
    first = next((each[0] for each in labels.values() if each), "")
    return {name: first if first in each else each[0] for name, each in labels.items() if each}


def samples(runs: Sequence[RunData]) -> list[Sample]:
    """Each run's first examples, as they stand in its split: nothing is picked. Runs on the same example share its card."""
    ground_truth = {example: text for run in runs for example, text in references(run).items()}
    teachers = {run.name: teacher_texts(run) for run in runs}
    students: dict[ExampleKey, list[Answer]] = {}
    writers: dict[ExampleKey, dict[str, None]] = {}  # the runs by name: a set would lose their order
    decodings = sample_decodings(runs)
    alike = len(set(decodings.values())) < 2
    for run in runs:
        decoding = decodings.get(run.name, "")
        for when, evaluation in (("before", run.before), ("after", run.after)):
            name = when if len(runs) == 1 else f"{run.name}, {when}"
            for completion in _first(evaluation, decoding):
                example = (completion.prompt_id, completion.prompt)
                writer = name if alike else f"{name}, {decoding}"
                reward = "" if completion.reward is None else f"{completion.reward:.3f}"
                answer = Answer(writer, completion.text, _mark(completion, evaluation, decoding), reward)
                students.setdefault(example, []).append(answer)
                writers.setdefault(example, {})[run.name] = None
    return [
        Sample(*example, ground_truth.get(example), _teachers(teachers, example), answers, list(writers[example]))
        for example, answers in students.items()
    ]


def headings(cards: Sequence[Sample]) -> list[str]:
    """What each card is called: "Example 7", and of which runs where another card has that number."""
    times = Counter(card.prompt_id for card in cards)
    return [
        f"Example {card.prompt_id}" + (f" of {_listed(card.runs)}" if times[card.prompt_id] > 1 else "")
        for card in cards
    ]


def samples_note(cards: Sequence[Sample], decodings: Mapping[str, str]) -> str:
    """What the cards show, in a sentence; `decodings` as `sample_decodings` has them."""
    beside = [
        words if all(there) else f"{words} where it was kept"
        for words, there in (
            ("the reference", [card.reference is not None for card in cards]),
            ("the teacher’s own answer", [bool(card.teachers) for card in cards]),
        )
        if any(there)
    ]
    examples = "The first held-out example" if len(cards) == 1 else f"The first {len(cards)} held-out examples"
    if len({card.prompt_id for card in cards}) < len(cards):
        examples = "The first held-out examples of each run"
    labels = list(dict.fromkeys(decodings.values()))
    seen = f"{examples}, {labels[0]} decoding"
    if len(labels) > 1:
        seen += f" where a run has it, else {' or '.join(labels[1:])}"
    return f"{seen}, beside {' and '.join(beside)}." if beside else f"{seen}."


def marks_note(runs: Sequence[RunData], sequences: int | None = None) -> str:
    """Which marked steps and sequences the page leaves out, in a sentence or two; empty where it holds all.

    Args:
        runs: with the marks that it holds.
        sequences: how many of a step's; None: all.
    """
    thinned = [run for run in runs if len(run.marks) < len(run.marked_divergence)]
    said = []
    if thinned:
        counts = "; ".join(f"{run.name}: {len(run.marks)} of {len(run.marked_divergence)}" for run in thinned)
        said.append(
            f"No more than {max(len(run.marks) for run in thinned)} marked steps of a run are on this page, evenly spaced, the first "
            f"and the last among them ({counts})."
        )
    if sequences is not None:
        step, left = "a step" if thinned else "a marked step", f"{sequences} sequences" if sequences > 1 else "sequence"
        said.append(f"Of {step}, the first {left}.")
    return " ".join([*said, "The folder of a run holds all of them."]) if said else ""


def printable(text: str) -> str:
    """`text` with control characters as their pictures (U+2400 and on); line ends and tabs stay, lone surrogates do not."""
    pictures = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
    return text.translate(pictures).encode("utf-8", "replace").decode("utf-8")


def configuration(run: RunData) -> str:
    """The run's config.yaml, as it stands in its folder."""
    return (run.folder / "config.yaml").read_text(encoding="utf-8")


def _title(runs: Sequence[RunData]) -> str:
    if len(runs) == 1:
        return f"Run {runs[0].name}"
    return f"Runs {'; '.join(run.name for run in runs)}" if len(runs) <= _NAMED else f"{len(runs)} runs"


def _listed(names: Sequence[str]) -> str:
    """The names, or the first of many: two lists that share no name differ."""
    return "; ".join(names) if len(names) <= _NAMED else f"{names[0]} and {len(names) - 1} more runs"


def _teachers(texts: Mapping[str, Mapping[ExampleKey, str]], example: ExampleKey) -> list[Answer]:
    """The teacher's text for a prompt; each with its run where the teachers of the runs write different ones."""
    found = {name: several[example] for name, several in texts.items() if example in several}
    if len(set(found.values())) > 1:
        return [Answer(f"{name}, teacher", text) for name, text in found.items()]
    return [Answer("teacher", text) for text in set(found.values())]


def _change(before: str, after: str) -> Cell:
    return Cell(after, before if before != "–" else "")


def _steps(run: RunData) -> str:
    """The steps done; of how many, while some are left."""
    total = run.config.train.steps
    return f"{run.steps:,} of {total:,}" if run.steps < total else f"{run.steps:,}"


def _held_out(run: RunData) -> str:
    return "–" if run.examples is None else f"{run.split}, {run.examples:,} examples"


def _fraction(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _writers(runs: Sequence[RunData]) -> list[str]:
    """Whose sequences the distance from the teacher is shown on: of each run, the student's own at the temperature nearest to 1."""
    chosen = {}
    for run in runs:
        found = [evaluation.divergence for evaluation in (run.before, run.after) if evaluation is not None]
        labels = list(dict.fromkeys(label for divergence in found for label in divergence))
        if labels:
            chosen[min(labels, key=_from_training)] = True
    return list(chosen)


def _from_training(label: str) -> float:
    """How far a writer is from the student as it samples in training; infinite for beam search, and for the references."""
    temperature = temperature_of(label)
    return math.inf if temperature is None else abs(temperature - 1)


def _distance(evaluation: Evaluation | None, writer: str, key: str) -> str:
    measured: TeacherDivergence | None = evaluation.divergence.get(writer) if evaluation is not None else None
    if measured is None:
        return "–"
    estimates: dict[str, Estimate] = {"forward_kl": measured.forward_kl, "reverse_kl": measured.reverse_kl}
    return with_interval(estimates[key].value, estimates[key].interval, digits=3)


def _first(evaluation: Evaluation | None, decoding: str) -> list[Completion]:
    if evaluation is None:
        return []
    chosen = [each for each in evaluation.completions if each.decoding == decoding and each.sample == 0]
    return chosen[:_SAMPLES]


def _mark(completion: Completion, evaluation: Evaluation | None, decoding: str) -> str:
    if completion.mark is None or evaluation is None or not math.isfinite(completion.mark):
        return ""
    if evaluation.row(decoding).metric in RIGHT_OR_WRONG:
        return "right" if completion.mark else "wrong"
    return f"{completion.mark:.2f}"
