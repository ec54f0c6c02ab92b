"""A model card: one YAML file in, one frozen record out, that says which weights and how to feed them.

Preprocessing travels with the weights: whatever changes what a model sees (size, channel order, mean, scale,
template, landmark scheme) stands on its card and nowhere else. Read by facescale.models.registry.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from facescale.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TASKS = ("detector", "landmarker", "embedder", "annotator")
CHANNEL_ORDERS = ("rgb", "bgr")
FORMATS = ("dlib", "onnx", "state_dict", "safetensors", "torchscript", "exported")
BACKENDS = ("torch", "onnx")
_SUFFIXES = {".onnx": "onnx", ".safetensors": "safetensors", ".dat": "dlib", ".pt2": "exported"}
_OF_A_VARIANT = frozenset(
    {
        "file",
        "sha256",
        "size_bytes",
        "format",
        "urls",
        "member",
        "package",
        "extra",
        "source",
        "licence",
        "options",
    }
)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What facescale knows about one set of weights.

    Args:
        name: registry name, lower case letters, digits and underscores; it is part of table versions.
        task: one of TASKS.
        architecture: what the network is and how its outputs are read: key of a factory in facescale.vision.registry.
        file: path of the weights inside `package`, or their file name where no package ships them.
        format: of the file, one of FORMATS; "" is told by the file's suffix.
        sha256: 64 lower-case hex digits of the file's bytes; None where unknown: then the digest of the file that is
            found first is recorded.
        size_bytes: length of the file, None where unknown.
        licence: SPDX identifier, or a few words.
        non_commercial: True where the weights, or the data they were trained on, forbid commercial use.
        source: where the weights come from, for people.
        urls: where to download them, in this order; none for weights that a package ships.
        member: path of the file inside the zip archive that `urls` point to, None where they point to the file.
        package: Python package that ships the file, None if none does.
        extra: facescale extra that installs `package`.
        variants: the same weights for another backend, e.g. {"torch": {"file": …, "format": "state_dict", …}}: fields
            of this card that differ. The card's own file is for the backend its format implies (`backend`).
        options: what an architecture has to know besides (strides, depth…); keys and meaning are the factory's, but for
            `parts`: further files that the weights consist of (see the property).
        annotator: annotators: columns and crop, as facescale.models.annotator_card has them.
        input_size: side of the square input in px (embedders, annotators); None for any size.
        channel_order: order of the network's input channels, one of CHANNEL_ORDERS. Callers always pass RGB.
        mean: per channel, in `channel_order`, on the 0..255 scale.
        scale: per channel, likewise; the network sees (x - mean) / scale. One number stands for all three.
        template: alignment template of the chips an embedder or annotator takes (facescale.vision.align).
        landmark_scheme: scheme a landmarker or detector produces, or an embedder's template requires.
        dim: length of an embedder's descriptors.
        norm_is_quality: embedders whose descriptor grows with recognizability (MagFace, AdaFace): its norm ranks faces.
        threshold: detectors: faces score above it. Embedders: the L2 distance between raw descriptors below
            which its makers call two faces one person. In the model's own unit, None where unknown.
        nms_iou: detectors: of two boxes that overlap more than this, the better stays.
        min_face_px: detectors: side of the smallest face found without upsampling.
        accuracy: published figures, e.g. {"lfw": 0.9915}; shown, never used.
        accuracy_source: where they were published.
    """

    name: str
    task: str
    architecture: str
    file: str
    licence: str
    non_commercial: bool
    source: str
    format: str = ""
    sha256: str | None = None
    size_bytes: int | None = None
    urls: tuple[str, ...] = ()
    member: str | None = None
    package: str | None = None
    extra: str | None = None
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    annotator: Mapping[str, Any] = field(default_factory=dict, hash=False)
    input_size: int | None = None
    channel_order: str = "rgb"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    scale: tuple[float, ...] = (1.0, 1.0, 1.0)
    template: str | None = None
    landmark_scheme: str | None = None
    dim: int | None = None
    norm_is_quality: bool = False
    threshold: float | None = None
    nms_iou: float | None = None
    min_face_px: int | None = None
    accuracy: Mapping[str, float] = field(default_factory=dict, hash=False)
    accuracy_source: str | None = None

    def __post_init__(self) -> None:
        if not self.format:
            suffix = next((kind for end, kind in _SUFFIXES.items() if self.file.endswith(end)), "state_dict")
            object.__setattr__(self, "format", suffix)
        checks = {
            "name": re.fullmatch(r"[a-z0-9_]+", self.name) is not None,
            "file": self.file.rpartition("/")[2] not in ("", ".", ".."),
            "urls": all(url.startswith(("https://", "http://")) for url in self.urls),
            "task": self.task in TASKS,
            "channel_order": self.channel_order in CHANNEL_ORDERS,
            "format": self.format in FORMATS,
            "sha256": self.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", self.sha256) is not None,
            "size_bytes": self.size_bytes is None or self.size_bytes > 0,
            "variants": all(
                backend in BACKENDS and backend != self.backend and _OF_A_VARIANT.issuperset(fields)
                for backend, fields in self.variants.items()
            ),
            "mean": len(self.mean) == 3,
            "scale": len(self.scale) == 3 and min(self.scale) > 0,
            "nms_iou": self.nms_iou is None or 0 < self.nms_iou <= 1,
            "extra": self.package is None or self.extra is not None,
            "landmark_scheme": self.task == "detector"
            or (self.task == "annotator" and self.template is None)
            or self.landmark_scheme is not None,
            "annotator": bool(self.annotator) == (self.task == "annotator"),
        }
        if self.task == "embedder":
            checks |= {name: getattr(self, name) is not None for name in ("dim", "template", "input_size")}
        if self.task == "annotator":
            checks["input_size"] = self.input_size is not None and self.input_size > 0
        if self.task == "detector":
            checks["min_face_px"] = self.min_face_px is not None and self.min_face_px > 0
        for name, holds in checks.items():
            if not holds:
                raise UsageError(
                    f"model card {self.name!r}: field {name!r} is {getattr(self, name)!r}, "
                    f"which a {self.task} card does not allow; see facescale.models.card.ModelCard"
                )

    @property
    def backend(self) -> str:
        """What runs this file: "onnx" (ONNX Runtime) or "torch"."""
        return "onnx" if self.format == "onnx" else "torch"

    @property
    def backends(self) -> tuple[str, ...]:
        """Every backend there are weights for, the card's own first."""
        return (self.backend, *self.variants)

    @property
    def digests(self) -> frozenset[str]:
        """Known sha256 of the card's files, variants included: they are the same weights."""
        found = (self.sha256, *(fields.get("sha256") for fields in self.variants.values()))
        return frozenset(digest for digest in found if digest is not None)

    @property
    def parts(self) -> dict[str, ModelCard]:
        """Cards of the further files that these weights consist of, by part; most models are one file and have none.

        `options.parts` maps a part's name to its own file, sha256, size_bytes and urls. Whoever fetches or checks the
        weights of a card does so for its parts too.

        Raises:
            UsageError: a part without a file, or with a field of another type or that parts do not have.
        """
        listed = self.options.get("parts", {})
        if not isinstance(listed, dict):
            raise UsageError(
                f"model card {self.name!r}: options.parts must map names to files, got {listed!r}"
            )
        blank: dict[str, Any] = {"format": "", "sha256": None, "size_bytes": None, "urls": (), "member": None}
        cards = {}
        for part, fields in listed.items():
            where = f"model card {self.name!r}: options.parts.{part}"
            own = dict(_variant(fields, where))
            if "file" not in own:
                raise UsageError(f"{where}: field 'file' is missing")
            changes = blank | {"name": f"{self.name}_{part}", "variants": {}, "options": {}} | own
            cards[part] = dataclasses.replace(self, **changes)
        return cards

    def preferring(self, backend: str) -> ModelCard:
        """The card for a backend where there are weights for it, else (and for "auto") the card itself."""
        return self.for_backend(backend) if backend in self.backends else self

    def for_backend(self, backend: str) -> ModelCard:
        """The card whose file the backend runs; itself for its own.

        Args:
            backend: one of `backends`.

        Raises:
            UsageError: there are no weights for it.
        """
        if backend == self.backend:
            return self
        if backend not in self.variants:
            raise UsageError(
                f"model {self.name!r} has no weights for the backend {backend!r}; it has: {', '.join(self.backends)}"
            )
        blank: dict[str, Any] = {
            "format": "",
            "sha256": None,
            "size_bytes": None,
            "urls": (),
            "member": None,
            "package": None,
        }
        return dataclasses.replace(self, **blank | {"variants": {}} | dict(self.variants[backend]))


def card_from_mapping(values: Mapping[str, Any], *, where: str) -> ModelCard:
    """Build a card from the keys of a YAML file.

    Args:
        values: field name to value; unknown keys, missing keys and other types are refused.
        where: file name for messages.

    Raises:
        UsageError: the mapping is not a valid card; names the file and the field.
    """
    fields = {entry.name: entry for entry in dataclasses.fields(ModelCard)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UsageError(f"{where}: unknown field {unknown[0]!r}; known fields: {', '.join(fields)}")
    missing = [
        name
        for name, entry in fields.items()
        if entry.default is entry.default_factory is dataclasses.MISSING and name not in values
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
    return card_from_mapping(parse_mapping(text, where=where), where=where)


def parse_mapping(text: str, *, where: str) -> dict[str, Any]:
    """The fields of a YAML card as they stand there, unchecked; `where` names it in messages.

    Raises:
        UsageError: the text is not YAML, or no mapping.
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not a YAML file: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{where}: a model card is a mapping of fields, got {type(values).__name__}")
    return values


def _coerce(value: Any, annotation: str, where: str) -> Any:
    """Check a YAML value against a field's annotation; lists become tuples, whole numbers become floats."""
    if value is None and annotation.endswith("| None"):
        return None
    kind = annotation.removesuffix("| None").strip()
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "float" and is_number:
        return float(value)
    if kind == "tuple[float, ...]" and is_number:
        return (float(value),) * 3
    if kind.startswith("tuple[") and isinstance(value, list):
        return tuple(_coerce(item, kind[len("tuple[") : -len(", ...]")], where) for item in value)
    if kind.startswith("Mapping[") and isinstance(value, dict) and all(type(key) is str for key in value):
        inner = kind.removeprefix("Mapping[str, ").removesuffix("]")
        if inner == "Mapping[str, Any]":
            return {key: _variant(item, f"{where}, {key!r}") for key, item in value.items()}
        return dict(value) if inner == "Any" else {key: _coerce(v, inner, where) for key, v in value.items()}
    expected = {"str": str, "bool": bool, "int": int}.get(kind)
    if expected is not None and type(value) is expected:
        return value
    raise UsageError(f"{where}: expected {annotation}, got {value!r}")


def _variant(value: Any, where: str) -> Mapping[str, Any]:
    """The fields of one variant, checked like the card's own."""
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected a mapping of fields, got {value!r}")
    types = {entry.name: str(entry.type) for entry in dataclasses.fields(ModelCard)}
    if unknown := sorted(set(value) - _OF_A_VARIANT):
        raise UsageError(
            f"{where}: field {unknown[0]!r} cannot differ; these can: {', '.join(sorted(_OF_A_VARIANT))}"
        )
    return {name: _coerce(item, types[name], f"{where}: field {name!r}") for name, item in value.items()}
