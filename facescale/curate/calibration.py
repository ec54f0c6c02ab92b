"""What a similarity of an embedder means: read from a YAML file, given to every job that needs a threshold.

No cosine threshold is portable between embedders, so jobs state false-match rates and quantiles, and a `Calibration`
turns them into cosines of one embedder. `LAKE/calibration/<embedder>.yaml` (made by `facescale calibrate`) wins over
`<embedder>.calibration.yaml` beside the user's model cards (`calibrate --share`), and that over the file that ships.
Called by the drivers of curation; fitted by curate.calibration_fit.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from facescale.curate.curve import Curve, Quantiles
from facescale.errors import CorruptError, FacescaleError, MismatchError, UsageError
from facescale.models.cache import CALIBRATION_SUFFIX, cards_folder
from facescale.models.registry import card, cards

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from facescale.lake.lake import Lake

__all__ = [
    "DRIFT_BOUND",
    "Calibration",
    "Curve",
    "Genuine",
    "Preset",
    "Quantiles",
    "RandomPairs",
    "load_calibration",
    "load_preset",
    "require_calibration",
]

FORMAT_VERSION = 1
FOLDER = "calibration"
DRIFT_BOUND = 0.5
"""Largest `Calibration.drift` that passes without a warning: see there."""
_DRIFT_FMR = 1e-3
_DRIFT_STEPS = 16
_PRESETS = "presets.yaml"


@dataclass(frozen=True)
class Genuine:
    """How similar faces of one person are.

    Attributes:
        pairs: two faces of one person.
        centers: a face and the center of the person's other faces (leave-one-out).
    """

    pairs: Quantiles
    centers: Quantiles


@dataclass(frozen=True)
class RandomPairs:
    """Location and spread of the similarity of two random faces, whoever they show.

    Attributes:
        median: cosine.
        deviation: 1.4826 × median absolute deviation, which is the standard deviation of a Gaussian.
    """

    median: float
    deviation: float

    def z(self, similarity: NDArray[Any]) -> NDArray[np.float64]:
        """Similarities, any shape, in deviations above the median."""
        scores: NDArray[np.float64] = (np.asarray(similarity, np.float64) - self.median) / self.deviation
        return scores


@dataclass(frozen=True)
class Calibration:
    """Thresholds of one embedder, as distributions.

    Attributes:
        embedder: registry name.
        weights_sha256: of the weights that made the embeddings; None where unknown.
        dim: length of the embeddings.
        pairs: faces of different people.
        centers: face to center (normalized mean of four or more faces) of another person.
        genuine: faces of one person.
        random: two random faces; what `drift` compares a lake with.
        re_encode: 0.1 % quantile of the similarity of a face with itself after re-encoding (JPEG 50 to 95, scale 0.7
            to 1.4).
        min_quality: recognizability gate on faces.quality; None where it was fitted without that column.
        evidence: data, counts, who was left out, date, command, check on other people.
    """

    embedder: str
    weights_sha256: str | None
    dim: int
    pairs: Curve
    centers: Curve
    genuine: Genuine
    random: RandomPairs
    re_encode: float
    min_quality: float | None
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """12 hex digits of everything but the evidence: for the fingerprints of tables that depend on thresholds."""
        content = {name: value for name, value in _as_mapping(self).items() if name != "evidence"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def drift(self, sample_ND: NDArray[Any]) -> float:
        """How far random pairs of a lake lie from those that were calibrated on.

        The threshold of the false-match rate 1e-3 is expressed in robust deviations above the median random pair, once
        by the calibration and once by the sample; the drift is the difference. Median and deviation do not notice the
        few pairs of one person. Where similarities are Gaussian, a drift of 0.5 (DRIFT_BOUND) means that the rate
        at that threshold is off by a factor of about 5: other data (children, infrared, tiny faces) or another model.

        Args:
            sample_ND: float [N, D], unit embeddings of random faces; each is compared with 16 others. 2,000 faces tell
                the drift to about 0.05.

        Returns:
            In deviations, 0 or more; infinite when the sample's similarities do not vary at all, 0 with fewer than
            two faces.

        Raises:
            MismatchError: another dimension.
        """
        if sample_ND.ndim != 2 or sample_ND.shape[1] != self.dim:
            raise MismatchError(
                f"the calibration of {self.embedder} is for {self.dim} dimensions, got embeddings of shape "
                f"{sample_ND.shape}"
            )
        if len(sample_ND) < 2:
            return 0.0
        order = np.random.default_rng(0).permutation(len(sample_ND))
        shuffled = sample_ND[order].astype(np.float32)
        steps = range(1, min(_DRIFT_STEPS, len(shuffled) - 1) + 1)
        similarity = np.concatenate(
            [(shuffled * np.roll(shuffled, step, axis=0)).sum(axis=1) for step in steps]
        )
        median = float(np.median(similarity))
        deviation = 1.4826 * float(np.median(np.abs(similarity - median)))
        if deviation == 0:
            return float("inf")
        threshold = self.pairs.similarity_at(_DRIFT_FMR)
        own = RandomPairs(median, deviation)
        values = np.array([threshold])
        return float(np.abs(own.z(values) - self.random.z(values))[0])


@dataclass(frozen=True)
class Preset:
    """Published cosine thresholds of CAST, for embedders like the one they were chosen for.

    Attributes:
        name: of the preset.
        merge: two label centers at or above it are one person.
        drop: two label centers between it and `merge` are dropped as ambiguous.
        duplicate: two faces at or above it are one photograph.
        source: where the numbers come from.
    """

    name: str
    merge: float
    drop: float
    duplicate: float
    source: str


def load_calibration(embedder: str, lake: Lake | None = None) -> Calibration:
    """Find the calibration of an embedder.

    Args:
        embedder: registry name.
        lake: its own calibration wins over the one beside the user's cards, and that over the one that ships.

    Raises:
        UsageError: there is none; tells how to make one.
        MismatchError: the file is for other weights than the embedder's, or of another format version.
        CorruptError: the file is damaged.
    """
    found = None
    if lake is not None:
        path = calibration_path(embedder)
        try:
            found = parse_calibration(lake.store.read_bytes(path), where=lake.store.location(path))
        except FileNotFoundError:
            pass
    beside_cards = shared_path(embedder)
    if found is None and beside_cards.is_file():
        found = parse_calibration(beside_cards.read_bytes(), where=str(beside_cards))
    if found is None:
        entry = resources.files("facescale.curate") / "calibrations" / f"{embedder}.yaml"
        if entry.name == _PRESETS or "/" in embedder or not entry.is_file():
            where = lake.uri if lake is not None else "LAKE"
            raise UsageError(
                f"embedder {embedder!r} is not calibrated, so no threshold has a meaning for it: run `facescale "
                f"calibrate {where} --embedder {embedder} --labels FILE --label-column NAME` with labels of people "
                "you trust"
            )
        found = parse_calibration(entry.read_bytes(), where=entry.name)
    _check_model(found, embedder)
    return found


def require_calibration(embedder: str, lake: Lake) -> Calibration:
    """The calibration that fits a lake's embeddings; what every job that needs thresholds calls first.

    Raises:
        UsageError: there is none, or the lake has no embeddings of this embedder.
        MismatchError: it is for other weights or another dimension.
        CorruptError: the file is damaged.
    """
    found = load_calibration(embedder, lake)
    version = lake.current("embeddings", embedder)
    if version is None:
        known = ", ".join(lake.current_models("embeddings")) or "none"
        raise UsageError(
            f"{lake.uri} has no finished embeddings of {embedder!r} (it has: {known}): run `facescale embed "
            f"{lake.uri} --embedder {embedder}`"
        )
    made_by = (lake.describe_version(version) or {}).get("settings", {}).get("embedder_sha256")
    if not _same_weights(embedder, made_by, found.weights_sha256):
        raise MismatchError(
            f"{lake.uri}: {version.folder} was made with weights {made_by[:12]}, and {embedder} was calibrated with "
            f"{(found.weights_sha256 or '')[:12]}: run `facescale calibrate {lake.uri} --embedder {embedder}`"
        )
    return found


def load_preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        UsageError: there is none of this name.
    """
    entry = resources.files("facescale.curate") / "calibrations" / _PRESETS
    presets = yaml.safe_load(entry.read_text(encoding="utf-8"))
    if name not in presets:
        raise UsageError(f"there is no preset {name!r}; known: {', '.join(sorted(presets))}")
    return Preset(name, **presets[name])


def calibration_path(embedder: str) -> str:
    """Where a lake keeps its own calibration of an embedder."""
    return f"{FOLDER}/{embedder}.yaml"


def shared_path(embedder: str) -> Path:
    """Where this user keeps a calibration of an embedder for every lake: beside the user's model cards."""
    return cards_folder() / f"{embedder}{CALIBRATION_SUFFIX}"


def dump_calibration(calibration: Calibration) -> bytes:
    """The YAML file of a calibration."""
    text: str = yaml.safe_dump(
        {"format_version": FORMAT_VERSION, **_as_mapping(calibration)},
        sort_keys=False,
        width=110,
        default_flow_style=None,
        allow_unicode=True,
    )
    return text.encode()


def parse_calibration(data: bytes, *, where: str) -> Calibration:
    """Read the file of a calibration; `where` names it in messages.

    Raises:
        MismatchError: another format version.
        CorruptError: it is damaged.
    """
    remedy = "restore the file, or make it anew with `facescale calibrate`"
    try:
        values = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CorruptError(f"{where} is not YAML ({' '.join(str(error).split())}); {remedy}") from error
    if not isinstance(values, dict) or "format_version" not in values:
        raise CorruptError(f"{where} is no calibration; {remedy}")
    version = values.pop("format_version")
    if version != FORMAT_VERSION:
        raise MismatchError(
            f"{where} has format version {version}, this facescale reads {FORMAT_VERSION}; run `facescale calibrate` "
            "again"
        )
    try:
        genuine = values.pop("genuine")
        return Calibration(
            pairs=_curve(values.pop("pairs")),
            centers=_curve(values.pop("centers")),
            genuine=Genuine(_quantiles(genuine["pairs"]), _quantiles(genuine["centers"])),
            random=RandomPairs(**values.pop("random")),
            **values,
        )
    except (KeyError, TypeError, ValueError, AttributeError, FacescaleError) as error:
        raise CorruptError(f"{where} is no valid calibration ({error}); {remedy}") from error


def _same_weights(embedder: str, first: str | None, second: str | None) -> bool:
    """Whether two digests are of one model's weights: equal, unknown, or files of its card for two backends."""
    if first is None or second is None or first == second:
        return True
    known = [entry.digests for entry in cards("embedder") if entry.name == embedder]
    return any({first, second} <= digests for digests in known)


def _check_model(calibration: Calibration, embedder: str) -> None:
    """Refuse a calibration of another model; an embedder that only a plug-in knows has no card to compare with."""
    if calibration.embedder != embedder:
        raise MismatchError(f"this calibration is of {calibration.embedder!r}, not of {embedder!r}")
    if all(entry.name != embedder for entry in cards("embedder")):
        return
    known = card(embedder, "embedder")
    unknown = calibration.weights_sha256 is None or not known.digests
    if calibration.dim != known.dim or not (unknown or calibration.weights_sha256 in known.digests):
        raise MismatchError(
            f"the calibration of {embedder} was made with {calibration.dim} dimensions and weights "
            f"{(calibration.weights_sha256 or 'unknown')[:12]}, the model now has {known.dim} and "
            f"{(known.sha256 or 'others')[:12]}: run `facescale calibrate` with it"
        )


def _as_mapping(calibration: Calibration) -> dict[str, Any]:
    """Plain values in the order of the file, floats cut to six digits so that the file is readable."""
    c = calibration
    return {
        "embedder": c.embedder,
        "weights_sha256": c.weights_sha256,
        "dim": c.dim,
        "pairs": _curve_mapping(c.pairs),
        "centers": _curve_mapping(c.centers),
        "genuine": {
            "pairs": _quantile_mapping(c.genuine.pairs),
            "centers": _quantile_mapping(c.genuine.centers),
        },
        "random": {"median": _short(c.random.median), "deviation": _short(c.random.deviation)},
        "re_encode": _short(c.re_encode),
        "min_quality": None if c.min_quality is None else _short(c.min_quality),
        "evidence": c.evidence,
    }


def _curve_mapping(curve: Curve) -> dict[str, Any]:
    points = [[_short(f), _short(s)] for f, s in zip(curve.fmr, curve.similarity, strict=True)]
    return {"count": curve.count, "tail_scale": _short(curve.tail_scale), "points": points}


def _curve(values: dict[str, Any]) -> Curve:
    rates, similarities = zip(*values["points"], strict=True)
    return Curve(
        tuple(map(float, rates)), tuple(map(float, similarities)), values["tail_scale"], values["count"]
    )


def _quantile_mapping(quantiles: Quantiles) -> dict[str, Any]:
    points = [[level, _short(v)] for level, v in zip(quantiles.levels, quantiles.values, strict=True)]
    return {"count": quantiles.count, "points": points}


def _quantiles(values: dict[str, Any]) -> Quantiles:
    levels, found = zip(*values["points"], strict=True)
    return Quantiles(tuple(map(float, levels)), tuple(map(float, found)), values["count"])


def _short(value: float) -> float:
    return float(f"{value:.6g}")
