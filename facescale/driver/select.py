"""Drive `lake select`: a condition in, the faces that meet it out: how many, and as Parquet. Called by cli.

The file holds face_id, image_id and the columns that the condition speaks of; memory is that of one part.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facescale.errors import UsageError
from facescale.lake.face_filter import ID, FaceFilter
from facescale.lake.ids import image_id_of
from facescale.lake.lake import Lake
from facescale.lake.scan import scan


@dataclass
class Selection:
    """What a condition let through.

    Attributes:
        where: the condition.
        faces: how many were asked.
        selected: how many meet it.
        output: where they were written, if anywhere.
    """

    where: str
    faces: int = 0
    selected: int = 0
    output: str | None = None


def select_faces(lake_uri: str, where: str, *, output: str | None = None) -> Selection:
    """Count the faces that meet a condition, and write them down.

    Args:
        lake_uri: root of the lake.
        where: see facescale.lake.where.
        output: Parquet file; a temporary name is used until it is whole.

    Raises:
        UsageError: no lake, no faces, no condition; or the file cannot be written.
        MismatchError: attributes of other faces than the current ones.
    """
    lake = Lake.open(lake_uri)
    condition = FaceFilter(lake, where)
    faces = lake.current("faces")
    assert faces is not None  # FaceFilter has asked
    found = Selection(where, output=output)
    partial = None if output is None else Path(output).with_name(f".{Path(output).name}.partial")
    try:
        with ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            if partial is not None:
                partial.parent.mkdir(parents=True, exist_ok=True)
                schema = _named(condition.select(np.empty(0, np.int64))).schema
                writer = stack.enter_context(pq.ParquetWriter(partial, schema, compression="zstd"))
            for block in scan(lake, faces, columns=["face_id"]):
                chosen = _named(condition.select(block["face_id"].to_numpy()))
                found.faces += block.num_rows
                found.selected += chosen.num_rows
                if writer is not None:
                    writer.write_table(chosen)
        if partial is not None and output is not None:
            partial.replace(output)
    except OSError as error:
        if error.filename is None or partial is None or Path(error.filename).parent != partial.parent:
            raise
        raise UsageError(f"{output} cannot be written: {error.strerror}") from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
    return found


def _named(chosen: pa.Table) -> pa.Table:
    """The condition's columns behind face_id and image_id."""
    ids = chosen[ID].combine_chunks()
    columns = {"face_id": ids, "image_id": pa.array(image_id_of(ids.to_numpy()))}
    columns |= {name: chosen[name] for name in chosen.column_names if name not in (ID, "face_id")}
    return pa.table(columns)
