"""The annotate stage: one part of faces and stored crops in, the columns that an annotator writes out.

Planned by facescale.driver.annotate, run by the engine.
"""

from __future__ import annotations

import importlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from facescale.errors import CorruptError, MismatchError
from facescale.lake.ids import split_ids
from facescale.lake.schema import COLUMNS_KEY, extended, schema_of, table_spec
from facescale.lake.stage import Guard, StageResult
from facescale.models.access import ModelAccess
from facescale.models.annotator_card import annotator_part
from facescale.models.weights import use_weights_folder
from facescale.vision.annotator_chips import annotator_chips
from facescale.vision.crops import decode_jpeg
from facescale.vision.registry import load_annotator

if TYPE_CHECKING:
    from facescale.lake.parts import PartKey, TableVersion
    from facescale.lake.store import Store
    from facescale.models.annotator_card import AnnotatorColumn
    from facescale.models.card import ModelCard

REVISION = 1
"""Raised whenever attributes change for the same crops, card and settings."""

_FACES_AT_ONCE = 256  # decoded crops in memory: 256 × 192 KiB


@dataclass(frozen=True)
class AnnotateSettings:
    """Which model, where, and how many faces at once.

    Attributes:
        card: of the annotator, whole: workers need not have it registered.
        scheme: landmark scheme of the faces.
    """

    card: ModelCard
    scheme: str
    precision: str
    device: str = "cpu"
    batch: int = 32
    decode_threads: int = 2
    plugins: tuple[str, ...] = ()
    weights_dirs: tuple[str, ...] = ()
    models: ModelAccess = field(default_factory=ModelAccess)


class AnnotateStage:
    """Crops to attributes.

    Args:
        settings: model and device.
        store: of the lake.
        faces: version to read landmarks from.
        crops: version to read pixels from.
        output: version to make.
    """

    name = "annotate"

    def __init__(
        self,
        settings: AnnotateSettings,
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
        s.models.enter()
        for module in s.plugins:
            importlib.import_module(module)
        for folder in s.weights_dirs:
            use_weights_folder(folder)
        self.part = annotator_part(s.card)
        self.annotator = load_annotator(s.card, device=s.device, precision=s.precision, batch=s.batch)
        self.pool = ThreadPoolExecutor(s.decode_threads, thread_name_prefix="decode")

    def process(self, part: PartKey, guard: Guard) -> StageResult:
        """Annotate the faces of one part.

        Raises:
            CorruptError: faces and crops of the part do not hold the same faces.
            MismatchError: the model does not give what its card declares.
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
        sound = np.flatnonzero(keep)
        faces, crops = faces.take(sound), crops.take(sound)
        columns: dict[str, list[pa.Array]] = {column.name: [] for column in self.part.columns}
        failed = np.zeros(len(sound), bool)
        step = 1 if guard.careful else _FACES_AT_ONCE
        for start in range(0, len(sound), step):
            if guard.note is not None:
                guard.note(int(rows[sound[start]]))
            stop = min(start + step, len(sound))
            found, failed[start:stop] = self._annotate(faces.slice(start, step), crops.slice(start, step))
            for name, values in found.items():
                columns[name].append(values)
        if guard.note is not None:
            guard.note(part.first_row + part.num_rows)
        status = np.full(len(face_ids), "ok", object)
        status[~keep], status[sound[failed]] = "poison", "not_finite"
        table = self._table(face_ids, status, columns, np.where(keep, np.cumsum(keep) - 1, 0), keep)
        counters = {
            "faces": len(face_ids),
            "poison": int((~keep).sum()),
            "not_finite": int(failed.sum()),
        }
        return StageResult([(self.output, table)], counters)

    def _annotate(self, faces: pa.Table, crops: pa.Table) -> tuple[dict[str, pa.Array], np.ndarray]:
        """Columns of some faces, and for which of them the model gave no finite numbers."""
        images = list(self.pool.map(decode_jpeg, crops["jpeg"].to_pylist()))
        landmarks = faces["landmarks"].combine_chunks().flatten().to_numpy().reshape(len(faces), -1, 2)
        matrices = crops["matrix"].combine_chunks().flatten().to_numpy().reshape(-1, 2, 3)
        card = self.settings.card
        chips = annotator_chips(
            images, matrices, landmarks, self.settings.scheme, card, self.part, pool=self.pool
        )
        found = dict(self.annotator.annotate(chips.pixels))
        failed = np.asarray(found.pop("not_finite", np.zeros(len(images), bool)))
        if set(found) != {column.name for column in self.part.columns}:
            raise MismatchError(
                f"annotator {card.name} gave the columns {', '.join(sorted(found))}; its card declares "
                f"{', '.join(column.name for column in self.part.columns)}"
            )
        arrays = {}
        for column in self.part.columns:
            values = _checked(column, np.asarray(found[column.name]), len(images), card.name)
            if column.how == "points":
                values = chips.to_image(values)
            arrays[column.name], broken = to_arrow(column, values)
            failed = failed | broken
        return arrays, failed

    def _table(
        self,
        face_ids: np.ndarray,
        status: np.ndarray,
        columns: dict[str, list[pa.Array]],
        at: np.ndarray,
        keep: np.ndarray,
    ) -> pa.Table:
        """All faces of the part; `at` is each one's row in the columns, where it is kept at all."""
        declared = self.part.declared()
        schema = schema_of(extended(table_spec("attributes"), declared, where=self.output.folder))
        take = pa.array(at, pa.int64(), mask=~keep)
        arrays = [pa.array(face_ids), pa.array(status, pa.string())]
        for name, chunks in columns.items():
            values = pa.chunked_array(chunks, type=schema.field(name).type)
            arrays.append(values.take(take).combine_chunks())
        metadata = {**(schema.metadata or {}), COLUMNS_KEY: json.dumps(declared, sort_keys=True)}
        return pa.Table.from_arrays(arrays, schema=schema.with_metadata(metadata))


def to_arrow(column: AnnotatorColumn, values: np.ndarray) -> tuple[pa.Array, np.ndarray]:
    """A column for the table, null where there is no value.

    Args:
        column: as declared.
        values: as facescale.vision.protocols.Annotator gives them, [N] or [N, L].

    Returns:
        The array, and bool [N]: where a number that should be there is not finite.
    """
    if column.type == "string":
        return pa.array(values.tolist(), pa.string()), np.zeros(len(values), bool)
    if column.is_list:
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        broken = ~np.isfinite(values).all(axis=1)
        # A null list holds no numbers: offsets step over the rows that are broken.
        offsets = np.concatenate([[0], np.cumsum(np.where(broken, 0, values.shape[1]))]).astype(np.int32)
        flat = pa.array(values[~broken].ravel(), pa.float32())
        return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pa.array(broken)), broken
    numbers = values.astype(np.float64)
    if column.type == "float":
        with np.errstate(over="ignore"):
            numbers = numbers.astype(np.float32)
        broken = ~np.isfinite(numbers)
        return pa.array(numbers, pa.float32(), mask=broken), broken
    missing = ~(np.abs(numbers) < 2**31)
    whole = np.where(missing, 0, numbers)
    kind, dtype = (pa.bool_(), np.bool_) if column.type == "bool" else (pa.int32(), np.int32)
    return pa.array(whole.astype(dtype), kind, mask=missing), missing & ~np.isnan(numbers)


def _checked(column: AnnotatorColumn, values: np.ndarray, count: int, name: str) -> np.ndarray:
    wanted = 2 if column.is_list else 1
    if values.ndim != wanted or len(values) != count:
        raise MismatchError(
            f"annotator {name} gave column {column.name} as an array of shape {values.shape}; a {column.type} of "
            f"{count} faces is {[count, 'L'] if column.is_list else [count]}"
        )
    return values
