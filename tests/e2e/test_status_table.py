"""One table: what goes wrong with input, lake or machine → a status or an exit code, and what the user is told.

Every message holds the name of the file and what to do about it; where doing so is cheap, the test does it and sees
that it helps. `transient` and `poison` come from storage and from dying workers: tests/unit/test_sources_read.py and
tests/faults have them, and full disks that are real.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from e2e_samples import FAST, Answer, damaged, encoded, face, facescale, files_of, noise, png_of

from facescale.driver.failures import REMEDIES
from facescale.lake.lake import Lake
from facescale.lake.local_storage import LocalBatch
from facescale.lake.scan import scan
from facescale.lake.schema import GOOD_STATUSES, table_spec
from facescale.sources.plan import plan_sources

HERE = ("--workers", "0")
MAX_BYTES = 1 << 20
SMALL = encoded(face(150), "png")
CHANGED = "then run again with --accept-changes"


class File(NamedTuple):
    """A file of the one run that serves the first half of the table: its name, its bytes, what becomes of it."""

    name: str
    data: bytes
    becomes: str
    says: str = ""
    mode: int = 0o644
    stored: str = ""  # how its uri ends, where that is not its name


FILES = [
    File("whole.png", SMALL, "ok"),
    File("weiß 漢字 🙂.png", SMALL, "ok"),
    File("line\nbreak.png", SMALL, "ok"),
    File("odd \udcff.png", SMALL, "ok", stored="odd%20%FF.png"),
    File("corrupt.png", damaged(SMALL), "corrupt", f"fetch it again, {CHANGED}"),
    File("truncated.jpg", encoded(face(150), "jpeg")[:3000], "truncated", f"fetch the whole file again, {CHANGED}"),
    File("nothing.jpg", b"", "empty", f"fetch it again or delete it, {CHANGED}"),
    File("leer 空.jpg", b"", "empty", f"fetch it again or delete it, {CHANGED}"),
    File("page.jpg", b"<!DOCTYPE html><html>404</html>", "not_image", "put the image itself in its place"),
    File("two\nlines.jpg", b"<html>", "not_image", "or delete it, " + CHANGED),
    File("\x1b[31mred.jpg", b"plain text", "not_image", "or delete it, " + CHANGED),
    File("phone.jpg", b"\0\0\0\x18ftypheic" + bytes(40), "unsupported", "convert to JPEG or PNG"),
    File("not \udcfe.png", SMALL[:500], "truncated", f"fetch the whole file again, {CHANGED}", stored="not%20%FE.png"),
    File("bomb.png", png_of(30_000, 30_000), "too_many_pixels", "raise extract.max_pixels in the --config file"),
    File("huge.png", SMALL + bytes(MAX_BYTES), "too_many_bytes", "raise extract.max_bytes in the --config file"),
    File("locked.jpg", SMALL, "unreadable", "grant read access, then run again with --retry-failed", 0),
]  # fmt: skip


@dataclass(frozen=True)
class Crawl:
    """What an extract over FILES gave: its answer, and its images by file name."""

    answer: Answer
    images: dict[str, dict[str, Any]]
    lake: Path


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Crawl:
    """The one run, in a process that may not read every file."""
    folder = tmp_path_factory.mktemp("crawl")
    source, lake, config = folder / "source", folder / "lake", folder / "config.yaml"
    source.mkdir()
    for file in FILES:
        path = source / file.name
        path.write_bytes(file.data)
        path.chmod(file.mode)
    (source / "notes.txt").write_text("no image")
    (source / ".hidden.jpg").write_bytes(SMALL)
    config.write_text(f"extract: {{max_bytes: {MAX_BYTES}}}\n")
    command = [Path(sys.executable).parent / "facescale", "extract", source, lake, *FAST, *HERE]
    done = subprocess.run(
        [*unprivileged(), *map(str, command), "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (lake / "lake.yaml").exists(), done.stderr
    images = {row["uri"].rpartition("/")[2]: row for row in images_of(lake)}
    return Crawl(Answer(done.returncode, done.stdout, done.stderr), images, lake)


@functools.cache
def unprivileged() -> list[str]:
    """What goes before a command that must not read every file.

    Root stays root, but loses the capabilities that make permissions mean nothing: another user might not be able
    to read this checkout or its Python.
    """
    without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return []
    return without if subprocess.run([*without, "true"], capture_output=True).returncode == 0 else []


def images_of(lake: Path, *, drop_superseded: bool = True) -> list[dict[str, Any]]:
    opened = Lake.open(str(lake))
    version = opened.current("images")
    assert version is not None
    rows: list[dict[str, Any]] = []
    for table in scan(opened, version, drop_superseded=drop_superseded):
        rows += table.to_pylist()
    return rows


@pytest.mark.parametrize("file", FILES, ids=lambda file: ascii(file.name))
def test_file(file: File, crawl: Crawl) -> None:
    """Its row has the status; where it failed, one line on screen has its name, what is wrong, and the remedy."""
    name = file.stored or file.name
    row = crawl.images[name]
    if file.mode == 0 and not unprivileged() and os.access(row["uri"], os.R_OK):
        pytest.skip("this user can read every file, and setpriv cannot take that away")
    assert row["status"] == file.becomes
    if file.becomes == "ok":
        assert (row["num_faces"], row["detail"]) == (1, None)
        return
    assert (row["num_faces"], row["pdq"]) == (0, None)
    assert row["detail"]
    shown = repr(name)[1:-1]  # no name can write to the terminal
    (line,) = [line for line in crawl.answer.out.splitlines() if shown in line]
    assert line.endswith("; ".join(filter(None, [row["detail"], REMEDIES[file.becomes]])))
    assert file.says in line


def test_counts_add_up(crawl: Crawl) -> None:
    info = facescale("lake", "info", crawl.lake, "--json").json
    assert info["planned"] == len(crawl.images) == len(FILES) == sum(info["statuses"].values())
    expected = pc.value_counts(pa.array([row["status"] for row in crawl.images.values()])).to_pylist()
    assert info["statuses"] == {entry["values"]: entry["counts"] for entry in expected}
    assert info["faces"] == sum(row["num_faces"] for row in crawl.images.values())
    assert "not input: 1 (hidden), 1 .txt" in crawl.answer.err
    bad = sum(row["status"] not in GOOD_STATUSES for row in crawl.images.values())
    assert crawl.answer.code == 3
    assert f"{bad} of {len(FILES)} images failed, more than --max-failures 0.5 allows" in crawl.answer.out
    assert str(crawl.lake) in crawl.answer.out
    assert "\x1b" not in crawl.answer.out


def test_every_status_has_a_remedy() -> None:
    (status,) = [column for column in table_spec("images").columns if column.name == "status"]
    assert {*GOOD_STATUSES, *REMEDIES} == set(status.values)
    shown = {file.becomes for file in FILES}
    imported = {"same_image", "wrong_dimension", "wrong_type", "not_finite", "zero_vector"}
    elsewhere = {"transient", "poison", "source_changed", "too_many_faces"} | imported
    assert shown | elsewhere == {*GOOD_STATUSES, *REMEDIES}


# The second half: what the source, the lake or the machine do to a command.


class Place:
    """A folder with a small source, and the lake of an extract over it where one is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source, self.lake = folder, folder / "source", folder / "lake"
        self.source.mkdir()

    def add(self, *names: str) -> Path:
        for name in names:
            (self.source / name).write_bytes(SMALL)
        return self.source / names[-1]

    def extract(self, *flags: str | Path) -> Answer:
        return facescale("extract", self.source, self.lake, *FAST, *HERE, *flags)

    def extracted(self, *names: str) -> Path:
        path = self.add(*names)
        assert self.extract().code == 0
        return path


def empty_source(place: Place) -> Answer:
    (place.source / "readme.txt").write_text("no image")
    answer = place.extract()
    assert not place.lake.exists()
    return answer


def missing_source(place: Place) -> Answer:
    place.source.rmdir()
    answer = place.extract()
    assert not place.lake.exists()
    return answer


def source_of_another_kind(place: Place) -> Answer:
    notes = place.source / "notes.txt"
    notes.write_text("no image")
    return facescale("extract", notes, place.lake, *HERE)


def lake_among_photographs(place: Place) -> Answer:
    place.add("a.png")
    before = files_of(place.source)
    answer = facescale("extract", place.source, place.source, *HERE)
    assert files_of(place.source) == before
    return answer


def other_format_version(place: Place) -> Answer:
    place.extracted("a.png")
    file = place.lake / "lake.yaml"
    file.write_text(file.read_text().replace("format_version: 1", "format_version: 99"))
    before = files_of(place.lake)
    answer = place.extract()
    assert facescale("lake", "info", place.lake).err == answer.err
    assert files_of(place.lake) == before
    return answer


def full_disk(place: Place) -> Answer:
    place.add("a.png")
    write = LocalBatch.add

    def without_room(batch: LocalBatch, path: str, fill: Callable[[pa.NativeFile], None]) -> int:
        size = write(batch, path, fill)
        if path.startswith("crops/") and path.endswith(".parquet"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return size

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalBatch, "add", without_room)
        answer = place.extract()
    assert not list(place.lake.glob("*/*/*/*.parquet"))
    assert not list(place.lake.glob("_tmp/*"))
    assert place.extract().code == 0  # the remedy, with space freed
    assert [row["status"] for row in images_of(place.lake)] == ["ok"]
    return answer


def changed_settings(place: Place) -> Answer:
    place.extracted("a.png")
    before = files_of(place.lake)
    answer = facescale("extract", place.source, place.lake, "--min-face-px", "100", *HERE)
    after = files_of(place.lake)
    kept = {path: state for path, state in before.items() if not path.endswith("lake.yaml")}
    assert kept.items() < after.items()
    old, new = facescale("lake", "versions", place.lake, "--json").json[-2:]
    assert (old["table"], old["current"], new["table"], new["current"]) == ("images", False, "images", True)
    return answer


def changed_file(place: Place) -> Answer:
    path = place.extracted("a.png", "b.png")
    path.write_bytes(encoded(noise(), "png"))
    before = files_of(place.lake)
    answer = place.extract()
    assert files_of(place.lake) == before  # what is done stays, until the change is accepted
    return answer


def changed_file_accepted(place: Place) -> Answer:
    path = place.extracted("a.png", "b.png")
    path.write_bytes(encoded(noise(), "png"))
    answer = place.extract("--accept-changes")
    assert [row["num_faces"] for row in images_of(place.lake)] == [1, 0]
    info = facescale("lake", "info", place.lake, "--json").json
    assert (info["planned"], info["superseded"], sum(info["statuses"].values())) == (3, 1, 3)
    return answer


def changed_while_it_waited(place: Place) -> Answer:
    path = place.add("a.png", "b.png")
    plan_sources(Lake.open_or_create(str(place.lake)), str(place.source))
    path.write_bytes(encoded(noise(), "png"))
    answer = place.extract()
    assert [row["status"] for row in images_of(place.lake)] == ["ok", "source_changed"]
    assert place.extract("--accept-changes").code == 0  # the remedy
    assert [row["status"] for row in images_of(place.lake)] == ["ok", "ok"]
    return answer


def vanished_file(place: Place) -> Answer:
    place.extracted("a.png", "b.png").unlink()
    answer = place.extract()
    assert len(images_of(place.lake)) == 2
    assert place.extract("--accept-changes").code == 0  # the remedy
    assert [Path(row["uri"]).name for row in images_of(place.lake)] == ["a.png"]
    return answer


def too_many_failures(place: Place) -> Answer:
    for name in ("a.png", "b.png"):
        place.add(name).write_bytes(SMALL[:1000])
    place.add("c.png")
    answer = place.extract()
    place.add("a.png", "b.png")
    repaired = place.extract(
        "--accept-changes", "--max-failures", "0"
    )  # the remedy: what is superseded does not count
    assert (repaired.code, [row["status"] for row in images_of(place.lake)]) == (0, ["ok"] * 3)
    return answer


def damaged_tar(place: Place) -> Answer:
    (place.source / "shard.tar").write_bytes(b"not a tar" * 100)
    place.add("a.png")
    return place.extract()


def unwritable_place(place: Place) -> Answer:
    place.add("a.png")
    place.lake = place.add("file.png") / "lake"
    return place.extract()


def no_lake(place: Place) -> Answer:
    return facescale("index", place.lake, *HERE)


def labels_without_the_column(place: Place) -> Answer:
    place.add("a.png")
    labels = place.folder / "labels.csv"
    labels.write_text("path,person\na.png,Ada\n")
    answer = place.extract("--labels", labels, "--label-column", "name")
    assert not place.lake.exists()  # said before the work, not after it
    assert place.extract("--labels", labels, "--label-column", "person").code == 0  # the remedy
    return answer


def gpu_that_is_not_there(place: Place) -> Answer:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    place.add("a.png")
    return place.extract("--device", "cuda")


class Row(NamedTuple):
    """What happens → the exit code, the file or folder that is named, and what to do."""

    do: Callable[[Place], Answer]
    code: int
    names: str
    says: tuple[str, ...]


TABLE = [
    Row(empty_source, 2, "/source", ("found there: 1 .txt. Give a folder of images, a tar, a Parquet file",)),
    Row(missing_source, 2, "/source", ("does not exist; give a folder, a tar, a Parquet file or a URL",)),
    Row(source_of_another_kind, 2, "/source/notes.txt", ("give a folder, a tar or a Parquet file",)),
    Row(lake_among_photographs, 2, "/source", ("give the lake a folder of its own",)),
    Row(other_format_version, 2, "/lake/lake.yaml", ("use the facescale that wrote it, or make a new lake",)),
    Row(full_disk, 1, "/lake/", ("No space left on device; free space, then rerun the same command",)),
    Row(
        changed_settings,
        0,
        "/lake",
        ("min_face_px 80 → 100", "`facescale lake use` brings the old ones back, `facescale lake prune`"),
    ),
    Row(changed_file, 0, "/source/b.png", ("kept as planned; --accept-changes takes them over",)),
    Row(changed_file_accepted, 0, "/source/b.png", ("superseded by new rows",)),
    Row(
        changed_while_it_waited,
        0,
        "/source/b.png",
        ("source_changed: was", "run again with --accept-changes to take the new content"),
    ),
    Row(vanished_file, 0, "/source/b.png", ("kept as planned; --accept-changes takes them over",)),
    Row(
        too_many_failures, 3, "/source/b.png", ("2 of 3 images failed, more than --max-failures 0.5 allows",)
    ),
    Row(
        damaged_tar,
        0,
        "/source/shard.tar",
        ("could not be read (the rest is planned; mend or delete them, then run the same command again)",),
    ),
    Row(unwritable_place, 2, "/source/file.png/lake", ("choose another place",)),
    Row(no_lake, 2, "/lake", ("make one with: facescale extract SRC ",)),
    Row(
        labels_without_the_column,
        2,
        "/labels.csv",
        ("has no column 'name'; name it with --label-column or --path-column",),
    ),
    Row(gpu_that_is_not_there, 2, "", ("check nvidia-smi and `facescale doctor`, or use --device cpu",)),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.do.__name__)
def test_row(row: Row, tmp_path: Path) -> None:
    place = Place(tmp_path)
    answer = row.do(place)
    text = answer.out + answer.err
    assert answer.code == row.code, text
    assert "Traceback" not in text
    assert str(tmp_path) + row.names in text if row.names else True
    for remedy in row.says:
        assert remedy in text
