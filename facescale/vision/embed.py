"""The embed stage: one part of faces and stored crops in, another model's embeddings out; no image is read again.

Planned by facescale.driver.embed, run by the engine.
"""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from facescale.errors import CorruptError
from facescale.lake.ids import split_ids
from facescale.lake.stage import Guard, StageResult
from facescale.models.access import ModelAccess
from facescale.models.trust import trust_files
from facescale.models.weights import use_weights_folder
from facescale.vision.columns import embeddings_table
from facescale.vision.crops import chips_from_crops, decode_jpeg
from facescale.vision.registry import load_embedder

if TYPE_CHECKING:
    import pyarrow as pa

    from facescale.lake.parts import PartKey, TableVersion
    from facescale.lake.store import Store

REVISION = 2
"""Raised whenever the embeddings change for the same crops and settings."""

_FACES_AT_ONCE = 256  # decoded crops in memory: 256 × 192 KiB


@dataclass(frozen=True)
class EmbedSettings:
    """Which model, where, and how many faces at once."""

    embedder: str
    precision: str
    device: str = "cpu"
    embed_batch: int = 32
    decode_threads: int = 2
    plugins: tuple[str, ...] = ()
    runtime: str = "auto"
    accelerate: str = "none"
    flip: bool = False
    trust: bool = False
    weights_dir: str | None = None
    models: ModelAccess = field(default_factory=ModelAccess)


class EmbedStage:
    """Crops to embeddings.

    Args:
        settings: model and device.
        store: of the lake.
        faces: version to read landmarks from.
        crops: version to read pixels from.
        output: version to make.
    """

    name = "embed"

    def __init__(
        self,
        settings: EmbedSettings,
        store: Store,
        *,
        faces: TableVersion,
        crops: TableVersion,
        output: TableVersion,
    ) -> None:
        self.settings, self.store = settings, store
        self.faces, self.crops, self.output = faces, crops, output

    def open(self) -> None:
        """Load the model; raises UsageError or MismatchError as facescale.vision.registry does."""
        s = self.settings
        for module in s.plugins:
            importlib.import_module(module)
        use_weights_folder(s.weights_dir)
        trust_files(s.trust)
        s.models.enter()
        self.embedder = load_embedder(
            s.embedder,
            device=s.device,
            precision=s.precision,
            batch=s.embed_batch,
            backend=s.runtime,
            accelerate=s.accelerate,
            flip=s.flip,
        )
        self.pool = ThreadPoolExecutor(s.decode_threads, thread_name_prefix="decode")

    def process(self, part: PartKey, guard: Guard) -> StageResult:
        """Embed the faces of one part.

        Raises:
            CorruptError: faces and crops of the part do not hold the same faces.
        """
        faces = self.store.read_table(self.faces.part_path(part), columns=["face_id", "landmarks"])
        crops = self.store.read_table(self.crops.part_path(part), columns=["face_id", "jpeg", "matrix"])
        if not faces["face_id"].equals(crops["face_id"]):
            raise CorruptError(
                f"{self.faces.part_path(part)} and {self.crops.part_path(part)} hold different faces: "
                "run `facescale lake verify`, delete the part's files and run extract again"
            )
        face_ids = faces["face_id"].to_numpy()
        _, rows, _ = split_ids(face_ids)
        keep = ~np.isin(rows, np.fromiter(guard.poison, np.int64))
        if not keep.all():
            faces, crops = faces.filter(keep), crops.filter(keep)
        raw = np.zeros((faces.num_rows, self.embedder.dim), np.float32)
        step = 1 if guard.careful else _FACES_AT_ONCE
        for start in range(0, faces.num_rows, step):
            if guard.note is not None:
                guard.note(int(rows[keep][start]))
            stop = min(start + step, faces.num_rows)
            raw[start:stop] = self._embed(faces.slice(start, step), crops.slice(start, step))
        if guard.note is not None:
            guard.note(part.first_row + part.num_rows)
        counters = {"faces": faces.num_rows, "poison": int((~keep).sum())}
        return StageResult([(self.output, embeddings_table(faces["face_id"].to_numpy(), raw))], counters)

    def _embed(self, faces: pa.Table, crops: pa.Table) -> np.ndarray:
        images = list(self.pool.map(decode_jpeg, crops["jpeg"].to_pylist()))
        landmarks = faces["landmarks"].combine_chunks().flatten().to_numpy().reshape(len(faces), -1, 2)
        matrices = crops["matrix"].combine_chunks().flatten().to_numpy().reshape(-1, 2, 3)
        return self.embedder.embed(
            chips_from_crops(images, matrices, landmarks, self.embedder.card.template or "")
        )
