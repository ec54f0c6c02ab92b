"""What an index says about itself: manifest.json, written last, so that an index with one is whole.

Written by finish, read by search and by `facescale lake info`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from facescale.errors import CorruptError, MismatchError
from facescale.index.plan import Layout

if TYPE_CHECKING:
    from facescale.lake.parts import TableVersion
    from facescale.lake.store import Store

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
METRIC = "cosine"  # inner product of unit vectors


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One index file.

    Attributes:
        file: name inside the index's folder.
        count: vectors in it.
        bytes: its size.
        sha256: of its content, hex.
    """

    file: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class RecallPoint:
    """Recall at one setting of the search.

    Attributes:
        probes: nprobe or efSearch; None for an exact index.
        recall: mean share of the true k nearest neighbors that were found.
        standard_error: of that mean, over queries.
        self_match: share of the queries that find themselves.
        ms_per_query: wall time of the batch over its queries.
    """

    probes: int | None
    recall: float
    standard_error: float
    self_match: float
    ms_per_query: float


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All there is to know about an index.

    Attributes:
        model: whose embeddings.
        dim: D.
        count: vectors in all shards.
        layout: how they are stored.
        probes: nprobe or efSearch that searches use; None for an exact index.
        shards: the files.
        why: why this layout.
        recall: {k, target, queries, seed, method, measured (a RecallPoint or None), curve: [RecallPoint…]}.
        training: {vectors, seed, parts_read, gpu, …}; {} when nothing was trained.
        inputs: {embeddings: fingerprint, parts: digest, num_parts}.
        fallback: why an earlier choice was given up; None when none was.
        library: name and version of what built it.
    """

    model: str
    dim: int
    count: int
    layout: Layout
    probes: int | None
    shards: tuple[ShardFile, ...]
    why: str
    recall: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    fallback: dict[str, Any] | None = None
    library: str = ""

    @property
    def num_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    def to_bytes(self) -> bytes:
        """The JSON text."""
        content = {
            "manifest_version": MANIFEST_VERSION,
            "metric": METRIC,
            "factory": self.layout.factory,
            **asdict(self),
        }
        return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def write_manifest(store: Store, version: TableVersion, manifest: Manifest) -> None:
    """Write the manifest: from here on the index exists."""
    store.write_bytes(f"{version.folder}/{MANIFEST}", manifest.to_bytes())


def read_manifest(store: Store, version: TableVersion) -> Manifest | None:
    """The manifest of an index; None when the index is not finished.

    Raises:
        CorruptError: it cannot be read.
        MismatchError: another version of facescale wrote it.
    """
    path = f"{version.folder}/{MANIFEST}"
    try:
        data = store.read_bytes(path)
    except FileNotFoundError:
        return None
    where = store.location(path)
    remedy = f"delete {store.location(version.folder)} and run `facescale index` again"
    try:
        content = json.loads(data)
        written = content.pop("manifest_version")
        if written != MANIFEST_VERSION:
            raise MismatchError(
                f"{where} has manifest version {written}, and this facescale reads {MANIFEST_VERSION}: use the "
                f"facescale that wrote it, or {remedy}"
            )
        metric = content.pop("metric")
        if metric != METRIC:
            raise MismatchError(
                f"{where} has the metric {metric!r}, and facescale compares by {METRIC}: {remedy}"
            )
        del content["factory"]
        content["layout"] = Layout(**content["layout"])
        content["shards"] = tuple(ShardFile(**shard) for shard in content["shards"])
        return Manifest(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"{where} is damaged ({error!r}): {remedy}") from error
