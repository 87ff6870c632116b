"""Checkpoints: written whole or not at all, checked before they are used."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tutelage.errors import UserError
from tutelage.train.config import Config, identity

_STATE = "state.pt"
_MANIFEST = "manifest.json"
_FOLDER = re.compile(r"step-(\d+)")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Checkpoints:
    """The checkpoints of a run, newest last, in `folder`/step-00000100 and so on.

    A checkpoint is made in a temporary folder, flushed to disk, and renamed: a kill at any moment leaves the earlier ones
    whole. Its manifest holds the configuration that shapes the trajectory and the checksum of the state.

    Args:
        folder: of all checkpoints.
        config: the run's configuration.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder
        self.config = config

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        found = (_FOLDER.fullmatch(p.name) for p in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in found if match)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes the state after `step` steps and removes the oldest checkpoints past `keep_checkpoints`.

        Raises:
            UserError: the disk is full; the earlier checkpoints are untouched.
        """
        final = self.folder / f"step-{step:08d}"
        if final.exists():
            return
        temporary = self.folder / f".writing-{step:08d}"
        try:
            self._clean()
            temporary.mkdir(parents=True)
            with (temporary / _STATE).open("wb") as file:
                torch.save({**state, "random": _random_state()}, file)
                file.flush()
                os.fsync(file.fileno())
            manifest = {"step": step, "identity": identity(self.config), "sha256": _checksum(temporary / _STATE)}
            with (temporary / _MANIFEST).open("w") as text:
                json.dump(manifest, text, indent=1)
                text.flush()
                os.fsync(text.fileno())
            _sync_folder(temporary)
            temporary.replace(final)
            _sync_folder(self.folder)
        except (OSError, RuntimeError) as error:
            self._clean()
            if not is_disk_full(error):
                raise
            kept = self.steps()
            raise UserError(
                f"no space left on the disk of {self.folder} while writing the checkpoint of step {step}; free some, then go on "
                f"from step {kept[-1] if kept else 0} (resume): nothing before it is lost"
            ) from error
        for old in self.steps()[: -self.config.train.keep_checkpoints]:
            shutil.rmtree(self.folder / f"step-{old:08d}")

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """The newest checkpoint's step and state, with the random states restored; None when there is none.

        What a kill left half-written is removed.

        Raises:
            UserError: it is damaged, or belongs to another configuration.
        """
        self._clean()
        steps = self.steps()
        if not steps:
            return None
        newest = self.folder / f"step-{steps[-1]:08d}"
        earlier = f" to go on from step {steps[-2]}" if len(steps) > 1 else " to start over"
        try:
            manifest = json.loads((newest / _MANIFEST).read_text())
            saved, checksum = manifest["identity"], manifest["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"checkpoint {newest} has no readable {_MANIFEST}; delete that folder{earlier}") from error
        check_identity(saved, self.config, f"checkpoint {newest}")
        if not (newest / _STATE).exists() or _checksum(newest / _STATE) != checksum:
            raise UserError(
                f"checkpoint {newest} is damaged: {_STATE} is truncated or changed; delete that folder{earlier}"
            )
        state = torch.load(newest / _STATE, map_location="cpu", weights_only=True)
        _restore_random_state(state.pop("random"))
        return steps[-1], state

    def _clean(self) -> None:
        """Removes half-written checkpoints."""
        for leftover in self.folder.glob(".writing-*"):
            shutil.rmtree(leftover)


def check_identity(saved: dict[str, Any], config: Config, what: str) -> None:
    """Raises UserError naming every option in which a saved run differs from this one."""
    differing = differences(saved, identity(config))
    if differing:
        raise UserError(
            f"{what} was written with another configuration ({differing}). Give the same options to resume, choose another output, "
            "or start over (overwrite)"
        )


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In what a saved configuration differs from another, "train.steps: 5 there, 9 now", up to eight keys; "" for none."""
    return "; ".join(f"{key}: {old!r} there, {new!r} now" for key, old, new in _differences(saved, now)[:8])


def require_space(folder: Path, needed: int) -> None:
    """Raises UserError when the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the disk of {folder} has {free / 2**20:,.0f} MB free, the run's checkpoints and the student need about "
            f"{needed / 2**20:,.0f} MB; free some, choose another output, or lower train.keep_checkpoints"
        )


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for want of space.

    torch.save raises a RuntimeError while it handles the OSError; safetensors passes on the number as text only.
    """
    if isinstance(error, OSError):
        return error.errno in _DISK_FULL
    if any(f"(os error {number})" in str(error) for number in _DISK_FULL):
        return True
    return error.__context__ is not None and is_disk_full(error.__context__)


def _differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for name in sorted(old.keys() | new.keys()):
            found += _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return found
    return [] if old == new else [(key, old, new)]


def _random_state() -> dict[str, Any]:
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable."""
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
