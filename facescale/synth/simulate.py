"""A part of a simulated crawl: rows of its plan in, tables of images, faces, embeddings and labels out, and the truth.

Called by the engine (SimulateStage) and by driver.simulate, which writes the plan and the truth.

Shape legend: N photographs, F faces, D dimension.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facescale.lake.ids import make_face_id, make_image_id
from facescale.lake.schema import table_schema
from facescale.lake.stage import Guard, StageResult
from facescale.sources.vector_shared import row_uris
from facescale.synth.geometry import FaceModel, load_geometry
from facescale.synth.hashing import keys_of, uniforms
from facescale.synth.population import BYSTANDER, KINDS, NOBODY, Mixture, Photos, Population

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.lake.parts import PartKey, TableVersion
    from facescale.sources.plan import SourcePart

    Ints = NDArray[np.int64]

REVISION = 1
SHARD_ROWS = 1 << 20
_WIDTH, _HEIGHT = 320, 240
_BOX = np.array([100, 60, 220, 200], np.float32)  # in the middle
_SIDE_BOX = np.array([8, 90, 68, 160], np.float32)
_NORM = 20.0

TRUTH_SCHEMA = pa.schema(
    [
        ("face_id", pa.int64()),
        ("path", pa.string()),
        ("identity", pa.string()),
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("original", pa.int64()),
    ]
)
"""The truth: identity is null for what is no face; path, which names the image, for bystanders; original is equal for
copies of one photograph, null for bystanders."""


@dataclass(frozen=True)
class Simulation:
    """What is simulated; equal ones give equal tables.

    Attributes:
        identities: people with a label.
        faces: faces in all, bystanders among them.
        dim: D.
        seed: 0 or more.
        mixture: of the crawl.
    """

    identities: int
    faces: int
    dim: int
    seed: int
    mixture: Mixture

    @property
    def bystanders(self) -> int:
        """Faces beside the person who is meant."""
        return int(self.faces * self.mixture.bystanders)

    @property
    def photos(self) -> int:
        """Photographs: each has one face, and some a bystander's."""
        return self.faces - self.bystanders

    def settings(self) -> dict[str, Any]:
        """Plain values, for fingerprints."""
        return {
            "identities": self.identities,
            "faces": self.faces,
            "dim": self.dim,
            "seed": self.seed,
            "mixture": asdict(self.mixture),
            "geometry": load_geometry().settings(),
        }

    def population(self) -> Population:
        """Who is on what."""
        return Population(self.identities, self.photos, self.seed, self.mixture)


@dataclass(frozen=True)
class SimulateVersions:
    """Where the tables go."""

    images: TableVersion
    faces: TableVersion
    embeddings: TableVersion
    labels: TableVersion


@dataclass(frozen=True, eq=False)
class _Faces:
    """Faces of a part in the order of their ids: the person who is meant, then the bystander.

    Attributes:
        photo: int64 [F], place of the photograph in the part.
        side: bool [F], a bystander's.
        person: int64 [F]; NOBODY for what is no face.
        key: int64 [F], what the face hangs on: copies have their original's.
        copy: int64 [F], key of the copy; -1 for originals.
    """

    photo: Ints
    side: NDArray[np.bool_]
    person: Ints
    key: Ints
    copy: Ints


class SimulateStage:
    """The stage of `synth embeddings`. Counters: images, faces, labels, status.ok, and kind.* for each kind there is.

    Args:
        simulation: what to make.
        versions: where the tables go.
    """

    name = "simulate"

    def __init__(self, simulation: Simulation, versions: SimulateVersions) -> None:
        self.simulation, self.versions = simulation, versions
        self._model: FaceModel | None = None

    def open(self) -> None:
        """Count everybody's photographs; 8 bytes a person, and a basis of 4 D² bytes."""
        self._model = FaceModel(load_geometry(), self.simulation.population(), self.simulation.dim)
        self._model.population.starts  # noqa: B018
        self._model.basis  # noqa: B018

    def process(self, part: SourcePart, guard: Guard) -> StageResult:
        """Make the tables of one part.

        Notes:
            Memory: 6 D bytes a face, and some 100 D bytes for each of 4,096 faces at a time.
        """
        assert self._model is not None
        model, key = self._model, part.key
        rows = rows_of(key)
        photos = model.population.photos_of(rows)
        faces = _faces_of(self.simulation, model.population, rows, photos)
        latent = model.latent_quality(faces.key)
        latent[faces.side] *= 0.8  # who stands aside is smaller
        unit = model.vectors(faces.key, faces.person, latent, faces.copy)
        face_ids = make_face_id(
            make_image_id(key.shard, key.first_row + faces.photo), faces.side + np.int64(1)
        )
        quality = model.measured_quality(faces.key * 2 + (faces.copy >= 0), latent)
        tables = [
            (self.versions.labels, _labels(key, photos)),
            (self.versions.faces, _faces_table(face_ids, faces, quality)),
            (self.versions.embeddings, _embeddings(face_ids, unit, quality)),
            (self.versions.images, self._images(key, rows, photos, faces)),
        ]
        kinds = np.bincount(_kinds(photos, faces), minlength=len(KINDS))
        counters = {f"kind.{name}": int(count) for name, count in zip(KINDS, kinds, strict=True) if count}
        counts = {"images": len(rows), "faces": len(face_ids), "labels": len(rows), "status.ok": len(rows)}
        copies = int((photos.slot != photos.original).sum())
        return StageResult(tables, counts | counters | ({"copies": copies} if copies else {}))

    def _images(self, key: PartKey, rows: Ints, photos: Photos, faces: _Faces) -> pa.Table:
        seed = self.simulation.seed
        file = np.where(photos.exact, photos.original, photos.slot)
        size = 20_000 + (uniforms(seed, "bytes", file) * 60_000).astype(np.int64)
        return pa.table(
            {
                "image_id": make_image_id(key.shard, key.first_row + np.arange(len(rows))),
                "uri": row_uris(shard_uri(key.shard), key.first_row + np.arange(len(rows))),
                "width": np.full(len(rows), _WIDTH, np.int32),
                "height": np.full(len(rows), _HEIGHT, np.int32),
                "bytes": size,
                "sha256": _digests(_words(seed, "sha256", file)),
                "pdq": _digests(_hashes(seed, photos)),
                "pdq_quality": np.full(len(rows), 100, np.int16),
                "status": pa.DictionaryArray.from_arrays(np.zeros(len(rows), np.int8), ["ok"]).cast(
                    pa.string()
                ),
                "num_faces": np.bincount(faces.photo, minlength=len(rows)).astype(np.int16),
            }
        )


def rows_of(key: PartKey) -> Ints:
    """Numbers of a part's photographs in the whole crawl."""
    return key.shard * np.int64(SHARD_ROWS) + key.first_row + np.arange(key.num_rows)


def shard_uri(shard: int) -> str:
    """The source that a shard is planned as."""
    return f"simulated-{shard:07d}"


def truth_table(simulation: Simulation, population: Population, key: PartKey) -> pa.Table:
    """The truth about a part; no embedding is made for it."""
    rows = rows_of(key)
    photos = population.photos_of(rows)
    faces = _faces_of(simulation, population, rows, photos)
    paths = row_uris(shard_uri(key.shard), key.first_row + faces.photo)
    none = pa.scalar(None, pa.string())
    columns = [
        pa.array(
            make_face_id(make_image_id(key.shard, key.first_row + faces.photo), faces.side + np.int64(1))
        ),
        pc.if_else(pa.array(faces.side), none, paths),
        pc.if_else(pa.array(faces.person == NOBODY), none, _names("person", faces.person)),
        pa.DictionaryArray.from_arrays(_kinds(photos, faces), list(KINDS)),
        pa.array(photos.original[faces.photo], mask=faces.side),
    ]
    return pa.Table.from_arrays(columns, schema=TRUTH_SCHEMA)


def _faces_of(simulation: Simulation, population: Population, rows: Ints, photos: Photos) -> _Faces:
    beside, who = population.bystander_of(rows, simulation.bystanders)
    count = 1 + beside.astype(np.int64)
    photo = np.repeat(np.arange(len(rows)), count)
    side = np.zeros(len(photo), bool)
    side[np.cumsum(count)[beside] - 1] = True
    copied = photos.slot != photos.original
    return _Faces(
        photo=photo,
        side=side,
        person=np.where(side, who[photo], photos.person[photo]),
        key=np.where(side, simulation.photos + rows[photo], photos.original[photo]),
        copy=np.where(~side & copied[photo], photos.slot[photo], -1),
    )


def _kinds(photos: Photos, faces: _Faces) -> NDArray[np.int8]:
    return np.where(faces.side, np.int8(BYSTANDER), photos.kind[faces.photo]).astype(np.int8)


def _labels(key: PartKey, photos: Photos) -> pa.Table:
    names = _names("person", photos.label)
    names = pc.if_else(pa.array(photos.second_name), pc.binary_join_element_wise(names, "alias", " "), names)
    return pa.table(
        {
            "image_id": make_image_id(key.shard, key.first_row + np.arange(key.num_rows)),
            "label": names,
            "origin": pa.DictionaryArray.from_arrays(np.zeros(key.num_rows, np.int8), ["simulated"]).cast(
                pa.string()
            ),
        }
    )


def _faces_table(face_ids: Ints, faces: _Faces, quality: NDArray[np.float32]) -> pa.Table:
    boxes = np.where(faces.side[:, None], _SIDE_BOX, _BOX)
    # Of an image's faces the one that is meant scores higher.
    score = np.where(faces.side, 0.5 * quality, 0.5 + 0.5 * quality).astype(np.float32)
    landmarks = pa.ListArray.from_arrays(np.zeros(len(face_ids) + 1, np.int32), pa.array([], pa.float32()))
    return pa.table(
        {
            "face_id": face_ids,
            "box": pa.FixedSizeListArray.from_arrays(pa.array(boxes.ravel()), 4),
            "landmarks": landmarks,
            "det_score": score,
            "quality": quality,
        }
    )


def _embeddings(face_ids: Ints, unit: NDArray[np.float32], quality: NDArray[np.float32]) -> pa.Table:
    schema = table_schema("embeddings", dim=unit.shape[1])
    flat = pa.array(unit.astype(np.float16).ravel(), pa.float16())
    vectors = pa.FixedSizeListArray.from_arrays(flat, unit.shape[1])
    norm = (_NORM * (0.5 + 0.5 * quality)).astype(np.float32)
    return pa.Table.from_arrays([pa.array(face_ids), vectors, pa.array(norm)], schema=schema)


def _names(what: str, numbers: Ints) -> pa.Array:
    return pc.binary_join_element_wise(what, pa.array(numbers).cast(pa.string()), " ")


def _words(seed: int, stream: str, values: Ints) -> NDArray[np.uint64]:
    """uint64 [N, 4]."""
    return np.stack([keys_of(seed, f"{stream} {word}", values) for word in range(4)], axis=1)


def _hashes(seed: int, photos: Photos) -> NDArray[np.uint64]:
    """PDQ of photographs: that of the original, with some 16 of 256 bits changed in copies that are no same files."""
    found = _words(seed, "pdq", photos.original)
    near = (photos.slot != photos.original) & ~photos.exact
    changed = ~np.uint64(0)
    flips = np.full((int(near.sum()), 4), changed)
    for turn in range(4):
        flips &= _words(seed, f"pdq flips {turn}", photos.slot[near])
    found[near] ^= flips
    return found


def _digests(words: NDArray[np.uint64]) -> pa.Array:
    data = np.ascontiguousarray(words.astype("<u8"))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(data), [None, pa.py_buffer(data)])
