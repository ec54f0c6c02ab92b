"""Search examples: a few faces of the lake, and the faces that are most like them.

Called by collect. The index answers where it fits in memory; else the table of neighbors, which was made exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from facescale.curate.duplicates import representatives
from facescale.errors import FacescaleError
from facescale.index.manifest import read_manifest
from facescale.lake.ids import image_id_of
from facescale.report.model import Section, Sheet, Shown, Strip
from facescale.report.overview import index_facts
from facescale.report.source import Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.lake.parts import TableVersion
    from facescale.report.source import Source

    Ids = NDArray[np.int64]

INDEX_BYTES = 1 << 30
"""Largest index that is loaded for a few examples."""


def search_section(source: Source) -> Section | None:
    """The index's account of itself and a few searches; None when there is neither index nor neighbors."""
    index, neighbors = source.version("index"), source.version("neighbors")
    facts = index_facts(source)
    if not facts and neighbors is None:
        return None
    section = Section("search", "Search", "The nearest faces of a face, by the index.", facts=facts)
    if not source.config.photos:
        return section
    queries = _queries(source)
    found: tuple[Ids, NDArray[np.float32]] | None = None
    if index is not None and len(queries):
        found = _by_index(source, index, queries, section)
    text = "Random faces, each followed by those that the index finds most similar."
    if found is None and neighbors is not None and len(queries):
        text = "Random faces, each followed by its most similar ones by the table of neighbors."
        queries, found = _by_neighbors(source, neighbors, queries)
    if found is not None and len(queries):
        strips = _strips(source, queries, *found)
        section.sheets.append(Sheet("Nearest faces", text, strips))
    return section


def _queries(source: Source) -> Ids:
    """A seeded sample of faces that are not on copies."""
    embeddings = source.version("embeddings")
    if embeddings is None:
        return np.empty(0, np.int64)
    sample, copies = Sample(source.config.queries), representatives(source.lake)[0]
    for table in source.scan(embeddings, ["face_id"]):
        ids = table["face_id"].to_numpy()
        ids = ids[~np.isin(image_id_of(ids), copies)]
        sample.add(pa.table({"face_id": ids}), source.keys(ids))
    return np.array(sorted(row["face_id"] for row in sample.rows()), np.int64)


def _by_index(
    source: Source, version: TableVersion, queries: Ids, section: Section
) -> tuple[Ids, NDArray[np.float32]] | None:
    """Ask the index for one face more than is shown, since each finds itself; None where it cannot be asked."""
    from facescale.index.search import Index

    manifest = read_manifest(source.lake.store, version)
    embeddings = source.version("embeddings")
    if manifest is None or embeddings is None or manifest.num_bytes > INDEX_BYTES:
        return None
    vectors = source.rows(embeddings, queries, ["embedding"])["embedding"].combine_chunks()
    unit = vectors.flatten().to_numpy().astype(np.float32).reshape(len(queries), -1)
    try:
        index = Index.open(
            source.lake, source.config.embedder, version=version, memory_bytes=INDEX_BYTES, check="size"
        )
        try:
            section.notes += index.warnings
            return index.search(unit, min(source.config.strip, manifest.count))
        finally:
            index.close()
    except FacescaleError as error:  # the page says so; everything else it shows is none the worse
        section.notes.append(f"The index could not be searched: {error}")
        return None


def _by_neighbors(
    source: Source, version: TableVersion, queries: Ids
) -> tuple[Ids, tuple[Ids, NDArray[np.float32]]]:
    """(queries that have a list, their lists filled up with -1)."""
    table = source.rows(version, queries, ["face_id", "neighbor_ids", "similarities"])
    most = source.config.strip - 1
    ids = np.full((table.num_rows, most), -1)
    similarity = np.full((table.num_rows, most), np.nan, np.float32)
    for row, entry in enumerate(table.to_pylist()):
        known = entry["neighbor_ids"][:most]
        ids[row, : len(known)], similarity[row, : len(known)] = known, entry["similarities"][:most]
    return table["face_id"].to_numpy(), (ids, similarity)


def _strips(source: Source, queries: Ids, ids: Ids, similarity: NDArray[np.float32]) -> tuple[Strip, ...]:
    names = source.claims(np.concatenate([queries, ids[ids >= 0]]))
    strips = []
    for query, found, scores in zip(queries.tolist(), ids.tolist(), similarity.tolist(), strict=True):
        own = names.get(image_id_of(query), "")
        faces = [Shown(query, own, f"face {query}", "query", "same")]
        for face, score in zip(found, scores, strict=True):
            if face in (-1, query):
                continue
            name = names.get(image_id_of(face), "")
            other = bool(own and name and own != name)
            faces.append(
                Shown(face, name, f"{score:.3f}", "other label" if other else "", "doubt" if other else "")
            )
        strips.append(Strip("", "", tuple(faces[: source.config.strip])))
    return tuple(strips)
