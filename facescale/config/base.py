"""The base of every configuration model: frozen, keyword-only, unknown keys refused."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A part of a job's configuration. Values are checked when it is made; nothing can change them later."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )
