"""Drive calibrate: a lake and trusted labels in, LAKE/calibration/<embedder>.yaml out, checked on other people.

Runs in this process, without Ray: thousands of labeled photographs are enough, and more than MAX_FACES are not used.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

import facescale
from facescale.curate.calibration import Calibration, calibration_path, dump_calibration, shared_path
from facescale.curate.calibration_fit import MIN_QUALITY_QUANTILE, check, fit
from facescale.curate.drift import drift_warning
from facescale.driver.extract import import_plugins
from facescale.driver.re_encoding import measure_re_encode, read_vectors
from facescale.errors import UsageError
from facescale.evaluate.center import center_faces
from facescale.evaluate.split import folds_of
from facescale.lake.lake import Lake
from facescale.lake.scan import scan, scan_ids
from facescale.lake.store import Store
from facescale.models.registry import card, cards
from facescale.models.weights import use_weights_folder
from facescale.sources.labels import LabelSpec, label_rows
from facescale.sources.plan import planned_parts
from facescale.sources.vector_plan import holds_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.driver.context import Reporter
    from facescale.lake.parts import TableVersion

MAX_FACES = 200_000
_POOR_FMR = 1e-2


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings:
    """What to calibrate, on whom.

    Attributes:
        embedder: registry name.
        labels: a file of trusted labels; None takes the lake's own labels.
        fold: fit on the identities of this fold and check on the other's; None fits on all, without a check.
        device: "auto", "cpu" or "cuda".
        plugins: modules that register further models.
        note: what the photographs are, for the evidence; empty for none.
    """

    embedder: str = "dlib_resnet"
    labels: LabelSpec | None = None
    fold: int | None = 0
    device: str = "auto"
    plugins: tuple[str, ...] = ()
    note: str = ""
    share: bool = False
    weights_dir: str | None = None


@dataclass
class CalibrateResult:
    """What was fitted.

    Attributes:
        embedder: registry name.
        path: where the file is.
        digest: of the thresholds (Calibration.digest).
        thresholds: cosine of faces (`pairs`) and of face to center (`centers`) at false-match rates, and others.
        evidence: as written.
        warnings: what to think about before using it.
    """

    embedder: str
    path: str
    digest: str
    thresholds: dict[str, Any]
    evidence: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def run_calibrate(lake_uri: str, settings: CalibrateSettings, reporter: Reporter) -> CalibrateResult:
    """Fit, check, and write the file; replaces one that is there.

    Raises:
        UsageError: no lake, no embeddings or crops of the embedder, no labels, or too few people in them.
        DataError: the label file cannot be parsed.
    """
    import_plugins(settings.plugins)
    use_weights_folder(settings.weights_dir)
    lake = Lake.open(lake_uri)
    versions = _versions(lake, settings.embedder)
    people, left_out = labeled_faces(lake, settings, reporter)
    mine = people.fold == settings.fold if settings.fold is not None else np.ones(len(people.face_ids), bool)
    if settings.fold is not None:
        left_out["faces_of_the_other_fold"] = int((~mine).sum())
    vectors = read_vectors(lake, versions["embeddings"], people.face_ids)
    reporter.say(f"calibrate: {int(mine.sum()):,} faces of {len(set(people.names[mine])):,} people")
    quality = _quality(lake, versions["faces"], people.face_ids[mine])
    re_encode, how = measure_re_encode(
        lake,
        versions,
        people.face_ids[mine],
        people.names[mine],
        vectors[mine],
        embedder=settings.embedder,
        device=settings.device,
    )
    evidence: dict[str, Any] = {
        "made": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "by": f"facescale {facescale.__version__}",
        "command": _command(settings),
        **({"data": settings.note} if settings.note else {}),
        "faces": "of each labeled image the one nearest its center",
        "fold": "all" if settings.fold is None else settings.fold,
        "left_out": left_out,
        "detection": _made_by(
            lake,
            versions["faces"],
            (
                "detector",
                "det_threshold",
                "landmarker",
                "landmark_scheme",
                "min_face_px",
                "precision",
                "quality_scorer",
            ),
        ),
        "embedding": _made_by(lake, versions["embeddings"], ("pixels", "precision", "backend")),
        "re_encode": how,
        "min_quality": f"quantile {MIN_QUALITY_QUANTILE} of faces.quality"
        if quality is not None
        else "none: the quality of these faces was not measured",
    }
    calibration = fit(
        vectors[mine],
        people.names[mine],
        people.face_ids[mine],
        quality,
        embedder=settings.embedder,
        re_encode=re_encode,
        weights_sha256=_made_by(lake, versions["embeddings"], ("embedder_sha256",)).get(
            "embedder_sha256", _weights_of(settings.embedder)
        ),
        evidence=evidence,
    )
    if settings.fold is not None and not mine.all():
        other = check(calibration, vectors[~mine], people.names[~mine], people.face_ids[~mine])
        calibration.evidence["check_on_the_other_fold"] = other
    warnings = _doubts(calibration)
    if warning := drift_warning(calibration, lake, versions["embeddings"]):
        warnings.append(warning)
    path = calibration_path(settings.embedder)
    lake.store.write_bytes(path, dump_calibration(calibration))
    if settings.share:
        Store(str(shared_path(settings.embedder).parent)).write_bytes(
            shared_path(settings.embedder).name, dump_calibration(calibration)
        )
    return CalibrateResult(
        settings.embedder,
        lake.store.location(path),
        calibration.digest,
        _thresholds(calibration),
        calibration.evidence,
        warnings,
    )


@dataclass(frozen=True, eq=False)
class _People:
    """Faces whose person is known: object [N] names, int64 [N] ids and folds."""

    names: NDArray[Any]
    face_ids: NDArray[np.int64]
    fold: NDArray[np.int64]


def _versions(lake: Lake, embedder: str) -> dict[str, TableVersion]:
    """Of faces, embeddings and crops; an imported lake has no crops, and its embedder need not be registered."""
    imported = holds_vectors(lake)
    if not imported:
        card(embedder, "embedder")
    found = {}
    for table, model in (("faces", "-"), ("crops", "-"), ("embeddings", embedder)):
        version = lake.current(table, model)
        if version is None and imported and table == "crops":
            continue
        if version is None and imported:
            models = ", ".join(lake.current_models("embeddings")) or "none"
            raise UsageError(
                f"{lake.uri} has no finished embeddings of {embedder} (it has: {models}): name its own"
            )
        if version is None:
            job = "extract SRC" if model == "-" else "embed"
            raise UsageError(
                f"{lake.uri} has no finished {table}{'' if model == '-' else ' of ' + model}: run "
                f"`facescale {job} {lake.uri}{'' if model == '-' else ' --embedder ' + model}` first"
            )
        found[table] = version
    return found


def labeled_faces(
    lake: Lake, settings: CalibrateSettings, reporter: Reporter
) -> tuple[_People, dict[str, int]]:
    """One face of each labeled image, and how many images were left out for which reason."""
    images, labels = _labels(lake, settings.labels, reporter)
    left_out = {}
    unique, at, counts = np.unique(images, return_index=True, return_counts=True)
    left_out["images_with_several_labels"] = int((counts > 1).sum())
    images, labels = unique[counts == 1], labels[at[counts == 1]]
    copies = _copies(lake)
    if copies is not None:
        copy = np.isin(images, copies)
        left_out["duplicate_images"] = int(copy.sum())
        images, labels = images[~copy], labels[~copy]
    face_ids = center_faces(lake, images)
    left_out["images_without_a_face"] = int((face_ids < 0).sum())
    labels, face_ids = labels[face_ids >= 0], face_ids[face_ids >= 0]
    if len(face_ids) > MAX_FACES:  # whole people, so that theirs are not thinned out
        names, who = np.unique(labels.astype(str), return_inverse=True)
        order = np.random.default_rng(0).permutation(len(names))
        size = np.bincount(who)
        kept = np.zeros(len(names), bool)
        kept[order[np.cumsum(size[order]) <= MAX_FACES]] = True
        left_out["faces_beyond_the_budget"] = int((~kept[who]).sum())
        labels, face_ids = labels[kept[who]], face_ids[kept[who]]
    return _People(labels, face_ids, folds_of(labels.tolist())), left_out


def _labels(lake: Lake, spec: LabelSpec | None, reporter: Reporter) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """(image ids, names) of every claim."""
    if spec is not None:
        file = spec.load(lake.store)
        tables = [label_rows(lake.store, part, spec, file) for part in planned_parts(lake)]
        for remark in file.remarks() if file is not None else []:
            reporter.warn(remark)
    else:
        version = lake.current("labels")
        if version is None:
            raise UsageError(
                f"{lake.uri} has no labels: give trusted ones with --labels FILE --label-column NAME"
            )
        tables = list(scan(lake, version, columns=["image_id", "label"]))
    kept = [table.select(["image_id", "label"]) for table in tables if table.num_rows]
    if not kept:
        raise UsageError(
            f"not one image of {lake.uri} is named by the labels; are their paths relative to SRC?"
        )
    table = pa.concat_tables(kept)
    return table["image_id"].to_numpy(), np.array(table["label"].to_pylist(), object)


def _copies(lake: Lake) -> NDArray[np.int64] | None:
    """Images that are copies of another; None where the lake does not know."""
    version = lake.current("duplicates")
    if version is None:
        return None
    found = [table["image_id"].to_numpy() for table in scan(lake, version, columns=["image_id"])]
    return np.concatenate([np.zeros(0, np.int64), *found])


def _quality(lake: Lake, version: TableVersion, face_ids: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """faces.quality, NaN where null; None where there is nothing in it, as in a lake that an earlier release made."""
    if not len(face_ids):
        return None
    values = scan_ids(lake, version, face_ids, ["quality"])["quality"]
    if values.null_count == len(values):
        return None
    filled: NDArray[np.float64] = values.to_numpy().astype(np.float64)
    return filled


def _weights_of(embedder: str) -> str | None:
    """SHA-256 of the embedder's weights; None for one that is known by the lake only."""
    return next((known.sha256 for known in cards("embedder") if known.name == embedder), None)


def _doubts(calibration: Calibration) -> list[str]:
    """What the fit itself says against it."""
    doubts = []
    rate = calibration.pairs.fmr_of(calibration.genuine.pairs.quantile(0.5))
    if rate > _POOR_FMR:
        doubts.append(
            f"half of the pairs of one person are less alike than {rate:.1%} of the pairs of two: the labels are "
            "wrong in places, or the embedder cannot tell these people apart"
        )
    supported = max(calibration.pairs.supported, calibration.centers.supported)
    if supported > 1e-3:
        doubts.append(
            f"the sample shows false-match rates down to {supported:.0e} only; thresholds for smaller ones are "
            "extrapolated: label more people"
        )
    return doubts


def _thresholds(calibration: Calibration) -> dict[str, Any]:
    rates = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
    return {
        "pairs": {f"{rate:.0e}": round(calibration.pairs.similarity_at(rate), 5) for rate in rates},
        "centers": {f"{rate:.0e}": round(calibration.centers.similarity_at(rate), 5) for rate in rates},
        "re_encode": round(calibration.re_encode, 5),
        "min_quality": calibration.min_quality,
    }


def _made_by(lake: Lake, version: TableVersion, names: tuple[str, ...]) -> dict[str, Any]:
    settings = (lake.describe_version(version) or {}).get("settings", {})
    return {name: settings[name] for name in names if name in settings}


def _command(settings: CalibrateSettings) -> str:
    """The command with LAKE and FILE for what is nobody's business."""
    words = ["facescale calibrate LAKE", f"--embedder {settings.embedder}"]
    if settings.labels is not None:
        words += ["--labels FILE", f"--label-column {settings.labels.column}"]
    words.append(f"--fold {'all' if settings.fold is None else settings.fold}")
    return " ".join(words)
