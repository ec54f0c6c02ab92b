"""The first and the last section of a report: what came of the images, and which versions and models made all this.

Called by collect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import facescale
from facescale.errors import UsageError
from facescale.index.manifest import read_manifest
from facescale.lake.scan import scan_ids, sum_counters
from facescale.lake.schema import GOOD_STATUSES
from facescale.models.registry import card
from facescale.report.model import Section, Table
from facescale.report.source import PER_FACE, numbers
from facescale.report.words import STATUSES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facescale.report.model import Cell
    from facescale.report.source import Source


def image_counts(source: Source) -> dict[str, int]:
    """Images by status, and faces, from the footers of `images`, less what was superseded.

    Returns:
        {"images", "faces", status…}; empty before anything was extracted.
    """
    version = source.version("images")
    if version is None:
        return {}
    counters = sum_counters(source.lake, version)
    counts = {
        name.removeprefix("status."): count
        for name, count in counters.items()
        if name.startswith("status.") and count
    }
    faces = counters.get("faces", 0)
    gone = source.superseded
    if len(gone):
        rows = scan_ids(source.lake, version, gone, ["status", "num_faces"], missing="skip")
        faces -= int(numbers(rows["num_faces"]).sum())
        for entry in rows["status"].value_counts().to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) - entry["counts"]
    counts = {name: count for name, count in counts.items() if count}
    return {"images": sum(counts.values()), "faces": faces, **counts}


def images_section(
    source: Source,
    counts: dict[str, int],
    stages: Sequence[dict[str, Any]],
    examples: Sequence[tuple[str, str]],
) -> Section:
    """What became of the images, and how fast.

    Args:
        source: the lake.
        counts: see image_counts.
        stages: of the job that has just run: {"stage", "seconds", "parts_run", "counters"}; without, no throughput.
        examples: (file, what is wrong with it) of images that failed.
    """
    section = Section(
        "images",
        "Images",
        "Every input has one row in the table images, whatever became of it.",
        facts=[("images", counts.get("images", 0)), ("faces", counts.get("faces", 0))],
    )
    failed = counts.get("images", 0) - sum(counts.get(status, 0) for status in GOOD_STATUSES)
    section.facts.append(("failed", failed))
    total = max(counts.get("images", 0), 1)
    section.tables.append(
        Table(
            "By status",
            ("status", "images", "share", "meaning"),
            tuple(
                (status, counts[status], f"{100 * counts[status] / total:.1f} %", meaning)
                for status, meaning in STATUSES.items()
                if status in counts
            ),
            bar=1,
        )
    )
    if source.version("crops") is None and source.version("embeddings") is not None:
        section.notes.append(
            "The embeddings of this lake were made elsewhere and imported: there are no photographs, so this page has "
            "no pictures, only names and numbers."
        )
    if len(source.superseded):
        section.notes.append(
            f"{len(source.superseded):,} images whose source was replaced or has vanished are left out of everything."
        )
    if examples and source.config.photos:
        columns = ("file", "what is wrong")
        failed_table = Table("Some that failed", columns, tuple(examples), names=(0, 1), folded=True)
        section.tables.append(failed_table)
    if rows := _throughput(stages, counts):
        section.tables.append(
            Table("The run that made this page", ("stage", "parts", "seconds", "done", "a second"), rows)
        )
    return section


def _throughput(stages: Sequence[dict[str, Any]], images: dict[str, int]) -> tuple[tuple[Cell, ...], ...]:
    rows = []
    for stage in stages:
        counters, seconds = stage["counters"], stage["seconds"]
        if not stage["parts_run"] or stage.get("parts_kept") or seconds <= 0:
            continue  # counters are of all parts, and time was spent on some
        unit = "images" if counters.get("images") else "faces"
        done = counters.get(unit)
        if stage["stage"] == "dedup":  # counts copies, and looks at every image
            unit, done = "images", images.get("images")
        rate = f"{done / seconds:,.1f} {unit}" if done else None
        found = f"{done:,} {unit}" if done else None
        rows.append((stage["stage"], stage["parts_run"], round(seconds, 1), found, rate))
    return tuple(rows)


def made_section(source: Source) -> Section:
    """Versions of tables, models and their licences."""
    section = Section(
        "made-with",
        "Made with",
        "A version of a table is named by a fingerprint of the settings and inputs that made it, so equal names mean "
        "equal content.",
        facts=[("facescale", facescale.__version__)],
    )
    lake = source.lake
    rows: list[tuple[Cell, ...]] = []
    settings: dict[str, Any] = {}
    for version in lake.current_versions():
        if version.table in PER_FACE and version.model != source.config.embedder:
            continue
        described = lake.describe_version(version) or {}
        settings |= {
            key: value
            for key, value in described.get("settings", {}).items()
            if key in ("detector", "landmarker", "embedder")
        }
        made = str(described.get("created", "")).replace("T", " ").removesuffix("+00:00")
        rows.append(
            (
                version.table,
                version.fingerprint,
                len(source.done(version)) if version.table != "index" else None,
                made,
                str(described.get("created_by", "")),
            )
        )
    section.tables.append(Table("Tables", ("table", "version", "parts", "made (UTC)", "by"), tuple(rows)))
    section.tables.append(
        Table(
            "Models",
            ("task", "model", "licence", "source"),
            tuple(
                _model(task, settings[task])
                for task in ("detector", "landmarker", "embedder")
                if task in settings
            ),
        )
    )
    return section


def _model(task: str, name: str) -> tuple[Cell, ...]:
    try:
        found = card(name, task)
    except UsageError:
        return task, name, "not known here: its card comes with a plug-in", None
    licence = found.licence + (", not for commercial use" if found.non_commercial else "")
    return task, name, licence, found.source


def index_facts(source: Source) -> list[tuple[str, Cell]]:
    """What the index of the embedder says about itself; [] when there is none."""
    version = source.version("index")
    manifest = read_manifest(source.lake.store, version) if version is not None else None
    if manifest is None:
        return []
    facts: list[tuple[str, Cell]] = [
        ("faces in the index", manifest.count),
        ("kind", manifest.layout.factory),
    ]
    measured = manifest.recall.get("measured")
    if measured is not None:
        facts += [
            (f"recall@{manifest.recall['k']}", f"{measured['recall']:.4f}"),
            ("finds itself", f"{measured['self_match']:.4f}"),
            ("measured on", f"{manifest.recall['queries']:,} held-out faces"),
        ]
    return facts
