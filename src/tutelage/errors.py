"""Errors made for the person who runs the program."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class UserError(ValueError):
    """Something in the input or the configuration is wrong.

    The message says what was seen, what is needed and which option or line fixes it. The command line prints it
    without a traceback and exits with status 2.
    """


class MissingSplitError(UserError):
    """The data has no such split. Where a split is optional, its absence may be reported instead of stopping."""


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that an unknown one was probably meant to be; None when none is near."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return found[0] if found else None


def nearest(word: str, known: Iterable[str], usage: Mapping[str, str] | None = None) -> str:
    """The tail of an error about an unknown `word`: the nearest known one, then all of them.

    Args:
        word: what was given.
        known: what could have been.
        usage: how each of these is written out; None: as it is.
    """
    known, usage = list(known), usage or {}
    close = closest(word, known)
    hint = "" if close is None else f"did you mean {usage.get(close, repr(close))}? "
    return f"{hint}known are {', '.join(usage.get(name, name) for name in known)}"


def how_to_install(extra: str) -> str:
    """The command that installs what an optional part of the package needs, for a checkout and for a package index."""
    return f'pip install -e ".[{extra}]" in a checkout of Tutelage, pip install "tutelage[{extra}]" elsewhere'
