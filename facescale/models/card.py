"""A model card: one YAML file in, one frozen record out, that says which weights and how to feed them.

Preprocessing travels with the weights: whatever changes what a model sees (size, channel order, mean, scale,
template, landmark scheme) stands on its card and nowhere else. Read by facescale.models.registry.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from facescale.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TASKS = ("detector", "landmarker", "embedder")
CHANNEL_ORDERS = ("rgb", "bgr")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What facescale knows about one set of weights.

    Args:
        name: registry name, lower case letters, digits and underscores; it is part of table versions.
        task: one of TASKS.
        architecture: key of the factory that builds it (facescale.vision.registry).
        file: path of the weights inside `package`, or their file name where no package ships them.
        sha256: 64 lower-case hex digits of the file's bytes.
        size_bytes: length of the file.
        licence: SPDX identifier, or a few words.
        non_commercial: True where the weights, or the data they were trained on, forbid commercial use.
        source: where the weights come from.
        package: Python package that ships the file, None if none does.
        extra: facescale extra that installs `package`.
        input_size: side of the square input in px (embedders); None for any size.
        channel_order: order of the network's input channels, one of CHANNEL_ORDERS. Callers always pass RGB.
        mean: per channel, in `channel_order`, on the 0..255 scale.
        scale: the network sees (x - mean) / scale.
        template: alignment template of the chips an embedder takes (facescale.vision.align).
        landmark_scheme: scheme a landmarker or detector produces, or an embedder's template requires.
        dim: length of an embedder's descriptors.
        threshold: detectors: faces score above it. Embedders: the L2 distance between raw descriptors below
            which its makers call two faces one person. In the model's own unit, None where unknown.
        min_face_px: detectors: side of the smallest face found without upsampling.
    """

    name: str
    task: str
    architecture: str
    file: str
    sha256: str
    size_bytes: int
    licence: str
    non_commercial: bool
    source: str
    package: str | None = None
    extra: str | None = None
    input_size: int | None = None
    channel_order: str = "rgb"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    scale: float = 1.0
    template: str | None = None
    landmark_scheme: str | None = None
    dim: int | None = None
    threshold: float | None = None
    min_face_px: int | None = None

    def __post_init__(self) -> None:
        checks = {
            "name": re.fullmatch(r"[a-z0-9_]+", self.name) is not None,
            "task": self.task in TASKS,
            "channel_order": self.channel_order in CHANNEL_ORDERS,
            "sha256": re.fullmatch(r"[0-9a-f]{64}", self.sha256) is not None,
            "size_bytes": self.size_bytes > 0,
            "mean": len(self.mean) == 3,
            "scale": self.scale > 0,
            "extra": self.package is None or self.extra is not None,
            "landmark_scheme": self.task == "detector" or self.landmark_scheme is not None,
        }
        if self.task == "embedder":
            checks |= {field: getattr(self, field) is not None for field in ("dim", "template", "input_size")}
        if self.task == "detector":
            checks["min_face_px"] = self.min_face_px is not None and self.min_face_px > 0
        for field, holds in checks.items():
            if not holds:
                raise UsageError(
                    f"model card {self.name!r}: field {field!r} is {getattr(self, field)!r}, "
                    f"which a {self.task} card does not allow; see facescale.models.card.ModelCard"
                )


def card_from_mapping(values: Mapping[str, Any], *, where: str) -> ModelCard:
    """Build a card from the keys of a YAML file.

    Args:
        values: field name to value; unknown keys, missing keys and other types are refused.
        where: file name for messages.

    Raises:
        UsageError: the mapping is not a valid card; names the file and the field.
    """
    fields = {field.name: field for field in dataclasses.fields(ModelCard)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UsageError(f"{where}: unknown field {unknown[0]!r}; known fields: {', '.join(fields)}")
    missing = [
        name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values
    ]
    if missing:
        raise UsageError(f"{where}: field {missing[0]!r} is missing")
    return ModelCard(
        **{
            name: _coerce(value, str(fields[name].type), f"{where}: field {name!r}")
            for name, value in values.items()
        }
    )


def read_card(path: Path) -> ModelCard:
    """Read one YAML card.

    Raises:
        UsageError: the file cannot be read, is not YAML, or is not a valid card.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot read this model card: {error.strerror}") from error
    return parse_card(text, where=str(path))


def parse_card(text: str, *, where: str) -> ModelCard:
    """Parse the text of one YAML card; `where` names it in messages.

    Raises:
        UsageError: the text is not YAML, or not a valid card.
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not a YAML file: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{where}: a model card is a mapping of fields, got {type(values).__name__}")
    return card_from_mapping(values, where=where)


def _coerce(value: Any, annotation: str, where: str) -> Any:
    """Check a YAML value against a field's annotation; lists become tuples, whole numbers become floats."""
    if value is None and annotation.endswith("| None"):
        return None
    kind = annotation.removesuffix("| None").strip()
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "float" and is_number:
        return float(value)
    if kind == "tuple[float, ...]" and isinstance(value, list):
        return tuple(_coerce(item, "float", where) for item in value)
    expected = {"str": str, "bool": bool, "int": int}.get(kind)
    if expected is not None and type(value) is expected:
        return value
    raise UsageError(f"{where}: expected {annotation}, got {value!r}")
