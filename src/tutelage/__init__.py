"""Tutelage: Generalized Knowledge Distillation of language models.

The student writes, the teacher marks every token, the student learns from its own mistakes (Agarwal et al., ICLR 2024,
arXiv 2306.13649). `tutelage.distill` runs a whole distillation; `tutelage.divergences` and `tutelage.fused` are the
mathematics, for loops of one's own. Names are imported when first used, so that `tutelage --help` needs no torch.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tutelage.errors import UserError

if TYPE_CHECKING:
    from tutelage import divergences, fused
    from tutelage.api import distill
    from tutelage.train.config import Config
    from tutelage.types import LMHead

__version__ = version("tutelage")
__all__ = ["Config", "LMHead", "UserError", "__version__", "distill", "divergences", "fused"]

_HOMES = {"Config": "tutelage.train.config", "LMHead": "tutelage.types", "distill": "tutelage.api"}
_MODULES = ("divergences", "fused")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"tutelage.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tutelage' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
