"""Holds the layout of docs/design.md: imports point to earlier rooms only, and files and functions stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tutelage

SOURCE = Path(__file__).parents[1] / "src" / "tutelage"
MODULES = sorted(SOURCE.rglob("*.py"))

# A room may import itself and the rooms before it.
ROOMS = [
    "errors",
    "console",
    "types",
    "section",
    "divergences",
    "estimators",
    "fused",
    "models",
    "data",
    "rollout",
    "teacher",
    "sources",
    "tasks",
    "rewards",
    "train",
    "eval",
    "report",
    "run",
    "compare",
    "quickstart",
    "api",
    "cli_options",
    "cli",
    "__main__",
    "__init__",
]
# Rooms that may import less than their place allows: tasks know texts, never models or training.
ONLY = {"tasks": {"errors", "types", "tasks"}}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_LOOP_LINES = 120


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and room of every import from the package, those inside functions and for type checkers included."""
    package = ["tutelage", *path.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            # `from tutelage import x` imports the room x; the version is a constant of the root.
            names = [f"{module}.{alias.name}" for alias in node.names if alias.name != "__version__"]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "tutelage":
                yield node.lineno, parts[1] if len(parts) > 1 else "__init__"


def violations(path: Path, source: str) -> list[str]:
    room = room_of(path)
    allowed = ONLY.get(room, set(ROOMS[: ROOMS.index(room) + 1]))
    return [
        f"{path.name}:{line} imports {other}"
        for line, other in imported_rooms(path, ast.parse(source))
        if other not in allowed
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_to_earlier_rooms(path: Path) -> None:
    assert room_of(path) in ROOMS, f"give {room_of(path)} a place in ROOMS and in docs/design.md"
    assert violations(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("divergences.py", "import tutelage.cli"),
        ("data/prompts.py", "def late():\n    from tutelage.train.config import Config"),
        ("models/load.py", "from tutelage import data"),
        ("models/load.py", "from ..train import loop"),
        ("rollout/native.py", "if TYPE_CHECKING:\n    from tutelage.teacher import base"),
        ("tasks/gsm8k.py", "from tutelage.models.load import load"),
        ("errors.py", "from tutelage import LMHead"),
    ],
)
def test_the_test_sees_every_kind_of_import(where: str, source: str) -> None:
    assert len(violations(SOURCE / where, source)) == 1


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("train/loop.py", "from tutelage.data import prompts\nimport torch"),
        ("train/loop.py", "from . import config"),
        ("eval/results.py", "from tutelage import __version__"),
    ],
)
def test_imports_that_are_allowed(where: str, source: str) -> None:
    assert violations(SOURCE / where, source) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_stay_short(path: Path) -> None:
    source = path.read_text()
    limit = MAX_LOOP_LINES if path == SOURCE / "train" / "loop.py" else MAX_FUNCTION_LINES
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    }
    assert len(source.splitlines()) <= MAX_FILE_LINES
    assert {name: lines for name, lines in lengths.items() if lines > limit} == {}


@pytest.mark.parametrize("name", tutelage.__all__)
def test_public_names_resolve(name: str) -> None:
    assert getattr(tutelage, name) is not None
    assert name in dir(tutelage)


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        tutelage.distil  # noqa: B018
