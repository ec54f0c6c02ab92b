"""`facescale bench oracle`: facescale's default models against dlib on the same photographs.

Four questions: does the detector find dlib's boxes and no others; do the landmarks of dlib's boxes equal dlib's; do
descriptors of dlib's chips equal dlib's; and how far is facescale's whole path from dlib's whole path.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from facescale.bench.dlib_oracle import (
    MIN_FACE_PX,
    AnswerFile,
    DlibAnswer,
    ask_about,
    dlib_chip,
    load_dlib,
    shape_of,
)
from facescale.bench.metrics import match_boxes, quantiles, share
from facescale.bench.photos import find_photos
from facescale.bench.results import Goal, Result, progress, timed
from facescale.engine.session import usable_cpus
from facescale.engine.worker import limit_threads
from facescale.errors import UsageError
from facescale.imaging.decode import decode
from facescale.imaging.hashes import sha256
from facescale.vision.align import box_from_dlib, box_to_dlib, extract_chips, points_to_dlib
from facescale.vision.registry import load_detector, load_embedder, load_landmarker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facescale.driver.context import Reporter

DEFAULT_MAX_PIXELS = 2_000_000
_AT_ONCE = 32  # photographs whose answers are compared together
_LISTED = 20


@dataclass
class Agreement:
    """Counts and differences, grown photo by photo.

    Attributes:
        photos: judged by both.
        dlib_boxes: faces dlib found.
        matched: of them, those facescale found within 1 px.
        equal: of them, those with the same four numbers.
        extra: facescale's faces that are not dlib's.
        points_equal: faces all of whose landmarks equal dlib's, on dlib's boxes.
        score: largest difference of a score, of matched boxes.
        point_px: per face, the largest distance of a landmark coordinate.
        chip: per chip, the largest difference of a descriptor's number, and its L2 distance.
        end_to_end: per matched face, L2 distance of descriptors.
        differing: paths of photographs whose boxes differ.
    """

    photos: int = 0
    dlib_boxes: int = 0
    matched: int = 0
    equal: int = 0
    extra: int = 0
    points_equal: int = 0
    score: float = 0.0
    point_px: list[float] = field(default_factory=list)
    chip: list[tuple[float, float]] = field(default_factory=list)
    end_to_end: list[float] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)


class Comparison:
    """facescale's side: the default models at the scale that dlib was asked at.

    Args:
        upsample: dlib's number of upsamplings, 0 or 1.
    """

    def __init__(self, upsample: int) -> None:
        self.detector = load_detector("dlib_mmod", min_face_px=MIN_FACE_PX[upsample])
        self.landmarker = load_landmarker("dlib_5pt")
        self.embedder = load_embedder("dlib_resnet")
        self.agreement = Agreement()

    def add(self, root: Path, answers: Sequence[DlibAnswer]) -> None:
        """Compare some photographs; answers that are not ok are left out."""
        answers = [answer for answer in answers if answer.status == "ok"]
        if not answers:
            return
        images = [_pixels(root, answer) for answer in answers]
        theirs = [np.array(answer.boxes, np.int64).reshape(-1, 4) for answer in answers]
        points = [np.array(answer.landmarks, np.int64).reshape(-1, 5, 2) for answer in answers]
        self._compare_landmarks(images, theirs, points)
        self._compare_chips(images, answers, points)
        self._compare_whole_path(images, answers, theirs)

    def _compare_landmarks(
        self, images: list[np.ndarray], theirs: list[np.ndarray], points: list[np.ndarray]
    ) -> None:
        boxes = [box_from_dlib(rects).astype(np.float32) for rects in theirs]
        ours = np.concatenate(self.landmarker.landmarks(images, boxes))
        gap = np.abs(points_to_dlib(ours) - np.concatenate(points)).max(axis=(1, 2))
        self.agreement.points_equal += int((gap == 0).sum())
        self.agreement.point_px += gap.tolist()

    def _compare_chips(
        self, images: list[np.ndarray], answers: Sequence[DlibAnswer], points: list[np.ndarray]
    ) -> None:
        chips = [
            dlib_chip(image, shape_of(rect, corners))
            for image, answer, landmarks in zip(images, answers, points, strict=True)
            for rect, corners in zip(answer.boxes, landmarks, strict=True)
        ]
        if not chips:
            return
        theirs = np.array([row for answer in answers for row in answer.chip_descriptors])
        gap = self.embedder.embed(np.stack(chips)).astype(np.float64) - theirs
        largest, distance = np.abs(gap).max(axis=1), np.linalg.norm(gap, axis=1)
        self.agreement.chip += list(zip(largest.tolist(), distance.tolist(), strict=True))

    def _compare_whole_path(
        self, images: list[np.ndarray], answers: Sequence[DlibAnswer], theirs: list[np.ndarray]
    ) -> None:
        a, found = self.agreement, self.detector.detect(images)
        landmarks = self.landmarker.landmarks(images, [faces.boxes for faces in found])
        raw = self.embedder.embed(extract_chips(images, landmarks, self.embedder.card.template or ""))
        start = 0
        for answer, faces, rects in zip(answers, found, theirs, strict=True):
            ours = box_to_dlib(faces.boxes)
            match = match_boxes(ours, rects, 1.0)
            hit = match >= 0
            a.photos += 1
            a.dlib_boxes += len(rects)
            a.matched += int(hit.sum())
            a.extra += len(ours) - int(hit.sum())
            exact = (ours[match[hit]] == rects[hit]).all(axis=1)
            a.equal += int(exact.sum())
            if len(ours) != len(rects) or not hit.all() or not exact.all():
                a.differing.append(answer.path)
            scores = np.array(answer.scores, np.float64)
            a.score = max([a.score, *np.abs(faces.scores[match[hit]] - scores[hit]).tolist()])
            descriptors = np.array(answer.descriptors, np.float64).reshape(-1, raw.shape[1])
            gap = raw[start + match[hit]] - descriptors[hit]
            a.end_to_end += np.linalg.norm(gap, axis=1).tolist()
            start += len(ours)


def bench_oracle(
    folder: str,
    reporter: Reporter,
    *,
    limit: int | None = None,
    upsample: int = 0,
    save: str | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    processes: int | None = None,
) -> Result:
    """Ask dlib about photographs, then facescale, and compare.

    Args:
        folder: of photographs.
        reporter: where progress goes.
        limit: at most so many, evenly spaced over the sorted list.
        upsample: dlib's number of upsamplings: 0 (faces from 80 px) or 1 (from 40 px).
        save: file for dlib's answers; those it holds already are not asked for again.
        max_pixels: photographs larger than this are left out (dlib's memory and time grow with it).
        processes: of dlib; None for one a core.

    Raises:
        UsageError: no images, or an upsampling facescale has no counterpart for.
        MissingExtraError: dlib is not installed.
    """
    if upsample not in MIN_FACE_PX:
        raise UsageError(f"--upsample: expected 0 or 1, got {upsample}")
    load_dlib()
    root = Path(folder).absolute()
    paths = [str(photo.relative_to(root)) for photo in find_photos(root, limit)]
    settings = {"photos": len(paths), "upsample": upsample, "max_pixels": max_pixels}
    result = Result("oracle", settings)
    with timed(result):
        answers = _answers(
            root, paths, reporter, upsample=upsample, save=save, max_pixels=max_pixels, processes=processes
        )
        agreement = compare(root, answers, upsample, reporter)
    judged = [answer for answer in answers if answer.status == "ok"]
    _add_figures(result, agreement)
    result.figures["photographs"] = {
        "given": len(paths),
        "judged by both": len(judged),
        "left out": {status: n for status, n in _counts(answers).items() if status != "ok"},
        "dlib, seconds a photo": sum(answer.seconds for answer in judged) / max(1, len(judged)),
    }
    return result


def compare(root: Path, answers: Sequence[DlibAnswer], upsample: int, reporter: Reporter) -> Agreement:
    """Hold facescale against dlib's answers."""
    limit_threads(usable_cpus())
    comparison = Comparison(upsample)
    limit_threads(usable_cpus())
    with progress(reporter, "facescale", items=len(answers)) as advance:
        for start in range(0, len(answers), _AT_ONCE):
            some = answers[start : start + _AT_ONCE]
            comparison.add(root, some)
            advance(len(some))
    return comparison.agreement


def _answers(
    root: Path,
    paths: list[str],
    reporter: Reporter,
    *,
    upsample: int,
    save: str | None,
    max_pixels: int,
    processes: int | None,
) -> list[DlibAnswer]:
    file = None if save is None else AnswerFile(save, upsample)
    known = file.read() if file else {}
    # A photograph that was too large for an earlier run's limit is asked about again.
    known = {path: answer for path, answer in known.items() if answer.status != "too_many_pixels"}
    unknown = [path for path in paths if path not in known]
    with progress(reporter, "dlib", items=len(unknown)) as advance:
        asked = ask_about(
            root, unknown, upsample=upsample, max_pixels=max_pixels, processes=processes or usable_cpus()
        )
        for answer in asked:
            known[answer.path] = answer
            if file is not None:
                file.append(answer)
            advance(1)
    return [known[path] for path in paths]


def _add_figures(result: Result, a: Agreement) -> None:
    found, faces = share(a.matched, a.dlib_boxes), len(a.point_px)
    largest = max((gap for gap, _ in a.chip), default=None)
    result.goals = [
        Goal("dlib's boxes found within 1 px, share", found, at_least=0.99),
        Goal("landmarks equal dlib's, share of faces", share(a.points_equal, faces), at_least=0.99),
        Goal("landmarks, furthest off, px", max(a.point_px, default=None), at_most=1.0),
        Goal("descriptors of the same chip, largest difference", largest, at_most=1e-5),
        Goal("end to end, largest descriptor distance", max(a.end_to_end, default=None), at_most=2e-3),
    ]
    result.figures["boxes"] = {
        "dlib's": a.dlib_boxes,
        "found within 1 px": a.matched,
        "found with equal coordinates": a.equal,
        "extra": a.extra,
        "largest difference of a score": a.score,
    }
    result.figures["landmarks, on dlib's boxes"] = {"faces": faces, "equal": a.points_equal}
    result.figures["descriptors of dlib's chips"] = {
        "chips": len(a.chip),
        "largest difference of a number": largest,
        "largest L2 distance": max((distance for _, distance in a.chip), default=None),
    }
    result.figures["descriptors end to end, L2 distance"] = {
        "faces": len(a.end_to_end),
        **quantiles(a.end_to_end),
    }
    result.figures["photographs whose boxes differ"] = [{"path": path} for path in a.differing[:_LISTED]]


def _counts(answers: Sequence[DlibAnswer]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for answer in answers:
        counts[answer.status] = counts.get(answer.status, 0) + 1
    return counts


def _pixels(root: Path, answer: DlibAnswer) -> np.ndarray:
    data = (root / answer.path).read_bytes()
    if sha256(data).hex() != answer.sha256:
        raise UsageError(
            f"{root / answer.path} has changed since dlib was asked about it: delete its line from the file of "
            "answers (--save), or the file"
        )
    pixels = decode(data).pixels
    assert pixels is not None  # the same bytes gave pixels when dlib was asked
    return pixels
