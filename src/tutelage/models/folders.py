"""Folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def looked_up(path: str) -> str:
    """Behind a path in an error message: the folder that a relative one starts from; nothing behind an absolute one."""
    return "" if Path(path).expanduser().is_absolute() else f" (looked up from {Path.cwd()})"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its name when the context ends without an error.

    Its files are on the disk by then. An earlier folder of that name is replaced; after an error or a kill it is as it was, but
    for a kill between two renames: then the next `whole_folder` puts it back.

    Args:
        folder: the name; its parents are made.
    """
    folder = folder.resolve()  # a link is written through
    partial, earlier = (folder.with_name(f".{state}-{folder.name}") for state in ("writing", "replaced"))
    _settle(folder, partial, earlier)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in (*partial.rglob("*"), partial):
            _sync(path)
        if folder.exists():  # a folder cannot be renamed onto one that is not empty
            folder.rename(earlier)
        partial.rename(folder)
        _sync(folder.parent)
    finally:
        _settle(folder, partial, earlier)


def _settle(folder: Path, partial: Path, earlier: Path) -> None:
    """Leaves `folder` alone of the three: the new one, or the earlier one where the new one did not come to its place."""
    if earlier.exists() and not folder.exists():
        earlier.rename(folder)
    for leftover in (partial, earlier):
        if leftover.exists():
            shutil.rmtree(leftover)


def _sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
