"""Errors made for the person who runs the program."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something in the input or the configuration is wrong.

    The message says what was seen, what is needed and which option or line fixes it. The command line prints it
    without a traceback and exits with status 2.
    """


class MissingSplitError(UserError):
    """The data has no such split. Where a split is optional, its absence may be reported instead of stopping."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown `word`: the nearest known one, then all of them."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known are {', '.join(known)}"
