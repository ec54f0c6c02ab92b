"""Labels: how many images each has, what cleaning decided about their faces, and pictures with the reason beside them.

Called by collect. Counts of decisions come from the footers of their parts, examples from a sample of the parts.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facescale.curate.decisions import REASONS
from facescale.lake.ids import image_id_of
from facescale.lake.scan import sum_counters
from facescale.report.histogram import Histogram
from facescale.report.model import Plot, Section, Sheet, Shown, Strip, Table
from facescale.report.plots import Mark, columns, doubling_names, histogram
from facescale.report.similarity import marks_of
from facescale.report.source import Sample, numbers, sample_note
from facescale.report.words import VERDICT_TONES, VERDICTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from facescale.lake.parts import TableVersion
    from facescale.report.source import Source

_COLUMNS = ("face_id", "label_in", "label_out", "verdict", "reason", "score", "threshold", "evidence_id")
_OWNED = {"owner": "stays", "unlike_owner": "leaves: unlike the owner"}
_NO_LABEL = ("bystander", "no_counterpart")  # shown last: they stood for no label
_BARS = 80
_LABELS = 12
_MERGE_ROWS = 1 << 18
_OPEN = 3  # sheets of decisions that start open
BARELY = "barely kept"


def labels_section(source: Source) -> Section | None:
    """Counts, histograms and contact sheets about labels; None for a lake without any."""
    labels, decisions = source.version("labels"), source.version("decisions")
    if labels is None:
        return None
    section = Section(
        "labels",
        "Labels",
        "A label is a claim on an image. Cleaning decides, over the whole set, whose name each label is, which face of "
        "an image it means, and which faces it keeps. Nothing is dropped without a row in decisions that says why.",
    )
    per_label = _count(
        table.select(["label"]) for table in source.scan(labels, ["image_id", "label"], every_part=True)
    )
    images = per_label["number"].to_numpy()
    section.facts += [("labels", len(images)), ("claims on images", int(images.sum()))]
    if len(images):
        section.plots.append(_per_label(images))
    if decisions is None:
        section.notes.append("They have not been cleaned: facescale clean decides which of them are right.")
        return section
    counters = sum_counters(source.lake, decisions)
    bystanders = counters.get("reason.bystander", 0)
    claimed = counters.get("faces", 0) - bystanders - counters.get("reason.no_claim", 0)
    section.facts.append(("faces that stand for a label", claimed))
    number = {verdict: counters.get(f"verdict.{verdict}", 0) for verdict in VERDICTS}
    number["drop"] -= bystanders  # they had no label to lose
    section.facts += [(verdict, count) for verdict, count in number.items() if verdict != "keep"]
    section.facts.append(("bystanders", bystanders))
    _decided(source, section, decisions)
    return section


def _decided(source: Source, section: Section, decisions: TableVersion) -> None:
    """What cleaning made of the labels."""
    samples: dict[tuple[str, str], Sample] = {}
    similar = {reason: Histogram() for reason in _OWNED}
    counts: Counter[tuple[str, str]] = Counter()
    for table in source.scan(decisions, _COLUMNS):
        score = numbers(table["score"])
        keys = source.keys(table["face_id"].to_numpy()).astype(np.float64) / 2**64
        pairs = table.group_by(["verdict", "reason"]).aggregate([([], "count_all")]).to_pylist()
        for pair in pairs:
            verdict, reason = pair["verdict"], pair["reason"]
            counts[verdict, reason] += pair["count_all"]
            mine = pc.and_(pc.equal(table["verdict"], verdict), pc.equal(table["reason"], reason)).to_numpy()
            if reason in similar:
                similar[reason].add(score[mine])
            rows = table.filter(pa.array(mine))
            if verdict != "keep":
                samples.setdefault((verdict, reason), Sample(source.config.decisions)).add(rows, keys[mine])
            elif reason == "owner":
                margin = np.nan_to_num(score[mine] - numbers(rows["threshold"]), nan=np.inf)
                samples.setdefault((verdict, BARELY), Sample(source.config.decisions)).add(rows, margin)
    rows = tuple(
        (verdict, reason, counts[verdict, reason], REASONS.get(reason, ""))
        for verdict in VERDICTS
        for reason in (*REASONS, *sorted({name for _, name in counts} - REASONS.keys()))
        if counts[verdict, reason]
    )
    section.tables.append(Table("Decisions", ("verdict", "reason", "faces", "why"), rows, bar=2))
    if note := sample_note(source, decisions):
        section.notes.append(note)
    if all(counted.total for counted in similar.values()):
        section.plots.append(_owned(source, similar, decisions))
    if source.config.photos:
        if (changed := _changed(source, decisions)).rows:
            section.tables.append(changed)
        section.sheets += _sheets(source, samples, counts)


def _per_label(images: np.ndarray) -> Plot:
    step = np.floor(np.log2(images)).astype(np.int64)
    number = np.bincount(step)
    drawing = columns(doubling_names(len(number)), number.tolist(), what="labels by number of images")
    return Plot("Labels by images", "How many labels are claimed for so many images.", drawing)


def _owned(source: Source, similar: dict[str, Histogram], decisions: TableVersion) -> Plot:
    ranges = [counted.trimmed_range() for counted in similar.values()]
    low, high = min(low for low, _ in ranges), min(max(high for _, high in ranges), 1.0)
    settings = (source.lake.describe_version(decisions) or {}).get("settings", {})
    marks = marks_of(source, centers=True)
    if source.calibration is not None and "keep_fmr" in settings:
        fmr = settings["keep_fmr"]
        marks = [
            Mark(source.calibration.centers.similarity_at(fmr), f"kept above (FMR {fmr:g})"),
            *marks[1:2],
        ]
    drawing = histogram(
        [(name, similar[reason].bars(low, high, _BARS)) for reason, name in _OWNED.items()],
        marks=marks,
        what="similarity of a face and the center of its label's owner, for faces that stay and that leave",
    )
    return Plot(
        "Each face and its label's owner",
        f"{similar['owner'].total:,} faces that stay and {similar['unlike_owner'].total:,} that leave because they are "
        "unlike the owner: similarity with the mean of the owner's other faces.",
        drawing,
        tuple(_OWNED.values()),
    )


def _count(tables: Iterable[pa.Table]) -> pa.Table:
    """Rows by all their columns, in a column `number`; holds the distinct ones."""
    waiting: list[pa.Table] = []
    for table in tables:
        grouped = table.group_by(table.column_names).aggregate([([], "count_all")])
        waiting.append(grouped.rename_columns({"count_all": "number"}))
        if sum(entry.num_rows for entry in waiting[1:]) > _MERGE_ROWS:
            waiting = [_added(waiting)]
    return _added(waiting) if waiting else pa.table({"number": pa.array([], pa.int64())})


def _added(tables: list[pa.Table]) -> pa.Table:
    joined = pa.concat_tables(tables)
    names = [name for name in joined.column_names if name != "number"]
    return joined.group_by(names).aggregate([("number", "sum")]).rename_columns({"number_sum": "number"})


def _changed(source: Source, decisions: TableVersion) -> Table:
    """The labels that lost most faces."""
    counted = _count(
        table.select(["label_in", "verdict"]).filter(pc.is_valid(table["label_in"]))
        for table in source.scan(decisions, ["face_id", "label_in", "verdict"])
    )
    rows: tuple[tuple[Any, ...], ...] = ()
    if counted.num_rows:
        lost = counted.filter(pc.not_equal(counted["verdict"], "keep")).group_by("label_in")
        most = lost.aggregate([("number", "sum")]).sort_by(
            [("number_sum", "descending"), ("label_in", "ascending")]
        )
        names = most["label_in"][:_LABELS]
        mine = counted.filter(pc.is_in(counted["label_in"], names.combine_chunks())).to_pylist()
        number = {(row["label_in"], row["verdict"]): row["number"] for row in mine}
        rows = tuple(
            (
                label,
                sum(number.get((label, v), 0) for v in VERDICTS),
                *(number.get((label, v), 0) for v in VERDICTS),
            )
            for label in names.to_pylist()
        )
    title = "Labels that lost most faces"
    return Table(title, ("label", "faces", *VERDICTS), rows, names=(0,), folded=True)


def _sheets(
    source: Source, samples: dict[tuple[str, str], Sample], counts: Counter[tuple[str, str]]
) -> list[Sheet]:
    chosen = {kind: sample.rows() for kind, sample in samples.items()}
    evidence = [
        row["evidence_id"] for rows in chosen.values() for row in rows if row["evidence_id"] is not None
    ]
    names = source.claims(np.array(evidence, np.int64))
    order = [*(verdict for verdict in VERDICTS if verdict != "keep"), "keep"]
    sheets: list[Sheet] = []
    kinds = sorted(
        chosen, key=lambda kind: (kind[1] in _NO_LABEL, order.index(kind[0]), -counts[kind], kind[1])
    )
    for verdict, reason in kinds:
        rows = chosen[verdict, reason]
        strips = tuple(_pair(row, names) for row in rows)
        if reason == BARELY:
            title, text = "keep: only just", "Faces that stay with the least margin above the threshold."
        else:
            title = f"{verdict}: {reason} ({counts[verdict, reason]:,})"
            text = f"{REASONS.get(reason, '').capitalize()}."
        sheets.append(Sheet(title, text, strips, folded=len(sheets) >= _OPEN))
    return sheets


def _pair(row: dict[str, Any], names: dict[int, str]) -> Strip:
    label, out = row["label_in"] or "", row["label_out"] or ""
    name = f"{label} → {out}" if row["verdict"] in ("relabel", "merge") and label != out else label
    note = "" if row["score"] is None else f"{row['score']:.3f}"
    if row["threshold"] is not None and note:
        note += f" against {row['threshold']:.3f}"
    faces = [Shown(row["face_id"], name, note, row["verdict"], VERDICT_TONES.get(row["verdict"], ""))]
    if row["evidence_id"] is not None:
        claimed = names.get(image_id_of(row["evidence_id"]), "")
        faces.append(Shown(row["evidence_id"], claimed, "", "evidence", ""))
    return Strip("", "", tuple(faces))
