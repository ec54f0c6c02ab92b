"""Searcher: an index opened once, questions asked many times; embeddings, pixels or files in, the nearest faces out.

`facescale search` and users of the library go through it. Runs in this process, without Ray. Query images go through
the detector and landmarker that made the lake's faces, as their _version.json tells, so that a query is treated as the
crawl was.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from facescale.driver.extract import import_plugins
from facescale.driver.queries import describe, parquet_vectors, read_images
from facescale.engine.session import usable_cpus
from facescale.errors import UsageError
from facescale.index.results import RESULTS_SCHEMA, results_json, search_table
from facescale.index.search import Index
from facescale.lake.lake import Lake
from facescale.sources.vector_plan import holds_vectors
from facescale.vision.faces import FaceReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from facescale.driver.queries import Problems, Queries

_IMAGES_AT_ONCE = 16


@dataclass(frozen=True)
class Hit:
    """One face that a search found.

    Attributes:
        query: name of the query.
        rank: 1 for the most similar face of the query.
        face_id: the face, in the table faces.
        similarity: cosine, -1 to 1.
        uri: where the image came from.
        box: x1, y1, x2, y2 of the face on the EXIF-oriented image, in px.
        label: what the image claims; several claims are joined by "; ", None is none.
    """

    query: str
    rank: int
    face_id: int
    similarity: float
    uri: str
    box: tuple[float, float, float, float]
    label: str | None


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        hits: rows of facescale.index.results.RESULTS_SCHEMA, by query in the order given, then by rank.
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

    def rows(self) -> list[Hit]:
        """The hits as Python objects, for results that are small enough to be looked at one by one."""
        return [Hit(**{**row, "box": tuple(row["box"])}) for row in self.hits.to_pylist()]

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


class Searcher:
    """An index that is open, with the models for query images once they are needed; make one with `open`.

    It answers from the versions that were current when it was opened: open another one after new faces were indexed.
    One thread at a time.

    Examples:
        >>> with facescale.Searcher.open("crawl.lake") as searcher:
        ...     found = searcher.search_files(["crawl/images/id_0001/img_00001.jpg"], k=3)
        >>> [(hit.rank, hit.label, f"{hit.similarity:.2f}") for hit in found.rows()]
        [(1, 'id_0001', '1.00'), (2, 'id_0001', '0.99'), (3, 'id_0001', '0.98')]

    Args:
        index: opened.
        device: where query images are embedded: "auto", "cpu" or "cuda".
        threads: of the index library and of the models.
    """

    def __init__(self, index: Index, *, device: str = "auto", threads: int = 1) -> None:
        self.index, self.device, self.threads = index, device, threads
        self._reader: FaceReader | None = None

    @classmethod
    def open(
        cls,
        lake: str | os.PathLike[str] | Lake,
        *,
        embedder: str = "dlib_resnet",
        device: str = "auto",
        threads: int | None = None,
        memory_gib: float = 4.0,
        plugins: Sequence[str] = (),
    ) -> Searcher:
        """Open the current index of an embedder; its files and the models are loaded by the first search.

        Args:
            lake: the lake or its URI.
            embedder: which index; queries are embedded with it.
            device: where query images are embedded: "auto", "cpu" or "cuda".
            threads: of the index library and of the models; None takes the CPUs there are.
            memory_gib: index files beyond this are read anew for each search.
            plugins: Python modules to import first: they register further models.

        Raises:
            UsageError: there is no lake, or no finished index of the embedder.
            MismatchError: the index is of embeddings that are no longer current.
            CorruptError: a file is missing or damaged.
            MissingExtraError: the library that built the index is not installed.
        """
        import_plugins(tuple(plugins))
        opened = lake if isinstance(lake, Lake) else Lake.open(os.fspath(lake))
        threads = threads or usable_cpus()
        index = Index.open(
            opened.pinned(), embedder, memory_bytes=int(memory_gib * (1 << 30)), threads=threads
        )
        return cls(index, device=device, threads=threads)

    def __enter__(self) -> Searcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the index and the models."""
        self.index.close()
        self._reader = None

    @property
    def lake(self) -> Lake:
        """The lake that is searched."""
        return self.index.lake

    @property
    def embedder(self) -> str:
        """Whose embeddings are compared."""
        return self.index.manifest.model

    @property
    def dim(self) -> int:
        """Numbers of an embedding."""
        return self.index.manifest.dim

    @property
    def num_faces(self) -> int:
        """Faces in the index."""
        return self.index.shards.count

    @property
    def recall(self) -> float | None:
        """Share of the true ten nearest neighbors that the index finds, as measured; None for an empty index."""
        measured = self.index.manifest.recall["measured"]
        return None if measured is None else float(measured["recall"])

    @property
    def warnings(self) -> list[str]:
        """What to know before trusting the answers: the index is behind the lake."""
        return self.index.warnings

    def search(
        self,
        embeddings: NDArray[np.floating[Any]],
        k: int = 10,
        *,
        names: Sequence[str] | None = None,
        label: str | None = None,
        min_similarity: float = -1.0,
        min_quality: float = 0.0,
        where: str | None = None,
    ) -> SearchResult:
        """The faces nearest to embeddings.

        Args:
            embeddings: float [Q, D] of the index's embedder, raw or of unit length; one query is [1, D].
            k: faces for each query.
            names: of the queries; None numbers them from "0".
            label: only faces of images that claim this label.
            min_similarity: leave out hits below this cosine.
            min_quality: leave out faces of less quality, 0..1; those that nobody has measured stay.
            where: only faces that meet this condition, e.g. "age > 17 and quality >= 0.5" (docs/GUIDE.md).

        Raises:
            MismatchError: another dimension.
            UsageError: no matrix of floats, a row is zero or not finite, k is less than 1, not as many names as
                queries, or no image claims the label.
        """
        rows = np.atleast_1d(np.asarray(embeddings))
        named = [str(row) for row in range(len(rows))] if names is None else list(names)
        return self._ask([(named, rows)], [], k, label, min_similarity, min_quality, where)

    def search_images(
        self,
        images: Sequence[NDArray[np.uint8]],
        k: int = 10,
        *,
        names: Sequence[str] | None = None,
        label: str | None = None,
        min_similarity: float = -1.0,
        min_quality: float = 0.0,
        where: str | None = None,
    ) -> SearchResult:
        """The faces nearest to each face on some images.

        Args:
            images: uint8 [H, W, 3], RGB, upright.
            k: faces for each query.
            names: of the images; None numbers them from "0". Several faces of an image are NAME#face1, NAME#face2, ….
            label: only faces of images that claim this label.
            min_similarity: leave out hits below this cosine.
            min_quality: leave out faces of less quality, 0..1; those that nobody has measured stay.
            where: only faces that meet this condition, e.g. "age > 17 and quality >= 0.5" (docs/GUIDE.md).

        Returns:
            Images without a face are among its `problems`.

        Raises:
            UsageError: an image is no such array, k is less than 1, not as many names as images, or no image of the
                lake claims the label.
        """
        named = [str(row) for row in range(len(images))] if names is None else list(names)
        if len(named) != len(images):
            raise UsageError(f"{len(images)} images with {len(named)} names: give one name for each")
        for name, image in zip(named, images, strict=True):
            if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,)):
                shape = (
                    f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image)
                )
                raise UsageError(f"image {name}: expected uint8 [H, W, 3] in RGB, got {shape}")
        problems: Problems = []
        pairs = iter(zip(named, images, strict=True))
        return self._ask(
            self._described(pairs, problems), problems, k, label, min_similarity, min_quality, where
        )

    def search_files(
        self,
        queries: Sequence[str | os.PathLike[str]],
        k: int = 10,
        *,
        label: str | None = None,
        min_similarity: float = -1.0,
        min_quality: float = 0.0,
        where: str | None = None,
    ) -> SearchResult:
        """The faces nearest to those of image files, or to stored embeddings.

        Args:
            queries: images and folders of images (local or fsspec URLs); what ends in .parquet holds embeddings: a
                column `embedding`, and names in the first of query, name, uri, face_id.
            k: faces for each query.
            label: only faces of images that claim this label.
            min_similarity: leave out hits below this cosine.
            min_quality: leave out faces of less quality, 0..1; those that nobody has measured stay.
            where: only faces that meet this condition, e.g. "age > 17 and quality >= 0.5" (docs/GUIDE.md).

        Returns:
            Files that are no images, and images without a face, are among its `problems`.

        Raises:
            UsageError: a query does not exist, k is less than 1, or no image of the lake claims the label.
            MismatchError: stored embeddings have another dimension.
            DataError: a Parquet file has no usable column `embedding`.
            CorruptError: a Parquet file is damaged.
        """
        problems: Problems = []
        vectors = self._of_files([os.fspath(query) for query in queries], problems)
        return self._ask(vectors, problems, k, label, min_similarity, min_quality, where)

    def _ask(
        self,
        queries: Queries,
        problems: Problems,
        k: int,
        label: str | None,
        min_similarity: float,
        min_quality: float,
        where: str | None,
    ) -> SearchResult:
        tables, count = [RESULTS_SCHEMA.empty_table()], 0
        for names, vectors in queries:
            count += len(vectors)
            tables.append(
                search_table(
                    self.index,
                    names,
                    vectors,
                    k=k,
                    label=label,
                    min_similarity=min_similarity,
                    min_quality=min_quality,
                    where=where,
                )
            )
        return SearchResult(
            pa.concat_tables(tables), count, problems, index=self.index.version.folder, recall=self.recall
        )

    def _of_files(self, queries: Sequence[str], problems: Problems) -> Queries:
        """(names, float32 [Q, D]) in batches of bounded size."""
        for query in queries:
            if query.endswith(".parquet"):
                yield from parquet_vectors(query, self.index.manifest)
        images = [query for query in queries if not query.endswith(".parquet")]
        if images:
            yield from self._described(read_images(images, problems), problems)

    def _described(self, images: Iterator[tuple[str, NDArray[np.uint8]]], problems: Problems) -> Queries:
        """Embeddings of the faces of images; an image with several faces gives one query for each."""
        names: list[str] = []
        pixels: list[NDArray[np.uint8]] = []
        for name, image in images:
            names.append(name)
            pixels.append(image)
            if len(names) == _IMAGES_AT_ONCE:
                yield from describe(self._models(), names, pixels, problems)
                names, pixels = [], []
        if names:
            yield from describe(self._models(), names, pixels, problems)

    def _models(self) -> FaceReader:
        """The models that made the lake's faces, loaded once."""
        if self._reader is None:
            faces = self.lake.current("faces")
            if faces is None:
                raise UsageError(
                    f"{self.lake.uri} has no finished faces: run `facescale extract SRC {self.lake.uri}` first"
                )
            if holds_vectors(self.lake):
                raise UsageError(
                    f"{self.lake.uri} holds imported embeddings: queries are embeddings of {self.embedder}, too; give "
                    "a Parquet file with a column embedding"
                )
            made_by = (self.lake.describe_version(faces) or {}).get("settings", {})
            stored = self.lake.current("embeddings", self.embedder)
            embedded = (
                {} if stored is None else (self.lake.describe_version(stored) or {}).get("settings", {})
            )
            self._reader = FaceReader.like(
                made_by, embedder=self.embedder, embedded=embedded, device=self.device, threads=self.threads
            )
        return self._reader
