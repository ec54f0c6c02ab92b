"""The extract stage: one part of sources in; images, faces, crops and (usually) embeddings out.

Per part: read → decode and hash (threads) → detect → landmarks → crops, quality, chips → embed. Reading, decoding,
scoring and JPEG encoding run in threads while the device works; pixels stay uint8 until the models take them.
Micro-batches follow the rows of the part and never cross it, so a part's tables depend on nothing but the part.
Planned by facescale.driver.extract, run by the engine.
"""

from __future__ import annotations

import importlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from facescale.imaging.decode import decode
from facescale.imaging.hashes import perceptual, sha256
from facescale.lake.ids import MAX_FACES
from facescale.models.access import ModelAccess
from facescale.models.registry import card, choose_scheme
from facescale.models.trust import trust_files
from facescale.models.weights import use_weights_folder
from facescale.sources.read import read_part
from facescale.vision.align import check_scheme, extract_chips
from facescale.vision.columns import Columns, CutFaces, ExtractVersions, Item
from facescale.vision.crops import encode_jpeg, wide_crops
from facescale.vision.protocols import FaceViews
from facescale.vision.registry import (
    DEFAULT_QUALITY_SCORER,
    load_detector,
    load_embedder,
    load_landmarker,
    load_quality_scorer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from facescale.lake.stage import Guard, StageResult
    from facescale.lake.store import Store
    from facescale.sources.plan import SourcePart
    from facescale.sources.read import Member
    from facescale.vision.protocols import Detections, QualityScorer

T = TypeVar("T")

REVISION = 2
"""Raised whenever the tables of extract change for the same input and settings."""

CUT_AT_ONCE = 64
"""Faces that one task of a thread cuts out and scores, unless one image has more: 12 MB of crops."""


@dataclass(frozen=True, kw_only=True)
class ExtractSettings:
    """What a worker needs to know; see facescale.config.extract for the meaning of each."""

    detector: str
    landmarker: str
    embedder: str
    min_face_px: int
    precision: str
    max_bytes: int
    max_pixels: int
    device: str = "cpu"
    quality_scorer: str = DEFAULT_QUALITY_SCORER
    micro_batch: int = 16
    embed_batch: int = 32
    decode_threads: int = 2
    detect_ahead: bool = False
    plugins: tuple[str, ...] = ()
    runtime: str = "auto"
    accelerate: str = "none"
    flip: bool = False
    trust: bool = False
    det_threshold: float | None = None
    weights_dir: str | None = None
    models: ModelAccess = field(default_factory=ModelAccess)


class ExtractStage:
    """Images to faces, crops and embeddings; see the module's head.

    Args:
        settings: models, limits and batch sizes.
        store: of the lake, to read the sources' shard files.
        versions: where the tables go.
    """

    name = "extract"

    def __init__(self, settings: ExtractSettings, store: Store, versions: ExtractVersions) -> None:
        self.settings, self.store, self.versions = settings, store, versions

    def open(self) -> None:
        """Load the models.

        Raises:
            UsageError: an unknown model, a device that is not there, a missing package.
            MismatchError: the embedder's template needs landmarks of another scheme.
        """
        s = self.settings
        for module in s.plugins:
            importlib.import_module(module)
        use_weights_folder(s.weights_dir)
        trust_files(s.trust)
        s.models.enter()
        self.detector = load_detector(
            s.detector,
            device=s.device,
            precision=s.precision,
            min_face_px=s.min_face_px,
            backend=s.runtime,
            threshold=s.det_threshold,
        )
        landmarker = card(s.landmarker, "landmarker")
        self.scheme, own = choose_scheme(self.detector.card, landmarker, card(s.embedder, "embedder"))
        self.landmarker = None if own else load_landmarker(s.landmarker, device=s.device)
        self.scorer = load_quality_scorer(s.quality_scorer, device=s.device)
        self.embedder = self.template = None
        if self.versions.embeddings is not None:
            self.embedder = load_embedder(
                s.embedder,
                device=s.device,
                precision=s.precision,
                batch=s.embed_batch,
                backend=s.runtime,
                accelerate=s.accelerate,
                flip=s.flip,
            )
            self.template = self.embedder.card.template or ""
            check_scheme(self.template, self.scheme, embedder=s.embedder)
        self.pool = ThreadPoolExecutor(s.decode_threads, thread_name_prefix="decode")

    def process(self, part: SourcePart, guard: Guard) -> StageResult:
        """Make the tables of one part; a bad image becomes a status, never an exception."""
        columns = Columns(part.key.shard)
        for items, found in self._detected(part, guard):
            self._add_faces(items, found, columns, flush=guard.careful)
            columns.add_images(items)
        if guard.note:
            guard.note(part.key.first_row + part.key.num_rows)
        self._embed(columns)
        return columns.result(self.versions, self.embedder.dim if self.embedder else 0)

    def _detected(self, part: SourcePart, guard: Guard) -> Iterator[tuple[list[Item], list[Detections]]]:
        """Micro-batches and the faces of their decoded images.

        With `detect_ahead` a thread of its own detects the next one while the caller cuts out and embeds the faces of
        the last: a device gets work while the host prepares more. On a CPU both would want the same cores.
        """
        batches = self._batches(part, guard)
        if not self.settings.detect_ahead or guard.note is not None:
            for items in batches:
                yield items, self._detect(items)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="detect") as ahead:
            waiting: tuple[list[Item], Future[list[Detections]]] | None = None
            for items in batches:
                detecting = items, ahead.submit(self._detect, items)
                if waiting is not None:
                    yield waiting[0], waiting[1].result()
                waiting = detecting
            if waiting is not None:
                yield waiting[0], waiting[1].result()

    def _detect(self, items: Sequence[Item]) -> list[Detections]:
        pixels = [item.pixels for item in items if item.pixels is not None]
        return _halving(self.detector.detect, pixels) if pixels else []

    def _batches(self, part: SourcePart, guard: Guard) -> Iterator[list[Item]]:
        """Decoded micro-batches in row order; two are decoded ahead while the caller works on one."""
        s = self.settings
        members = read_part(self.store, part, max_bytes=s.max_bytes, threads=s.decode_threads)
        if guard.note is not None:
            for member in members:
                guard.note(member.row)
                yield [self._decode(member, guard)]
            return
        ahead: deque[Future[Item]] = deque()
        batch: list[Item] = []
        for member in members:
            ahead.append(self.pool.submit(self._decode, member, guard))
            if len(ahead) > 2 * s.micro_batch:
                batch.append(ahead.popleft().result())
                if len(batch) == s.micro_batch:
                    yield batch
                    batch = []
        while ahead:
            batch.append(ahead.popleft().result())
            if len(batch) == s.micro_batch:
                yield batch
                batch = []
        if batch:
            yield batch

    def _decode(self, member: Member, guard: Guard) -> Item:
        row, data = member.row, member.data
        if row in guard.poison:
            return Item(row, member.uri, "poison", guard.reasons.get(row))
        if data is None:
            return Item(row, member.uri, member.status or "unreadable", member.detail)
        image = decode(data, max_bytes=self.settings.max_bytes, max_pixels=self.settings.max_pixels)
        item = Item(row, member.uri, image.status, image.detail, image.width, image.height, len(data))
        item.sha256 = sha256(data)
        if image.pixels is not None:
            item.pixels = image.pixels
            item.perceptual = perceptual(image.pixels)
        return item

    def _add_faces(
        self, items: Sequence[Item], found: Sequence[Detections], columns: Columns, *, flush: bool
    ) -> None:
        """Align and cut out the faces of one micro-batch; `found` are those of its decoded images."""
        decoded = [item for item in items if item.pixels is not None]
        pixels = [item.pixels for item in decoded if item.pixels is not None]
        for item, faces in zip(decoded, found, strict=True):
            item.num_faces = min(len(faces), MAX_FACES)
            if len(faces) > MAX_FACES:
                item.status = "too_many_faces"
                item.detail = f"{len(faces)} faces found, the best {MAX_FACES} kept"
            item.pixels = None
        with_faces = [
            (item.row, image, faces.best(MAX_FACES))
            for item, image, faces in zip(decoded, pixels, found, strict=True)
            if len(faces)
        ]
        if not with_faces:
            return
        rows, images, faces_of = (list(column) for column in zip(*with_faces, strict=True))
        landmarks = self._landmarks(images, faces_of)
        columns.add_faces(rows, faces_of, landmarks, self.scheme)
        columns.add_crops(
            [
                self.pool.submit(cut_and_score, images[span], landmarks[span], self.scheme, self.scorer)
                for span in image_spans([len(points) for points in landmarks], self.settings.decode_threads)
            ]
        )
        if self.embedder is not None and self.template is not None:
            columns.chips.append(extract_chips(images, landmarks, self.template))
            waiting = sum(len(chips) for chips in columns.chips)
            if flush or waiting >= self.settings.embed_batch:
                self._embed(columns, keep=0 if flush else waiting % self.settings.embed_batch)

    def _landmarks(self, images: list[np.ndarray], faces: list[Detections]) -> list[np.ndarray]:
        if self.landmarker is None:
            return [found.landmarks for found in faces if found.landmarks is not None]
        return self.landmarker.landmarks(images, [found.boxes for found in faces])

    def _embed(self, columns: Columns, keep: int = 0) -> None:
        """Embed the chips that wait, but for the last `keep`, which go with the next full batch."""
        if self.embedder is None or not columns.chips:
            return
        chips = np.concatenate(columns.chips) if len(columns.chips) > 1 else columns.chips[0]
        ready = len(chips) - keep
        columns.chips = [chips[ready:]] if keep else []
        columns.embeddings.append(_halving(self.embedder.embed, chips[:ready], join=np.concatenate))


def image_spans(counts: Sequence[int], threads: int) -> list[slice]:
    """Split images among threads, by their numbers of faces; at most CUT_AT_ONCE in a span, or one image.

    Faces of several images are scored together in half the time of one after the other, which goes into small calls.
    """
    limit = min(CUT_AT_ONCE, -(-sum(counts) // threads))
    starts, faces = [0], 0
    for image, count in enumerate(counts):
        if faces and faces + count > limit:
            starts.append(image)
            faces = 0
        faces += count
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(counts)], strict=True)]


def cut_and_score(
    images: Sequence[np.ndarray], landmarks: Sequence[np.ndarray], scheme: str, scorer: QualityScorer
) -> CutFaces:
    """The crops of some images' faces and what the scorer says of them; their pixels are not kept."""
    cut = [wide_crops(image, points, scheme) for image, points in zip(images, landmarks, strict=True)]
    crops = [crop for found, _ in cut for crop in found]
    matrices = np.concatenate([found for _, found in cut])
    counts = [len(points) for points in landmarks]
    sizes = np.repeat([image.shape[:2] for image in images], counts, axis=0)
    quality = scorer.score(FaceViews(crops, matrices, np.concatenate(landmarks), scheme, sizes))
    return CutFaces(
        jpegs=[encode_jpeg(crop) for crop in crops],
        sizes=[crop.shape[:2] for crop in crops],
        matrices=matrices.astype(np.float32),
        quality=quality,
    )


def _halving(call: Callable[[Any], T], batch: Any, *, join: Callable[[list[T]], T] | None = None) -> T:
    """Call with a batch; when the device is out of memory, with its halves."""
    import torch

    try:
        return call(batch)
    except torch.OutOfMemoryError:
        if len(batch) < 2:
            raise
        torch.cuda.empty_cache()
    half = len(batch) // 2
    results = [_halving(call, batch[:half], join=join), _halving(call, batch[half:], join=join)]
    return join(results) if join else results[0] + results[1]  # type: ignore[operator]
