"""The marked page's data as one JSON block: the marks of all runs, every text and every token stored once.

A token is [text, [divergence, forward KL, reverse KL], [student's, teacher's probability], the student's top tokens,
their probabilities, the teacher's top tokens, their probabilities], and a 1 behind them where the task inserted it; null is
infinity. Texts and tokens are indices into "texts"; tokens that decode alike have an index each. "ids" has the ids of those
whose texts tell too little: bytes of a character.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from tutelage.eval.marks import Choice, MarkedSequence, TokenMark, mean_divergence
from tutelage.report.collect import RunData

# Thresholds of the colour scale: a factor of three apart, the last at the 95th percentile. Most tokens differ little,
# a few differ a lot, and both ends are to be told apart.
_BANDS = (81, 27, 9, 3, 1)
_MEASURES = {"forward_kl": "forward KL", "reverse_kl": "reverse KL"}


def payload(runs: Sequence[RunData]) -> dict[str, Any]:
    """Everything the page's script shows, ready for JSON; runs without marks are left out."""
    texts = _Texts()
    marked = [run for run in runs if run.marks]
    values: dict[str, list[float]] = {}
    for run in marked:
        for sequence in (sequence for sequences in run.marks.values() for sequence in sequences):
            for token in (token for token in sequence.tokens if not token.forced):
                # By the measure's name: runs of different divergences share the scales of the KLs, not their own.
                for name, value in zip(_measures(sequence.divergence), _values(token), strict=True):
                    values.setdefault(name, []).append(value)
    return {
        "runs": [
            {
                "name": run.name,
                "measures": _measures(next(s for found in run.marks.values() for s in found).divergence),
                "steps": [
                    {"step": step, "sequences": [_sequence(sequence, texts) for sequence in sequences]}
                    for step, sequences in run.marks.items()
                ],
            }
            for run in marked
        ],
        "scales": {name: thresholds(found) for name, found in values.items()},
        "texts": texts.all,
        "ids": texts.ids,
    }


def thresholds(values: Sequence[float]) -> list[float]:
    """The values at which the colour deepens: five, ascending, two digits each.

    Infinite values are deeper than any; where no finite one is above 0, the scale ends at 1 nat.
    """
    finite = [value for value in values if math.isfinite(value)]
    top = float(np.percentile(finite, 95)) if finite else 0.0
    return [float(f"{(top if top > 0 else 1.0) / band:.2g}") for band in _BANDS]


def to_script(data: Any) -> Markup:
    """JSON that can stand inside a script element: no "<" ends it, no character of it is markup."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # A lone surrogate is valid JSON once escaped, but no UTF-8.
    return Markup("".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in text))


class _Texts:
    """Every text and every token once, by order of appearance; a token without an id is its text."""

    def __init__(self) -> None:
        self._index: dict[tuple[str, int | None], int] = {}

    def __call__(self, text: str, token: int | None = None) -> int:
        return self._index.setdefault((text, token), len(self._index))

    @property
    def all(self) -> list[str]:
        return [text for text, _ in self._index]

    @property
    def ids(self) -> dict[str, int]:
        """Index -> id of the tokens that hold U+FFFD."""
        return {str(i): token for (text, token), i in self._index.items() if token is not None and "\ufffd" in text}


def _measures(divergence: str) -> list[str]:
    """Names of the three measures of a token; the page offers equal ones once."""
    return [_MEASURES.get(divergence, divergence), *_MEASURES.values()]


def _values(token: TokenMark) -> tuple[float, float, float]:
    return token.divergence, token.forward_kl, token.reverse_kl


def _sequence(sequence: MarkedSequence, texts: _Texts) -> dict[str, Any]:
    def text(value: str | None) -> int | None:
        return None if value is None else texts(value)

    return {
        "id": sequence.prompt_id,
        "source": sequence.source,
        "finish": sequence.finish_reason,
        "prompt": texts(sequence.prompt),
        "completion": text(sequence.completion),
        "reference": text(sequence.reference),
        "teacher": text(sequence.teacher),
        "mean": _finite(mean_divergence(sequence)),
        "tokens": [_token(token, texts) for token in sequence.tokens],
    }


def _token(token: TokenMark, texts: _Texts) -> list[Any]:
    def top(choices: Sequence[Choice]) -> tuple[list[int], list[float]]:
        return [texts(choice.text, choice.id) for choice in choices], [
            _digits(choice.probability) for choice in choices
        ]

    return [
        texts(token.text, token.id),
        [_finite(value) for value in _values(token)],
        [_digits(token.student_probability), _digits(token.teacher_probability)],
        *top(token.student),
        *top(token.teacher),
        *([1] if token.forced else []),
    ]


def _finite(value: float) -> float | None:
    """The value in four digits; None for infinity, which JSON lacks."""
    return _digits(value) if math.isfinite(value) else None


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
