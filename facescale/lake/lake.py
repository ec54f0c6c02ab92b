"""A Lake is one root URI with lake.yaml and table versions; here versions are described, chosen and pruned.

lake.yaml holds the format version and which version of each table is current; only the driver writes it, when
a stage completes. Each version's folder holds _version.json: what made it. Called by pipeline, cli and every
stage.
"""

from __future__ import annotations

import datetime
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from facescale.errors import CorruptError, UsageError
from facescale.lake.lake_file import LAKE_FILE, creator, read_current, refuse_foreign_files, write_current
from facescale.lake.parts import NO_MODEL, VERSION_FILE, PartKey, TableVersion, list_done, part_of_path
from facescale.lake.sources_table import superseded_ids
from facescale.lake.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class VersionInfo:
    """One version of one table, as `facescale lake versions` shows it.

    Args:
        table: table name.
        model: its model, "-" for none.
        fingerprint: 12 hex digits.
        parts: files of parts that exist.
        rows: their rows, None where footers were not read.
        bytes: size of all files of the folder.
        current: whether readers use it by default.
        created: UTC time in ISO 8601, "" when _version.json is missing.
        settings: resolved settings that made it.
    """

    table: str
    model: str
    fingerprint: str
    parts: int
    rows: int | None
    bytes: int
    current: bool
    created: str
    settings: dict[str, Any]

    @property
    def version(self) -> TableVersion:
        """The version that this describes."""
        return TableVersion(self.table, self.fingerprint, self.model)


class Lake:
    """A lake that exists; make one with `open`, `create` or `open_or_create`.

    Args:
        store: its storage. Nothing is read before a method asks, so a lake pickles as its URI.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._pinned: dict[str, dict[str, str]] | None = None
        self._superseded: tuple[int, NDArray[np.int64]] | None = None

    def __reduce__(self) -> tuple[type[Lake], tuple[Store]]:
        return type(self), (self.store,)

    def __repr__(self) -> str:
        return f"Lake({self.uri!r})"

    @property
    def uri(self) -> str:
        """Root of the lake."""
        return self.store.uri

    @classmethod
    def create(cls, uri: str | os.PathLike[str]) -> Self:
        """Make an empty lake.

        Raises:
            UsageError: a lake is there already, or the folder holds files that are none of a lake's.
        """
        lake = cls(Store(os.fspath(uri)))
        refuse_foreign_files(lake.store)
        if not write_current(lake.store, {}, if_absent=True):
            raise UsageError(f"{lake.uri} is a lake already; open it, or choose another place")
        return lake

    @classmethod
    def open(cls, uri: str | os.PathLike[str]) -> Self:
        """Open a lake and check its format version.

        Raises:
            UsageError: there is no lake.
            MismatchError: another format version wrote it.
            CorruptError: lake.yaml cannot be read.
        """
        lake = cls(Store(os.fspath(uri)))
        read_current(lake.store)
        return lake

    @classmethod
    def open_or_create(cls, uri: str | os.PathLike[str]) -> Self:
        """Open the lake at a URI, or make it.

        Raises:
            UsageError: the folder holds files that are none of a lake's.
            MismatchError: another format version wrote it.
            CorruptError: lake.yaml cannot be read.
        """
        lake = cls(Store(os.fspath(uri)))
        if not lake.store.exists(LAKE_FILE):
            refuse_foreign_files(lake.store)
            # Losing this race to another process is fine: then its file is read.
            write_current(lake.store, {}, if_absent=True)
        read_current(lake.store)
        return lake

    def pinned(self) -> Self:
        """The lake with the versions that are current now, whatever jobs make current later.

        For readers that stay: what they join belongs together, and lake.yaml is not read again for every question.
        """
        lake = type(self)(self.store)
        lake._pinned = read_current(self.store)
        return lake

    def current(self, table: str, model: str = NO_MODEL) -> TableVersion | None:
        """The version of a table that readers use; None when no stage has completed one."""
        fingerprint = self._current().get(table, {}).get(model)
        return None if fingerprint is None else TableVersion(table, fingerprint, model)

    def current_models(self, table: str) -> list[str]:
        """Models that have a current version of a table, sorted; "-" is left out."""
        return sorted(model for model in self._current().get(table, {}) if model != NO_MODEL)

    def current_versions(self) -> list[TableVersion]:
        """All current versions, sorted by table and model."""
        current = self._current()
        return [TableVersion(t, current[t][m], m) for t in sorted(current) for m in sorted(current[t])]

    def set_current(self, versions: Iterable[TableVersion]) -> None:
        """Make versions current, all at once. Only the driver calls this, when a stage completes.

        Args:
            versions: at most one per table and model; the others stay as they are.
        """
        before = read_current(self.store)
        current = {table: dict(models) for table, models in before.items()}
        for version in versions:
            current.setdefault(version.table, {})[version.model] = version.fingerprint
        if current != before:  # a job that found everything done touches no file
            write_current(self.store, current)

    def describe_version(self, version: TableVersion) -> dict[str, Any] | None:
        """What _version.json says about a version; None when it is not there.

        Raises:
            CorruptError: it cannot be read.
        """
        path = f"{version.folder}/{VERSION_FILE}"
        try:
            described = json.loads(self.store.read_bytes(path))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CorruptError(
                f"{self.store.location(path)} is damaged ({error}); delete it and rerun the command that made "
                "the table"
            ) from error
        if not isinstance(described, dict):
            raise CorruptError(
                f"{self.store.location(path)} holds no JSON object; delete it and rerun the command"
            )
        return described

    def write_version(
        self,
        version: TableVersion,
        *,
        stage: str,
        settings: Mapping[str, Any],
        revision: int,
        inputs: Mapping[str, str],
        requested: Mapping[str, Any] | None = None,
        licences: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a version's _version.json unless it is there: the same fingerprint means the same content.

        Args:
            version: the version.
            stage: the stage that makes it.
            settings: resolved settings, as they were fingerprinted.
            revision: the stage's REVISION.
            inputs: fingerprint of each input version, by table name.
            requested: the settings as asked for ("auto" kept), when they differ.
            licences: those of the models that make it, by model; no part of the fingerprint.
        """
        described = {
            "table": version.table,
            "model": version.model,
            "fingerprint": version.fingerprint,
            "stage": stage,
            "revision": revision,
            "settings": dict(settings),
            "requested": dict(settings if requested is None else requested),
            "inputs": dict(inputs),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "created_by": creator(),
            **({} if licences is None else {"licences": dict(licences)}),
        }
        text = json.dumps(described, indent=2, sort_keys=True) + "\n"
        self.store.write_bytes(f"{version.folder}/{VERSION_FILE}", text.encode(), if_absent=True)

    def versions(self, *, rows: bool = False) -> list[VersionInfo]:
        """All versions of all tables, from one listing of the lake.

        Args:
            rows: count rows too, which opens the footer of every part.

        Returns:
            Sorted by table, model, and creation time.
        """
        parts: dict[TableVersion, int] = {}
        sizes: dict[TableVersion, int] = {}
        for path, size in self.store.list():
            version = TableVersion.from_folder("/".join(path.split("/", 2)[:2]))
            if version is None or path.startswith("_"):
                continue
            inside = path[len(version.folder) + 1 :]
            parts[version] = parts.get(version, 0) + (part_of_path(inside) is not None)
            sizes[version] = sizes.get(version, 0) + size
        current = set(self.current_versions())
        found = []
        for version in parts:
            described = self.describe_version(version) or {}
            found.append(
                VersionInfo(
                    table=version.table,
                    model=version.model,
                    fingerprint=version.fingerprint,
                    parts=parts[version],
                    rows=self._count_rows(version) if rows else None,
                    bytes=sizes[version],
                    current=version in current,
                    created=str(described.get("created", "")),
                    settings=dict(described.get("settings", {})),
                )
            )
        return sorted(found, key=lambda v: (v.table, v.model, v.created, v.fingerprint))

    def use(self, table: str, fingerprint_prefix: str, model: str = NO_MODEL) -> TableVersion:
        """Make another existing version current.

        Args:
            table: table name.
            fingerprint_prefix: the first digits of its fingerprint, enough to tell it from the others.
            model: its model, "-" for none.

        Returns:
            The version that is current now.

        Raises:
            UsageError: no version, or more than one, begins with these digits.
        """
        having = [v.version for v in self.versions() if (v.table, v.model) == (table, model)]
        matching = [v for v in having if v.fingerprint.startswith(fingerprint_prefix)]
        if len(matching) != 1:
            known = ", ".join(v.fingerprint for v in having) or "none"
            what = "no version" if not matching else f"{len(matching)} versions"
            name = table if model == NO_MODEL else f"{table} of {model}"
            raise UsageError(f"{self.uri}: {what} of {name} match {fingerprint_prefix!r}; there are: {known}")
        self.set_current(matching)
        return matching[0]

    def prune(self, *, dry_run: bool) -> list[tuple[str, int]]:
        """Remove versions that nothing current needs, and temporaries that dead processes left.

        A version stays when it is current, or an input, or an input's input, of a current one. Do not prune
        while a job is writing a version that is not current yet.

        Args:
            dry_run: only tell.

        Returns:
            (folder, bytes) of each version removed.
        """
        every = {info.version: info for info in self.versions()}
        kept = {version for version in every if every[version].current}
        waiting = list(kept)
        while waiting:
            described = self.describe_version(waiting.pop()) or {}
            inputs = set(dict(described.get("inputs", {})).values())
            needed = {version for version in every if version.fingerprint in inputs} - kept
            kept |= needed
            waiting += needed
        removed = [(v.folder, every[v].bytes) for v in every if v not in kept]
        if not dry_run:
            for folder, _ in removed:
                self.store.delete_tree(folder)
            self.store.clean_temporaries()
        return sorted(removed)

    def superseded(self) -> NDArray[np.int64]:
        """Images whose source was replaced or has vanished, and which scans leave out.

        Returns:
            int64 [N], sorted image ids. Kept until a shard is added, since shard files are never edited.
        """
        shards = [path for path, _ in self.store.list("sources") if path.endswith(".parquet")]
        if self._superseded is None or self._superseded[0] != len(shards):
            self._superseded = (len(shards), superseded_ids(self.store, shards))
        return self._superseded[1]

    def _current(self) -> dict[str, dict[str, str]]:
        return read_current(self.store) if self._pinned is None else self._pinned

    def _count_rows(self, version: TableVersion) -> int:
        total = 0
        for shard, first_row in list_done(self.store, version).pairs():
            with self.store.open_parquet(version.part_path(PartKey(shard, first_row, 0))) as file:
                total += file.metadata.num_rows
        return total
