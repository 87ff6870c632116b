"""Rewards for runs of the tests, named by import path."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def digits(prompt: str, completion: str, reference: str | None, example: Mapping[str, Any]) -> float:
    """Characters of the completion that are digits."""
    return float(sum(character.isdigit() for character in completion))


def has_the(prompt: str, completion: str, reference: str | None, example: Mapping[str, Any]) -> float:
    """Whether the word "the" is in the completion."""
    return float(" the" in completion)


def not_a_number(prompt: str, completion: str, reference: str | None, example: Mapping[str, Any]) -> float:
    """NaN."""
    return math.nan
