"""Are the index files what their manifests say? Part of `facescale lake verify`.

A lake comes in, a list of problems goes out. It reads every byte of every finished index.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from facescale.errors import CorruptError, MismatchError
from facescale.index.build import TABLE
from facescale.index.manifest import MANIFEST, read_manifest
from facescale.lake.lineage import versions_of
from facescale.lake.verify import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from facescale.index.manifest import ShardFile
    from facescale.lake.lake import Lake

_CHUNK_BYTES = 8 << 20


def verify_indexes(lake: Lake, on_file: Callable[[str], None] = lambda path: None) -> list[Problem]:
    """Check the manifest of each index, and the size and sha256 of each of its files.

    Args:
        lake: the lake.
        on_file: called with the path of each file before it is read, for progress.

    Returns:
        What is wrong, empty when nothing is. An index without a manifest is unfinished, which is no problem.
    """
    problems = []
    for version in versions_of(lake.store, TABLE):
        remedy = f"delete {lake.store.location(version.folder)} and run `facescale index {lake.uri}` again"
        try:
            manifest = read_manifest(lake.store, version)
        except (CorruptError, MismatchError) as error:
            problems.append(Problem(path=f"{version.folder}/{MANIFEST}", what=str(error), remedy=remedy))
            continue
        for shard in manifest.shards if manifest is not None else ():
            path = f"{version.folder}/{shard.file}"
            on_file(path)
            if what := _problem(lake, path, shard):
                problems.append(Problem(path=path, what=what, remedy=remedy))
    return problems


def _problem(lake: Lake, path: str, shard: ShardFile) -> str | None:
    try:
        size = lake.store.size(path)
        if size != shard.bytes:
            return f"has {size:,} bytes, and the manifest says {shard.bytes:,}"
        digest = hashlib.sha256()
        with lake.store.open(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except FileNotFoundError:
        return "is missing, though the manifest lists it"
    if digest.hexdigest() != shard.sha256:
        return f"has the sha256 {digest.hexdigest()[:12]}…, and the manifest says {shard.sha256[:12]}…"
    return None
