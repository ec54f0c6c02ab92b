"""The truth table of a synthetic crawl: what each file is, and how the crawl was made.

In: one row per file. Out: truth.parquet with the request in its footer, and the summary that can be read back from
it. Called by facescale.synth.crawl and facescale.synth.score.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facescale.errors import UsageError

if TYPE_CHECKING:
    from facescale.synth.cast import Cast

TRUTH_FILE, IMAGES_FOLDER, BUILDING = "truth.parquet", "images", "_building"
_FOOTER_KEY = b"facescale.synth"


def _field(name: str, kind: pa.DataType, description: str, unit: str | None = None) -> pa.Field:
    return pa.field(name, kind, metadata={"description": description} | ({"unit": unit} if unit else {}))


TRUTH_SCHEMA = pa.schema(
    [
        _field("path", pa.string(), "file, relative to the images folder"),
        _field("claimed", pa.string(), "label of the folder"),
        _field("identities", pa.list_(pa.string()), "who is in it, in the order of boxes"),
        _field("kind", pa.string(), "clean, or what was planted"),
        _field("variations", pa.list_(pa.string()), "what is unusual about it"),
        _field("group", pa.int32(), "files with the same number are copies; null: there is no copy"),
        _field("original", pa.string(), "path of the file that this one copies; null for all others"),
        _field("num_faces", pa.int16(), "faces to be found"),
        _field("status", pa.string(), "status expected in the images table"),
        _field("boxes", pa.list_(pa.list_(pa.float32(), 4)), "x1, y1, x2, y2 in the upright picture", "px"),
        _field("width", pa.int32(), "upright; null for damaged files", "px"),
        _field("height", pa.int32(), "upright; null for damaged files", "px"),
        _field("bytes", pa.int64(), "size of the file", "byte"),
    ]
)


@dataclass(frozen=True)
class SynthSummary:
    """What `make_crawl` made.

    Args:
        out: the folder.
        images: the folder to run facescale on.
        truth: the truth table.
        identities: people.
        files: files in `images`.
        total_bytes: their size.
        counts: files per kind.
        auditioned: people drawn to find those identities.
        nearest: smallest L2 distance between raw descriptors of two identities' plain portraits.
        mean_distance: mean of the same.
        seconds: wall time of the making.
        reused: the crawl was there already, made with the same arguments, and nothing was done.
    """

    out: str
    images: str
    truth: str
    identities: int
    files: int
    total_bytes: int
    counts: dict[str, int]
    auditioned: int
    nearest: float
    mean_distance: float
    seconds: float
    reused: bool = False


def existing_crawl(folder: Path, request: dict[str, Any]) -> SynthSummary | None:
    """The crawl that is already in a folder, if it is the requested one; None if the folder is free.

    Raises:
        UsageError: the folder holds something else, which is left alone.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"synth: {folder} is a file: give a folder to make")
    inside = {path.name for path in folder.iterdir()} - {BUILDING} if folder.is_dir() else set()
    if not inside:
        return None
    if not {TRUTH_FILE, IMAGES_FOLDER} <= inside:
        raise UsageError(
            f"synth: {folder} is not empty and holds no synthetic crawl: give another folder, or empty it"
        )
    made = _footer(folder / TRUTH_FILE)
    if made["request"] != request:
        other = {name: value for name, value in made["request"].items() if request.get(name) != value}
        raise UsageError(
            f"synth: {folder} holds a crawl made with other arguments ({other}): give another folder, or remove it"
        )
    return _summary(folder, made, reused=True)


def write_truth(
    folder: Path,
    building: Path,
    request: dict[str, Any],
    cast: Cast,
    rows: list[dict[str, Any]],
    seconds: float,
) -> SynthSummary:
    """Write the table and move images and table into place, the table last: a folder that has one is complete."""
    rows = sorted(rows, key=lambda row: row["path"])
    gaps = np.linalg.norm(cast.descriptors[:, None] - cast.descriptors[None], axis=2)
    pairs = gaps[np.triu_indices(len(gaps), 1)]
    kinds = [row["kind"] for row in rows]
    made = {
        "request": request,
        "files": len(rows),
        "total_bytes": sum(row["bytes"] for row in rows),
        "counts": {kind: kinds.count(kind) for kind in dict.fromkeys(sorted(kinds))},
        "auditioned": cast.auditioned,
        "nearest": round(float(pairs.min()), 4) if len(pairs) else 0.0,
        "mean_distance": round(float(pairs.mean()), 4) if len(pairs) else 0.0,
    }
    table = pa.Table.from_pylist(rows, TRUTH_SCHEMA)
    table = table.replace_schema_metadata({_FOOTER_KEY: json.dumps(made, sort_keys=True)})
    pq.write_table(table, building / TRUTH_FILE)
    (building / IMAGES_FOLDER).rename(folder / IMAGES_FOLDER)
    (building / TRUTH_FILE).rename(folder / TRUTH_FILE)
    building.rmdir()
    return _summary(folder, made, seconds=seconds)


def read_truth(path: str | Path) -> pa.Table:
    """The truth table of a crawl, given its file or the crawl's folder.

    Raises:
        UsageError: there is none.
    """
    file = Path(path)
    file = file / TRUTH_FILE if file.is_dir() else file
    _footer(file)
    return pq.read_table(file)


def _footer(file: Path) -> dict[str, Any]:
    try:
        metadata = pq.read_schema(file).metadata or {}
        made: dict[str, Any] = json.loads(metadata[_FOOTER_KEY])
    except (OSError, KeyError, pa.ArrowInvalid, json.JSONDecodeError) as error:
        raise UsageError(
            f"{file} is not the truth table of a synthetic crawl ({type(error).__name__}: {error})"
        ) from error
    return made


def _summary(
    folder: Path, made: dict[str, Any], *, seconds: float = 0.0, reused: bool = False
) -> SynthSummary:
    return SynthSummary(
        out=str(folder),
        images=str(folder / IMAGES_FOLDER),
        truth=str(folder / TRUTH_FILE),
        identities=made["request"]["identities"],
        files=made["files"],
        total_bytes=made["total_bytes"],
        counts=made["counts"],
        auditioned=made["auditioned"],
        nearest=made["nearest"],
        mean_distance=made["mean_distance"],
        seconds=seconds,
        reused=reused,
    )
