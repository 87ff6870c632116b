"""The base of every section of the configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the configuration: immutable, extra keys forbidden, attribute docstrings are the help texts."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
