"""Drive search: query images (or embeddings) in, a table of the nearest faces out; on screen and as Parquet.

Runs in this process, without Ray. Query faces go through the detector and landmarker that made the lake's faces, as
their _version.json tells, so that a query is treated as the crawl was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from facescale.driver.extract import import_plugins
from facescale.engine.session import usable_cpus
from facescale.errors import CorruptError, MismatchError, UsageError
from facescale.imaging.decode import decode
from facescale.index.results import (
    RESULTS_SCHEMA,
    query_vectors,
    results_json,
    search_table,
    write_results,
)
from facescale.index.search import Index
from facescale.lake.lake import Lake
from facescale.sources.read import Source, read_file
from facescale.sources.walk import Tally, walk
from facescale.vision.faces import FaceReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from facescale.config.index import SearchConfig
    from facescale.driver.context import Reporter
    from facescale.index.manifest import Manifest

_IMAGES_AT_ONCE = 16
_QUERIES_AT_ONCE = 4096
_MAX_BYTES, _MAX_PIXELS = 256 << 20, 100_000_000


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        hits: rows of facescale.index.results.RESULTS_SCHEMA.
        queries: faces (or embeddings) that were searched for.
        problems: (query, what is wrong) of those that gave no face.
        index: folder of the index.
        recall: measured recall of the index, None for an empty one.
        output: where the hits were written, if anywhere.
    """

    hits: pa.Table
    queries: int
    problems: list[tuple[str, str]] = field(default_factory=list)
    index: str = ""
    recall: float | None = None
    output: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON; ids are strings."""
        return {
            "queries": self.queries,
            "index": self.index,
            "recall": self.recall,
            "output": self.output,
            "problems": [{"query": query, "problem": what} for query, what in self.problems],
            "hits": results_json(self.hits),
        }


def run_search(
    lake_uri: str,
    queries: Sequence[str],
    config: SearchConfig,
    *,
    output: str | None = None,
    reporter: Reporter,
) -> SearchResult:
    """Search a lake.

    Args:
        lake_uri: root of the lake.
        queries: images, folders of images, tars are not taken; files that end in .parquet hold embeddings.
        config: which index, how many faces, which label.
        output: Parquet file for the hits; written atomically.
        reporter: where warnings go.

    Raises:
        UsageError: no lake, no index, a query that does not exist, or not one query gave a face.
        MismatchError: the queries are not of the index's model or dimension.
    """
    lake = Lake.open(lake_uri)
    threads = usable_cpus()
    index = Index.open(lake, config.embedder, threads=threads)
    for warning in index.warnings:
        reporter.warn(warning)
    result = SearchResult(RESULTS_SCHEMA.empty_table(), 0, index=index.version.folder)
    measured = index.manifest.recall["measured"]
    result.recall = None if measured is None else measured["recall"]
    tables = []
    for names, vectors in _vectors(index, queries, config, threads, result.problems):
        result.queries += len(names)
        tables.append(
            search_table(
                index,
                names,
                vectors,
                k=config.k,
                label=config.label,
                min_similarity=config.min_similarity,
            )
        )
    index.close()
    for name, problem in result.problems:
        reporter.warn(f"{name}: {problem}")
    if not result.queries:
        raise UsageError(
            "no query gave a face to search for: " + "; ".join(f"{n}: {p}" for n, p in result.problems)
        )
    result.hits = pa.concat_tables(tables)
    if output is not None:
        write_results(result.hits, output)
        result.output = output
    return result


def _vectors(
    index: Index, queries: Sequence[str], config: SearchConfig, threads: int, problems: list[tuple[str, str]]
) -> Iterator[tuple[list[str], np.ndarray]]:
    """(names, float32 [Q, D]) in batches of bounded size."""
    images = [query for query in queries if not query.endswith(".parquet")]
    for query in queries:
        if query.endswith(".parquet"):
            yield from _parquet_vectors(query, index.manifest)
    if images:
        yield from _image_vectors(index.lake, images, config, threads, problems)


def _parquet_vectors(path: str, manifest: Manifest) -> Iterator[tuple[list[str], np.ndarray]]:
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


def _image_vectors(
    lake: Lake, queries: Sequence[str], config: SearchConfig, threads: int, problems: list[tuple[str, str]]
) -> Iterator[tuple[list[str], np.ndarray]]:
    import_plugins(config.plugins)
    faces = lake.current("faces")
    if faces is None:
        raise UsageError(f"{lake.uri} has no finished faces: run `facescale extract SRC {lake.uri}` first")
    made_by = (lake.describe_version(faces) or {}).get("settings", {})
    reader = FaceReader.like(made_by, embedder=config.embedder, device=config.device, threads=threads)
    names: list[str] = []
    pixels: list[np.ndarray] = []
    for name, image in _images(queries, problems):
        names.append(name)
        pixels.append(image)
        if len(names) == _IMAGES_AT_ONCE:
            yield from _described(reader, names, pixels, problems)
            names, pixels = [], []
    if names:
        yield from _described(reader, names, pixels, problems)


def _images(queries: Sequence[str], problems: list[tuple[str, str]]) -> Iterator[tuple[str, np.ndarray]]:
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


def _described(
    reader: FaceReader, names: list[str], pixels: list[np.ndarray], problems: list[tuple[str, str]]
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Embeddings of the faces of some images; an image with several faces gives one query for each."""
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
