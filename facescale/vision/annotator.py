"""Any network as an annotator: chips in, the columns that its card declares out. Built by facescale.vision.registry.

A network that is a state dict needs a function that builds its module: a plug-in registers one,

    register_annotator("my_net", lambda card, **options: load(card, build=lambda card: MyNet(), **options))

and ONNX files need none (architecture `onnx`).

Shape legend: N faces, B faces of a forward pass, S chip side, C classes, H and W of a map, L values of a list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from facescale.errors import MismatchError, UsageError
from facescale.models.annotator_card import AnnotatorColumn, annotator_part
from facescale.vision.networks import load_network, normalize

if TYPE_CHECKING:
    from collections.abc import Callable

    from facescale.models.card import ModelCard
    from facescale.vision.networks import Build, Network


def load(
    card: ModelCard, *, device: torch.device, precision: str, batch: int, build: Build | None = None
) -> NetworkAnnotator:
    """Load the annotator of `card`; errors as of facescale.vision.networks.load_network."""
    network = load_network(card, device=device, precision=precision, build=build)
    return NetworkAnnotator(card, network, device=device, batch=batch)


class NetworkAnnotator:
    """See `facescale.vision.protocols.Annotator`.

    Args:
        card: of the model; its `options` may hold `batch`, for networks that take that many chips and no other number.
        network: gives the outputs that the card's columns name.
        device: where to run.
        batch: chips of a forward pass.
    """

    def __init__(self, card: ModelCard, network: Network, *, device: torch.device, batch: int) -> None:
        self.card, self.network, self.device = card, network, device
        self.columns = annotator_part(card).columns
        if given := [column.name for column in self.columns if column.how == "given"]:
            raise UsageError(
                f"model card {card.name!r}: column {given[0]} is `given`, and a network gives outputs: say how it is "
                "read"
            )
        self.fixed = card.options.get("batch")
        if self.fixed is not None and (type(self.fixed) is not int or self.fixed < 1):
            raise UsageError(
                f"model card {card.name!r}: options.batch is {self.fixed!r}, expected a whole number from 1"
            )
        self.batch = self.fixed or batch

    def annotate(self, chips: np.ndarray) -> dict[str, np.ndarray]:
        """Look at each chip; see the protocol.

        Raises:
            MismatchError: the network's outputs are not what the card says; names card, column and shape.
        """
        if not len(chips):
            # A list's length is known only from what the network gives, so it is shown one black chip.
            one = self.annotate(np.zeros((1, *chips.shape[1:]), np.uint8))
            return {name: values[:0] for name, values in one.items()}
        found = [
            self._annotate(chips[start : start + self.batch]) for start in range(0, len(chips), self.batch)
        ]
        return {name: np.concatenate([some[name] for some in found]) for name in found[0]}

    def _annotate(self, chips: np.ndarray) -> dict[str, np.ndarray]:
        count = len(chips)
        if self.fixed is not None and count < self.fixed:
            chips = np.concatenate([chips, np.zeros((self.fixed - count, *chips.shape[1:]), np.uint8)])
        pixels = torch.from_numpy(np.require(chips, requirements=("C", "W"))).to(self.device)
        outputs = {name: v.cpu().numpy() for name, v in self.network(normalize(pixels, self.card)).items()}
        found: dict[str, np.ndarray] = {}
        broken = np.zeros(count, bool)
        for column in self.columns:
            values = self._output(column, outputs, len(chips))[:count]
            read, finite = decode(column, values, self.card)
            found[column.name], broken = read, broken | ~finite
        return {**found, "not_finite": broken}

    def _output(self, column: AnnotatorColumn, outputs: dict[str, np.ndarray], count: int) -> np.ndarray:
        """The output that a column is read off, float32 [B, …]."""
        name = column.output
        if name is None and len(outputs) == 1:
            name = next(iter(outputs))
        if name is None or name not in outputs:
            what = "names no output" if name is None else f"names the output {name!r}"
            raise MismatchError(
                f"model {self.card.name!r}, column {column.name}: its card {what}, and the network gives "
                f"{', '.join(outputs)}"
            )
        values = outputs[name]
        if not values.ndim or values.shape[0] != count:
            raise MismatchError(
                f"model {self.card.name!r}: output {name} has the shape {values.shape} for {count} faces, whose number "
                "should come first; for a network that takes one batch size only, put options: {batch: …} on its card"
            )
        return values.astype(np.float32)


def decode(column: AnnotatorColumn, output: np.ndarray, card: ModelCard) -> tuple[np.ndarray, np.ndarray]:
    """Read one column off one output.

    Args:
        column: as the card declares it.
        output: float32 [N, …].
        card: for its name and input_size.

    Returns:
        Values as `facescale.vision.protocols.Annotator` wants them, NaN or None where a number they need is not finite;
        and bool [N], whether those numbers are finite.

    Raises:
        MismatchError: the output has not the shape that the card implies.
    """
    where = f"model {card.name!r}, column {column.name}"
    if column.how == "shares":
        return _shares(column, output, where)
    values = _values(column, output, where)
    finite = np.isfinite(values).all(axis=1)
    with np.errstate(all="ignore"):  # of faces whose numbers are not finite
        found = _READERS[column.how](column, values.astype(np.float64), where, card.input_size or 0)
    if column.type == "string":
        names = np.array([*column.classes, None], object)
        return names[np.where(finite & (found >= 0), found, len(column.classes)).astype(np.int64)], finite
    found = np.where(finite[:, None] if column.is_list else finite, found, np.nan)
    if column.how == "argmax":
        found = np.where(found < 0, np.nan, found)
    return found.astype(np.float32 if column.type in ("float", "list<float>") else np.float64), finite


def _values(column: AnnotatorColumn, output: np.ndarray, where: str) -> np.ndarray:
    """The values [N, L] that a column looks at: flat, cut to its range, one for each class."""
    values = output.reshape(len(output), -1)
    if column.range is not None:
        start, stop = column.range
        if stop > values.shape[1]:
            raise MismatchError(
                f"{where}: range ends at {stop}, and the output of shape {output.shape} has {values.shape[1]} values "
                "a face"
            )
        values = values[:, start:stop]
    width, named = values.shape[1], len(column.classes) or len(column.bins)
    if named and named != width:
        raise MismatchError(
            f"{where}: the card names {named} classes or bins, and the output of shape {output.shape} gives {width} "
            "values a face; `range: [start, stop]` says which of them are meant"
        )
    if (
        column.how in ("raw", "sigmoid", "threshold")
        and not column.is_list
        and column.activation != "softmax"
    ):
        at = _pick(column, width, where)
        return values[:, at : at + 1]
    return values


def _pick(column: AnnotatorColumn, width: int, where: str) -> int:
    """Number of the value that is meant."""
    at = column.picked
    if at is None and width == 1:
        return 0
    if at is None or at >= width:
        raise MismatchError(
            f"{where}: `pick` is {column.pick!r} and there are {width} values a face: say which one is meant"
        )
    return at


def _raw(column: AnnotatorColumn, values: np.ndarray, where: str, size: int) -> np.ndarray:
    found = values * column.multiply + column.add
    if column.type == "int32":
        found = np.rint(found).clip(-(2**31), 2**31 - 1)
    return found if column.is_list else found[:, 0]


def _sigmoid(column: AnnotatorColumn, values: np.ndarray, where: str, size: int) -> np.ndarray:
    return _raw(column, _squash(values), where, size)


def _softmax(column: AnnotatorColumn, values: np.ndarray, where: str, size: int) -> np.ndarray:
    found = _soft(values)
    return found if column.is_list else found[:, _pick(column, found.shape[1], where)]


def _expected(column: AnnotatorColumn, values: np.ndarray, where: str, size: int) -> np.ndarray:
    found: np.ndarray = _soft(values) @ np.array(column.bins) * column.multiply + column.add
    return found


def _argmax(column: AnnotatorColumn, values: np.ndarray, where: str, size: int) -> np.ndarray:
    """Number of the highest class; -1 where it is not probable enough."""
    best: np.ndarray = values.argmax(axis=1)
    if column.min_probability is None:
        return best
    sure = _soft(values).max(axis=1) >= column.min_probability
    return np.where(sure, best, -1)


def _threshold(column: AnnotatorColumn, values: np.ndarray, where: str, size: int) -> np.ndarray:
    found = _ACTIVATIONS[column.activation](values)
    at = _pick(column, found.shape[1], where) if column.activation == "softmax" else 0
    above: np.ndarray = found[:, at] >= (column.threshold or 0)
    return above.astype(np.float64)


def _points(column: AnnotatorColumn, values: np.ndarray, where: str, size: int) -> np.ndarray:
    """Px of the chip, pixel centers at .5."""
    if values.shape[1] % 2:
        raise MismatchError(f"{where}: {values.shape[1]} values a face are no pairs of x and y")
    return values * size if column.point_unit == "side" else values + 0.5


def _shares(column: AnnotatorColumn, output: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Share of a map's pixels at which each class is the highest."""
    if output.ndim != 4 or (column.classes and output.shape[1] != len(column.classes)):
        wanted = len(column.classes) or "C"
        raise MismatchError(
            f"{where}: shares are of maps [N, {wanted}, H, W], and the output is {output.shape}"
        )
    N, C = output.shape[:2]
    finite = np.isfinite(output).all(axis=(1, 2, 3))
    best = output.argmax(axis=1).reshape(N, -1)
    counts = np.bincount((best + C * np.arange(N)[:, None]).ravel(), minlength=N * C).reshape(N, C)
    shares = np.where(finite[:, None], counts / best.shape[1], np.nan).astype(np.float32)
    return (shares if column.is_list else shares[:, _pick(column, C, where)]), finite


def _soft(values: np.ndarray) -> np.ndarray:
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    soft: np.ndarray = raised / raised.sum(axis=1, keepdims=True)
    return soft


def _squash(values: np.ndarray) -> np.ndarray:
    squashed: np.ndarray = 1 / (1 + np.exp(-values))
    return squashed


_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "raw": lambda values: values,
    "sigmoid": _squash,
    "softmax": _soft,
}
_READERS = {
    "raw": _raw,
    "sigmoid": _sigmoid,
    "softmax": _softmax,
    "expected": _expected,
    "argmax": _argmax,
    "threshold": _threshold,
    "points": _points,
}
