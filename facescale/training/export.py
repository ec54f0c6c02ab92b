"""The export stage: a group of parts of faces and crops in, aligned chips in shards of a training set out.

A unit is as many parts, drawn at random, as fit the memory budget; its faces are shuffled among themselves and written
as shards. So reading is sequential, nothing is read twice, and neighbors in a shard come from all over the crawl.
Planned by driver.export, run by the engine. A unit's record in the scratch folder, written last, says that it is done.
"""

from __future__ import annotations

import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow as pa

from facescale.errors import InfrastructureError
from facescale.lake.ids import image_id_of
from facescale.lake.scan import scan, scan_ids
from facescale.lake.stage import StageResult
from facescale.training.recordio import image_record
from facescale.vision.crops import chips_from_crops, decode_jpeg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from facescale.lake.lake import Lake
    from facescale.lake.parts import PartKey, TableVersion
    from facescale.lake.stage import Guard
    from facescale.lake.store import Store

REVISION = 1
"""Raised whenever the same lake and settings give another training set."""

FORMATS = ("webdataset", "parquet", "folder", "recordio")
SPLITS = ("train", "val")
_AT_ONCE = 256


@dataclass(frozen=True)
class ExportUnit:
    """One unit of work.

    Attributes:
        key: `shard` is the number of the unit, `num_rows` its faces.
        parts: of faces and crops, to read.
        first_shard: number of the first shard of each split.
    """

    key: PartKey
    parts: tuple[PartKey, ...]
    first_shard: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What the stage has to know; see facescale.config.export."""

    format: str
    template: str
    jpeg_quality: int
    shard_faces: int
    seed: int
    fingerprint: str
    decode_threads: int = 2

    @property
    def scratch(self) -> str:
        """Folder of the output that holds what is removed at the end."""
        return f"_scratch/{self.fingerprint}"


class ExportStage:
    """Crops to shards of a training set.

    Args:
        settings: what to write.
        lake: to read from.
        out: to write to.
        faces: version of faces.
        crops: version of crops.
        images: version of images.
    """

    name = "export"

    def __init__(
        self,
        settings: ExportSettings,
        lake: Lake,
        out: Store,
        *,
        faces: TableVersion,
        crops: TableVersion,
        images: TableVersion,
    ) -> None:
        self.settings, self.lake, self.out = settings, lake, out
        self.faces, self.crops, self.images = faces, crops, images

    def open(self) -> None:
        """Start the threads that decode and encode."""
        self.pool = ThreadPoolExecutor(self.settings.decode_threads, thread_name_prefix="decode")

    def process(self, part: ExportUnit, guard: Guard) -> StageResult:
        """Write the shards of one unit.

        Raises:
            InfrastructureError: the unit has killed its workers twice.
        """
        if guard.poison:
            raise InfrastructureError(
                f"unit {part.key.shard} of the export has killed its workers; most likely memory ran out: use fewer "
                "--workers or a smaller --memory-gib, then run the same command again"
            )
        s = self.settings
        chosen = self.out.read_table(selection_path(s, part.key.shard))
        samples = self._samples(part, chosen)
        order = np.random.default_rng([s.seed, part.key.shard]).permutation(len(samples))
        samples = samples.take(pa.array(order))
        is_val = samples["is_val"].to_numpy(zero_copy_only=False)
        shards = [0, 0]
        for side, split in enumerate(SPLITS):
            mine = samples.filter(pa.array(is_val == bool(side)))
            step = max(len(mine), 1) if s.format == "recordio" else s.shard_faces
            for start in range(0, len(mine), step):
                number = part.first_shard[side] + shards[side]
                WRITERS[s.format](self, split, number, mine.slice(start, step), part)
                shards[side] += 1
        record = {"faces": len(samples), "shards": shards}
        self.out.write_bytes(done_path(s, part.key.shard), json.dumps(record).encode())
        if guard.note is not None:
            guard.note(part.key.first_row + part.key.num_rows)
        return StageResult([], {"faces": len(samples), "shards": sum(shards)})

    def _samples(self, unit: ExportUnit, chosen: pa.Table) -> pa.Table:
        """The chosen faces with their chips as JPEG, in order of face_id."""
        tables = []
        wanted = chosen["face_id"].to_numpy()
        crops = scan(
            self.lake,
            self.crops,
            columns=["face_id", "jpeg", "matrix"],
            parts=unit.parts,
            batch_rows=_AT_ONCE,
        )
        columns = ["face_id", "landmarks", "quality"]
        faces = scan(self.lake, self.faces, columns=columns, parts=unit.parts, batch_rows=_AT_ONCE)
        for crop, face in zip(crops, faces, strict=True):
            inside = np.isin(face["face_id"].to_numpy(), wanted)
            if inside.any():
                tables.append(self._chips(crop.filter(pa.array(inside)), face.filter(pa.array(inside))))
        made = pa.concat_tables(tables)
        order = np.argsort(made["face_id"].to_numpy(), kind="stable")
        made = made.take(pa.array(order))
        chosen = chosen.take(pa.array(np.argsort(wanted, kind="stable")))
        assert made["face_id"].equals(chosen["face_id"])
        for name in ("class_id", "is_val", "key", "label"):
            made = made.append_column(name, chosen[name])
        image_id = image_id_of(made["face_id"].to_numpy())
        ids, of = np.unique(image_id, return_inverse=True)
        uris = scan_ids(self.lake, self.images, ids, ["uri"])["uri"]
        return made.append_column("uri", uris.take(pa.array(of)))

    def _chips(self, crops: pa.Table, faces: pa.Table) -> pa.Table:
        pixels = list(self.pool.map(decode_jpeg, crops["jpeg"].to_pylist()))
        points = faces["landmarks"].combine_chunks().flatten().to_numpy().reshape(len(faces), -1, 2)
        matrices = crops["matrix"].combine_chunks().flatten().to_numpy().reshape(-1, 2, 3)
        if self.settings.template == "crop":
            jpegs = crops["jpeg"].to_pylist()
        else:
            chips = chips_from_crops(pixels, matrices, points, self.settings.template)
            jpegs = list(self.pool.map(self._encode, chips))
        return pa.table(
            {"face_id": faces["face_id"], "quality": faces["quality"], "jpeg": pa.array(jpegs, pa.binary())}
        )

    def _encode(self, chip: np.ndarray) -> bytes:
        options = [cv2.IMWRITE_JPEG_QUALITY, self.settings.jpeg_quality]
        return bytes(cv2.imencode(".jpg", cv2.cvtColor(chip, cv2.COLOR_RGB2BGR), options)[1])

    def write_tar(self, split: str, number: int, samples: pa.Table, unit: ExportUnit) -> None:
        """A WebDataset shard: of each face FACE_ID.jpg, .cls (its class id) and .json (the rest)."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for row in _rows(samples):
                meta = {name: row[name] for name in ("label", "uri", "quality")} | {
                    "face_id": str(row["face_id"])
                }
                files = {
                    "jpg": row["jpeg"],
                    "cls": str(row["class_id"]).encode(),
                    "json": json.dumps(meta).encode(),
                }
                for suffix, data in files.items():
                    info = tarfile.TarInfo(f"{row['face_id']:016d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        self.out.write_bytes(f"{split}-{number:06d}.tar", buffer.getvalue())

    def write_parquet(self, split: str, number: int, samples: pa.Table, unit: ExportUnit) -> None:
        """A Parquet shard: face_id, class_id, label, uri, quality, jpeg."""
        table = samples.select(["face_id", "class_id", "label", "uri", "quality", "jpeg"])
        self.out.write_table(f"{split}-{number:06d}.parquet", table)

    def write_folder(self, split: str, number: int, samples: pa.Table, unit: ExportUnit) -> None:
        """A file a face: SPLIT/CLASS_ID/FACE_ID.jpg. Names are in classes.parquet: they may be no file names."""
        with self.out.batch() as batch:
            for row in _rows(samples):
                batch.add_bytes(f"{split}/{row['class_id']:07d}/{row['face_id']:016d}.jpg", row["jpeg"])

    def write_records(self, split: str, number: int, samples: pa.Table, unit: ExportUnit) -> None:
        """A piece of the split's RecordIO file, and where its records start; driver.export joins them."""
        records = [image_record(row["key"], row["class_id"], row["jpeg"]) for row in _rows(samples)]
        offsets = np.cumsum([0, *(len(record) for record in records)])[:-1]
        name = records_path(self.settings, split, unit.key.shard)
        with self.out.batch() as batch:
            batch.add_bytes(name, b"".join(records))
            batch.add_table(f"{name}.idx", pa.table({"key": samples["key"], "offset": offsets}))


WRITERS: dict[str, Any] = {
    "webdataset": ExportStage.write_tar,
    "parquet": ExportStage.write_parquet,
    "folder": ExportStage.write_folder,
    "recordio": ExportStage.write_records,
}


def selection_path(settings: ExportSettings, unit: int) -> str:
    """Where the driver says which faces a unit takes."""
    return f"{settings.scratch}/chosen/{unit:07d}.parquet"


def done_path(settings: ExportSettings, unit: int) -> str:
    """Where a unit says that it is done."""
    return f"{settings.scratch}/done/{unit:07d}.json"


def records_path(settings: ExportSettings, split: str, unit: int) -> str:
    """Where a unit's records wait to be joined."""
    return f"{settings.scratch}/{split}/{unit:07d}.rec"


def _rows(samples: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows as plain values, some at a time: a container is written file by file."""
    for batch in samples.to_batches(max_chunksize=_AT_ONCE):
        yield from batch.to_pylist()
