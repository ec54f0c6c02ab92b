"""Queries of a search: files of embeddings, photographs or pixels in, batches of names and embeddings out.

Called by facescale.driver.searcher. What gives no face is told and left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from facescale.errors import CorruptError, MismatchError, UsageError
from facescale.imaging.decode import decode
from facescale.index.results import query_vectors
from facescale.sources.read import Source, read_file
from facescale.sources.walk import Tally, walk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from facescale.index.manifest import Manifest
    from facescale.vision.faces import FaceReader

    Queries = Iterable[tuple[list[str], NDArray[np.floating[Any]]]]
    Problems = list[tuple[str, str]]

_QUERIES_AT_ONCE = 4096
_MAX_BYTES, _MAX_PIXELS = 256 << 20, 100_000_000


def parquet_vectors(path: str, manifest: Manifest) -> Queries:
    """Stored embeddings, float32 [Q, D] in batches of bounded size.

    Args:
        path: Parquet file with a column `embedding`; see facescale.index.results.query_vectors. Rows without a name
            are called PATH#ROW.
        manifest: of the index.

    Raises:
        UsageError: the file cannot be read.
        MismatchError: another dimension than the index has.
        DataError: there is no usable column `embedding`.
        CorruptError: the file is damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            seen = 0
            for batch in file.iter_batches(_QUERIES_AT_ONCE):
                names, vectors = query_vectors(pa.Table.from_batches([batch]), where=path)
                if vectors.shape[1] != manifest.dim:
                    raise MismatchError(
                        f"{path}: its embeddings have {vectors.shape[1]} dimensions, and the index of "
                        f"{manifest.model} has {manifest.dim}: embed the queries with {manifest.model}, or name "
                        "another index with --embedder"
                    )
                if names == [str(row) for row in range(len(names))]:
                    names = [f"{path}#{seen + row}" for row in range(len(names))]
                seen += len(names)
                yield names, vectors
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except pa.ArrowInvalid as error:
        raise CorruptError(f"{path} is not a Parquet file: {error}") from error


def read_images(queries: Sequence[str], problems: Problems) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Photographs of files and folders: (uri, uint8 [H, W, 3] RGB), one after the other.

    Args:
        queries: files and folders, local or fsspec URLs.
        problems: (uri, what is wrong) of those that are no readable image are added to it.

    Raises:
        UsageError: a query does not exist.
    """
    for query in queries:
        tally, count = Tally(), 0
        for found in walk(query, tally):
            if found.format != "image":
                problems.append((found.uri, "containers cannot be queries; extract them and give the images"))
                continue
            count += 1
            member = read_file(0, Source(found.uri, found.bytes, found.stamp), _MAX_BYTES)
            if member.data is None:
                problems.append((found.uri, f"{member.status}: {member.detail}"))
                continue
            image = decode(member.data, max_bytes=_MAX_BYTES, max_pixels=_MAX_PIXELS)
            if image.pixels is None:
                problems.append((found.uri, f"{image.status}: {image.detail}"))
                continue
            yield found.uri, image.pixels
        if not count:
            problems.append((query, "holds no image"))


def describe(
    reader: FaceReader,
    names: list[str],
    pixels: list[NDArray[np.uint8]],
    problems: Problems,
) -> Queries:
    """Embed the faces of some images, float32 [Q, D]; an image with several faces gives one query for each.

    Args:
        reader: the models.
        names: of the images.
        pixels: uint8 [H, W, 3] RGB.
        problems: images without a face are added to it.
    """
    counts, vectors = reader.describe(pixels)
    for name, count in zip(names, counts, strict=True):
        if count == 0:
            problems.append((name, "no face found; try a larger or more frontal photograph"))
    queries = [
        name if count == 1 else f"{name}#face{ordinal + 1}"
        for name, count in zip(names, counts, strict=True)
        for ordinal in range(count)
    ]
    if queries:
        yield queries, vectors
