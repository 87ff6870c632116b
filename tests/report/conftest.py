"""Run folders written by hand, every number known. Also for the browser's tests to import: `write_run`."""

from __future__ import annotations

import dataclasses
import json
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


def row(decoding: str, value: float, self_bleu: float | None = None) -> Row:
    """A row of 4 examples with an interval of one point to either side."""
    interval = Interval(value - 1, value + 1)
    finish = {"stop": 1.0, "length": 0.0}
    return Row(decoding, 4, 1, "accuracy", value, interval, {"accuracy": value}, {}, 3.0, finish, self_bleu, None, 1.5)


def evaluation(greedy: float, sampled: float, kl: float, prompt: str = "2 + 3 =") -> Evaluation:
    """Two rows, a completion of each, and the distance from the teacher."""
    estimate = Estimate(kl, Interval(kl - 0.25, kl + 0.25))
    divergence = TeacherDivergence(estimate, Estimate(2 * kl, None), *[estimate] * 4, sequences=4, tokens=12)
    completions = tuple(
        Completion(label, 7, 0, prompt, f"{label} says {value}", 3, "stop", float(value > 50))
        for label, value in (("greedy", greedy), ("T=1", sampled))
    )
    rows = (row("greedy", greedy, 90.0), row("T=1", sampled, 40.0))
    return Evaluation("tiny", "sums", rows, completions, {"greedy": divergence, "T=1": divergence})


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


def write_run(folder: Path, *, prompt: str = "2 + 3 =", steps: int = 3, **config: Any) -> Path:
    """A run of three steps with evaluations and marks before and after."""
    folder.mkdir(parents=True)
    keys = {"student": "tiny-student", "teacher": "tiny-teacher", "output": str(folder), "seed": 5, **config}
    config_io.save(config_io.build(keys), folder / "config.yaml")
    records = [record(step) for step in range(1, steps + 1)]
    records[1]["evaluation"] = {"accuracy greedy": 33.0, "accuracy T=1": 11.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    save(evaluation(20.0, 10.0, 0.75, prompt), folder / "evaluation" / "before", {})
    save(evaluation(60.5, 30.25, 0.5, prompt), folder / "evaluation" / "after", {})
    texts = ("five", " six", "\n", "</s>")
    for step, scale in ((0, 1.0), (steps, 0.5)):
        tokens = [token(text, scale * value) for text, value in zip(texts, (0.02, 0.9, 0.0, 0.3), strict=True)]
        second = dataclasses.replace(sequence(tokens[::-1], prompt_id=8, prompt=prompt), reference=None)
        marks.save([sequence(tokens, prompt=prompt), second], folder, step)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "gkd")
