"""`facescale models quantize`: an embedder and a lake in, the embedder in 8-bit integers out, a model of one's own.

Called by the command line. The new model has a name and a version of its own: its embeddings are others, and so are its
thresholds (`facescale calibrate`).
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from facescale.driver.lake_chips import sample_chips
from facescale.driver.models import register
from facescale.lake.lake import Lake
from facescale.models.registry import card
from facescale.vision.quantize import quantize_onnx

if TYPE_CHECKING:
    from facescale.models.card import ModelCard
    from facescale.models.register import Registered

DEFAULT_FACES = 256
# Published figures are of the weights as published.
_OF_THE_FILE = frozenset(
    "file format sha256 size_bytes urls member package extra variants accuracy accuracy_source".split()
)


def quantize_model(
    name: str, lake: str, *, new_name: str | None = None, faces: int = DEFAULT_FACES, replace: bool = False
) -> Registered:
    """Quantize an embedder and register what comes out.

    Args:
        name: registry name of an embedder with an ONNX file.
        lake: URI of a lake whose faces tell the ranges of its activations.
        new_name: of the new model; None is the old one with "_int8".
        faces: at most so many of them, at random.
        replace: let it take the place of the user's own model of that name.

    Raises:
        UsageError: no such model, no ONNX file, no faces, a name that is taken.
        MissingExtraError: a package is not installed.
    """
    source = card(name, "embedder").preferring("onnx")
    chips = sample_chips(Lake.open(lake), source, faces)
    with tempfile.TemporaryDirectory(prefix="facescale-quantize-") as folder:
        weights, text = Path(folder) / f"{new_name or name}_int8.onnx", Path(folder) / "card.yaml"
        quantize_onnx(source, chips, weights)
        values = _fields(source) | {"name": new_name or f"{name}_int8"}
        values["source"] = f"{source.source}, quantized to int8 by facescale over {len(chips)} faces"
        text.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return register(str(weights), str(text), replace=replace)


def _fields(source: ModelCard) -> dict[str, Any]:
    """The fields of a card that hold for its weights in any form, as YAML has them."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(source):
        value = getattr(source, field.name)
        if field.name in _OF_THE_FILE or value is None or value == {}:
            continue
        values[field.name] = list(value) if isinstance(value, tuple) else value
    return values
