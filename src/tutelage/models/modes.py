"""Evaluation mode for as long as something is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_dropout(*modules: Any) -> Iterator[None]:
    """Modules in evaluation mode within this context; given back in the mode they came in, an error or not."""
    modes = [(module, module.training) for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.train(training)
