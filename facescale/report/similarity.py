"""Similarities: how alike faces of one person and of two are, and every face's nearest, with the thresholds drawn in.

Called by collect. False-match rates become cosines by the embedder's calibration; without one no line is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facescale.curate.duplicates import representatives
from facescale.lake.ids import make_face_id
from facescale.report.histogram import Histogram
from facescale.report.model import Plot, Section, Table
from facescale.report.plots import Mark, histogram, number_text
from facescale.report.source import numbers, sample_note

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.report.model import Cell
    from facescale.report.source import Source

    Ids = NDArray[np.int64]

FMRS = (1e-2, 1e-3, 1e-4, 1e-5)
_BARS = 80
_LABELS = 300
_FACES_OF_A_LABEL = 8


def similarity_section(source: Source) -> Section | None:
    """Histograms of similarities; None when the embedder has nothing to show."""
    section = Section(
        "similarity",
        "Similarity",
        "Cosine similarity of embeddings. A threshold is a false-match rate (FMR): the share of pairs of two different "
        "people that lie above it; the calibration of the embedder says which cosine that is.",
    )
    genuine, impostor = Histogram(), Histogram()
    nearest = Histogram()
    pairs = labeled_pairs(source)
    if pairs is not None:
        genuine.add(pairs[0])
        impostor.add(pairs[1])
        if genuine.total and impostor.total:
            section.plots.append(_pairs_plot(source, genuine, impostor))
    neighbors = source.version("neighbors")
    if neighbors is not None:
        for table in source.scan(neighbors, ["similarities"]):
            column = table["similarities"].combine_chunks()
            first = column.filter(pc.greater(pc.list_value_length(column), 0))
            nearest.add(numbers(pc.list_element(first, 0)))
        if nearest.total:
            section.plots.append(_nearest_plot(source, nearest))
            if note := sample_note(source, neighbors):
                section.notes.append(note)
    if not section.plots:
        return None
    if source.calibration is None:
        section.notes.append(
            f"{source.config.embedder} is not calibrated, so no threshold is drawn: facescale calibrate fits them."
        )
    else:
        section.tables.append(_thresholds(source, genuine, impostor, nearest))
    return section


def labeled_pairs(source: Source) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Similarities of pairs of faces with the same claimed label, and with different ones, of a seeded sample.

    Faces count whose image has a label and shows nobody else; copies of images do not.

    Notes:
        Memory: the claims of the sampled parts, and 35 MB for the pairs of at most 2,400 faces.

    Returns:
        (genuine, impostor), each [number of pairs]; None without labels or embeddings.
    """
    labels, embeddings, images = (source.version(table) for table in ("labels", "embeddings", "images"))
    if labels is None or embeddings is None or images is None:
        return None
    tables = list(source.scan(labels, ["image_id", "label"]))
    if not tables:
        return None
    claims = pa.concat_tables(tables)
    names = claims["label"].combine_chunks().dictionary_encode()
    image, label = claims["image_id"].to_numpy(), names.indices.to_numpy().astype(np.int64)
    usable = ~np.isin(image, representatives(source.lake)[0])
    image, label = image[usable], label[usable]
    number = np.bincount(label, minlength=len(names.dictionary))
    by_name = pc.sort_indices(names.dictionary).to_numpy().astype(np.int64)
    several = by_name[number[by_name] >= 2]
    chosen = np.random.default_rng(source.config.seed).permutation(several)[:_LABELS]
    rows = np.flatnonzero(np.isin(label, chosen))
    rows = rows[np.lexsort((source.keys(image[rows]), label[rows]))]
    first = np.searchsorted(label[rows], label[rows], side="left")
    rows = rows[np.arange(len(rows)) - first < _FACES_OF_A_LABEL]
    rows = rows[np.argsort(image[rows], kind="stable")]
    found = source.rows(images, image[rows], ["num_faces"])
    if found.num_rows != len(rows):
        return None
    rows = rows[found["num_faces"].to_numpy() == 1]
    ids = make_face_id(image[rows], 1)
    vectors = source.rows(embeddings, ids, ["face_id", "embedding"])
    has = np.isin(ids, vectors["face_id"].to_numpy())
    if has.sum() < 2:
        return None
    flat = vectors["embedding"].combine_chunks().flatten().to_numpy().astype(np.float32)
    unit = flat.reshape(vectors.num_rows, -1)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    person = label[rows][has]
    a, b = np.triu_indices(len(person), 1)
    similarity = (unit @ unit.T)[a, b]
    same = person[a] == person[b]
    return similarity[same], similarity[~same]


def marks_of(source: Source, *, centers: bool = False) -> list[Mark]:
    """The lines of FMRS: of pairs of faces, or of a face and a center."""
    if source.calibration is None:
        return []
    curve = source.calibration.centers if centers else source.calibration.pairs
    marks = [Mark(curve.similarity_at(fmr), f"FMR {fmr:.0e}".replace("e-0", "e-")) for fmr in FMRS]
    return [mark for mark in marks if mark.value < 1]


def _pairs_plot(source: Source, genuine: Histogram, impostor: Histogram) -> Plot:
    low = min(genuine.trimmed_range()[0], impostor.trimmed_range()[0])
    high = max(genuine.trimmed_range()[1], impostor.trimmed_range()[1])
    drawing = histogram(
        [
            ("different labels", impostor.bars(low, high, _BARS)),
            ("same label", genuine.bars(low, high, _BARS)),
        ],
        marks=marks_of(source),
        what="similarity of two faces, with the same claimed label and with different ones",
        counted="pairs",
    )
    return Plot(
        "Two faces, by their claimed labels",
        f"{genuine.total:,} pairs with the same label and {impostor.total:,} with different ones. Wrong labels show "
        "as a hump of the same label under the other curve.",
        drawing,
        ("different labels", "same label"),
    )


def _nearest_plot(source: Source, nearest: Histogram) -> Plot:
    low, high = nearest.trimmed_range()
    marks = marks_of(source)
    low = min([low, *(mark.value - 0.02 * (high - low) for mark in marks[1:])])
    drawing = histogram(
        [("", nearest.bars(low, min(high, 1.0), _BARS))],
        marks=marks,
        what="similarity of each face and its nearest",
    )
    return Plot(
        "Each face and its nearest",
        f"{nearest.total:,} faces; copies of images are left out. Left of the lines are faces like no other.",
        drawing,
    )


def _thresholds(source: Source, genuine: Histogram, impostor: Histogram, nearest: Histogram) -> Table:
    assert source.calibration is not None
    columns = ["false-match rate", "cosine of pairs", "cosine of face to center"]
    counted = []
    for name, counts in (
        ("same label above", genuine),
        ("different labels above", impostor),
        ("nearest above", nearest),
    ):
        if counts.total:
            columns.append(name)
            counted.append(counts)
    rows = []
    for fmr in FMRS:
        pairs = source.calibration.pairs.similarity_at(fmr)
        if pairs >= 1:  # too few people were calibrated on to tell
            continue
        cells: list[Cell] = [
            f"{fmr:.0e}".replace("e-0", "e-"),
            round(pairs, 4),
            round(source.calibration.centers.similarity_at(fmr), 4),
        ]
        cells += [_percent(counts.share_above(pairs)) for counts in counted]
        rows.append(tuple(cells))
    return Table(f"Thresholds of {source.config.embedder}", tuple(columns), tuple(rows))


def _percent(share: float) -> str:
    return f"{number_text(round(100 * share, 3))} %"
