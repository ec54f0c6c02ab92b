"""What annotate is told."""

from __future__ import annotations

from pydantic import Field

from facescale.config.base import Config


class AnnotateConfig(Config):
    """Other models over the stored crops; each writes columns of its own.

    Precision, runtime, weights_dir, plugins and decode_threads are those of the section `extract`.
    """

    annotators: tuple[str, ...] = ()
    """Registry names, or paths of model cards (.yaml); weights are also looked for beside such a card."""

    batch: int = Field(default=32, ge=1, le=4096)
    """Faces that are looked at together; does not change results."""
