"""Run folders written by hand, every number known. Also for the browser's tests to import: `write_run`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tutelage.eval import marks
from tutelage.eval.marks import Choice, MarkedSequence, TokenMark
from tutelage.eval.results import Completion, Evaluation, Row, save
from tutelage.eval.signals import Estimate, TeacherDivergence
from tutelage.eval.statistics import Interval
from tutelage.train import config_io

HOSTILE = "<b>&amp;</b></script><script>alert(1)</script>\n\t\x07\x00 end"


def row(decoding: str, value: float, self_bleu: float | None = None, metric: str = "accuracy") -> Row:
    """A row of 4 examples with an interval of one point to either side; with a Self-BLEU, of two samples each."""
    interval = Interval(value - 1, value + 1)
    finish = {"stop": 1.0, "length": 0.0}
    samples, pass_at_k, distinct_2 = (1, {}, None) if self_bleu is None else (2, {1: value, 2: value + 1}, 0.5)
    return Row(
        decoding, 4, samples, metric, value, interval, {metric: value}, pass_at_k, 3.0, finish, self_bleu, distinct_2, 1.5
    )  # fmt: skip


def evaluation(
    rows: Sequence[Row], kl: float, prompt: str = "2 + 3 =", reference: str | None = None, task: str = "jsonl"
) -> Evaluation:
    """These rows, the completions of one example, and the distance from the teacher."""
    estimate = Estimate(kl, Interval(kl - 0.25, kl + 0.25))
    divergence = TeacherDivergence(estimate, Estimate(2 * kl, None), *[estimate] * 4, sequences=4, tokens=12)
    completions = tuple(
        Completion(
            each.decoding, 7, sample, prompt, f"{each.decoding} says {each.value}" + " again" * sample, 3, "stop",
            float((each.value or 0) > 50), reference,
        )
        for each in rows
        for sample in range(each.samples_per_prompt)
    )  # fmt: skip
    return Evaluation("tiny", task, tuple(rows), completions, {each.decoding: divergence for each in rows})


def save_diverse(run: Path) -> None:
    """Evaluates a run anew: greedy, and two samples a prompt at temperatures 0.5 and 1."""
    before = (row("greedy", 20.0), row("T=0.5", 15.0, 80.0), row("T=1", 10.0, 40.0))
    after = (row("greedy", 60.5), row("T=0.5", 50.0, 95.0), row("T=1", 30.25, 60.0))
    for when, rows in (("before", before), ("after", after)):
        save(evaluation(rows, 0.5), run / "evaluation" / when, {})


def token(text: str, value: float) -> TokenMark:
    """A token with its run's divergence `value`, forward KL twice and reverse KL three times that."""
    student = (Choice(text, 0.7), Choice(" no", 0.2), Choice(" or", 0.06), Choice("?", 0.03), Choice("!", 0.01))
    teacher = (Choice(" yes", 0.9), Choice(text, 0.05), Choice(" or", 0.03), Choice("?", 0.01), Choice("!", 0.01))
    return TokenMark(text, value, 2 * value, 3 * value, 0.7, 0.05, student, teacher)


def sequence(tokens: Sequence[TokenMark], prompt_id: int = 7, prompt: str = "2 + 3 =") -> MarkedSequence:
    """What the student wrote for a prompt with reference and teacher's text."""
    return MarkedSequence(
        prompt_id, 0, "student", "stop", "jsd(0.5)", prompt, "reference 5", "teacher 5", tuple(tokens)
    )


def record(step: int, **changes: Any) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    numbers = {"loss": 1.0 / step, "forward_kl": 0.5 / step, "reverse_kl": None, "tokens": 100, "sequences": 4}
    seconds = {"rollout": 2.0, "teacher": 0.5, "update": 1.5}
    return {"step": step, **numbers, "seconds": seconds, **changes}


def write_run(
    folder: Path,
    *,
    prompt: str = "2 + 3 =",
    steps: int = 3,
    reference: str | None = "reference 5",
    metric: str = "accuracy",
    **config: Any,
) -> Path:
    """A run of three steps with evaluations and marks before and after."""
    folder.mkdir(parents=True)
    keys = {
        "student": "tiny-student",
        "teacher": "tiny-teacher",
        "output": str(folder),
        "seed": 5,
        "train.steps": steps,
    }
    built = config_io.build({**keys, **config})
    config_io.save(built, folder / "config.yaml")
    records = [record(step) for step in range(1, steps + 1)]
    records[1]["evaluation"] = {f"{metric} greedy": 33.0, f"{metric} T=1": 11.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    for when, greedy, sampled, kl in (("before", 20.0, 10.0, 0.75), ("after", 60.5, 30.25, 0.5)):
        rows = (row("greedy", greedy, metric=metric), row("T=1", sampled, metric=metric))
        about = {"config": built.model_dump(mode="json")}
        save(evaluation(rows, kl, prompt, reference, built.task.name), folder / "evaluation" / when, about)
    texts = ("five", " six", "\n", "</s>")
    for step, scale in ((0, 1.0), (steps, 0.5)):
        tokens = [token(text, scale * value) for text, value in zip(texts, (0.02, 0.9, 0.0, 0.3), strict=True)]
        second = dataclasses.replace(sequence(tokens[::-1], prompt_id=8, prompt=prompt), reference=None)
        marks.save([dataclasses.replace(sequence(tokens, prompt=prompt), reference=reference), second], folder, step)
    return folder


def reevaluate(run: Path, when: str, rows: Sequence[Row], **settings: Any) -> None:
    """Evaluates a run anew, with these keys of `eval`."""
    about = {"config": {"eval": settings}} if settings else {}
    save(evaluation(rows, 0.5), run / "evaluation" / when, about)


def decoded(run: Path, *decodings: str) -> Path:
    """The run, evaluated in these decodings."""
    for when, value in (("before", 10.0), ("after", 30.25)):
        save(evaluation([row(decoding, value) for decoding in decodings], 0.5), run / "evaluation" / when, {})
    return run


def mark_every_step(run: Path, count: int) -> Path:
    """The run with marks at steps 0, 10, 20, ..., `count` of them: one token that differs by a thousandth of the step."""
    for i in range(count):
        marks.save([sequence([token("x", i / 100)])], run, 10 * i)
    (run / "marks" / "step-00000003.jsonl").unlink()
    return run


def without_evaluations(run: Path) -> Path:
    """The run as one with eval.final=none leaves it."""
    shutil.rmtree(run / "evaluation")
    return run


def without_marks(run: Path) -> Path:
    """The run as one that marks nothing leaves it, such as SFT."""
    shutil.rmtree(run / "marks")
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "gkd")
