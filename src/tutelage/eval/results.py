"""What an evaluation found: the rows of its table, the completions behind them, and how they are shown and saved."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tutelage.eval.signals import Estimate, TeacherDivergence
from tutelage.eval.statistics import Interval
from tutelage.train.config import EvalConfig
from tutelage.types import FinishReason

# Of `EvalConfig`: what two evaluations of a run must share for their figures to be of the same examples, decoded alike.
_SAME_EXAMPLES = ("final", "limit", "temperatures", "samples_per_prompt")
# How records, tables and charts name what the run's reward gives.
REWARD = "reward"
# An untrained student writes up to the limit, and three samples must not fill the screen.
SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class Decoding:
    """A way to turn the model's distribution into text.

    Attributes:
        temperature: divides the logits; 0: greedy. The whole distribution is sampled, without top-k or top-p.
        num_beams: width of the beam search; 1: none.
    """

    temperature: float = 0.0
    num_beams: int = 1

    @property
    def label(self) -> str:
        """How tables call it: "greedy", "T=0.7", "beam 4"."""
        if self.num_beams > 1:
            return f"beam {self.num_beams}"
        return f"T={self.temperature:g}" if self.temperature else "greedy"

    @property
    def is_sampled(self) -> bool:
        """Whether two completions of one prompt can differ."""
        return self.temperature > 0 and self.num_beams == 1


def temperature_of(label: str) -> float | None:
    """The temperature of a decoding setting by its label, 0 for greedy; None for beam search and for anything else."""
    if label == "greedy":
        return 0.0
    return float(label.removeprefix("T=")) if label.startswith("T=") else None


@dataclass(frozen=True)
class Completion:
    """One text the model wrote.

    Attributes:
        decoding: label of the decoding setting.
        prompt_id, sample: which example, and which of its samples.
        prompt: what the model was given, special tokens left out.
        text: what it wrote, cut at the task's stop texts: the text that was marked.
        tokens: length as generated, end-of-sequence included.
        finish_reason: "stop" (end of sequence, or a stop text) or "length" (token limit).
        mark: the headline metric on this example alone; None for corpus metrics.
        reward: what the run's reward gives it; None without one.
        reference: the ground-truth completion; None where the data has none, and in files of earlier versions.
    """

    decoding: str
    prompt_id: int
    sample: int
    prompt: str
    text: str
    tokens: int
    finish_reason: FinishReason
    mark: float | None
    reference: str | None = None
    reward: float | None = None


@dataclass(frozen=True)
class Row:
    """The results of one decoding setting.

    Attributes:
        decoding: its label.
        examples, samples_per_prompt: what was marked.
        metric: the task's headline metric.
        value: the headline metric, 0 to 100; None where the task has no metric.
        interval: 95% bootstrap interval of `value` over examples (all samples of a prompt are drawn together); None
            without a metric or without resamples.
        values: all metrics of the task, the headline among them.
        pass_at_k: k -> pass@k in percent, for metrics that mark right or wrong and several samples a prompt.
        mean_length: tokens a completion, end-of-sequence included.
        finish: share of completions by finish reason.
        self_bleu: 0 to 100, mean over prompts; None for one sample a prompt.
        distinct_2: distinct bigrams among a prompt's samples, mean over prompts; None for one sample a prompt.
        seconds: spent generating.
        reward: mean over the completions of what the run's reward gives them, without an interval where all prompts have the same; None
            without one. It is shown beside the metric: where it rises and the metric falls, the student games it.
    """

    decoding: str
    examples: int
    samples_per_prompt: int
    metric: str
    value: float | None
    interval: Interval | None
    values: Mapping[str, float]
    pass_at_k: Mapping[int, float]
    mean_length: float
    finish: Mapping[str, float]
    self_bleu: float | None
    distinct_2: float | None
    seconds: float
    reward: Estimate | None = None


@dataclass(frozen=True)
class HarnessScore:
    """One figure of lm-evaluation-harness.

    Attributes:
        task, metric: its names there; the metric with its filter, as in "exact_match,strict-match".
        value: as the harness reports it (shares in 0..1).
        stderr: standard error; None where the harness gives none.
    """

    task: str
    metric: str
    value: float
    stderr: float | None


@dataclass(frozen=True)
class Evaluation:
    """Everything one evaluation found; printed, a line of its figures.

    Attributes:
        model, task: their names.
        rows: one per decoding setting.
        completions: every text, in the order of `rows`, then prompts, then samples.
        divergence: distance from the teacher, by who wrote the sequences: "references" and the rows' labels; empty
            without a teacher.
        harness: figures of lm-evaluation-harness, where asked for.
    """

    model: str
    task: str
    rows: tuple[Row, ...]
    completions: tuple[Completion, ...]
    divergence: Mapping[str, TeacherDivergence] = field(default_factory=dict)
    harness: tuple[HarnessScore, ...] = ()

    def row(self, decoding: str) -> Row:
        """The row with this label; KeyError names the labels there are."""
        for row in self.rows:
            if row.decoding == decoding:
                return row
        raise KeyError(f"no row {decoding!r}; there are {[row.decoding for row in self.rows]}")

    def __repr__(self) -> str:
        figures = ", ".join(f"{row.decoding} {with_interval(row.value, row.interval)}" for row in self.rows)
        metric = f"{self.rows[0].metric}: {figures}; " if self.rows else ""
        return f"Evaluation({self.model} on {self.task or 'no task'}: {metric}completions: {len(self.completions)})"

    def summary(self) -> dict[str, Any]:
        """All but the completions, ready for JSON."""
        fields = dataclasses.asdict(dataclasses.replace(self, completions=()))
        del fields["completions"]
        return fields


def save(evaluation: Evaluation, folder: Path, about: Mapping[str, Any]) -> None:
    """Writes results.json (figures and `about`: settings, versions) and completions.jsonl (one completion a line).

    A kill leaves both files or, for `read`, nothing: never those of two evaluations, or figures without their completions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {**about, **evaluation.summary()}
    lines = [json.dumps(dataclasses.asdict(completion), ensure_ascii=False) for completion in evaluation.completions]
    texts = {
        "completions.jsonl": "".join(f"{line}\n" for line in lines),
        "results.json": json.dumps(content, indent=2, ensure_ascii=False) + "\n",
    }
    for name, text in texts.items():
        (folder / f"{name}.partial").write_text(text, encoding="utf-8")
    (folder / "results.json").unlink(missing_ok=True)  # it makes the folder an evaluation: it goes first and comes last
    for name in texts:
        os.replace(folder / f"{name}.partial", folder / name)


def read(folder: Path) -> tuple[Evaluation, dict[str, Any]] | None:
    """What `save` wrote: the evaluation, and all of results.json, `about` included; None where nothing was saved."""
    if not (folder / "results.json").exists():
        return None
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    with (folder / "completions.jsonl").open(encoding="utf-8") as lines:
        completions = [json.loads(line) for line in lines]
    return TypeAdapter(Evaluation).validate_python({**content, "completions": completions}), content


def changed_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys in which the `eval` sections of two evaluations of a run differ so that their figures cannot be compared.

    A key that came after the version that wrote a section counts as its default: that version did what it says.
    """
    defaults = EvalConfig().model_dump(mode="json")
    return [f"eval.{key}" for key in _SAME_EXAMPLES if one.get(key, defaults[key]) != other.get(key, defaults[key])]


def show(evaluation: Evaluation, console: Console, samples: int = 3) -> None:
    """Prints the tables and the first `samples` completions of the first row, long texts cut."""
    if evaluation.rows:
        console.print(_rows_table(evaluation))
    if evaluation.divergence:
        console.print(_divergence_table(evaluation.divergence))
    if evaluation.harness:
        console.print(_harness_table(evaluation.harness))
    for completion in evaluation.completions[:samples]:  # as Text: brackets in them are no markup
        title = f"{completion.decoding}, example {completion.prompt_id}, {completion.tokens} tokens"
        texts = Text(shortened(completion.prompt), "dim"), Text(shortened(completion.text))
        console.print(Panel(Group(*texts), title=title))


def shortened(text: str) -> str:
    """A text as the terminal shows it: its first `SHOWN_CHARACTERS`. Files hold all of it."""
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


_METRIC_NAMES = {"bleu": "BLEU", "chrf": "chrF", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


def metric_name(metric: str) -> str:
    """A metric as a heading spells it: "BLEU", "Exact match"."""
    return _METRIC_NAMES.get(metric, metric.replace("_", " ").capitalize())


def with_interval(value: float | None, interval: Interval | None = None, digits: int = 1) -> str:
    """ "31.5 [28.9, 34.1]"; a dash where there is nothing."""
    if value is None:
        return "–"
    # z: a value that rounds to zero has no sign.
    shown = f"{value:z.{digits}f}"
    return shown if interval is None else f"{shown} [{interval.low:z.{digits}f}, {interval.high:z.{digits}f}]"


def with_reward(reward: Estimate | None) -> str:
    """ "0.482 [0.451, 0.513]": rewards have no common unit, many lie between 0 and 1."""
    return with_interval(None) if reward is None else with_interval(reward.value, reward.interval, digits=3)


def _table(title: str, columns: Sequence[str], lines: Mapping[str, Sequence[str]]) -> Table:
    """One line a measure, one column a setting: settings are few, and the table fits a narrow terminal."""
    table = Table(title=title)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    for name, cells in lines.items():
        table.add_row(name, *cells)
    return table


def _rows_table(evaluation: Evaluation) -> Table:
    rows = evaluation.rows
    headline = rows[0].metric
    lines = {f"{headline} [95%]": [with_interval(row.value, row.interval) for row in rows]}
    for name in rows[0].values:
        if name != headline:
            lines[name] = [with_interval(row.values[name]) for row in rows]
    if any(row.reward is not None for row in rows):
        lines["reward [95%]"] = [with_reward(row.reward) for row in rows]
    for k in sorted({k for row in rows for k in row.pass_at_k}):
        lines[f"pass@{k}"] = [with_interval(row.pass_at_k.get(k)) for row in rows]
    if any(row.self_bleu is not None for row in rows):
        lines["Self-BLEU"] = [with_interval(row.self_bleu) for row in rows]
        lines["distinct bigrams"] = [with_interval(row.distinct_2, digits=2) for row in rows]
    lines["tokens a completion"] = [f"{row.mean_length:.1f}" for row in rows]
    lines["ended by itself"] = [f"{row.finish['stop']:.0%}" for row in rows]
    lines["seconds"] = [f"{row.seconds:.1f}" for row in rows]
    title = f"{evaluation.model} on {evaluation.task}, {rows[0].examples} examples"
    return _table(title, [row.decoding for row in rows], lines)


def _divergence_table(divergence: Mapping[str, TeacherDivergence]) -> Table:
    found = divergence.values()
    estimates = {
        "forward KL": [each.forward_kl for each in found],
        "reverse KL": [each.reverse_kl for each in found],
        "JSD(0.5)": [each.jsd for each in found],
        "entropy": [each.student_entropy for each in found],
        "teacher's entropy": [each.teacher_entropy for each in found],
        "same arg-max": [each.agreement for each in found],
    }
    lines = {
        name: [with_interval(estimate.value, estimate.interval, digits=3) for estimate in row]
        for name, row in estimates.items()
    }
    return _table("distance from the teacher, means over tokens [95%], nats", list(divergence), lines)


def _harness_table(scores: Sequence[HarnessScore]) -> Table:
    lines = {
        f"{score.task}, {score.metric}": [f"{score.value:.4f}", with_interval(score.stderr, digits=4)]
        for score in scores
    }
    return _table("lm-evaluation-harness", ["value", "standard error"], lines)
