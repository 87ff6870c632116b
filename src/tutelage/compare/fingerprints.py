"""Hashes of what a configuration names on this machine, models, data and rewards: their content shapes a run as its keys do."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tutelage.errors import UserError
from tutelage.models.folders import looked_up
from tutelage.rewards.load import SCORER, import_function, is_scorer
from tutelage.tasks.base import SPLITS
from tutelage.tasks.rows import SUFFIXES
from tutelage.train.config import TaskConfig

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "config.json")
_END_BYTES = 2**25  # files of up to twice this are read whole
_STRIDE, _SAMPLE_BYTES = 2**20, 2**12  # between the ends of larger ones


def of_model(model: str | None) -> str | None:
    """A hash of a local folder's weights and config.json; None for the name of a hub model, or of a GGUF file in one.

    Of files over 64 MiB, samples are read: see `_of_file`. Training that touches any matrix of a mebibyte is seen; only biases or
    norms of a larger model may be trained in place unseen, for these are small enough to lie between two samples.

    Raises:
        UserError: it looks like a local folder or file and is none.
    """
    if model is None:
        return None
    folder = Path(model).expanduser()
    if not folder.exists():
        if not _may_be_on_hub(model):
            raise UserError(
                f"no model folder at {model!r}{looked_up(model)}: train it first, or give another student or teacher"
            )
        return None
    return _of_files([folder] if folder.is_file() else [path for kind in _WEIGHTS for path in folder.glob(kind)])


def _may_be_on_hub(model: str) -> bool:
    """Whether it reads as NAME or OWNER/NAME, or as OWNER/NAME/FILE.gguf, as `models.load` has it."""
    slashes = (2,) if model.endswith(".gguf") else (0, 1)
    return not model.startswith((".", "/", "~")) and model.count("/") in slashes


def of_data(task: TaskConfig) -> dict[str, str]:
    """Hashes of a task's local data, by the key that names it: `task.data` and the options that end in `_data`.

    Data of the hub, and files that are missing, have none: what the latter lack is said where they are read.
    """
    named = {f"task.options.{name}": value for name, value in task.options.items() if name.endswith("_data")}
    files = {key: _data_files(Path(value)) for key, value in named.items() if isinstance(value, str)}
    if task.data is not None:
        files["task.data"] = _data_files(Path(task.data))
    return {key: _of_files(several) for key, several in files.items() if several}


def of_reward(reward: str | None) -> dict[str, str]:
    """A hash of the folder or of the source file behind `rl.reward`, by that key; none for a reward of the task's own.

    Of a function, that is the file of the module that is named, and that of the module which defines it; not what these import.

    Raises:
        UserError: as `import_function`.
    """
    if reward is None or ":" not in reward:
        return {}
    files = _scorer_files(reward.removeprefix(SCORER)) if is_scorer(reward) else _source_files(reward)
    return {"rl.reward": _of_files(files)} if files else {}


def _data_files(path: Path) -> list[Path]:
    """What a task reads at a path: the file, or a folder's file for each split."""
    path = path.expanduser()
    if path.is_dir():
        return [file for split in SPLITS for suffix in SUFFIXES if (file := path / f"{split}{suffix}").is_file()]
    return [path] if path.is_file() else []


def _scorer_files(folder: str) -> list[Path]:
    return [path for path in Path(folder).iterdir() if path.is_file()] if Path(folder).is_dir() else []


def _source_files(reward: str) -> list[Path]:
    function = import_function(reward)
    modules = (sys.modules[reward.partition(":")[0]], inspect.getmodule(function))
    specs = [module.__spec__ for module in modules if module is not None]
    return [Path(spec.origin) for spec in specs if spec is not None and spec.has_location and spec.origin is not None]


def _of_files(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        status = path.stat()
        digest.update(f"{path.name} {_of_file(path, status.st_size, status.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@cache
def _of_file(path: Path, size: int, modified_ns: int) -> str:
    """Of its size, its beginning and end (32 MiB each), and 4 KiB of every mebibyte between these; the rest is not seen.

    A comparison asks for every run again: a file that nobody wrote to is read once.
    """
    digest = hashlib.sha256(f"{size}\n".encode())
    with path.open("rb") as file:
        digest.update(file.read(_END_BYTES))
        for place in range(_END_BYTES, size - _END_BYTES, _STRIDE):
            file.seek(place)
            digest.update(file.read(_SAMPLE_BYTES))
        file.seek(max(_END_BYTES, size - _END_BYTES))
        digest.update(file.read(_END_BYTES))
    return digest.hexdigest()
