"""A lake becomes a report: each section reads what it needs, pictures come last.

A Source comes in, a Report of plain values goes out; page writes it as HTML. Called by facescale.driver.report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import facescale
from facescale.lake.fingerprint import fingerprint
from facescale.report.cleaning import labels_section
from facescale.report.clusters import clusters_section
from facescale.report.duplicates import duplicates_section
from facescale.report.examples import search_section
from facescale.report.model import Report
from facescale.report.overview import image_counts, images_section, made_section
from facescale.report.page import FRAME_BYTES
from facescale.report.pictures import read_pictures
from facescale.report.quality import quality_section
from facescale.report.similarity import similarity_section

if TYPE_CHECKING:
    import datetime
    from collections.abc import Mapping, Sequence

    from facescale.report.model import Cell, Section
    from facescale.report.source import Source

REVISION = 1
"""Raised whenever the same lake gives another page."""

_HEADLINE = {
    "images": ("images", "faces"),
    "duplicates": ("copies",),
    "clusters": ("clusters",),
    "labels": ("labels", "quarantine", "relabel", "drop"),
}
_HEADLINE_NAMES = {"quarantine": "quarantined", "relabel": "relabeled", "drop": "dropped"}


def report_fingerprint(source: Source, digests: Mapping[str, Any]) -> str:
    """Digest of all that the page is made of; equal ones need no new page.

    Args:
        source: the lake.
        digests: of the parts there are.
    """
    settings = source.config.model_dump(mode="json", exclude={"enabled"}) | {
        "facescale": facescale.__version__,
        "calibration": source.calibration.digest if source.calibration is not None else None,
        **digests,
    }
    inputs = {version.folder: version.fingerprint for version in source.lake.current_versions()}
    return fingerprint("report", settings, REVISION, inputs)


def collect(
    source: Source,
    *,
    name: str,
    made: datetime.datetime,
    stages: Sequence[dict[str, Any]] = (),
    examples: Sequence[tuple[str, str]] = (),
    notes: Sequence[tuple[str, str]] = (),
) -> Report:
    """Read a lake.

    Args:
        source: the lake; it may lack any table.
        name: fingerprint of the page.
        made: when.
        stages: of the job that has just run, see overview.images_section.
        examples: (file, what is wrong with it) of images that failed.
        notes: (anchor of a section, remark) from outside, such as that a table is behind the lake.

    Returns:
        Everything the page says. Memory: that of the sections' samples, about 100 MB for large lakes, 24 bytes a
        cluster, a group of duplicates, and the text of each label.
    """
    counts = image_counts(source)
    sections: list[Section | None] = [
        images_section(source, counts, stages, examples),
        quality_section(source),
        similarity_section(source),
        duplicates_section(source),
        clusters_section(source),
        labels_section(source),
        search_section(source),
        made_section(source),
    ]
    lake = source.lake.uri
    report = Report(
        title=lake.rstrip("/").rpartition("/")[2] or lake,
        subtitle=[
            ("lake", lake),
            ("made", made.strftime("%Y-%m-%d %H:%M UTC")),
            ("with", f"facescale {facescale.__version__}"),
            ("embedder", source.config.embedder),
        ],
        headline=[],
        fingerprint=name,
        sections=[section for section in sections if section is not None],
        photos=source.config.photos,
    )
    for section in report.sections:
        section.notes += [text for anchor, text in notes if anchor == section.anchor]
    report.headline = _headline(report.sections)
    if source.config.photos:
        budget = (source.config.max_mib << 20) - FRAME_BYTES
        report.pictures, left_out = read_pictures(source, report.face_ids(), budget)
        if left_out:
            report.sections[0].notes.append(
                f"{left_out:,} pictures were left out to keep this page below {source.config.max_mib} MiB."
            )
    return report


def _headline(sections: Sequence[Section]) -> list[tuple[str, Cell]]:
    """The facts worth reading first."""
    found = []
    for section in sections:
        facts = dict(section.facts)
        for name in _HEADLINE.get(section.anchor, ()):
            if name in facts:
                found.append((_HEADLINE_NAMES.get(name, name), facts[name]))
    return found
