"""Turns a section of the configuration into command-line options, and options back into a mapping."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import tyro
import yaml
from pydantic.fields import FieldInfo
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from tutelage.errors import UserError, closest
from tutelage.section import Section
from tutelage.train import config_io


class Positional(NamedTuple):
    """An argument without an option.

    Attributes:
        kind: its type.
        help: one line for the help.
        required: otherwise None stands for its absence.
    """

    kind: Any
    help: str
    required: bool = True


def parse(
    section: type[Section],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    defaults: Mapping[str, Any] | None = None,
    positional: Mapping[str, Positional] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a command line says about a section.

    Args:
        section: its fields are the options, its attribute docstrings the help texts. Both `--train.batch-size` and
            `--train.batch_size` are understood. Mappings are given key by key: `--task.options.KEY VALUE`, or
            `--task.options KEY VALUE ...`; their values are read as YAML.
        argv: the arguments.
        prog, description: name and purpose of the command, for the help.
        defaults: nested values that stand in for the section's own defaults.
        positional: arguments without an option, by name.

    Returns:
        The values of the positional arguments, and the options that differ from the defaults, nested.

    Raises:
        UserError: a mapping's option without a value, an option of a key's initials, or one of a mapping's name misspelt.
        SystemExit: help was asked for (status 0); an option that does not exist (its text names the nearest), or whose value is
            none of its choices (status 2). A number that is none is for the section to refuse.
    """
    mappings = [key for key, info in config_io.keys(section).items() if _is_mapping(info)]
    rest, given = take_mappings(argv, mappings)
    _refuse_initials(section, rest)
    _refuse_misspelt_mappings(section, rest, mappings)
    leading: list[Any] = []
    for name, argument in (positional or {}).items():
        metavar = name.upper() if argument.required else f"[{name.upper()}]"
        shown = tyro.conf.arg(metavar=metavar, help=argument.help, help_behavior_hint="")
        annotation = Annotated[argument.kind, tyro.conf.Positional, shown]  # type: ignore[name-defined]
        default: Any = dataclasses.MISSING if argument.required else None
        leading.append((name, annotation, dataclasses.field(default=default)))
    options = _dataclass(section, defaults or {}, leading)
    if mappings:
        description += f" Mappings are given key by key, --KEY.NAME VALUE: {', '.join(mappings)}."
    registry = ConstructorRegistry()
    registry.primitive_rule(_number)
    parsed: Any = tyro.cli(options, args=rest, prog=prog, description=description, registry=registry)
    changes = _changes(parsed)
    arguments = {name: changes.pop(name, None) for name in positional or {}}
    return arguments, config_io.deep_merge(changes, given)


def _refuse_initials(section: type[Section], argv: Sequence[str]) -> None:
    """Raises UserError for an option of a key's initials, such as --train.lr: by its letters another key is the nearest."""
    known = config_io.keys(section)
    for flag in (argument.partition("=")[0] for argument in argv if argument.startswith("--")):
        meant = config_io.abbreviated(flag.removeprefix("--").replace("-", "_"), known)
        if meant is not None:
            raise UserError(f"unknown option {flag}; did you mean --{meant.replace('_', '-')}?")


def _refuse_misspelt_mappings(section: type[Section], argv: Sequence[str], mappings: Sequence[str]) -> None:
    """Raises UserError for an option such as --task.option.metric: tyro does not know mappings, and could not name the nearest."""
    known = config_io.keys(section)
    for flag in (argument.partition("=")[0] for argument in argv if argument.startswith("--")):
        parts = flag.removeprefix("--").split(".")
        if flag.removeprefix("--").replace("-", "_") in known:
            continue
        for mapping in mappings:
            depth = mapping.count(".") + 1
            if closest(".".join(parts[:depth]).replace("-", "_"), known) == mapping:
                meant = ".".join([mapping.replace("_", "-"), *parts[depth:]])
                raise UserError(f"unknown option {flag}; did you mean --{meant}?")


def _number(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """tyro's rule for numbers, but what is none stays text: the section's refusal names the key and what it needs."""
    kind: Any = type_info.type
    if kind not in (int, float):
        return None

    def read(words: list[str]) -> Any:
        try:
            return kind(words[0])
        except ValueError:
            return words[0]

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, int | float) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def take_mappings(argv: Sequence[str], mappings: Iterable[str]) -> tuple[list[str], dict[str, Any]]:
    """Splits the options of mappings off a command line.

    Args:
        argv: the arguments.
        mappings: dotted keys whose values are mappings ("task.options").

    Returns:
        The other arguments, and {"task": {"options": {...}}}.

    Raises:
        UserError: a name without a value.
    """
    rest: list[str] = []
    given: dict[str, Any] = {}
    todo = list(argv)
    while todo:
        argument = todo.pop(0)
        flag, has_value, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        key = next((key for key in mappings if name == key or name.startswith(f"{key}.")), None)
        if key is None or not flag.startswith("--"):
            rest.append(argument)
            continue
        words = [value] if has_value else []
        while not has_value and todo and not todo[0].startswith("--") and not (name != key and words):
            words.append(todo.pop(0))
        pairs = [name.removeprefix(f"{key}."), *words] if name != key else words
        if not pairs or len(pairs) % 2:
            raise UserError(f"{argument} needs a value for every name: --{key}.NAME VALUE, or --{key} NAME VALUE ...")
        for inner, text in zip(pairs[::2], pairs[1::2], strict=True):
            given = config_io.deep_merge(given, config_io.nest({f"{key}.{inner}": _value(text)}))
    return rest, given


def _value(text: str) -> Any:
    """A mapping's value: numbers, true, false, null, lists and mappings in brackets are read as YAML, all else is text."""
    if text.startswith(("[", "{")) or text in ("true", "false", "null"):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{text!r} is neither a list nor a mapping in YAML: {error}") from error
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _dataclass(section: type[Section], values: Mapping[str, Any], leading: Sequence[Any] = ()) -> type:
    """A dataclass with the fields of a section, for tyro: no constraints, so that all checks happen in one place."""
    fields: list[Any] = list(leading)
    taken = {name for name, *_ in leading}
    for name, info in section.model_fields.items():
        if name in taken:
            continue
        inner = config_io.subsection(info)
        if inner is not None:
            nested = _dataclass(inner, values.get(name, {}))
            fields.append((name, nested, dataclasses.field(default_factory=nested)))
        elif not _is_mapping(info):
            required = name not in values and info.is_required()
            shown = tyro.conf.arg(
                help=_paragraphs(info.description or ""), help_behavior_hint=None if required else _default_hint
            )
            annotation = Annotated[info.annotation, shown]  # type: ignore[name-defined]
            if not required:
                default = values.get(name, info.get_default(call_default_factory=True))
                fields.append((name, annotation, dataclasses.field(default=default)))
            else:
                fields.append((name, annotation))
    made = dataclasses.make_dataclass(section.__name__, fields, kw_only=True)
    made.__doc__ = _paragraphs(section.__doc__ or "")
    return made


def _paragraphs(text: str) -> str:
    """The text with the lines of each paragraph joined: a terminal breaks them elsewhere than the source."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text.strip()))


def _default_hint(default: str) -> str:
    return f"(default: {default or 'empty'})"


def _is_mapping(info: FieldInfo) -> bool:
    return any(get_origin(member) is dict for member in (info.annotation, *get_args(info.annotation)))


def _changes(parsed: Any) -> dict[str, Any]:
    """The fields of a parsed dataclass that are not at their default, nested."""
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(parsed):
        value = getattr(parsed, field.name)
        if dataclasses.is_dataclass(value):
            inner = _changes(value)
            changed.update({field.name: inner} if inner else {})
        elif value != field.default:
            changed[field.name] = value
    return changed
