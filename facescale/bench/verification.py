"""`facescale bench verification`: what the lake's tables say about people, on labelled photographs.

Comes in: a folder with labels.csv and lfw_pairs.csv. Goes out: verification on the pairs, leave-one-out identification
through the index, coverage of the detector, and what storing crops and half-precision embeddings costs.

A photograph's face is the one nearest its center, as the LFW protocol has it; a photograph without a face is counted as
wrong everywhere. Verification on the pairs is L2 on raw descriptors for an embedder whose makers give a threshold for
that, cosine for the others; everything else is cosine, as the index has it.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.bench.chosen import Models, make_lake
from facescale.bench.dlib_oracle import AnswerFile
from facescale.bench.lake_faces import LakeFaces, read_faces
from facescale.bench.metrics import (
    accuracy_at,
    first_other,
    folded_accuracy,
    iou,
    nearest_to_center,
    pair_distances,
    quantiles,
    share,
    tar_at_far,
)
from facescale.bench.photos import evenly, link_photos, read_labels, read_pairs
from facescale.bench.results import Goal, Result, progress, timed
from facescale.curate.calibration import load_calibration
from facescale.driver.neighbors import is_calibrated
from facescale.engine.session import usable_cpus
from facescale.engine.worker import limit_threads
from facescale.evaluate.split import folds_of
from facescale.imaging.decode import decode
from facescale.index.search import Index
from facescale.lake.parts import list_done
from facescale.lake.stage import Guard
from facescale.models.registry import card
from facescale.models.weights import use_weights_folder
from facescale.sources.uris import is_remote, path_of_uri
from facescale.vision.align import box_from_dlib, extract_chips
from facescale.vision.embed import EmbedSettings, EmbedStage
from facescale.vision.registry import load_embedder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facescale.bench.photos import Pairs, Photo
    from facescale.driver.context import Reporter
    from facescale.lake.lake import Lake

_FAR = (1e-2, 1e-3, 1e-4)
_CROP_FACES = 1000  # faces embedded again from their stored crops
_AT_ONCE = 64
_NEIGHBORS = (64, 2048)  # asked for first, and where those do not decide
_QUERIES_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class _Bench:
    """What every section measures on."""

    root: Path
    photos: list[Photo]
    pairs: Pairs
    faces: LakeFaces
    lake: Lake
    models: Models
    reporter: Reporter
    result: Result

    @property
    def makers_threshold(self) -> float | None:
        """L2 distance of raw descriptors below which the embedder's makers call two faces one person."""
        return card(self.models.embedder, "embedder").threshold

    def goal(self, what: str, key: str, value: float | None) -> None:
        """Add a figure to the goals, where these models have one for it."""
        limit = self.models.expected().get(key)
        if limit is not None:
            self.result.goals.append(Goal(what, value, limit))

    def of_kind(self, *kinds: str) -> tuple[list[Photo], np.ndarray]:
        """Photographs of some kinds, and their rows among the lake's images."""
        photos = [photo for photo in self.photos if photo.kind in kinds]
        return photos, self.faces.rows_of(self.root, [photo.path for photo in photos])

    def pair_faces(self) -> tuple[np.ndarray, np.ndarray]:
        """The center faces of both sides of each pair: int64 [P] each, -1 for none."""
        sides = (self.pairs.first, self.pairs.second)
        first, second = (self.faces.center_of(self.faces.rows_of(self.root, side)) for side in sides)
        return first, second


def bench_verification(
    folder: str,
    reporter: Reporter,
    *,
    lake: str | None = None,
    dlib: str | None = None,
    limit_pairs: int | None = None,
    models: Models | None = None,
) -> Result:
    """Extract and index the photographs, then measure.

    Args:
        folder: of photographs, with labels.csv and lfw_pairs.csv.
        reporter: where progress goes.
        lake: to make, or to go on with when it holds these photographs already; None for a temporary one.
        dlib: file of `facescale bench oracle --save`, for coverage by overlap with dlib's boxes.
        limit_pairs: at most so many pairs, evenly spaced, and only their photographs (links to them go to LAKE.photos);
            None for all photographs.
        models: to run; None for the default ones.

    Raises:
        UsageError: a file or column is missing.
    """
    source, models = Path(folder).absolute(), models or Models()
    photos, pairs = read_labels(source), read_pairs(source)
    answers = None if dlib is None else AnswerFile.open(dlib)
    if limit_pairs is not None:
        pairs = pairs.take(np.array(evenly(range(len(pairs)), limit_pairs), np.int64))
        wanted = {*pairs.first, *pairs.second}
        photos = [photo for photo in photos if photo.path in wanted]
    settings: dict[str, Any] = {"photos": len(photos), "pairs": len(pairs), **models.settings()}
    result = Result("verification", settings)
    with timed(result), ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="facescale-bench-")))
        root = source
        if limit_pairs is not None:
            # Beside a lake that stays: running the command again must find the same files.
            root = work / "photos" if lake is None or is_remote(lake) else Path(f"{lake}.photos").absolute()
            link_photos([source / photo.path for photo in photos], source, root)
        made = make_lake(str(root), lake or str(work / "lake"), models, ["run"], reporter)
        faces = read_faces(made, models.embedder)
        bench = _Bench(root, photos, pairs, faces, made, models, reporter, result)
        limit_threads(usable_cpus())
        use_weights_folder(models.weights_dir)
        _verify_pairs(bench)
        _accept(bench)
        _identify(bench)
        _cover(bench, answers)
        _from_crops(bench)
    return result


def _verify_pairs(bench: _Bench) -> None:
    """Verification from the tables, and again from float32 descriptors made anew from the photographs."""
    first, second = bench.pair_faces()
    same, fold = bench.pairs.same, bench.pairs.fold
    makers = bench.makers_threshold
    stored = _distances(bench.faces.raw, first, second, makers)
    used = np.unique(np.concatenate([first, second]))
    used = used[used >= 0]
    raw = bench.faces.raw
    raw[used] = _describe_again(bench, used)
    exact = _distances(raw, first, second, makers)
    from_lake, from_pixels = folded_accuracy(stored, same, fold), folded_accuracy(exact, same, fold)
    bench.goal("verification accuracy, threshold of the other fold", "verification", from_lake.accuracy)
    figures: dict[str, Any] = {
        "measure": "cosine" if makers is None else "L2 of raw descriptors",
        "pairs": len(bench.pairs),
        "pairs that lack a face, counted as wrong": int(np.isnan(stored).sum()),
        "accuracy": from_lake.accuracy,
        "accuracy, over equally good thresholds": _listed(np.array([from_lake.lowest, from_lake.highest])),
        "accuracy of each fold": _listed(from_lake.folds),
        "threshold of each fold, from the others": _listed(_shown(from_lake.thresholds, makers)),
    }
    if makers is not None:
        figures[f"accuracy at its makers' own threshold {makers:g}"] = accuracy_at(stored, same, makers)
    what = "cosine" if makers is None else "distance"
    figures[f"mean {what}, same person"] = _mean(_shown(stored[same], makers))
    figures[f"mean {what}, different people"] = _mean(_shown(stored[~same], makers))
    bench.result.figures["verification"] = figures
    cosine = 1 - _distances(bench.faces.raw, first, second, None)
    _verify_at_calibration(bench, cosine)
    unlike = np.linalg.norm(bench.faces.raw[used] - raw[used], axis=1) / np.linalg.norm(raw[used], axis=1)
    bench.result.figures["float16 embeddings, against float32 from the photographs"] = {
        "faces": len(used),
        "accuracy with float32": from_pixels.accuracy,
        f"largest change of a pair's {what}": float(np.nanmax(np.abs(stored - exact))),
        "pairs that change sides of the threshold": int(
            sum(
                (np.isfinite(stored) & (fold == number) & ((stored < cut) != (exact < cut))).sum()
                for number, cut in zip(np.unique(fold), from_lake.thresholds, strict=True)
            )
        ),
        "largest distance of a face to itself, as a share of its length": float(unlike.max(initial=0.0)),
    }


def _verify_at_calibration(bench: _Bench, cosine: np.ndarray) -> None:
    """Accuracy at thresholds of the embedder's calibration, where it has one; no pair chooses them."""
    if not is_calibrated(bench.models.embedder, bench.lake):
        return
    calibration = load_calibration(bench.models.embedder, bench.lake)
    name_of = {photo.path: photo.identity for photo in bench.photos}
    sides = [
        folds_of([name_of.get(path, "") for path in side]) for side in (bench.pairs.first, bench.pairs.second)
    ]
    others = (sides[0] == 1) & (sides[1] == 1)
    rows = []
    for rate in _FAR:
        threshold = calibration.pairs.similarity_at(rate)
        right = np.isfinite(cosine) & ((cosine >= threshold) == bench.pairs.same)
        rows.append(
            {
                "false-match rate": rate,
                "cosine": round(threshold, 4),
                "accuracy": float(right.mean()),
                "accuracy, both people of fold 1": float(right[others].mean()) if others.any() else None,
                "pairs of those": int(others.sum()),
            }
        )
    bench.result.figures["verification at the calibrated threshold of a false-match rate"] = rows


def _distances(raw: np.ndarray, first: np.ndarray, second: np.ndarray, makers: float | None) -> np.ndarray:
    """Float64 [P], NaN where a face is missing: L2 of raw descriptors, or 1 - cosine where nobody gives a threshold."""
    if makers is not None:
        return pair_distances(raw, first, second)
    unit = raw / np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-12)
    halved: np.ndarray = pair_distances(unit, first, second) ** 2 / 2
    return halved


def _shown(distances: np.ndarray, makers: float | None) -> np.ndarray:
    """Distances as a reader knows them: L2, or cosine."""
    return distances if makers is not None else 1 - distances


def _accept(bench: _Bench) -> None:
    """The share of pairs of one person accepted, at thresholds that few pairs of different people pass.

    All pairs of the single-person photographs whose person is known, in the folders of the listed pairs.
    """
    folders = {str(Path(path).parent) for path in (*bench.pairs.first, *bench.pairs.second)}
    photos, rows = bench.of_kind("single")
    wanted = np.array([bool(p.identity) and str(Path(p.path).parent) in folders for p in photos], bool)
    _, who = np.unique([photo.identity for photo in photos], return_inverse=True)
    rates = tar_at_far(bench.faces.unit, bench.faces.center_of(rows)[wanted], who[wanted], _FAR)
    bench.result.figures["TAR at FAR, over all pairs of photographs"] = [
        {"FAR": far, "TAR": tar} for far, tar in zip(_FAR, rates, strict=True)
    ]


def _describe_again(bench: _Bench, rows: np.ndarray) -> np.ndarray:
    """Descriptors of faces, float32 [n, D], from their photographs and the landmarks in the lake."""
    embedder = load_embedder(bench.models.embedder, backend=bench.models.runtime or "auto")
    faces, parts = bench.faces, []
    with (
        ThreadPoolExecutor(usable_cpus()) as pool,
        progress(bench.reporter, "float32", items=len(rows), unit="faces") as advance,
    ):
        for start in range(0, len(rows), _AT_ONCE):
            some = rows[start : start + _AT_ONCE]
            images = list(pool.map(_pixels, [faces.uris[image] for image in faces.image[some]]))
            chips = extract_chips(images, list(faces.landmarks[some][:, None]), embedder.card.template or "")
            parts.append(embedder.embed(chips))
            advance(len(some))
    return np.concatenate(parts) if parts else np.zeros((0, embedder.dim), np.float32)


def _pixels(uri: str) -> np.ndarray:
    pixels = decode(Path(path_of_uri(uri).decode("utf-8", "surrogateescape")).read_bytes()).pixels
    assert pixels is not None  # it has a face in the lake
    return pixels


def _identify(bench: _Bench) -> None:
    """Leave-one-out: is the nearest other face in the gallery of the same person?

    The gallery is the center face of every single-person photograph with a name; a query is one of someone with at
    least two. The lake also holds bystanders and group photos, whose faces are nobody's: the second figure lets them
    answer too, and then they are wrong.
    """
    photos, rows = bench.of_kind("single")
    names = np.array([photo.identity for photo in photos], object)
    center = bench.faces.center_of(rows)
    known = names != ""
    people, count = np.unique(names[known], return_counts=True)
    asked = np.isin(names, people[count >= 2])
    query = asked & (center >= 0)
    ids = bench.faces.face_ids
    gallery = ids[center[known & (center >= 0)]]
    name_of = dict(zip(ids[center[center >= 0]].tolist(), names[center >= 0].tolist(), strict=True))
    right = right_any = 0
    with progress(bench.reporter, "identify", items=int(query.sum()), unit="queries") as advance:
        index = Index.open(bench.lake, bench.models.embedder, threads=usable_cpus())
        for some in np.array_split(np.flatnonzero(query), -(-int(query.sum()) // _QUERIES_AT_ONCE) or 1):
            own = ids[center[some]]
            found, found_any = _nearest_other(index, bench.faces.unit[center[some]], own, gallery)
            right += sum(name_of.get(f, "") == n for f, n in zip(found.tolist(), names[some], strict=True))
            right_any += sum(
                name_of.get(f, "") == n for f, n in zip(found_any.tolist(), names[some], strict=True)
            )
            advance(len(some))
        index.close()
    total = int(asked.sum())
    bench.goal("identification, leave-one-out top 1", "identification", share(right, total))
    bench.result.figures["identification"] = {
        "index": index.manifest.layout.factory,
        "people with at least two photographs": int((count >= 2).sum()),
        "queries": total,
        "queries without a face, counted as wrong": total - int(query.sum()),
        "faces in the gallery": len(gallery),
        "top 1": share(right, total),
        "faces in the index": len(ids),
        "top 1 when bystanders and group photos may answer too": share(right_any, total),
    }


def _nearest_other(
    index: Index, vectors: np.ndarray, own: np.ndarray, gallery: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest face that is not the query, in the gallery and among all: int64 [Q] ids each."""
    neighbors, _ = index.search(vectors, _NEIGHBORS[0])
    found, undecided = first_other(neighbors, own, gallery)
    if undecided.any():
        more, _ = index.search(vectors[undecided], _NEIGHBORS[1])
        found[undecided], _ = first_other(more, own[undecided], gallery)
    found_any, _ = first_other(neighbors, own, np.setdiff1d(neighbors, [-1]))
    return found, found_any


def _cover(bench: _Bench, answers: AnswerFile | None) -> None:
    """Which photographs yield the faces they have."""
    photos, rows = bench.of_kind("single")
    num_faces = np.where(rows >= 0, bench.faces.num_faces[rows], 0)
    yields, judged = num_faces > 0, 0
    if answers is not None:
        known = answers.read()
        for i, (photo, row) in enumerate(zip(photos, rows, strict=True)):
            answer = known.get(photo.path)
            if answer is None or not answer.boxes:
                continue
            judged += 1
            ours = bench.faces.boxes[bench.faces.image == row] if row >= 0 else np.zeros((0, 4))
            yields[i] = bool((iou(ours, _center_box(answer.boxes, bench, int(row))) >= 0.5).any())
    empty, empty_rows = bench.of_kind("noface")
    read = np.array(bench.faces.statuses, object)[empty_rows] == "ok"
    silent = int(((empty_rows >= 0) & read & (bench.faces.num_faces[empty_rows] == 0)).sum())
    bench.result.goals += [
        Goal(
            "single-person photographs that yield their face, share",
            share(int(yields.sum()), len(photos)),
            0.985,
        ),
        Goal("no-face photographs without a face, share", share(silent, len(empty)), 0.90),
    ]
    bench.result.figures["coverage"] = {
        "single-person photographs": len(photos),
        "yield their face": int(yields.sum()),
        "of them judged by IoU ≥ 0.5 with dlib's face nearest the center": judged,
        "the others by any face at all": len(photos) - judged,
        "no-face photographs": len(empty),
        "of them without a face": silent,
    }
    groups, group_rows = bench.of_kind("group", "crowd")
    bench.result.figures["group photographs"] = [
        {
            "path": photo.path,
            "kind": photo.kind,
            "found": int(bench.faces.num_faces[row]) if row >= 0 else 0,
            "true": photo.num_faces,
        }
        for photo, row in zip(groups, group_rows, strict=True)
    ]
    missed = [photo.path for photo, good in zip(photos, yields, strict=True) if not good]
    bench.result.figures["single-person photographs missed"] = [{"path": path} for path in missed]


def _center_box(rects: Sequence[Sequence[int]], bench: _Bench, row: int) -> np.ndarray:
    """The box of dlib's that is nearest the image's center, float64 [1, 4] in facescale's convention."""
    boxes = box_from_dlib(np.array(rects, np.float64))
    nearest = nearest_to_center(boxes, np.zeros(len(boxes), np.int64), bench.faces.sizes[row : row + 1])
    chosen: np.ndarray = boxes[nearest]
    return chosen


def _from_crops(bench: _Bench) -> None:
    """Embed stored crops as the embed stage would, and compare with what extract made of the photographs."""
    images, faces, crops = (bench.lake.current(table) for table in ("images", "faces", "crops"))
    stored = bench.lake.current("embeddings", bench.models.embedder)
    assert images is not None and faces is not None and crops is not None and stored is not None
    settings = EmbedSettings(
        bench.models.embedder, "fp32", decode_threads=usable_cpus(), runtime=bench.models.runtime or "auto"
    )
    stage = EmbedStage(settings, bench.lake.store, faces=faces, crops=crops, output=stored)
    stage.open()
    parts = list(list_done(bench.lake.store, images).parts())
    wanted = max(1, round(len(parts) * min(1.0, _CROP_FACES / max(1, len(bench.faces.face_ids)))))
    cosines = []
    with progress(bench.reporter, "crops", items=wanted, unit="parts") as advance:
        for part in evenly(parts, wanted):
            (_, table), *_ = stage.process(part, Guard()).tables
            rows = np.searchsorted(bench.faces.face_ids, table["face_id"].to_numpy())
            flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            again = flat.astype(np.float32).reshape(len(rows), bench.faces.unit.shape[1])
            cosines.append((again * bench.faces.unit[rows]).sum(axis=1))
            advance(1)
    stage.pool.shutdown()
    cosine = np.concatenate(cosines) if cosines else np.zeros(0)
    median = float(np.median(cosine)) if len(cosine) else None
    bench.result.goals.append(Goal("stored crop against photograph, median cosine", median, 0.995))
    bench.result.figures["embedding from the stored crop against the photograph, cosine"] = {
        "faces": len(cosine),
        **quantiles(cosine),
    }


def _listed(values: np.ndarray) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _mean(distances: np.ndarray) -> float | None:
    return float(np.nanmean(distances)) if np.isfinite(distances).any() else None
