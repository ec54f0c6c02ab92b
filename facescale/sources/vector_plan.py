"""What planning needs to know of embeddings made elsewhere: which files hold them, how many rows, which dimension.

Called by driver.imports, and by the drivers that must tell a lake of imported embeddings from one of photographs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from facescale.errors import UsageError
from facescale.lake.sources_table import list_shards, shard_path
from facescale.sources.containers import ContainerError, Scan
from facescale.sources.plan import Inputs
from facescale.sources.vector_file import open_vectors, vector_format
from facescale.sources.vector_types import WITHOUT_PIXELS

if TYPE_CHECKING:
    from facescale.lake.lake import Lake
    from facescale.sources.walk import Found

_GONE = "gone"


def vector_inputs(column: str, dim: int | None) -> Inputs:
    """Files of embeddings, for plan_sources.

    Args:
        column: of the embedding, in Parquet.
        dim: of raw float32 files; None takes it from the labels beside them.
    """

    def look(uri: str, kind: str, granularity: int) -> Scan:
        found = Scan()
        try:
            with open_vectors(uri, kind, column=column, dim=dim) as file:
                found.num_rows = file.num_rows
        except (ContainerError, pa.ArrowException) as error:
            found.problem = str(error)
        except OSError as error:
            found.problem = (
                f"cannot be read: {error.strerror or error}; grant access or replace it, then rerun"
            )
        if not found.num_rows and found.problem is None:
            found.problem = "holds no rows"
        return found

    return Inputs(vector_format, look, "Parquet, .npy or .bin file of embeddings")


def dim_of(file: Found, column: str, dim: int | None) -> int:
    """The dimension of the embeddings in a file, from its first rows.

    Raises:
        UsageError: it has none, or cannot be read.
    """
    try:
        with open_vectors(file.uri, file.format, column=column, dim=dim) as opened:
            found = dim or opened.likely_dim()
            kind = opened.kind
    except (ContainerError, pa.ArrowException) as error:
        raise UsageError(f"{file.uri} {error}") from None
    except OSError as error:
        raise UsageError(f"{file.uri} cannot be read: {error.strerror or error}") from None
    if found is None:
        raise UsageError(
            f"{file.uri}: its first rows hold no embedding (they are {kind}); name another column with --column, or "
            "tell the dimension with --dim"
        )
    return found


def holds_vectors(lake: Lake) -> bool | None:
    """Whether a lake is planned from embeddings made elsewhere; None for one without a plan. Opens a shard or two."""
    for shard in list_shards(lake.store):
        for kind in lake.store.read_table(shard_path(shard), ["format"])["format"].unique().to_pylist():
            if kind != _GONE:
                return kind in WITHOUT_PIXELS
    return None


def refuse_imported(lake: Lake, what: str) -> None:
    """Stop a job that reads photographs or crops.

    Raises:
        UsageError: the lake was imported.
    """
    if holds_vectors(lake):
        raise UsageError(
            f"{lake.uri} holds imported embeddings, without photographs or crops, which {what} needs: extract the "
            "photographs into another lake"
        )
