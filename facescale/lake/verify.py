"""Check a lake: every file against its footer, its siblings, the plan and its own rules; nothing is changed.

A lake comes in, a report of problems with their remedies goes out. Called by `facescale lake verify`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from facescale.errors import CorruptError, DataError
from facescale.lake import parquet
from facescale.lake.ids import MAX_FACES, make_image_id
from facescale.lake.lineage import images_of, spec_of, versions_of
from facescale.lake.parts import (
    NO_MODEL,
    ROWS_KEY,
    VERSION_FILE,
    DoneParts,
    PartKey,
    TableVersion,
    id_problem,
    list_done,
    part_of_path,
    read_counters,
    read_siblings,
)
from facescale.lake.scan import sibling_problem
from facescale.lake.schema import (
    COLUMNS_KEY,
    TABLE_KEY,
    check_table,
    extended,
    fill_missing,
    schema_of,
    table_names,
    table_spec,
)
from facescale.lake.sources_table import list_shards, planned_part_rows
from facescale.lake.verify_curation import CURATED, CurationChecks
from facescale.lake.verify_values import expected_face_ids, value_problems

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    import pyarrow.parquet as pq
    from numpy.typing import NDArray

    from facescale.lake.lake import Lake


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        path: file or folder, relative to the lake.
        what: what is wrong with it.
        remedy: what to do about it.
    """

    path: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {self.remedy}"


@dataclass
class VerifyReport:
    """What a verification found.

    Args:
        problems: in the order of their finding; empty when the lake is sound.
        checked: how many versions, parts, rows and bytes were looked at; parts_to_do, which are planned and not in
            the current `images`; copies, which the current duplicates leave out; parts_unfinished, files of parts
            whose `images` file is not there (a job was interrupted; running it again overwrites them).
    """

    problems: list[Problem] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(lake: Lake, *, quick: bool = False) -> VerifyReport:
    """Check every version of every table that has a schema.

    Args:
        lake: an open lake.
        quick: read footers, ids and image rows only; without it every byte is read and its checksum compared.

    Returns:
        The report. Memory is that of one row group and the ids of one part.
    """
    return _Verification(lake, quick).run()


class _Verification:
    """The state of one verification: the report, and what was listed once."""

    def __init__(self, lake: Lake, quick: bool) -> None:
        self.lake, self.store, self.quick = lake, lake.store, quick
        self.report = VerifyReport()
        self.done: dict[TableVersion, DoneParts] = {}
        self.plan: dict[int, dict[int, int] | None] = {}
        self.curation = CurationChecks(lake)

    def run(self) -> VerifyReport:
        versions = [version for table in table_names() for version in versions_of(self.store, table)]
        self.count("versions", len(versions))
        self.check_current(versions)
        self.done = {version: list_done(self.store, version) for version in versions}
        for version in sorted(versions, key=lambda v: (v.table != "images", v.folder)):
            self.check_version(version)
        self.check_groups()
        self.count_parts_to_do()
        return self.report

    def check_current(self, versions: list[TableVersion]) -> None:
        for version in self.lake.current_versions():
            if version.table in table_names() and version not in versions:
                self.problem(
                    version.folder,
                    "lake.yaml names this version as current, and it is not there",
                    f"rerun the command that makes it, or choose another: facescale lake use {version.table}",
                )

    def check_version(self, version: TableVersion) -> None:
        again = "delete it and rerun the command that made the table"
        try:
            described = self.lake.describe_version(version)
        except CorruptError:
            self.problem(f"{version.folder}/{VERSION_FILE}", "cannot be read", again)
        else:
            if described is None:
                what = "is missing, so nothing says what made this version"
                self.problem(
                    f"{version.folder}/{VERSION_FILE}", what, "rerun the command that made the table"
                )
            elif (described.get("table"), described.get("model", NO_MODEL), described.get("fingerprint")) != (
                version.table,
                version.model,
                version.fingerprint,
            ):
                self.problem(f"{version.folder}/{VERSION_FILE}", "describes another version", again)
        for path, _ in self.store.list(version.folder):
            if path.endswith(".parquet") and part_of_path(path[len(version.folder) + 1 :]) is None:
                self.problem(
                    path, "is no part of this table, but readers of the folder take it in", "move it away"
                )
        images = images_of(self.lake, version)
        for shard, first_row in self.done[version].pairs():
            if images is not None and (shard, first_row) not in self.done.get(images, DoneParts(_NO_IDS)):
                self.count("parts_unfinished", 1)
                continue
            self.check_part(version, images, PartKey(shard, first_row, 0))

    def check_part(self, version: TableVersion, images: TableVersion | None, key: PartKey) -> None:
        path = version.part_path(key)
        remedy = self.remedy(version, images, key)
        try:
            with self.store.open_parquet(path) as file:
                ids, problems = self.read_part(version, key, file)
                footer, num_rows = parquet.footer_of(file), int(file.metadata.num_rows)
            problems += self.footer_problems(version, footer)
            if version.table == "images":
                problems += self.plan_problems(version, key, ids)
                self.check_siblings(path, key, read_siblings(footer, self.store.location(path)) or {})
            elif version.table in CURATED:
                problems += self.curation.part_problems(version, key, ids)
            elif images is not None:
                problems += self.face_problems(images, key, ids, footer)
        except (CorruptError, DataError) as error:
            problems = [str(error)]
            num_rows = 0
        self.count("parts", 1)
        self.count("rows", num_rows)
        self.count("bytes", self.store.size(path))
        for what in problems:
            self.problem(path, what, remedy)

    def read_part(
        self, version: TableVersion, key: PartKey, file: pq.ParquetFile
    ) -> tuple[NDArray[np.int64], list[str]]:
        """The id column of a part, and what is wrong with its values and ids."""
        spec = spec_of(self.lake, version)
        id_column = spec.key[0]
        ids: list[NDArray[np.int64]] = []
        problems: list[str] = []
        for block in self.blocks(version, key, file):
            ids.append(block.column(id_column).to_numpy())
            if block.num_columns == len(spec.columns):
                problems += value_problems(version.table, check_table(version.table, block))
        every = np.concatenate(ids) if ids else _NO_IDS
        committed = int(parquet.footer_of(file).get(ROWS_KEY, 0))
        rows = self.planned(key.shard).get(key.first_row, committed)
        part = PartKey(key.shard, key.first_row, rows)
        problem = id_problem(every, part, unique=version.table != "labels")
        problems += [f"{id_column} {problem}"] if problem else []
        return every, list(dict.fromkeys(problems))

    def blocks(self, version: TableVersion, key: PartKey, file: pq.ParquetFile) -> Iterator[pa.Table]:
        """One row group after the other; only the ids when quick, but images whole."""
        spec = spec_of(self.lake, version)
        names = [column.name for column in spec.columns]
        if self.quick and version.table != "images":
            names = [spec.key[0]]
        location = self.store.location(version.part_path(key))
        for group in range(file.metadata.num_row_groups):
            yield fill_missing(version.table, parquet.read_rows(file, location, names, [group]), names)

    def footer_problems(self, version: TableVersion, footer: dict[str, str]) -> list[str]:
        found = footer.get(TABLE_KEY)
        if found != version.table:
            return [f"its footer says that it belongs to the table {found!r}"]
        spec = spec_of(self.lake, version)
        if not spec.open:
            return []
        declared = extended(
            table_spec(version.table), json.loads(footer.get(COLUMNS_KEY, "[]")), where="footer"
        )
        if schema_of(declared).equals(schema_of(spec), check_metadata=True):
            return []
        return ["its footer declares other columns than the version's description"]

    def plan_problems(self, version: TableVersion, key: PartKey, ids: NDArray[np.int64]) -> list[str]:
        """Every planned member has a row of `images`, in order."""
        rows = self.planned(key.shard).get(key.first_row)
        if rows is None:
            return ["the plan (sources) has no such part"]
        first = make_image_id(key.shard, key.first_row)
        if not np.array_equal(ids, first + (np.arange(rows) << 8)):
            return [
                f"{len(ids)} rows for {rows} planned members, or not theirs: each member has one row, in order"
            ]
        return []

    def face_problems(
        self, images: TableVersion, key: PartKey, ids: NDArray[np.int64], footer: dict[str, str]
    ) -> list[str]:
        """The faces are exactly those that num_faces of `images` promises; embed may have given up poison rows."""
        table = self.store.read_table(images.part_path(key), ["image_id", "num_faces"])
        num_faces = np.clip(
            table.column("num_faces").to_numpy(), 0, MAX_FACES
        )  # others are reported with images
        promised = expected_face_ids(table.column("image_id").to_numpy(), num_faces)
        if np.array_equal(ids, promised):
            return []
        extra, lacking = np.setdiff1d(ids, promised), np.setdiff1d(promised, ids)
        if not len(extra) and len(lacking) == read_counters(footer).get("poison", 0):
            return []
        return [
            f"{len(lacking)} faces that `images` counts are missing, {len(extra)} that it does not are there"
        ]

    def check_siblings(self, images_path: str, key: PartKey, siblings: dict[str, dict[str, int]]) -> None:
        """Rows and bytes of the files that were committed with a part of `images`."""
        again = "then rerun the command that made them"
        for folder, said in siblings.items():
            version = TableVersion.from_folder(folder)
            if version is None or version not in self.done:
                continue  # that version was pruned as a whole
            path = version.part_path(key)
            if (key.shard, key.first_row) not in self.done[version]:
                self.problem(path, "is missing, though its part is done", f"delete {images_path}, {again}")
                continue
            try:
                with self.store.open_parquet(path) as file:
                    footer, rows = parquet.footer_of(file), int(file.metadata.num_rows)
            except CorruptError:
                continue  # reported where the file itself is checked
            problem = sibling_problem(said, footer, rows, self.store.size(path))
            if problem:
                self.problem(path, problem, f"delete it and {images_path}, {again}")

    def check_groups(self) -> None:
        """Groups of duplicates and clusters as wholes; counts the copies of the current version."""
        current = self.lake.current("duplicates")
        for version in [version for version in self.done if version.table == "duplicates"]:
            try:
                problems = self.curation.group_problems(version)
            except CorruptError:
                continue  # reported where the file itself is checked
            for what in problems:
                self.problem(version.folder, what, "delete it and rerun facescale dedup")
            if version == current:
                self.count("copies", len(self.curation.copies(version)[0]))
        whole = self.lake.current_versions()
        for version in [version for version in self.done if version.table == "clusters"]:
            try:
                problems = self.curation.cluster_problems(version, whole=version in whole)
            except CorruptError:
                continue
            for what in problems:
                self.problem(version.folder, what, "delete it and rerun facescale cluster")

    def count_parts_to_do(self) -> None:
        """Planned parts that the current `images` lacks."""
        current = self.lake.current("images")
        done = self.done.get(current, DoneParts(_NO_IDS)) if current else DoneParts(_NO_IDS)
        for shard in list_shards(self.store):
            self.count(
                "parts_to_do", sum((shard, first_row) not in done for first_row in self.planned(shard))
            )

    def planned(self, shard: int) -> dict[int, int]:
        """Rows of each planned part of a shard; one shard is kept, since parts come in order."""
        if shard not in self.plan:
            self.plan = {shard: planned_part_rows(self.store, shard)}
        return self.plan[shard] or {}

    def remedy(self, version: TableVersion, images: TableVersion | None, key: PartKey) -> str:
        """What mends a bad part: a file that was committed with `images` is only made again together with it."""
        if images is not None:
            path = images.part_path(key)
            try:
                siblings = read_siblings(self.store.read_footer(path), self.store.location(path)) or {}
            except CorruptError:
                siblings = {version.folder: {}}
            if version.folder in siblings:
                return f"delete it and {path}, then rerun the command that made them"
        return "delete it and rerun the command that made it"

    def problem(self, path: str, what: str, remedy: str) -> None:
        self.report.problems.append(Problem(path, what, remedy))

    def count(self, what: str, number: int) -> None:
        self.report.checked[what] = self.report.checked.get(what, 0) + number


_NO_IDS = np.empty(0, np.int64)
