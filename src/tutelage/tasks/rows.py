"""Rows of a data set, from local files or the hub, checked one by one; every error names the file and the line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.errors import MissingSplitError, UserError
from tutelage.tasks.base import SPLITS, Example
from tutelage.tasks.hashing import content_hash

SUFFIXES = (".jsonl", ".json", ".parquet")


class BadRowError(Exception):
    """A row that a task cannot use. Raised by a task's `check`; the loader adds the file and the line."""


class EmptyTextError(BadRowError):
    """A row whose prompt or completion is empty; `drop_empty` leaves such rows out."""


@dataclass(frozen=True)
class Rows:
    """The rows of one split and where each came from.

    Attributes:
        values: the rows.
        origin: the file or the hub data set.
        lines: line (JSON Lines) or row number, counted from 1, of each row.
        unit: "line" or "row": what `lines` counts.
    """

    values: Sequence[Example]
    origin: str
    lines: Sequence[int]
    unit: str = "row"

    def where(self, index: int) -> str:
        """The place of a row, for error messages."""
        return f"{self.origin}, {self.unit} {self.lines[index]}"

    def select(self, indices: Sequence[int]) -> Rows:
        """The rows at `indices`."""
        chosen = [self.values[i] for i in indices]
        return Rows(chosen, self.origin, [self.lines[i] for i in indices], self.unit)

    def checked(self, check: Callable[[Example], None], drop_empty: bool = False) -> Rows:
        """These rows, each passed to `check`, without those that raise `EmptyTextError` if `drop_empty`.

        Raises:
            UserError: `check` refused a row; names its place.
        """
        kept = []
        for index, row in enumerate(self.values):
            try:
                check(row)
            except BadRowError as problem:
                if drop_empty and isinstance(problem, EmptyTextError):
                    continue
                raise UserError(f"{self.where(index)}: {problem}") from problem
            kept.append(index)
        return self if len(kept) == len(self.values) else self.select(kept)


@dataclass
class DataSource:
    """The splits of a data set.

    Args:
        data: a .jsonl, .json or .parquet file (the train split), a folder with train, validation and test files of
            those kinds, or the name of a data set on the Hugging Face hub; NAME@REVISION for another branch, tag or commit
            than its main one.
        check: raises `BadRowError` for a row the task cannot use.
        key: row -> text whose hash decides whether a train row is carved off for validation.
        validation_data, test_data: files in place of the ones `data` would give.
        validation_fraction: carve this share of the train split off as the validation split, by a hash of each row's
            `key`; equal keys stay together, and adding rows moves no other row. None: the data must have the split.
        drop_empty: leave rows with an empty prompt or completion out, in place of refusing the data.
        data_config: configuration of a hub data set ("main", "de-en").
    """

    data: str
    check: Callable[[Example], None]
    key: Callable[[Example], str]
    validation_data: str | None = None
    test_data: str | None = None
    validation_fraction: float | None = None
    data_config: str | None = None
    drop_empty: bool = False
    _splits: dict[str, Rows] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.validation_fraction is not None and not 0 < self.validation_fraction < 1:
            raise UserError(
                f"validation_fraction is {self.validation_fraction}; it must be between 0 and 1, both excluded"
            )
        if self.validation_fraction is not None and self.validation_data is not None:
            raise UserError("validation_fraction and validation_data are both set; drop one of them")

    def split(self, split: str) -> Rows:
        """The rows of "train", "validation" or "test", in the order of the data.

        Raises:
            UserError: the data or the split is missing, empty or malformed, or a row fails the task's check.
        """
        if split not in SPLITS:
            raise UserError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
        if split not in self._splits:
            self._splits[split] = self._load(split)
        return self._splits[split]

    def _load(self, split: str) -> Rows:
        if self.validation_fraction is not None and split != "test":
            return self._carve(split, self.validation_fraction)
        rows = self._read(split)
        if rows is None:
            raise MissingSplitError(self._missing_split(split))
        return self._checked(rows)

    def _checked(self, rows: Rows) -> Rows:
        if len(rows.values) == 0:
            raise UserError(f"{rows.origin} has no rows; the task needs at least one")
        kept = rows.checked(self.check, self.drop_empty)
        if len(kept.values) == 0:
            raise UserError(
                f"every row of {rows.origin} has an empty prompt or completion; the task needs at least one row"
            )
        return kept

    def _carve(self, split: str, fraction: float) -> Rows:
        if self._read("validation") is not None:
            raise UserError(
                f"validation_fraction is {fraction}, but {self.data} has a validation split of its own; "
                "set validation_fraction to null to use it"
            )
        whole = self._read("train")
        if whole is None:
            raise UserError(self._missing_split("train"))
        whole = self._checked(whole)
        held_out = [content_hash(self.key(row)) < fraction for row in whole.values]
        if all(held_out) or not any(held_out):
            raise UserError(
                f"validation_fraction is {fraction}, which puts {sum(held_out)} of the {len(held_out)} rows of "
                f"{whole.origin} into validation; both splits need rows, so change it or give validation_data"
            )
        self._splits["train"] = whole.select([i for i, out in enumerate(held_out) if not out])
        self._splits["validation"] = whole.select([i for i, out in enumerate(held_out) if out])
        return self._splits[split]

    def _read(self, split: str) -> Rows | None:
        """The unchecked rows of a split, or None where the data has no such split."""
        override = {"validation": self.validation_data, "test": self.test_data}.get(split)
        if override is not None:
            return read_file(_existing(override, f"task.options.{split}_data"))
        path = Path(self.data).expanduser()
        if path.is_file():
            return read_file(path) if split == "train" else None
        if path.is_dir():
            found = _files(path, split)
            if len(found) > 1:
                raise UserError(
                    f"{path} has both {found[0].name} and {found[1].name}; keep one file for the {split} split"
                )
            return read_file(found[0]) if found else None
        if _looks_local(self.data):
            _existing(self.data, "task.data")
        return _read_hub(self.data, self.data_config, split)

    def _missing_split(self, split: str) -> str:
        path = Path(self.data).expanduser()
        if path.is_dir():
            wanted = " or ".join(f"{split}{suffix}" for suffix in SUFFIXES)
            seen = f"the folder {path.absolute()} has no {wanted}; it has {_listing(path)}"
        elif path.is_file():
            seen = f"{path} is one file and gives the train split only"
        else:
            seen = f"the data set {self.data} has no {split} split"
        fixes = {
            "train": "set --task.data to a file or a folder that has one",
            "validation": "set --task.options.validation_data to a file, or --task.options.validation_fraction (0.05, say) to carve "
            "one off the train split",
            "test": "set --task.options.test_data to a file",
        }
        if split == "test" and self._offers_validation():
            fixes["test"] += (
                ", or take the validation split (tutelage eval: --split validation, train: --eval.final validation)"
            )
        return f"the {split} split is missing: {seen}; {fixes[split]}"

    def _offers_validation(self) -> bool:
        """Whether there is a validation split, its rows unread where they are in a file: they may have errors of their own."""
        if self.validation_fraction is not None or self.validation_data is not None:
            return True
        path = Path(self.data).expanduser()
        if path.exists():
            return bool(_files(path, "validation"))
        return _read_hub(self.data, self.data_config, "validation") is not None


def _files(folder: Path, split: str) -> list[Path]:
    """The files in a folder that hold a split, by their name."""
    return [path for suffix in SUFFIXES if (path := folder / f"{split}{suffix}").is_file()]


def read_file(path: Path) -> Rows:
    """Reads a .jsonl, .json (an array of objects) or .parquet file.

    Raises:
        UserError: another kind of file, malformed content, or a row that is no object.
    """
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{path} is not a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file; convert it to one of these"
        )
    try:
        return reader(path)
    except UnicodeDecodeError as problem:
        raise UserError(f"{path} is not UTF-8 text (byte {problem.start}); save it as UTF-8") from problem


def _read_jsonl(path: Path) -> Rows:
    values: list[Example] = []
    lines: list[int] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line.rstrip("\n"))  # an error at its end would be in column 1 of the next
            except json.JSONDecodeError as problem:
                raise UserError(
                    f"{path}, line {number}: not valid JSON ({problem.msg} at column {problem.colno}); "
                    "each line must be one JSON object"
                ) from problem
            if not isinstance(value, dict):
                raise UserError(f"{path}, line {number}: {_kind(value)}; each line must be one JSON object")
            values.append(value)
            lines.append(number)
    return Rows(values, str(path), lines, "line")


def _read_json(path: Path) -> Rows:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as problem:
        raise UserError(
            f"{path}, line {problem.lineno}: not valid JSON ({problem.msg} at column {problem.colno}); a .json file holds "
            "one array of objects (name it .jsonl if it has one object per line)"
        ) from problem
    if not isinstance(value, list):
        raise UserError(f"{path}: {_kind(value)}; a .json file must hold one array of objects")
    for number, row in enumerate(value, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {number}: {_kind(row)}; every element of the array must be an object")
    return Rows(value, str(path), range(1, len(value) + 1))


def _read_parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        values = pq.read_table(path).to_pylist()
    except pa.ArrowInvalid as problem:
        raise UserError(f"{path} is not a readable Parquet file ({problem}); write it again") from problem
    return Rows(values, str(path), range(1, len(values) + 1))


def _read_hub(name: str, config: str | None, split: str) -> Rows | None:
    from datasets import load_dataset

    repository, _, revision = name.partition("@")
    try:
        splits = load_dataset(repository, config, revision=revision or None)
    # Offline; an unknown name or configuration; rows that a script would make, which `datasets` no longer runs.
    except (OSError, ValueError, RuntimeError) as problem:
        raise UserError(
            f"task.data is {name!r}, which is no file or folder in {Path.cwd()}, and loading it from the Hugging Face hub failed "
            f"({type(problem).__name__}: {problem}); set task.data to the path of a file or folder, or check the name, "
            "task.options.data_config and the network; where a script made the rows, "
            f"{repository}@refs/convert/parquet has them as files"
        ) from problem
    if split not in splits:
        return None
    return Rows(splits[split], f"{name} ({split})", range(1, len(splits[split]) + 1))


def _looks_local(data: str) -> bool:
    name = data.partition("@")[0]  # a revision may have slashes, a hub name has one
    return data.startswith((".", "/", "~")) or name.count("/") > 1 or data.lower().endswith(SUFFIXES)


def _existing(data: str, option: str) -> Path:
    path = Path(data).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{option} is {data}, a folder; it must be a file")
    folder = path.parent
    seen = f"there is no folder {folder} either"
    if folder.is_dir():
        seen = f"the folder {folder.absolute()} has {_listing(folder)}"
    raise UserError(f"{option} is {data}, which does not exist; {seen}")


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return "no files"
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _kind(value: Any) -> str:
    kinds = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


def column(row: Example, name: str, option: str | None) -> Any:
    """The value of a column.

    Args:
        row: the row.
        name: the column.
        option: the task's option that names the column; None: the task reads no other.

    Raises:
        BadRowError: the column is missing; names the ones that exist, the option that chooses it, and what else the row may be.
    """
    if name not in row:
        fix = f"set --task.options.{option} to the right one"
        if option is None:
            fix = (
                f"call the right one {name!r} in the data, or use --task.name jsonl with --task.options.prompt_column and "
                "--task.options.completion_column"
            )
        elif option == "prompt_column" and "messages" in row:
            fix = f"set --task.options.messages_column messages where these are chats, or --task.options.{option} to the right one"
        elif option == "completion_column":
            fix += f"; data without references is for the jsonl task, with --task.options.{option} null --task.options.metric none"
        raise BadRowError(f"no column {name!r}; it has {', '.join(map(repr, row)) or 'none'}; {fix}")
    return row[name]


def text(row: Example, name: str, option: str | None, what: str) -> str:
    """The text in a column.

    Args:
        row, name, option: see `column`.
        what: "prompt", "completion", ...: what the text is for, in error messages.

    Raises:
        BadRowError: the column is missing or holds no string.
        EmptyTextError: the string is empty or white space only.
    """
    return checked_text(column(row, name, option), f"column {name!r}", what)


def checked_text(value: Any, place: str, what: str) -> str:
    """`value` if it is a text with something in it; BadRowError otherwise."""
    if not isinstance(value, str):
        raise BadRowError(f"{place} is {_kind(value)}; the {what} must be a string")
    if not value.strip():
        raise EmptyTextError(f"{place} is empty; the {what} needs text (task.options.drop_empty leaves such rows out)")
    return value


def messages(row: Example, name: str, option: str) -> Sequence[Mapping[str, str]]:
    """The chat messages in a column: objects with a role and a content, both strings.

    Raises:
        BadRowError: the column is missing or holds anything else.
    """
    value = column(row, name, option)
    if not isinstance(value, list) or not value:
        raise BadRowError(
            f"column {name!r} is {'empty' if value == [] else _kind(value)}; it must be an array of messages"
        )
    for number, message in enumerate(value, start=1):
        place = f"column {name!r}, message {number}"
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise BadRowError(f"{place} must be an object with role and content")
        checked_text(message["role"], f"{place}, role", "role")
        checked_text(message["content"], f"{place}, content", "content")
    return value
