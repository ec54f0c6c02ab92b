"""From a model's name to a model that runs: the card, the device, and the factory of its architecture.

Quality scorers have a name and no card, since they need no weights; one that does brings them in its factory.

Called by the stages' open(); everything they ask for is checked here, before any work is done. Architectures
are imported when first used. A plug-in adds a card (facescale.models.registry.register_card) and, for a new
architecture, a factory with one of the register functions.
"""

from __future__ import annotations

import dataclasses
import difflib
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from facescale.errors import UsageError
from facescale.models.registry import card as find_card
from facescale.vision.backbones import BACKBONES

if TYPE_CHECKING:
    import torch

    from facescale.models.card import ModelCard
    from facescale.vision.protocols import Annotator, Detector, Embedder, Landmarker, QualityScorer

PRECISIONS = ("fp32", "bf16", "fp16")
DEFAULT_MIN_FACE_PX = 40
DEFAULT_EMBED_BATCH = 32
DEFAULT_QUALITY_SCORER = "iso_v1"


class DetectorFactory(Protocol):
    """Builds a detector; `max_batch_pixels` None means the detector's own default."""

    def __call__(
        self,
        card: ModelCard,
        *,
        device: torch.device,
        precision: str,
        min_face_px: int,
        max_batch_pixels: int | None,
    ) -> Detector:
        """Build the detector of `card`."""
        ...


class LandmarkerFactory(Protocol):
    """Builds a landmarker."""

    def __call__(self, card: ModelCard, *, device: torch.device) -> Landmarker:
        """Build the landmarker of `card`."""
        ...


class EmbedderFactory(Protocol):
    """Builds an embedder that runs `batch` chips at a time."""

    def __call__(self, card: ModelCard, *, device: torch.device, precision: str, batch: int) -> Embedder:
        """Build the embedder of `card`."""
        ...


class AnnotatorFactory(Protocol):
    """Builds an annotator that looks at `batch` chips at a time."""

    def __call__(self, card: ModelCard, *, device: torch.device, precision: str, batch: int) -> Annotator:
        """Build the annotator of `card`."""
        ...


class QualityScorerFactory(Protocol):
    """Builds a quality scorer."""

    def __call__(self, *, device: torch.device) -> QualityScorer:
        """Build the scorer."""
        ...


def load_detector(
    name: str,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    min_face_px: int = DEFAULT_MIN_FACE_PX,
    max_batch_pixels: int | None = None,
    backend: str = "auto",
    threshold: float | None = None,
) -> Detector:
    """Load a detector.

    Args:
        name: registry name, e.g. "dlib_mmod".
        device: torch device: "cpu", "cuda" or "cuda:N".
        precision: arithmetic of the network, one of PRECISIONS.
        min_face_px: side of the smallest face to find; half the size costs about four times the work.
        max_batch_pixels: pixels of network input per forward pass, what bounds memory; None for the
            detector's default.
        backend: "torch" or "onnx" for models with weights for both; "auto" is what the card names first.
        threshold: in place of the card's.

    Raises:
        UsageError: unknown model, device or precision, a size below 1, or a missing package.
        CorruptError: the weights are not those of the card.
    """
    card = find_card(name, "detector").preferring(backend)
    if threshold is not None:
        card = dataclasses.replace(card, threshold=threshold)
    if min_face_px < 1:
        raise UsageError(f"min_face_px: expected a whole number of pixels from 1, got {min_face_px}")
    if max_batch_pixels is not None and max_batch_pixels < 1:
        raise UsageError(f"max_batch_pixels: expected a whole number from 1, got {max_batch_pixels}")
    where, precision = resolve_device(device), _check_precision(precision)
    factory: DetectorFactory = _factory(_DETECTORS, card)
    return factory(
        card, device=where, precision=precision, min_face_px=min_face_px, max_batch_pixels=max_batch_pixels
    )


def load_landmarker(name: str, *, device: str = "cpu") -> Landmarker:
    """Load a landmarker; arguments and errors as for `load_detector`."""
    card = find_card(name, "landmarker")
    factory: LandmarkerFactory = _factory(_LANDMARKERS, card)
    return factory(card, device=resolve_device(device))


def load_embedder(
    name: str,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    batch: int = DEFAULT_EMBED_BATCH,
    backend: str = "auto",
    accelerate: str = "none",
    flip: bool = False,
) -> Embedder:
    """Load an embedder.

    Args:
        name: registry name.
        device: as for `load_detector`.
        precision: as for `load_detector`.
        batch: chips of a forward pass.
        backend: as for `load_detector`.
        accelerate: none, compile, cuda_graphs or tensorrt (facescale.vision.networks).
        flip: describe each face as it is and mirrored, and take the mean.

    Raises:
        UsageError: as for `load_detector`, or an acceleration that this model cannot do.
        CorruptError: the weights are not those of the card.
    """
    card = find_card(name, "embedder").preferring(backend)
    if batch < 1:
        raise UsageError(f"batch: expected a whole number of chips from 1, got {batch}")
    where, precision = resolve_device(device), _check_precision(precision)
    factory: EmbedderFactory = _factory(_EMBEDDERS, card)
    options = {}
    if accelerate != "none":
        if factory is not _network:
            raise UsageError(
                f"model {name!r}: architecture {card.architecture!r} runs without --accelerate only"
            )
        options["accelerate"] = accelerate
    embedder = factory(card, device=where, precision=precision, batch=batch, **options)
    if not flip:
        return embedder
    from facescale.vision.flip import Flipped

    return Flipped(embedder)


def load_annotator(
    card: ModelCard,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    batch: int = DEFAULT_EMBED_BATCH,
    backend: str = "auto",
) -> Annotator:
    """Load the annotator of a card, registered or not; the rest is as for `load_embedder`."""
    card = card.preferring(backend)
    if batch < 1:
        raise UsageError(f"batch: expected a whole number of chips from 1, got {batch}")
    where, precision = resolve_device(device), _check_precision(precision)
    factory: AnnotatorFactory = _factory(_ANNOTATORS, card)
    return factory(card, device=where, precision=precision, batch=batch)


def load_quality_scorer(name: str, *, device: str = "cpu") -> QualityScorer:
    """Load a quality scorer.

    Args:
        name: one of `quality_scorers()`.
        device: torch device; the default scorer does not use it.

    Raises:
        UsageError: no such scorer or device.
    """
    check_quality_scorer(name)
    return _SCORERS[name](device=resolve_device(device))


def check_quality_scorer(name: str) -> None:
    """Raise UsageError, with near matches, when no quality scorer has this name."""
    if name not in _SCORERS:
        near = difflib.get_close_matches(name, _SCORERS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(quality_scorers())}"
        raise UsageError(f"there is no quality scorer {name!r}; {hint}")


def quality_scorers() -> list[str]:
    """Names of the registered quality scorers, sorted."""
    return sorted(_SCORERS)


def register_quality_scorer(name: str, factory: QualityScorerFactory) -> None:
    """Add a quality scorer for this process; a name that is taken raises UsageError.

    The name goes into table versions: a scorer that comes to other results needs another one.
    """
    if name in _SCORERS:
        raise UsageError(f"quality scorer {name!r} is registered already; give the other one another name")
    _SCORERS[name] = factory


def register_detector(architecture: str, factory: DetectorFactory) -> None:
    """Add a detector architecture for this process; a name that is taken raises UsageError."""
    _register(_DETECTORS, architecture, factory)


def register_landmarker(architecture: str, factory: LandmarkerFactory) -> None:
    """Add a landmarker architecture for this process; a name that is taken raises UsageError."""
    _register(_LANDMARKERS, architecture, factory)


def register_embedder(architecture: str, factory: EmbedderFactory) -> None:
    """Add an embedder architecture for this process; a name that is taken raises UsageError."""
    _register(_EMBEDDERS, architecture, factory)


def register_annotator(architecture: str, factory: AnnotatorFactory) -> None:
    """Add an annotator architecture for this process; a name that is taken raises UsageError."""
    _register(_ANNOTATORS, architecture, factory)


def architectures(task: str) -> list[str]:
    """Names of the architectures that models of a task can have, sorted."""
    tables: dict[str, dict[str, Any]] = {
        "detector": _DETECTORS,
        "landmarker": _LANDMARKERS,
        "embedder": _EMBEDDERS,
        "annotator": _ANNOTATORS,
    }
    return sorted(tables[task])


def resolve_device(device: str) -> torch.device:
    """Turn a device name into a torch device that exists here.

    Raises:
        UsageError: not a device name, not a CPU or CUDA device, or a CUDA device that is not there. Falling
            back to the CPU would look like success at a fiftieth of the speed.
    """
    import torch

    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device: expected cpu, cuda or cuda:N, got {device!r}") from error
    if resolved.type not in ("cpu", "cuda"):
        raise UsageError(f"device: expected cpu, cuda or cuda:N, got {device!r}")
    count = torch.cuda.device_count() if resolved.type == "cuda" else 1
    if resolved.type == "cuda" and (resolved.index or 0) >= count:
        raise UsageError(
            f"device {device!r} is not there: torch {torch.__version__} sees {count} CUDA devices; "
            "run `facescale doctor`, or ask for the device cpu"
        )
    return resolved


def _check_precision(precision: str) -> str:
    if precision not in PRECISIONS:
        raise UsageError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    return precision


def _dlib_mmod(card: ModelCard, **options: Any) -> Detector:
    from facescale.vision import mmod

    return mmod.load(card, **options)


def _detector(module: str) -> DetectorFactory:
    """The factory `load` of a module of this package, imported when it is first called."""

    def load(card: ModelCard, **options: Any) -> Detector:
        found: Detector = import_module(f"facescale.vision.{module}").load(card, **options)
        return found

    return load


def _network(card: ModelCard, **options: Any) -> Embedder:
    from facescale.vision import embedder

    return embedder.load(card, **options)


def _dlib_ert(card: ModelCard, **options: Any) -> Landmarker:
    from facescale.vision import landmarks

    return landmarks.load(card, **options)


def _mtcnn_onet(card: ModelCard, **options: Any) -> Landmarker:
    from facescale.vision import mtcnn

    return mtcnn.load_landmarker(card, **options)


def _dlib_resnet(card: ModelCard, **options: Any) -> Embedder:
    from facescale.vision import recognizer

    return recognizer.load(card, **options)


def _network_annotator(card: ModelCard, **options: Any) -> Annotator:
    from facescale.vision import annotator

    return annotator.load(card, **options)


def _iso_v1(**_: Any) -> QualityScorer:
    from facescale.vision import quality

    return quality.IsoQuality()


_SCORERS: dict[str, QualityScorerFactory] = {DEFAULT_QUALITY_SCORER: _iso_v1}
_DETECTORS: dict[str, DetectorFactory] = {
    "dlib_mmod": _dlib_mmod,
    **{
        name: _detector(name)
        for name in ("yunet", "ultraface", "retinaface", "mtcnn", "blazeface", "scrfd", "centerface")
    },
}
_LANDMARKERS: dict[str, LandmarkerFactory] = {"dlib_ert": _dlib_ert, "mtcnn_onet": _mtcnn_onet}
_EMBEDDERS: dict[str, EmbedderFactory] = {
    "dlib_resnet": _dlib_resnet,
    # Files that bring their own network; the others are state dicts of known ones, or ONNX files made from them.
    "onnx": _network,
    "torchscript": _network,
    "exported": _network,
    **dict.fromkeys(BACKBONES, _network),
}
_ANNOTATORS: dict[str, AnnotatorFactory] = {"onnx": _network_annotator}


def _register(table: dict[str, Any], architecture: str, factory: Any) -> None:
    if architecture in table:
        raise UsageError(
            f"architecture {architecture!r} is registered already; give the other one another name"
        )
    table[architecture] = factory


def _factory(table: dict[str, Any], card: ModelCard) -> Any:
    if card.architecture not in table:
        raise UsageError(
            f"model {card.name!r}: no {card.task} architecture {card.architecture!r}; known: "
            f"{', '.join(sorted(table))}; import the plug-in that registers it first"
        )
    return table[card.architecture]
