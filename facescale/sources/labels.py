"""Who is said to be on each image: parts of the plan in, rows of `labels` out. Called by driver and engine.

A claim comes from the image's parent folder, from a file keyed by path, or from what travels with the image: the json,
cls or txt member of its WebDataset sample, or a column beside it in Parquet. A claim is on the image, not on a face.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from facescale.errors import TransientError
from facescale.lake.ids import make_image_id
from facescale.lake.schema import check_table
from facescale.lake.stage import Guard, StageResult
from facescale.sources.containers import (
    SIDECARS,
    ContainerError,
    is_image_member,
    open_container,
    sample_key,
    tar_members,
)
from facescale.sources.label_file import LabelFile, base_names, check_label_file, digest_of
from facescale.sources.uris import extension_of, member_uri, path_of_uri
from facescale.sources.vector_file import open_vectors
from facescale.sources.vector_shared import row_uris, uri_texts
from facescale.sources.vector_types import SIMULATED, WITHOUT_PIXELS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from facescale.lake.parts import TableVersion
    from facescale.lake.store import Store
    from facescale.sources.plan import SourcePart

REVISION = 1
FOLDER = "folder"
# Fields of a sidecar's JSON object, or columns of a Parquet source, that are taken for the label, by preference.
LABEL_FIELDS = ("label", "identity", "cls", "class", "name")
_MAX_SIDECAR_BYTES = 1 << 20


@dataclass(frozen=True)
class LabelSpec:
    """Where labels come from.

    Attributes:
        source: `folder`, or a CSV or Parquet file (local or URL). `folder` means: what travels with the image, that
            is its tar sidecar or Parquet column, else its parent folder, unless it lies directly in the source.
        column: column of the file that holds the label (required with a file); with `folder` the field of sidecars
            and Parquet sources, None for the first of label, identity, cls, class, name.
        path_column: column of the file that holds the path.
    """

    source: str
    column: str | None = None
    path_column: str = "path"

    @property
    def from_file(self) -> bool:
        """Whether a file keyed by path gives the labels."""
        return self.source != FOLDER

    def settings(self) -> dict[str, Any]:
        """What the fingerprint of `labels` is made of; a file counts by its content, wherever it lies.

        Raises:
            UsageError: the file cannot be read.
        """
        if self.from_file:
            named = {"column": self.column, "path_column": self.path_column}
            return {"source": "file", "sha256": digest_of(self.source), **named}
        return {"source": FOLDER, "column": self.column}

    def check(self) -> None:
        """Make sure, before work on images begins, that the label file can be used; reads only its beginning.

        Raises:
            UsageError: it is not there, of another kind, or lacks a column.
            DataError: it cannot be parsed.
        """
        if self.from_file:
            check_label_file(self.source, self.column, self.path_column)

    def load(self, store: Store) -> LabelFile | None:
        """Read the label file, if there is one, against the plan.

        Raises:
            UsageError: it is not there, of another kind, or lacks a column.
            DataError: it cannot be parsed.
        """
        if not self.from_file:
            return None
        file = LabelFile.load(self.source, self.column, self.path_column)
        file.drop_ambiguous(store)
        return file


class LabelsStage:
    """The stage that writes `labels`, part by part. Counters: images, labels, unlabeled (images without a claim).

    Args:
        spec: where labels come from.
        store: the lake's storage.
        version: version of `labels` to write.
    """

    name = "label"

    def __init__(self, spec: LabelSpec, store: Store, version: TableVersion) -> None:
        self.spec, self.store, self.version = spec, store, version
        self._file: LabelFile | None = None

    def open(self) -> None:
        """Load the label file.

        Raises:
            UsageError: it is not there, of another kind, or lacks a column.
        """
        self._file = self.spec.load(self.store)

    def process(self, part: SourcePart, guard: Guard) -> StageResult:
        """Make the claims of one part; there is nothing in it that could kill a worker, so `guard` is not asked."""
        table = label_rows(self.store, part, self.spec, self._file)
        labeled = len(np.unique(table.column("image_id").to_numpy()))
        counters = {
            "images": part.key.num_rows,
            "labels": table.num_rows,
            "unlabeled": part.key.num_rows - labeled,
        }
        return StageResult([(self.version, table)], counters)


def label_rows(store: Store, part: SourcePart, how: LabelSpec, file: LabelFile | None = None) -> pa.Table:
    """The claims on the images of a part.

    Args:
        store: the lake's storage.
        part: which images.
        how: where labels come from.
        file: the loaded label file (`how.load`), when there is one; None loads it.

    Returns:
        Table `labels`, sorted by image_id; an image may have several rows or none.

    Raises:
        TransientError: a container cannot be read just now.
    """
    if how.from_file and file is None:
        file = how.load(store)
    if part.format == "image":
        rows, labels, origins = _of_files(store, part, how, file)
    elif part.format in WITHOUT_PIXELS:
        rows, labels, origins = _of_vectors(store, part, how, file)
    else:
        rows, labels, origins = _of_container(store, part, how, file)
    ids = make_image_id(part.key.shard, part.key.first_row + rows)
    return check_table("labels", pa.table({"image_id": ids, "label": labels, "origin": origins}))


_Claims = tuple["np.ndarray[Any, np.dtype[np.int64]]", pa.Array, pa.Array]


def _of_files(store: Store, part: SourcePart, how: LabelSpec, file: LabelFile | None) -> _Claims:
    table = store.read_table(part.shard_path, ["uri", "root"])
    table = table.slice(part.key.first_row, part.key.num_rows).combine_chunks()
    uris, roots = table.column("uri"), table.column("root")
    below = _below(uris, roots)
    if file is not None:
        return _from_file(file, how, [uris, below, base_names(uris)])
    return _from_folders(below)


def _from_folders(paths: pa.ChunkedArray | pa.Array) -> _Claims:
    """Claims by the last folder of each path; a file directly in the source lies in none that could be a label."""
    inside = pc.match_substring(paths, "/")
    folders = pc.replace_substring_regex(paths, r"(?s)^(?:.*/)?([^/]*)/[^/]*$", r"\1")
    rows = np.flatnonzero(pc.fill_null(inside, False).to_numpy(zero_copy_only=False))
    return rows, folders.take(rows), pa.array([FOLDER] * len(rows), pa.string())


def _of_vectors(store: Store, part: SourcePart, how: LabelSpec, file: LabelFile | None) -> _Claims:
    """Claims on rows of imported embeddings by their uris, each on the first row of the part that has the uri."""
    (source,) = store.read_table(part.shard_path, ["uri", "root"]).to_pylist()
    numbers = np.arange(part.key.first_row, part.key.first_row + part.key.num_rows)
    given = pa.nulls(len(numbers), pa.string())
    try:
        if part.format not in ("vectors_bin", SIMULATED):
            with open_vectors(source["uri"], part.format, column=None) as opened:
                given = uri_texts(opened, numbers)
    except (ContainerError, pa.ArrowException):
        pass  # damaged: its rows get their status in `images`
    except OSError as error:
        raise TransientError(
            f"{source['uri']}: {error.strerror or error}; run the same command again to continue"
        ) from error
    uris = pc.coalesce(given, row_uris(source["uri"], numbers))
    if file is None:
        rows, labels, origins = _from_folders(given)
    else:
        roots = pa.chunked_array([pa.array([source["root"]] * len(numbers), pa.string())])
        below = _below(pa.chunked_array([uris]), roots)
        rows, labels, origins = _from_file(file, how, [uris, below, base_names(uris)])
    texts = uris.to_numpy(zero_copy_only=False).astype(str)
    _, first, again = np.unique(texts, return_index=True, return_inverse=True)
    kept = np.flatnonzero(first[again][rows] == rows)
    return rows[kept], labels.take(kept), origins.take(kept)


def _below(uris: pa.ChunkedArray, roots: pa.ChunkedArray) -> pa.ChunkedArray:
    """Path of each uri below its root; of percent-encoded names the text, with odd bytes escaped by a backslash."""
    below = uris
    for root in pc.unique(roots).to_pylist():
        prefix = root.rstrip("/") + "/"
        at = pc.and_(pc.equal(roots, root), pc.starts_with(uris, prefix))
        below = pc.if_else(at, pc.utf8_slice_codeunits(uris, len(prefix)), below)
    encoded = np.flatnonzero(pc.starts_with(uris, "file://").to_numpy())
    if not len(encoded):
        return below
    values = below.to_pylist()
    for i in encoded.tolist():
        top = path_of_uri(roots[i].as_py()).rstrip(b"/") + b"/"
        values[i] = path_of_uri(uris[i].as_py()).removeprefix(top).decode("utf-8", "backslashreplace")
    return pa.chunked_array([pa.array(values, pa.string())])


def _from_file(file: LabelFile, how: LabelSpec, names: list[pa.Array]) -> _Claims:
    """Claims by the first kind of name that the file knows for an image."""
    left = np.ones(len(names[0]), np.bool_)
    rows: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    labels: list[pa.Array] = []
    for kind in names:
        masked = pc.if_else(pa.array(left), kind, pa.scalar(None, pa.string()))
        at, found = file.look_up(masked)
        rows.append(at)
        labels += found.chunks if isinstance(found, pa.ChunkedArray) else [found]
        left[at] = False
    order = np.argsort(np.concatenate(rows), kind="stable")
    origin = pa.array([f"file:{how.column}"] * len(order), pa.string())
    return np.concatenate(rows)[order], pa.chunked_array(labels, pa.string()).take(order), origin


def _of_container(store: Store, part: SourcePart, how: LabelSpec, file: LabelFile | None) -> _Claims:
    columns = ["uri", "root", "part_rows", "part_offsets"]
    (source,) = store.read_table(part.shard_path, columns).to_pylist()
    if part.format == "parquet" and file is None:
        return _from_column(source["uri"], part, how)
    if part.format == "parquet":
        first = part.key.first_row
        members: list[str] = [str(row) for row in range(first, first + part.key.num_rows)]
        claims: list[tuple[str, str] | None] = [None] * len(members)
    else:
        start = source["part_offsets"][part.key.first_row // source["part_rows"]]
        found = list(_tar_samples(source["uri"], start, part.key.num_rows, how, sidecars=file is None))
        members, claims = [name for name, _ in found], [claim for _, claim in found]
    if file is not None:
        uris = pa.array([member_uri(source["uri"], name) for name in members], pa.string())
        roots = pa.array([source["root"]] * len(members), pa.string())
        below = _below(pa.chunked_array([uris]), pa.chunked_array([roots]))
        names = pc.replace_substring_regex(uris, r"(?s)^[^#]*#(?:\./)*", "")
        return _from_file(file, how, [uris, below, names] if part.format == "tar" else [uris, below])
    rows = np.array([row for row, claim in enumerate(claims) if claim], np.int64)
    labels, origins = zip(*(claim for claim in claims if claim), strict=True) if len(rows) else ((), ())
    return rows, pa.array(labels, pa.string()), pa.array(origins, pa.string())


def _tar_samples(
    uri: str, offset: int, count: int, how: LabelSpec, *, sidecars: bool
) -> Iterator[tuple[str, tuple[str, str] | None]]:
    """(member name, (label, origin) or None) of `count` images from an offset on; fewer if the tar is damaged."""
    sample: str | None = None
    names: list[str] = []
    said: dict[str, str] = {}
    num_images = 0
    try:
        with open_container(uri) as stream:
            stream.seek(offset)
            for member in tar_members(stream):
                key = sample_key(member.name)
                if key != sample:
                    yield from _claims_of(names, said, how)
                    if num_images == count:
                        return
                    sample, names, said = key, [], {}
                extension = extension_of(member.name)
                if is_image_member(member):
                    if num_images < count:
                        names.append(member.name)
                        num_images += 1
                elif sidecars and extension in SIDECARS and member.size <= _MAX_SIDECAR_BYTES:
                    stream.seek(member.offset_data)
                    said[extension] = stream.read(member.size).decode("utf-8", "replace")
            yield from _claims_of(names, said, how)
    except ContainerError:  # the images after the damage are no rows, or get their status in `images`
        yield from _claims_of(names, said, how)
    except OSError as error:
        raise TransientError(
            f"{uri}: {error.strerror or error}; run the same command again to continue"
        ) from error


def _claims_of(
    names: list[str], said: dict[str, str], how: LabelSpec
) -> Iterator[tuple[str, tuple[str, str] | None]]:
    """The same claim for each image of a sample: of its sidecars, else of its folder inside the tar."""
    claim: tuple[str, str] | None = None
    for kind in SIDECARS:
        text = said.get(kind, "").strip()
        if kind == "json":
            text = _json_label(text, how.column)
        if text and "\n" not in text and claim is None:  # a text of several lines is a caption, not a name
            claim = (text, f"sidecar:{kind}")
    for name in names:
        parts = name.split("/")
        folder = parts[-2] if len(parts) > 1 and parts[-2] not in ("", ".", "..") else ""
        yield name, claim or ((_clean(folder), FOLDER) if folder else None)


def _json_label(text: str, column: str | None) -> str:
    try:
        values = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return ""
    if not isinstance(values, dict):
        return ""
    for field in LABEL_FIELDS if column is None else (column,):
        value = values.get(field)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return _clean(str(value).strip())
    return ""


def _clean(text: str) -> str:
    """With ? for the lone surrogates that odd file names and JSON escapes bring, which no table can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _from_column(uri: str, part: SourcePart, how: LabelSpec) -> _Claims:
    """Labels from a text or integer column beside the image bytes."""
    nothing: _Claims = (np.zeros(0, np.int64), pa.array([], pa.string()), pa.array([], pa.string()))
    try:
        with open_container(uri) as stream, pq.ParquetFile(stream) as file:
            schema = file.schema_arrow
            fields = LABEL_FIELDS if how.column is None else (how.column,)
            column = next((name for name in fields if name in schema.names), None)
            if column is None:
                return nothing
            starts = np.cumsum(
                [0] + [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            )
            first, last = part.key.first_row, part.key.first_row + part.key.num_rows
            groups = np.flatnonzero((starts[:-1] < last) & (starts[1:] > first)).tolist()
            values = file.read_row_groups(groups, columns=[column]).column(0)
            values = values.slice(first - int(starts[groups[0]]), part.key.num_rows)
            if pa.types.is_dictionary(values.type):
                values = values.cast(values.type.value_type)
            labels = pc.fill_null(values.cast(pa.string()), "").combine_chunks()
    except (pa.ArrowException, IndexError):  # damaged: its images get their status in `images`
        return nothing
    except OSError as error:
        raise TransientError(
            f"{uri}: {error.strerror or error}; run the same command again to continue"
        ) from error
    rows = np.flatnonzero(pc.greater(pc.binary_length(labels), 0).to_numpy(zero_copy_only=False))
    return rows, labels.take(rows), pa.array([f"sidecar:{column}"] * len(rows), pa.string())
