"""The extract stage: one part of sources in; images, faces, crops and (usually) embeddings out.

Per part: read → decode and hash (threads) → detect → landmarks → crops, chips → embed. Reading, decoding and JPEG
encoding run in threads while the device works; pixels stay uint8 until the models take them. Micro-batches follow the
rows of the part and never cross it, so a part's tables depend on nothing but the part.
Planned by facescale.driver.extract, run by the engine.
"""

from __future__ import annotations

import importlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from facescale.imaging.decode import decode
from facescale.imaging.hashes import pdq, sha256
from facescale.lake.ids import MAX_FACES, make_face_id, make_image_id
from facescale.lake.schema import table_schema
from facescale.lake.stage import Guard, StageResult
from facescale.sources.read import read_part
from facescale.vision.align import check_scheme, extract_chips
from facescale.vision.crops import encode_jpeg, face_geometry, wide_crops
from facescale.vision.registry import load_detector, load_embedder, load_landmarker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from facescale.lake.parts import TableVersion
    from facescale.lake.store import Store
    from facescale.sources.plan import SourcePart
    from facescale.sources.read import Member
    from facescale.vision.protocols import Detections

T = TypeVar("T")

REVISION = 1
"""Raised whenever the tables of extract change for the same input and settings."""


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
    micro_batch: int = 16
    embed_batch: int = 32
    decode_threads: int = 2
    plugins: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExtractVersions:
    """Where the tables go. `embeddings` is None when they are to be made from the stored crops afterwards."""

    images: TableVersion
    faces: TableVersion
    crops: TableVersion
    embeddings: TableVersion | None


@dataclass
class _Item:
    """One image on its way through the stage; `pixels` is dropped as soon as its faces are cut out."""

    row: int
    uri: str
    status: str
    detail: str | None = None
    width: int | None = None
    height: int | None = None
    num_bytes: int | None = None
    sha256: bytes | None = None
    pdq: bytes | None = None
    pdq_quality: int | None = None
    num_faces: int = 0
    pixels: np.ndarray | None = None


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
        self.detector = load_detector(
            s.detector, device=s.device, precision=s.precision, min_face_px=s.min_face_px
        )
        self.landmarker = load_landmarker(s.landmarker, device=s.device)
        self.scheme = self.detector.card.landmark_scheme or self.landmarker.card.landmark_scheme or ""
        self.embedder = self.template = None
        if self.versions.embeddings is not None:
            self.embedder = load_embedder(
                s.embedder, device=s.device, precision=s.precision, batch=s.embed_batch
            )
            self.template = self.embedder.card.template or ""
            check_scheme(self.template, self.scheme, embedder=s.embedder)
        self.pool = ThreadPoolExecutor(s.decode_threads, thread_name_prefix="decode")

    def process(self, part: SourcePart, guard: Guard) -> StageResult:
        """Make the tables of one part; a bad image becomes a status, never an exception."""
        columns = _Columns(part.key.shard)
        for items in self._batches(part, guard):
            self._add_faces(items, columns, flush=guard.careful)
            columns.add_images(items)
        if guard.note:
            guard.note(part.key.first_row + part.key.num_rows)
        self._embed(columns)
        return columns.result(self.versions, self.embedder.dim if self.embedder else 0)

    def _batches(self, part: SourcePart, guard: Guard) -> Iterator[list[_Item]]:
        """Decoded micro-batches in row order; two are decoded ahead while the caller works on one."""
        s = self.settings
        members = read_part(self.store, part, max_bytes=s.max_bytes, threads=s.decode_threads)
        if guard.note is not None:
            for member in members:
                guard.note(member.row)
                yield [self._decode(member, guard)]
            return
        ahead: deque[Future[_Item]] = deque()
        batch: list[_Item] = []
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

    def _decode(self, member: Member, guard: Guard) -> _Item:
        row, data = member.row, member.data
        if row in guard.poison:
            return _Item(row, member.uri, "poison", guard.reasons.get(row))
        if data is None:
            return _Item(row, member.uri, member.status or "unreadable", member.detail)
        image = decode(data, max_bytes=self.settings.max_bytes, max_pixels=self.settings.max_pixels)
        item = _Item(row, member.uri, image.status, image.detail, image.width, image.height, len(data))
        item.sha256 = sha256(data)
        if image.pixels is not None:
            item.pixels = image.pixels
            item.pdq, item.pdq_quality = pdq(image.pixels)
        return item

    def _add_faces(self, items: Sequence[_Item], columns: _Columns, *, flush: bool) -> None:
        """Detect, align and cut out the faces of one micro-batch."""
        decoded = [item for item in items if item.pixels is not None]
        if not decoded:
            return
        pixels = [item.pixels for item in decoded if item.pixels is not None]
        found = _halving(self.detector.detect, pixels)
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
                self.pool.submit(_cut_crops, image, points, self.scheme)
                for image, points in zip(images, landmarks, strict=True)
            ]
        )
        if self.embedder is not None and self.template is not None:
            columns.chips.append(extract_chips(images, landmarks, self.template))
            waiting = sum(len(chips) for chips in columns.chips)
            if flush or waiting >= self.settings.embed_batch:
                self._embed(columns, keep=0 if flush else waiting % self.settings.embed_batch)

    def _landmarks(self, images: list[np.ndarray], faces: list[Detections]) -> list[np.ndarray]:
        given = [found.landmarks for found in faces if found.landmarks is not None]
        if len(given) == len(faces):
            return given
        return self.landmarker.landmarks(images, [found.boxes for found in faces])

    def _embed(self, columns: _Columns, keep: int = 0) -> None:
        """Embed the chips that wait, but for the last `keep`, which go with the next full batch."""
        if self.embedder is None or not columns.chips:
            return
        chips = np.concatenate(columns.chips) if len(columns.chips) > 1 else columns.chips[0]
        ready = len(chips) - keep
        columns.chips = [chips[ready:]] if keep else []
        columns.embeddings.append(_halving(self.embedder.embed, chips[:ready], join=np.concatenate))


_Crops = tuple[list[bytes], list[tuple[int, int]], np.ndarray]
"""JPEG bytes, (height, width) and float32 [n, 2, 3] matrices of one image's crops."""


def _cut_crops(image: np.ndarray, landmarks: np.ndarray, scheme: str) -> _Crops:
    crops, matrices = wide_crops(image, landmarks, scheme)
    sizes = [crop.shape[:2] for crop in crops]
    return [encode_jpeg(crop) for crop in crops], sizes, matrices.astype(np.float32)


@dataclass
class _Columns:
    """The growing tables of one part."""

    shard: int
    items: list[_Item] = field(default_factory=list)
    face_ids: list[np.ndarray] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    landmarks: list[np.ndarray] = field(default_factory=list)
    rolls: list[np.ndarray] = field(default_factory=list)
    inter_eyes: list[np.ndarray] = field(default_factory=list)
    jpegs: list[bytes] = field(default_factory=list)
    cutting: list[Future[_Crops]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    matrices: list[np.ndarray] = field(default_factory=list)
    chips: list[np.ndarray] = field(default_factory=list)
    embeddings: list[np.ndarray] = field(default_factory=list)

    def add_images(self, items: Sequence[_Item]) -> None:
        self.items.extend(items)

    def add_faces(
        self, rows: list[int], faces: list[Detections], landmarks: list[np.ndarray], scheme: str
    ) -> None:
        counts = np.array([len(found) for found in faces])
        image_ids = make_image_id(self.shard, np.array(rows, np.int64))
        ordinals = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + 1
        points = np.concatenate(landmarks)
        inter_eye, roll = face_geometry(points, scheme)
        self.face_ids.append(make_face_id(np.repeat(image_ids, counts), ordinals))
        self.boxes.append(np.concatenate([found.boxes for found in faces]))
        self.scores.append(np.concatenate([found.scores for found in faces]))
        self.landmarks.append(points)
        self.inter_eyes.append(inter_eye)
        self.rolls.append(roll)

    def add_crops(self, cutting: list[Future[_Crops]]) -> None:
        """Take the crops of one micro-batch while they are made; those before it must be ready first."""
        self._finish_crops()  # bounds the pixels that wait
        self.cutting = cutting

    def _finish_crops(self) -> None:
        for future in self.cutting:
            jpegs, sizes, matrices = future.result()
            self.jpegs.extend(jpegs)
            self.sizes.extend(sizes)
            self.matrices.append(matrices)
        self.cutting = []

    def result(self, versions: ExtractVersions, dim: int) -> StageResult:
        self._finish_crops()
        face_ids = _concat(self.face_ids, (0,), np.int64)
        tables = [(versions.faces, self._faces(face_ids)), (versions.crops, self._crops(face_ids))]
        if versions.embeddings is not None:
            raw = _concat(self.embeddings, (0, dim), np.float32)
            tables.append((versions.embeddings, embeddings_table(face_ids, raw)))
        tables.append((versions.images, self._images()))
        counters = {
            "images": len(self.items),
            "faces": len(face_ids),
            "bytes": sum(item.num_bytes or 0 for item in self.items),
        }
        for item in self.items:
            counters[f"status.{item.status}"] = counters.get(f"status.{item.status}", 0) + 1
        return StageResult(tables, counters)

    def _images(self) -> pa.Table:
        items = self.items
        columns: dict[str, Any] = {
            "image_id": make_image_id(self.shard, np.array([item.row for item in items], np.int64)),
            "uri": [item.uri for item in items],
            "width": [item.width for item in items],
            "height": [item.height for item in items],
            "bytes": [item.num_bytes for item in items],
            "sha256": [item.sha256 for item in items],
            "pdq": [item.pdq for item in items],
            "pdq_quality": [item.pdq_quality for item in items],
            "status": [item.status for item in items],
            "detail": [item.detail for item in items],
            "num_faces": [item.num_faces for item in items],
        }
        return pa.table(columns, schema=table_schema("images"))

    def _faces(self, face_ids: np.ndarray) -> pa.Table:
        points = _concat(self.landmarks, (0, 1, 2), np.float32)
        width = points.shape[1] * 2
        offsets = np.arange(len(points) + 1, dtype=np.int32) * width
        return pa.table(
            {
                "face_id": face_ids,
                "box": fixed_lists(_concat(self.boxes, (0, 4), np.float32)),
                "landmarks": pa.ListArray.from_arrays(offsets, np.ascontiguousarray(points).reshape(-1)),
                "det_score": _concat(self.scores, (0,), np.float32),
                "roll_deg": _concat(self.rolls, (0,), np.float32),
                "inter_eye_px": _concat(self.inter_eyes, (0,), np.float32),
            }
        )

    def _crops(self, face_ids: np.ndarray) -> pa.Table:
        sizes = np.array(self.sizes, np.int16).reshape(-1, 2)
        return pa.table(
            {
                "face_id": face_ids,
                "jpeg": pa.array(self.jpegs, pa.binary()),
                "width": sizes[:, 1],
                "height": sizes[:, 0],
                "matrix": fixed_lists(_concat(self.matrices, (0, 2, 3), np.float32).reshape(-1, 6)),
            }
        )


def embeddings_table(face_ids: np.ndarray, raw: np.ndarray) -> pa.Table:
    """The embeddings table of raw descriptors.

    Args:
        face_ids: int64 [N].
        raw: float32 [N, D] as the network gave them.

    Returns:
        face_id, embedding (float16 [D] of unit length), norm (float32). A descriptor without a direction (zero,
        or not finite) is stored as zeros with its norm, so that it is similar to nothing.
    """
    norms = np.linalg.norm(raw.astype(np.float64), axis=1)
    sound = np.isfinite(norms) & (norms > 0)
    unit = np.zeros_like(raw)
    np.divide(raw, norms[:, None], out=unit, where=sound[:, None], casting="unsafe")
    return pa.table(
        {
            "face_id": face_ids,
            "embedding": fixed_lists(unit.astype(np.float16)),
            "norm": norms.astype(np.float32),
        }
    )


def fixed_lists(values: np.ndarray) -> pa.FixedSizeListArray:
    """[N, D] as an Arrow array of N fixed-size lists, without a copy."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _concat(pieces: Sequence[np.ndarray], empty: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.concatenate(pieces) if pieces else np.zeros(empty, dtype)


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
