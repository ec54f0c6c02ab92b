"""`facescale bench models`: every detector and embedder whose weights are here, through the main job, side by side.

Comes in: a folder with labels.csv and lfw_pairs.csv. Goes out: a row for each combination, measured on the tables that
the main job made: what is found, how well people are told apart, how fast extract was.

Each combination has its own lake, and a row that is finished is kept beside it, so that an interrupted run goes on.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.bench.lake_faces import read_faces
from facescale.bench.metrics import folded_accuracy, pair_distances, share, tar_at_far
from facescale.bench.photos import evenly, link_photos, read_labels, read_pairs
from facescale.bench.results import Result, timed
from facescale.config.flags import everywhere
from facescale.config.job import JobConfig
from facescale.config.load import load_config
from facescale.errors import DataError, FacescaleError, MismatchError, UsageError
from facescale.lake.lake import Lake
from facescale.models.registry import card, cards, choose_scheme
from facescale.models.weights import local_weights, use_weights_folder
from facescale.pipeline import run_job

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facescale.bench.lake_faces import LakeFaces
    from facescale.bench.photos import Pairs, Photo
    from facescale.driver.context import Reporter, StageSummary
    from facescale.models.card import ModelCard

DEFAULTS = ("dlib_mmod", "dlib_5pt", "dlib_resnet")
WITH_EMBEDDER, WITH_DETECTOR = "mobilefacenet", "yunet_n"
"""What every detector is measured with, and every embedder."""
FARS = (1e-2, 1e-3, 1e-4)
_OTHERS_PER_PAIR = 4  # of limited runs: one group and one empty photograph for so many pairs


@dataclass(frozen=True)
class Combination:
    """Models that run together; the landmarker is only used where the detector's landmarks are of another scheme."""

    detector: str
    landmarker: str
    embedder: str

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.detector}-{self.landmarker}-{self.embedder}"


@dataclass(frozen=True, eq=False)
class _Truth:
    """What the photographs show; `root` is the folder that is extracted."""

    root: Path
    photos: list[Photo]
    pairs: Pairs


def bench_models(
    folder: str,
    reporter: Reporter,
    *,
    lakes: str | None = None,
    detectors: Sequence[str] | None = None,
    embedders: Sequence[str] | None = None,
    limit_pairs: int | None = None,
    min_face_px: int = 40,
    workers: int | None = None,
    weights_dir: str | None = None,
    accept_license: bool = False,
) -> Result:
    """Run every combination and measure.

    Args:
        folder: of photographs, with labels.csv and lfw_pairs.csv.
        reporter: where progress goes.
        lakes: folder for a lake and a row of each combination, kept for the next run; None for a temporary one.
        detectors: of these only; None for all whose weights are on this machine.
        embedders: likewise.
        limit_pairs: at most so many pairs, their photographs, and some without and with several people; None for all.
        min_face_px: smallest face.
        workers: of extract; None for one a core.
        weights_dir: folder with weights, before FACESCALE_WEIGHTS.
        accept_license: also run models whose licence forbids commercial use.

    Raises:
        UsageError: a file or column is missing, or no model's weights are here.
    """
    use_weights_folder(weights_dir)
    source = Path(folder).absolute()
    photos, pairs = read_labels(source), read_pairs(source)
    chosen = combinations(detectors, embedders, accept_license=accept_license)
    if not chosen:
        raise UsageError("no combination of models has its weights here: see `facescale models list`")
    settings = {"photos": len(photos), "pairs": len(pairs), "min_face_px": min_face_px, "workers": workers}
    result = Result("models", settings)
    with timed(result), ExitStack() as stack:
        work = Path(lakes or stack.enter_context(tempfile.TemporaryDirectory(prefix="facescale-bench-")))
        work.mkdir(parents=True, exist_ok=True)
        root = source
        if limit_pairs is not None:
            pairs, photos = _some(pairs, photos, limit_pairs)
            root = work.absolute() / "photos"
            link_photos([source / photo.path for photo in photos], source, root)
            settings |= {"photos": len(photos), "pairs": len(pairs)}
        truth = _Truth(root, photos, pairs)
        rows = []
        for number, one in enumerate(chosen, start=1):
            reporter.say(f"{number} of {len(chosen)}: {one.detector}, {one.embedder}")
            rows.append(
                _row(
                    one,
                    truth,
                    work,
                    reporter,
                    extract={
                        "extract.min_face_px": min_face_px,
                        "extract.accept_license": accept_license,
                        "extract.weights_dir": weights_dir,
                        "engine.workers": workers,
                    },
                )
            )
        result.figures["models"] = rows
    return result


def combinations(
    detectors: Sequence[str] | None, embedders: Sequence[str] | None, *, accept_license: bool
) -> list[Combination]:
    """The default models; each detector with one embedder; each embedder with one detector, if their weights are here.

    Raises:
        UsageError: a name that is given is no such model.
    """
    wanted = {"detector": detectors, "embedder": embedders}
    here = {
        task: [known.name for known in cards(task) if _is_here(known, accept_license)]
        for task in ("detector", "landmarker", "embedder")
    }
    for task, names in wanted.items():
        for name in names or ():
            card(name, task)
    found = [Combination(*DEFAULTS)]
    found += [_with_landmarker(name, WITH_EMBEDDER, here["landmarker"]) for name in here["detector"]]
    found += [_with_landmarker(WITH_DETECTOR, name, here["landmarker"]) for name in here["embedder"]]
    return [
        one
        for one in dict.fromkeys(found)
        if one.detector in here["detector"]
        and one.landmarker in here["landmarker"]
        and one.embedder in here["embedder"]
        and (detectors is None or one.detector in detectors)
        and (embedders is None or one.embedder in embedders)
    ]


def _is_here(known: ModelCard, accept_license: bool) -> bool:
    if known.non_commercial and not accept_license:
        return False
    try:
        for file in (known, *known.parts.values()):
            local_weights(file)
    except FacescaleError:
        return False
    return True


def _with_landmarker(detector: str, embedder: str, landmarkers: Sequence[str]) -> Combination:
    """The pair with the first landmarker that gives what the embedder needs; the default one if it is not used."""
    for name in (DEFAULTS[1], *landmarkers):
        try:
            choose_scheme(card(detector), card(name), card(embedder))
        except MismatchError:
            continue
        return Combination(detector, name, embedder)
    return Combination(detector, DEFAULTS[1], embedder)


def _some(pairs: Pairs, photos: list[Photo], limit: int) -> tuple[Pairs, list[Photo]]:
    """Evenly spaced pairs, their photographs, and a few of the other kinds."""
    some = pairs.take(np.array(evenly(range(len(pairs)), limit), np.int64))
    wanted = {*some.first, *some.second}
    count = -(-limit // _OTHERS_PER_PAIR)
    for kind in ("noface", "group"):
        wanted |= {photo.path for photo in evenly([p for p in photos if p.kind == kind], count)}
    return some, [photo for photo in photos if photo.path in wanted]


def _row(
    one: Combination, truth: _Truth, work: Path, reporter: Reporter, *, extract: dict[str, Any]
) -> dict[str, Any]:
    """The row of a combination: the one kept in its file, or else a new one."""
    file, lake = work / f"{one.name}.json", work / f"{one.name}.lake"
    made_from = {
        "root": str(truth.root),
        "photos": len(truth.photos),
        "pairs": len(truth.pairs),
        "settings": extract,
        "sha256": [card(name).sha256 for name in (one.detector, one.landmarker, one.embedder)],
    }
    if file.is_file():
        kept: dict[str, Any] = json.loads(file.read_text("utf-8"))
        if kept["made_from"] == made_from:
            row: dict[str, Any] = kept["row"]
            return row
    given = {
        "src": str(truth.root),
        "lake": str(lake),
        "max_failures": 1.0,
        "extract.detector": one.detector,
        "extract.landmarker": one.landmarker,
        "report.enabled": False,
    }
    overrides = given | everywhere("embedder", one.embedder) | extract
    config = load_config(JobConfig, overrides=overrides)
    summary = run_job("run", config, reporter)
    if summary.exit_code:
        raise DataError(f"{lake} is not complete (exit code {summary.exit_code}): run the command again")
    faces = read_faces(Lake.open(str(lake)), one.embedder)
    row = {
        "detector": one.detector,
        "landmarks": _landmarks_of(one),
        "embedder": one.embedder,
        **_found(faces, truth),
        **_verified(faces, truth),
        **_speed(summary.stage("extract"), len(faces.uris), len(faces.face_ids)),
    }
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps({"made_from": made_from, "row": row}, indent=2) + "\n", "utf-8")
    os.replace(temporary, file)
    return row


def _landmarks_of(one: Combination) -> str:
    _, own = choose_scheme(card(one.detector), card(one.landmarker), card(one.embedder))
    return "its own" if own else one.landmarker


def _found(faces: LakeFaces, truth: _Truth) -> dict[str, Any]:
    """Detection: against the photographs of one person, and the counts of the others.

    A photograph with n people counts min(found, n) faces as found rightly, so boxes are not looked at; a crowd whose
    people nobody counted is left out.
    """
    rows = faces.rows_of(truth.root, [photo.path for photo in truth.photos])
    found = np.where(rows >= 0, faces.num_faces[rows], 0)
    kinds = np.array([photo.kind for photo in truth.photos])
    people = np.array(
        [0 if p.kind == "noface" else -1 if p.num_faces is None else p.num_faces for p in truth.photos]
    )
    single, several, empty = kinds == "single", (kinds == "group") & (people > 0), kinds == "noface"
    right = np.minimum(found, people)
    counted = several | empty
    return {
        "single: recall": share(int((found[single] > 0).sum()), int(single.sum())),
        "groups: recall": share(int(right[several].sum()), int(people[several].sum())),
        "groups and empty: precision": share(int(right[counted].sum()), int(found[counted].sum())),
        "empty without a face": share(int((found[empty] == 0).sum()), int(empty.sum())),
    }


def _verified(faces: LakeFaces, truth: _Truth) -> dict[str, Any]:
    """Verification on the pairs, and over all pairs of photographs in the pairs' folder; center faces, cosine."""
    first, second = (
        faces.center_of(faces.rows_of(truth.root, side)) for side in (truth.pairs.first, truth.pairs.second)
    )
    distances = pair_distances(faces.unit, first, second)
    folder = {Path(path).parts[0] for path in truth.pairs.first}
    named = [p for p in truth.photos if p.identity and p.kind == "single" and Path(p.path).parts[0] in folder]
    center = faces.center_of(faces.rows_of(truth.root, [photo.path for photo in named]))
    _, person = np.unique([photo.identity for photo in named], return_inverse=True)
    rates = tar_at_far(faces.unit, center, person, FARS)
    return {
        "pairs: accuracy": folded_accuracy(distances, truth.pairs.same, truth.pairs.fold).accuracy,
        **{f"TAR at FAR {far:g}": rate for far, rate in zip(FARS, rates, strict=True)},
    }


def _speed(extract: StageSummary, images: int, faces: int) -> dict[str, Any]:
    """Of extract with its workers' start; None where the lake was there in part, as then it is not known."""
    if extract.parts_kept or not extract.seconds:
        return {"images/s": None, "faces/s": None}
    return {"images/s": images / extract.seconds, "faces/s": faces / extract.seconds}
