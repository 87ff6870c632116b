"""Which tokens of a completion its writer did not choose."""

from __future__ import annotations

from collections.abc import Callable


class Insertions:
    """Asks what to insert behind a prefix, and remembers where there was something.

    Args:
        force: completion so far -> tokens to insert behind it, or None; None: nothing is ever inserted.
    """

    def __init__(self, force: Callable[[tuple[int, ...]], tuple[int, ...] | None] | None) -> None:
        self._force = force
        self._behind: dict[tuple[int, ...], int] = {}

    def __call__(self, prefix: tuple[int, ...]) -> tuple[int, ...] | None:
        """What `force` answers."""
        found = None if self._force is None else self._force(prefix)
        if found:
            self._behind[prefix] = len(found)
        return found

    def positions(self, completion_ids: tuple[int, ...]) -> frozenset[int]:
        """Positions of inserted tokens; the engine asks behind every token but those it still has to insert."""
        found: set[int] = set()
        end = 1  # the first token is the writer's
        while self._behind and end < len(completion_ids):
            count = self._behind.get(completion_ids[:end], 0)
            found.update(range(end, min(end + count, len(completion_ids))))
            end += count or 1
        return frozenset(found)
