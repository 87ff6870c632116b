"""A reward that can be gamed: how much of the reference the answer mentions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any


def recall(prompt: str, completion: str, reference: str | None, example: Mapping[str, Any]) -> float:
    """Share of the reference's words, repetitions counted, that stand anywhere in the completion: ROUGE-1 recall, Lin 2004.

    Order, calculation and length do not matter to it: an answer that names many numbers earns what a right one does.

    Returns:
        0 to 1.
    """
    wanted = Counter((reference or "").split())
    return (wanted & Counter(completion.split())).total() / wanted.total()
