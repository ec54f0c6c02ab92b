"""What a version is: which version of `images` says which of its parts are done, and which columns it has.

A version comes in, a version of `images` or a declaration goes out. Called by scan and verify.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from facescale.lake.parts import NO_MODEL, PartKey, TableVersion, part_of_path, read_siblings
from facescale.lake.schema import extended, table_spec

if TYPE_CHECKING:
    from facescale.lake.lake import Lake
    from facescale.lake.schema import TableSpec
    from facescale.lake.store import Store

SIBLINGS_OF_IMAGES = ("faces", "crops", "embeddings", "attributes")


def images_of(lake: Lake, version: TableVersion) -> TableVersion | None:
    """The version of `images` that a version of faces, crops, embeddings or attributes belongs to.

    It is the only one; or of several the one whose footers list `version` among their siblings; or that of the
    version's inputs; or the current one.

    Args:
        lake: the lake.
        version: a version of any table.

    Returns:
        A version of `images`; None for tables whose own files say what is done (images, labels, those of curation),
        and when the lake has no `images`.
    """
    if version.table not in SIBLINGS_OF_IMAGES:
        return None
    return _resolve(lake, version, frozenset())


def input_versions(lake: Lake, version: TableVersion) -> list[TableVersion]:
    """The versions that a version was made of, as far as they are still there."""
    inputs = dict((lake.describe_version(version) or {}).get("inputs", {}))
    return [
        found
        for table, fingerprint in inputs.items()
        for found in versions_of(lake.store, table)
        if found.fingerprint == fingerprint and found.model in (version.model, NO_MODEL)
    ]


def spec_of(lake: Lake, version: TableVersion) -> TableSpec:
    """The declaration of a version: that of its table, with the version's own columns where the table is open.

    Raises:
        DataError: there is no such table.
        CorruptError: the version's description is damaged.
    """
    spec = table_spec(version.table)
    if not spec.open:
        return spec
    settings = dict((lake.describe_version(version) or {}).get("settings", {}))
    return extended(spec, settings.get("columns", []), where=lake.store.location(version.folder))


def versions_of(store: Store, table: str) -> list[TableVersion]:
    """Versions of a table by the names of its folders, sorted; no part is listed."""
    folders = (f"{table}/{name}" for name in store.folders(table))
    return [version for version in map(TableVersion.from_folder, folders) if version is not None]


def _resolve(lake: Lake, version: TableVersion, seen: frozenset[TableVersion]) -> TableVersion | None:
    every = versions_of(lake.store, "images")
    if len(every) < 2:
        return every[0] if every else None
    for images in every:
        if version.folder in _siblings_of_first_part(lake.store, images):
            return images
    inputs = set(dict((lake.describe_version(version) or {}).get("inputs", {})).values())
    for needed in every:
        if needed.fingerprint in inputs:
            return needed
    for table in SIBLINGS_OF_IMAGES:
        for needed in versions_of(lake.store, table):
            if needed.fingerprint in inputs and needed not in seen | {version}:
                return _resolve(lake, needed, seen | {version})
    return lake.current("images")


def _siblings_of_first_part(store: Store, images: TableVersion) -> dict[str, dict[str, int]]:
    for path, _ in store.list(images.folder):
        pair = part_of_path(path[len(images.folder) + 1 :])
        if pair is not None:
            path = images.part_path(PartKey(*pair, 0))
            return read_siblings(store.read_footer(path), store.location(path)) or {}
    return {}
