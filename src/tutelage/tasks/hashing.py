"""The hash that decides which split an example belongs to."""

from __future__ import annotations

import hashlib


def content_hash(text: str) -> float:
    """A number in [0, 1), uniform over texts, that depends on `text` alone: not on its row, the seed or the process."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") / 2**64
