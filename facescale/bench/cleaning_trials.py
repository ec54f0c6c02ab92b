"""Trials of label cleaning: photographs whose people are known come in, the scores of a method on planted noise go out.

    material ─► noise is planted (synth.noise) ─► images get new numbers in random order ─► method ─► scores

Arrays only; called by bench.cleaning. Methods are those of `facescale clean`, and the largest DBSCAN cluster of each
label with nothing after it, which is what is often done.

Shape legend: N faces, I photographs, D dimension, M photographs of a trial, F faces of a trial.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from facescale.curate.cast import CastCuts, CastRules, resolve_cast
from facescale.curate.claims import Claims, Faces, faces_of, spread
from facescale.curate.clean import clean_by_cast, clean_by_ownership
from facescale.curate.decisions import KEEP, MERGE, QUARANTINE, RELABEL
from facescale.evaluate.cleaning import NOBODY, CleaningScores, score_cleaning
from facescale.lake.ids import make_face_id, make_image_id
from facescale.synth.noise import plant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from facescale.curate.calibration import Calibration
    from facescale.curate.decisions import Decisions
    from facescale.curate.ownership import OwnershipRules
    from facescale.synth.noise import Planted

    Ints = NDArray[np.int64]
    Method = Callable[[Faces, Claims], Decisions]

NO_CENTERS = 1.1
"""A cosine that no two labels' centers reach: CAST without its second half."""


@dataclass(frozen=True, eq=False)
class Material:
    """Photographs of known people.

    Attributes:
        faces: all faces of a lake.
        image_id: int64 [I], photographs of one known person with at least a face; no two are copies.
        identity: int64 [I], who it is.
        center: int64 [I], row of the face that shows them, among the faces.
    """

    faces: Faces
    image_id: Ints
    identity: Ints
    center: Ints

    def only(self, kept: NDArray[np.bool_]) -> Material:
        """Some of the photographs."""
        return Material(self.faces, self.image_id[kept], self.identity[kept], self.center[kept])


@dataclass(frozen=True, eq=False)
class Trial:
    """A data set with planted noise, as `facescale clean` would find it.

    Attributes:
        faces: of the photographs of the trial.
        claims: one for each photograph.
        meant: int64 [M], row of the face that shows the person, among the faces.
        claimed: int64 [M], identity that each photograph is said to show.
        true: int64 [M], identity that it shows.
        names: int64 [labels], identity of each label number.
    """

    faces: Faces
    claims: Claims
    meant: Ints
    claimed: Ints
    true: Ints
    names: Ints


def make_trial(
    material: Material, kind: str, rate: float, rng: np.random.Generator, *, min_photos: int
) -> Trial:
    """Plant noise and give the images new numbers in random order, so that no method can go by that of the files."""
    unit = material.faces.unit[material.center]
    planted: Planted = plant(kind, rate, material.identity, unit, rng, min_photos=min_photos)
    rows = planted.rows
    first, number = faces_of(material.faces.face_id, material.image_id[rows])
    photo, source = spread(first, number)
    image_id = make_image_id(0, np.arange(len(rows)))
    ordinal = material.faces.face_id[source] & 255
    faces = Faces(
        make_face_id(image_id[photo], ordinal),
        material.faces.unit[source],
        material.faces.prominence[source],
        material.faces.good[source],
    )
    meant = np.flatnonzero(source == material.center[rows][photo])
    names, label = np.unique(planted.label, return_inverse=True)
    none = np.empty(0, np.int64)
    claims = Claims(image_id, label.ravel(), len(names), none, none)
    return Trial(faces, claims, meant, planted.label, planted.truth, names)


def methods(calibration: Calibration, rules: OwnershipRules, cast: CastRules) -> Mapping[str, Method]:
    """The contenders by name; each takes faces and claims, and decides."""
    with_centers = resolve_cast(cast, calibration)
    without = replace(with_centers, merge=NO_CENTERS, drop=NO_CENTERS)

    def by_cast(cuts: CastCuts) -> Method:
        return lambda faces, claims: clean_by_cast(faces, claims, calibration, cuts)

    return {
        "ownership": lambda faces, claims: clean_by_ownership(faces, claims, calibration, rules),
        "cast": by_cast(with_centers),
        "dbscan": by_cast(without),
    }


@dataclass(frozen=True)
class TrialScores:
    """Scores of a method on a trial.

    Attributes:
        scores: over all photographs.
        labels_hit: labels of which some photographs, but not all, are wrong.
        hit_in_quarantine: share of those labels with at least half of their photographs in quarantine.
        rest_purity: share of right ones among the photographs that the other labels that were hit keep; None where
            all are in quarantine or none was hit.
    """

    scores: CleaningScores
    labels_hit: int
    hit_in_quarantine: float | None
    rest_purity: float | None


def run_trial(trial: Trial, method: Method) -> TrialScores:
    """Let a method decide, and score what it says of the faces that are meant."""
    rows = method(trial.faces, trial.claims)
    verdict = rows.verdict[trial.meant]
    label = rows.label_out[trial.meant]
    labeled = np.isin(verdict, (KEEP, RELABEL, MERGE)) & (label >= 0)
    final = np.where(labeled, trial.names[np.maximum(label, 0)], NOBODY)
    quarantined = verdict == QUARANTINE
    scores = score_cleaning(trial.claimed, trial.true, final, quarantined)
    return TrialScores(scores, *_hit_labels(trial, final, quarantined))


def _hit_labels(
    trial: Trial, final: Ints, quarantined: NDArray[np.bool_]
) -> tuple[int, float | None, float | None]:
    size = int(max(trial.claimed.max(), trial.true.max())) + 1
    total = np.bincount(trial.claimed, minlength=size)
    wrong = np.bincount(trial.claimed[trial.claimed != trial.true], minlength=size)
    hit = (wrong > 0) & (wrong < total)
    if not hit.any():
        return 0, None, None
    aside = hit & (2 * np.bincount(trial.claimed[quarantined], minlength=size) >= total)
    kept = (final != NOBODY) & (hit & ~aside)[np.maximum(final, 0)]
    purity = float((final[kept] == trial.true[kept]).mean()) if kept.any() else None
    return int(hit.sum()), float(aside.sum() / hit.sum()), purity
