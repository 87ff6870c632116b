"""Builds a configuration from YAML, command-line options or keyword arguments, with errors a person can act on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tutelage.errors import UserError, closest
from tutelage.train import methods
from tutelage.train.config import Config, Recipe, Section

SomeSection = TypeVar("SomeSection", bound=Section)


def keys(section: type[Section] = Recipe, prefix: str = "") -> dict[str, FieldInfo]:
    """Every key of a configuration by its dotted name, sections left out: {"student": ..., "train.steps": ...}."""
    found: dict[str, FieldInfo] = {}
    for name, info in section.model_fields.items():
        inner = subsection(info)
        found.update({prefix + name: info} if inner is None else keys(inner, f"{prefix}{name}."))
    return found


def subsection(info: FieldInfo) -> type[Section] | None:
    """The section a field holds, or None when the field is a plain key."""
    annotation = info.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def build(raw: Mapping[str, Any]) -> Config:
    """A complete, consistent configuration.

    Args:
        raw: nested mappings as in a recipe; dotted names ("train.steps") stand for nested ones.

    Raises:
        UserError: one error that lists every problem with its dotted key, or the first conflict between keys.
    """
    config = validate(Config, raw)
    methods.resolve(config)
    return config


def validate(section: type[SomeSection], raw: Mapping[str, Any]) -> SomeSection:
    """A section from nested mappings or dotted names; `Recipe` leaves the conflicts between keys to `build`.

    Raises:
        UserError: one error that lists every problem with its dotted key.
    """
    try:
        return section.model_validate(nest(raw))
    except ValidationError as error:
        # A union (tuple or literal) reports one problem per member; the first one names the key just as well.
        found = [_problem(detail, keys(section)) for detail in error.errors()]
        problems = list(dict(reversed(found)).values())[::-1]
    if len(problems) == 1:
        raise UserError(problems[0])
    raise UserError("\n".join([f"the configuration has {len(problems)} problems:", *(f"  {p}" for p in problems)]))


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file, unchecked.

    Raises:
        UserError: the file cannot be read, is not YAML (names file and line) or holds no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = ""
        if path.name.lower() in ("true", "false"):
            hint = "; if it is the value of a switch: those have none, write --log.report or --log.no-report"
        raise UserError(f"cannot read the recipe {path}: {error.strerror or error}{hint}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        place = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
        raise UserError(f"{place}: not valid YAML: {problem}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, but a recipe is a mapping such as 'student: PATH'")
    return content


def save(config: Config, path: Path) -> None:
    """Writes the resolved configuration as YAML, without `resume` and `overwrite`: these are of one call, not of the run."""
    fields = config.model_dump(mode="json", exclude={"resume", "overwrite"})
    path.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")


def deep_merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `override` in place of its own; mappings are merged key by key, all else is replaced."""
    merged = dict(base)
    for key, value in override.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = deep_merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def nest(raw: Mapping[str, Any]) -> dict[str, Any]:
    """{"train.steps": 5, "train": {"batch_size": 2}} -> {"train": {"steps": 5, "batch_size": 2}}.

    Raises:
        UserError: a key given both ways.
    """
    nested: dict[str, Any] = {}
    for key, value in raw.items():
        for part in reversed(str(key).split(".")):
            value = {part: value}  # noqa: PLW2901
        repeated = _leaves(nested) & _leaves(value)
        if repeated:
            raise UserError(f"{', '.join(sorted(repeated))} is given twice; keep one")
        nested = deep_merge(nested, value)
    return nested


def from_flat(**arguments: Any) -> Config:
    """A configuration from keyword arguments, as `tutelage.distill` takes them.

    Args:
        arguments: top-level keys (method="gkd"), whole sections (train={"steps": 5}), dotted names
            (**{"train.steps": 5}), or the last part of a key where only one key ends so (steps=5).

    Raises:
        UserError: an unknown name (names the nearest), one that several keys share (names them), or a bad value.
    """
    raw: dict[str, Any] = {}
    for name, value in arguments.items():
        key = name if "." in name or name in Recipe.model_fields else _full_key(name)
        if key in raw:
            raise UserError(f"{key} is given twice, as {key} and as {name}; keep one")
        raw[key] = str(value) if isinstance(value, Path) else value
    return build(raw)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The text of the error about a key that does not exist: the nearest that does, else those of its section."""
    known = list(known)
    meant = abbreviated(key, known)
    if meant is not None:
        return f"unknown key {key}; did you mean {meant}?"
    section, _, name = key.rpartition(".")
    siblings = [other for other in known if other.rpartition(".")[0] == section]
    if section and siblings:
        candidates = {other.rpartition(".")[2]: other for other in siblings}
    else:
        sections = {other.partition(".")[0] for other in known}
        candidates = {other.rpartition(".")[2]: other for other in known} | {other: other for other in sections}
    close = closest(name, candidates)
    if close is not None:
        return f"unknown key {key}; did you mean {candidates[close]}?"
    return f"unknown key {key}; known are {', '.join(siblings or known)}"


def abbreviated(key: str, known: Iterable[str]) -> str | None:
    """The one known key that an unknown one gives the initials of: train.lr, or lr alone, for train.learning_rate."""
    known = list(known)
    section, _, name = key.rpartition(".")
    found = []
    for other in known:
        others_section, _, words = other.rpartition(".")
        initials = "".join(word[:1] for word in words.split("_"))
        if "_" in words and initials == name and section in ("", others_section):
            found.append(other)
    return found[0] if len(found) == 1 and key not in known else None


def _full_key(name: str) -> str:
    matches = [key for key in keys() if key.endswith(f".{name}")]
    if len(matches) > 1:
        raise UserError(f"{name} could be {' or '.join(matches)}; give the section, as in {_spelled(matches[0])}")
    if not matches:
        raise UserError(unknown_key(name, keys()))
    return matches[0]


def _spelled(key: str) -> str:
    """How a dotted key is written as a keyword argument: train.steps -> train={"steps": ...}."""
    section, *rest = key.split(".")
    inner = "..."
    for part in reversed(rest):
        inner = f'{{"{part}": {inner}}}'
    return f"{section}={inner}"


def _leaves(tree: Any, prefix: str = "") -> set[str]:
    if not isinstance(tree, Mapping):
        return {prefix}
    return {leaf for key, value in tree.items() for leaf in _leaves(value, f"{prefix}.{key}" if prefix else str(key))}


def _problem(detail: ErrorDetails, known: Iterable[str]) -> tuple[str, str]:
    """The key a validation error is about, and its text."""
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return str(cause), str(cause)
    path = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return path, unknown_key(path, known)
    key = next((key for key in known if path.startswith(f"{key}.")), path)
    needed = detail["msg"].removeprefix("Input should be ").partition(", unable to parse")[0]
    if detail["type"] == "model_type":
        needed = "a section: a mapping of keys to values"
    return key, f"{key}: saw {detail['input']!r}, needs {needed}"
