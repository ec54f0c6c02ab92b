"""The `annotator` section of a model card: which columns a model writes, how they are read off its outputs, its crop.

A card in, a frozen record out; read by facescale.driver.annotate (table schema, fingerprint) and by
facescale.vision.annotator (decoding). An example is in docs/GUIDE.md.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from facescale.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from facescale.models.card import ModelCard

TYPES = ("float", "int32", "bool", "string", "list<float>")
HOWS = {
    "raw": ("float", "int32", "list<float>"),
    "sigmoid": ("float", "list<float>"),
    "softmax": ("float", "list<float>"),
    "expected": ("float",),
    "argmax": ("string", "int32"),
    "threshold": ("bool",),
    "shares": ("float", "list<float>"),
    "points": ("list<float>",),
    "given": TYPES,
}
"""How a column is read off an output, and the types it may have. See AnnotatorColumn."""
ACTIVATIONS = ("raw", "sigmoid", "softmax")
POINT_UNITS = ("px", "side")
MAX_REACH = 2.2
"""Inter-eye distances from the eyes' midpoint that every stored crop shows in each direction."""

_RESERVED = ("face_id", "status", "not_finite")


@dataclass(frozen=True, kw_only=True)
class AnnotatorColumn:
    """One column, and how it is read off the network's output [B, …] (of one face: the values after the first axis).

    Args:
        name: of the column: lower case letters, digits and underscores.
        type: one of TYPES.
        description: what it means, for people; ends with a full stop.
        unit: of the values: years, px, deg, …; "" for a pure number.
        output: name of the network's output; None where it has only one.
        how: one of HOWS.
            raw: the value, or all of them for a list.
            sigmoid: 1 / (1 + exp(-value)), of one value or of all.
            softmax: exp(value) / sum of exp, of one class or of all.
            expected: the sum of softmax × `bins` (age from classes of age).
            argmax: the class of the highest value: its name (string) or number (int32).
            threshold: whether the value, after `activation`, is at least `threshold`.
            shares: of a map [B, C, H, W], the share of pixels at which a class is the highest; of one or of all.
            points: x1, y1, x2, y2, … in the network's input become px of the full-size image.
            given: a plug-in in Python gives the values of this type itself; nothing is read off an output.
        range: [start, stop] of the flattened values that are looked at, where several columns share an output.
        classes: names of the values, in order; for argmax, softmax, sigmoid, threshold, shares.
        pick: the class (name) or number of the value that is meant, where there are several.
        bins: expected: what each class stands for.
        activation: threshold: one of ACTIVATIONS, before the comparison.
        threshold: see `how`.
        min_probability: argmax: below this softmax probability the value is null.
        multiply: raw, sigmoid, expected: the value times this …
        add: … plus this.
        point_unit: points: "px" of the input, pixel centers at integers, or "side": share of the input's side.
    """

    name: str
    type: str
    description: str
    unit: str = ""
    output: str | None = None
    how: str = "raw"
    range: tuple[int, int] | None = None
    classes: tuple[str, ...] = ()
    pick: str | int | None = None
    bins: tuple[float, ...] = ()
    activation: str = "raw"
    threshold: float | None = None
    min_probability: float | None = None
    multiply: float = 1.0
    add: float = 0.0
    point_unit: str = "px"

    @property
    def is_list(self) -> bool:
        """Whether a face has many values."""
        return self.type.startswith("list<")

    @property
    def picked(self) -> int | None:
        """Number of the value that is meant, None where the card does not say."""
        return self.classes.index(self.pick) if isinstance(self.pick, str) else self.pick


@dataclass(frozen=True, kw_only=True)
class EyeCrop:
    """A square around the eyes, as wide as wanted: where they lie in the network's input.

    Args:
        eyes_at: x and y of the eyes' midpoint, shares of the side: 0, 0 is the upper left corner.
        eye_distance: distance of the eyes, share of the side; small is wide.
    """

    eyes_at: tuple[float, float] = (0.5, 0.5)
    eye_distance: float = 0.5 / MAX_REACH

    @property
    def reach(self) -> float:
        """Inter-eye distances from the eyes' midpoint to the farthest edge."""
        x, y = self.eyes_at
        return max(x, 1 - x, y, 1 - y) / self.eye_distance


@dataclass(frozen=True)
class AnnotatorPart:
    """The section as a whole.

    Args:
        columns: at least one.
        crop: None where the card has a `template`.
    """

    columns: tuple[AnnotatorColumn, ...]
    crop: EyeCrop | None

    def declared(self) -> list[dict[str, Any]]:
        """The columns as plain values, for fingerprints and descriptions: what is at its default is left out."""
        fields = dataclasses.fields(AnnotatorColumn)
        found = []
        for column in self.columns:
            values = {f.name: getattr(column, f.name) for f in fields}
            plain = {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}
            defaults = {f.name: f.default for f in fields}
            found.append({n: v for n, v in plain.items() if values[n] != defaults[n] or n == "how"})
        return found


def annotator_part(card: ModelCard) -> AnnotatorPart:
    """The annotator section of a card, checked.

    Raises:
        UsageError: a field is missing, unknown or not allowed; names the card, the column and what is allowed.
    """
    section = card.annotator
    where = f"model card {card.name!r}, annotator"
    _known(section, ("columns", "crop"), where)
    entries = section.get("columns")
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"{where}: field 'columns' must list at least one column, got {entries!r}")
    if card.name == "faces":
        raise UsageError(f"{where}: `faces` is the name of a table; call the model something else")
    columns = tuple(_column(entry, f"{where}, column {number + 1}") for number, entry in enumerate(entries))
    names = [column.name for column in columns]
    if len(set(names)) != len(names):
        raise UsageError(f"{where}: a column is declared twice in {', '.join(names)}")
    if card.template is not None:
        if "crop" in section:
            raise UsageError(
                f"{where}: the card has a template, which says what the crop is: leave out 'crop'"
            )
        return AnnotatorPart(columns, None)
    return AnnotatorPart(columns, _crop(section.get("crop", {}), f"{where}, crop"))


def _crop(values: Any, where: str) -> EyeCrop:
    if not isinstance(values, dict):
        raise UsageError(f"{where}: expected the fields eyes_at and eye_distance, got {values!r}")
    _known(values, ("eyes_at", "eye_distance"), where)
    given = {name: _coerced(EyeCrop, name, value, where) for name, value in values.items()}
    crop = EyeCrop(**given)
    if not (len(crop.eyes_at) == 2 and all(0 <= share <= 1 for share in crop.eyes_at)):
        raise UsageError(f"{where}: eyes_at is x and y, each 0 to 1, got {list(crop.eyes_at)}")
    if not 0 < crop.eye_distance <= 1:
        raise UsageError(f"{where}: eye_distance is a share of the side, above 0, got {crop.eye_distance}")
    if crop.reach > MAX_REACH * (1 + 1e-9):
        least = math.ceil(crop.reach * crop.eye_distance / MAX_REACH * 1000) / 1000
        raise UsageError(
            f"{where}: it reaches {crop.reach:.2f} inter-eye distances from the eyes, and stored crops show "
            f"{MAX_REACH}: with these eyes_at, eye_distance must be at least {least:g}"
        )
    return crop


def _column(entry: Any, where: str) -> AnnotatorColumn:
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: a column is a mapping of fields, got {entry!r}")
    fields = [field.name for field in dataclasses.fields(AnnotatorColumn)]
    _known(entry, fields, where)
    if missing := [name for name in ("name", "type", "description") if name not in entry]:
        raise UsageError(f"{where}: field {missing[0]!r} is missing")
    where = f"{where} ({entry['name']})"
    column = AnnotatorColumn(
        **{name: _coerced(AnnotatorColumn, name, value, where) for name, value in entry.items()}
    )
    _check(column, where)
    return column


def _check(column: AnnotatorColumn, where: str) -> None:
    how, names = column.how, len(column.classes)
    single = not column.is_list
    checks = {
        "name": re.fullmatch(r"[a-z_][a-z0-9_]*", column.name) is not None and column.name not in _RESERVED,
        "description": column.description.endswith("."),
        "how": how in HOWS,
        "type": column.type in HOWS.get(how, TYPES),
        "range": column.range is None or 0 <= column.range[0] < column.range[1],
        "classes": len(set(column.classes)) == names
        and (names > 0 or how != "argmax" or column.type != "string"),
        "pick": column.pick is None
        or (single and (column.pick in column.classes if isinstance(column.pick, str) else column.pick >= 0)),
        "bins": (len(column.bins) > 1) == (how == "expected"),
        "activation": column.activation in ACTIVATIONS and (how == "threshold" or column.activation == "raw"),
        "threshold": (column.threshold is not None) == (how == "threshold"),
        "min_probability": column.min_probability is None
        or (how == "argmax" and 0 < column.min_probability < 1),
        "multiply": column.multiply == 1 or how in ("raw", "sigmoid", "expected"),
        "add": column.add == 0 or how in ("raw", "sigmoid", "expected"),
        "point_unit": column.point_unit in POINT_UNITS and (how == "points" or column.point_unit == "px"),
    }
    if how in ("softmax", "shares") and single:
        checks["pick"] &= column.pick is not None
    for name, holds in checks.items():
        if not holds:
            raise UsageError(
                f"{where}: field {name!r} is {getattr(column, name)!r}, which a column of type {column.type!r} that is "
                f"read by {how!r} does not allow{_hint(name, column)}; see facescale.models.annotator_card"
            )


def _hint(name: str, column: AnnotatorColumn) -> str:
    allowed = {
        "how": ", ".join(HOWS),
        "type": ", ".join(HOWS.get(column.how, TYPES)),
        "activation": ", ".join(ACTIVATIONS),
        "point_unit": ", ".join(POINT_UNITS),
        "pick": f"a name or number of {', '.join(column.classes) or 'a value'}, for one value only",
        "description": "a sentence with its full stop",
    }
    return f" (allowed: {allowed[name]})" if name in allowed else ""


def _known(values: Mapping[str, Any], fields: Any, where: str) -> None:
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(fields)}"
            raise UsageError(f"{where}: unknown field {name!r}; {hint}")


def _coerced(owner: type, name: str, value: Any, where: str) -> Any:
    """A YAML value as its field's annotation wants it."""
    annotation = str(next(field.type for field in dataclasses.fields(owner) if field.name == name))
    options = [option.strip() for option in annotation.split("|")]
    is_int = isinstance(value, int) and not isinstance(value, bool)
    is_number = (is_int or isinstance(value, float)) and math.isfinite(value)
    if value is None and "None" in options:
        return None
    for option in options:
        if option == "str" and isinstance(value, str):
            return value
        if option == "int" and is_int:
            return value
        if option == "float" and is_number:
            return float(value)
        if option.startswith("tuple[") and isinstance(value, list):
            inner = option.removeprefix("tuple[").removesuffix("]").split(",")[0].strip()
            kinds: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
            fixed = "..." not in option
            if all(isinstance(item, kinds[inner]) and not isinstance(item, bool) for item in value) and (
                not fixed or len(value) == 2
            ):
                return tuple(float(item) if inner == "float" else item for item in value)
    raise UsageError(f"{where}: field {name!r}: expected {annotation}, got {value!r}")
