"""Where a command prints."""

from __future__ import annotations

import os
import sys
from typing import Any

from rich.console import Console

LOG_COLUMNS = 120


def make_console(**options: Any) -> Console:
    """A console for standard output; tables in files and pipes, which no window bounds, are wider than rich's 80 columns.

    Args:
        options: of `rich.console.Console`.
    """
    bounded = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if bounded else LOG_COLUMNS, **options)
