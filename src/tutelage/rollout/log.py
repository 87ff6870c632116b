"""The rollout log: one line per step, append-only, so that a killed run goes on along the very trajectory.

A step whose line is complete is replayed on resumption instead of being written anew. A line torn by a kill fails its
checksum and is cut off; so is, with a warning, all from a line on that is damaged otherwise. A line also keeps the
seconds its sequences took, which reading them back does not.
"""

from __future__ import annotations

import json
import logging
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from tutelage.errors import UserError
from tutelage.types import Rollout

# Without seconds: from a version that did not keep them.
_LINE = re.compile(
    rb'\{"step":(?P<step>\d+),"crc":(?P<crc>\d+),(?:"seconds":(?P<seconds>\d+(?:\.\d+)?(?:e[+-]\d+)?),)?"rollouts":(?P<body>\[.*\])\}\n'
)


class RolloutLog:
    """Rollouts by step in `folder`/rollouts.jsonl.

    Args:
        folder: made when missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "rollouts.jsonl"
        self._offsets: dict[int, int] = {}
        self._seconds: dict[int, float] = {}
        self.path.touch()
        self._index()
        self._file = self.path.open("ab")

    def __contains__(self, step: int) -> bool:
        return step in self._offsets

    def read(self, step: int) -> list[Rollout]:
        """The rollouts of a step in the log."""
        with self.path.open("rb") as file:
            file.seek(self._offsets[step])
            record = json.loads(file.readline())
        return [_from_json(fields) for fields in record["rollouts"]]

    def seconds(self, step: int) -> float:
        """Seconds that writing the rollouts of a step took, in whichever process wrote them.

        Raises:
            UserError: the step was logged by a version that did not keep them.
        """
        if step not in self._seconds:
            raise UserError(
                f"{self.path} holds step {step}, but not the seconds it took, which earlier versions did not keep: the times of "
                "this run would be wrong. Start over (overwrite; a run of a comparison: delete its folder)"
            )
        return self._seconds[step]

    def append(self, step: int, rollouts: Sequence[Rollout], seconds: float) -> None:
        """Adds a step; it survives the death of this process at once, that of the machine after `sync`.

        Args:
            step: not in the log yet.
            rollouts: all of the step's.
            seconds: that writing them took.

        Raises:
            UserError: the step is in the log.
        """
        if step in self._offsets:
            raise UserError(
                f"{self.path} already holds step {step}; go on with the run (resume) or start over (overwrite)"
            )
        body = json.dumps([asdict(r) for r in rollouts], separators=(",", ":"))
        self._offsets[step] = self._file.tell()
        self._seconds[step] = seconds
        checksum = zlib.crc32(body.encode())
        self._file.write(f'{{"step":{step},"crc":{checksum},"seconds":{seconds},"rollouts":{body}}}\n'.encode())
        self._file.flush()

    def sync(self) -> None:
        """Forces the log to disk; part of every checkpoint."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __iter__(self) -> Iterator[tuple[int, list[Rollout]]]:
        for step in list(self._offsets):
            yield step, self.read(step)

    def _index(self) -> None:
        """Finds the steps and cuts off everything from the first torn or damaged line on."""
        good = 0
        with self.path.open("rb") as file:
            for line in file:
                match = _intact(line)
                if match is None:
                    self._warn_of_damage(line, behind=sum(1 for _ in file))
                    break
                step = int(match["step"])
                self._offsets[step] = good
                if match["seconds"] is not None:
                    self._seconds[step] = float(match["seconds"])
                good += len(line)
        if good < self.path.stat().st_size:
            os.truncate(self.path, good)

    def _warn_of_damage(self, line: bytes, behind: int) -> None:
        """Says what is cut off where it is more than a kill leaves: one line without its end, the last."""
        if behind or line.endswith(b"\n"):
            logging.getLogger(__name__).warning(
                "%s: line %d is damaged, and is cut off with the %d behind it; of their steps, those before the checkpoint that "
                "the run goes on from are not written anew",
                self.path,
                len(self._offsets) + 1,
                behind,
            )


def _intact(line: bytes) -> re.Match[bytes] | None:
    """The fields of a complete line, None for a torn one."""
    match = _LINE.fullmatch(line)
    if match is None or int(match["crc"]) != zlib.crc32(match["body"]):
        return None
    return match


def _from_json(fields: dict[str, object]) -> Rollout:
    for key in ("prompt_ids", "completion_ids", "behaviour_logprobs"):
        if isinstance(fields[key], list):
            fields[key] = tuple(fields[key])  # type: ignore[arg-type]
    return Rollout(**fields)  # type: ignore[arg-type]
