"""Drive clean: decide which claimed labels are right, over the whole set, and write a decision about every face.

Comes in: a lake with current faces, embeddings and labels (and duplicates, where dedup has run). Goes out: a decisions
version of the embedder, set as current. The deciding is done here, in one process, on arrays (4 D + 50 bytes a face);
only the table is written part by part, so a killed job decides again and writes what is missing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.curate import clean as algorithm
from facescale.curate.calibration import load_preset, require_calibration
from facescale.curate.cast import CastRules, resolve_cast
from facescale.curate.claims import Claims, Faces
from facescale.curate.ownership import OwnershipRules
from facescale.driver.context import StageSummary
from facescale.errors import UsageError
from facescale.lake.fingerprint import fingerprint, parts_digest
from facescale.lake.parts import TableVersion, commit_part, list_done
from facescale.lake.scan import scan, sum_counters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facescale.config.clean import CleanConfig
    from facescale.curate.calibration import Calibration
    from facescale.curate.decisions import Decisions
    from facescale.driver.context import JobContext
    from facescale.lake.lake import Lake
    from facescale.lake.parts import PartKey


@dataclass(frozen=True)
class CleanInputs:
    """The versions that clean reads; `duplicates` is None before dedup has run."""

    images: TableVersion
    faces: TableVersion
    embeddings: TableVersion
    labels: TableVersion
    duplicates: TableVersion | None

    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each, by table."""
        versions = (self.images, self.faces, self.embeddings, self.labels, self.duplicates)
        return {version.table: version.fingerprint for version in versions if version is not None}


def run_clean(context: JobContext) -> StageSummary:
    """Clean the claimed labels by the faces of one embedder; resumes by itself.

    Raises:
        UsageError: the lake has no labels, no faces or no embeddings of the embedder, or that is not calibrated.
        MismatchError: the calibration is for other weights.
    """
    start = time.monotonic()
    lake, config = context.lake, context.config.clean
    summary = StageSummary("clean")
    inputs = find_inputs(lake, config)
    calibration = require_calibration(config.embedder, lake)
    wanted = list_done(lake.store, inputs.images)
    settings = clean_settings(config, calibration) | {"parts": parts_digest(wanted.pairs())}
    name = fingerprint("clean", settings, algorithm.REVISION, inputs.fingerprints())
    version = TableVersion("decisions", name, config.embedder)
    lake.write_version(
        version, stage="clean", settings=settings, revision=algorithm.REVISION, inputs=inputs.fingerprints()
    )
    done = list_done(lake.store, version)
    left = [part for part in wanted.parts() if part not in done]
    summary.parts_kept = len(wanted) - len(left)
    if left:
        faces = read_faces(lake, inputs.faces, inputs.embeddings, calibration.min_quality)
        claims, labels = read_claims(lake, inputs)
        context.reporter.say(
            f"clean: {len(claims.image_id):,} claims of {len(labels):,} labels on {len(faces.face_id):,} faces"
        )
        _write(lake, version, left, decide(faces, claims, calibration, config), labels)
        summary.parts_run, summary.workers = len(left), 1
    if inputs.duplicates is None:
        summary.notes.append(
            f"no duplicates are known, so every copy of a photograph has a vote: run `facescale dedup {lake.uri}` first"
        )
    summary.counters = sum_counters(lake, version)
    lake.set_current([version])
    summary.tables = {"decisions": version.folder}
    summary.seconds = time.monotonic() - start
    return summary


def find_inputs(lake: Lake, config: CleanConfig) -> CleanInputs:
    """The current versions that clean reads.

    Raises:
        UsageError: one of them is missing; tells which command makes it.
    """

    def current(table: str, command: str, model: str = "-") -> TableVersion:
        found = lake.current(table, model)
        if found is None:
            raise UsageError(
                f"{lake.uri} has no finished {table} yet, which clean needs: run `{command}` first"
            )
        return found

    extract = f"facescale extract SRC {lake.uri}"
    return CleanInputs(
        images=current("images", extract),
        faces=current("faces", extract),
        labels=current(
            "labels", f"{extract} --labels folder` or `{extract} --labels FILE --label-column NAME"
        ),
        embeddings=current(
            "embeddings", f"facescale embed {lake.uri} --embedder {config.embedder}", config.embedder
        ),
        duplicates=lake.current("duplicates"),
    )


def clean_settings(config: CleanConfig, calibration: Calibration) -> dict[str, Any]:
    """What changes the decisions: the settings of the method that was asked for.

    Raises:
        UsageError: a preset with another method than cast, or labels that are dropped before they are similar enough
            to be merged.
    """
    if config.preset is not None and config.method != "cast":
        raise UsageError(f"clean.preset {config.preset} is for clean.method cast, not for {config.method}")
    if config.cast_drop_fmr < config.cast_merge_fmr:
        raise UsageError(
            f"clean.cast_drop_fmr {config.cast_drop_fmr:g} must be at least clean.cast_merge_fmr "
            f"{config.cast_merge_fmr:g}: labels are dropped where they are less alike than those that are merged"
        )
    settings = config.model_dump(mode="json")
    common = {"embedder", "method"}
    of_cast = {name for name in settings if name.startswith("cast_")} | {"preset"}
    mine = of_cast if config.method == "cast" else settings.keys() - of_cast
    return {name: settings[name] for name in sorted(mine | common)} | {"calibration": calibration.digest}


def decide(faces: Faces, claims: Claims, calibration: Calibration, config: CleanConfig) -> Decisions:
    """Run the method that was asked for."""
    if config.method == "cast":
        preset = None if config.preset is None else load_preset(config.preset)
        cuts = resolve_cast(cast_rules(config), calibration, preset)
        return algorithm.clean_by_cast(faces, claims, calibration, cuts)
    return algorithm.clean_by_ownership(faces, claims, calibration, ownership_rules(config))


def ownership_rules(config: CleanConfig) -> OwnershipRules:
    """The method's rules, as configured."""
    return OwnershipRules(
        split_fmr=config.split_fmr,
        merge_fmr=config.merge_fmr,
        same_name_fmr=config.same_name_fmr,
        keep_fmr=config.keep_fmr,
        rival_margin=config.rival_margin,
        rival_fmr=config.rival_fmr,
        relabel_fmr=config.relabel_fmr,
        quarantine_share=config.quarantine_share,
    )


def cast_rules(config: CleanConfig) -> CastRules:
    """The baseline's rules, as configured."""
    return CastRules(
        link_fmr=config.cast_link_fmr,
        merge_fmr=config.cast_merge_fmr,
        drop_fmr=config.cast_drop_fmr,
        min_faces=config.cast_min_faces,
    )


def read_faces(
    lake: Lake, version: TableVersion, embeddings: TableVersion, min_quality: float | None
) -> Faces:
    """All faces of the lake as arrays, without those of superseded images.

    Args:
        lake: the lake.
        version: of faces.
        embeddings: of an embedder, of those faces.
        min_quality: faces below it are not good; None lets all be. A face whose quality nobody measured is good.

    Raises:
        UsageError: not every face is embedded.
    """
    gone = lake.superseded()
    ids, areas, good = [np.empty(0, np.int64)], [np.empty(0, np.float32)], [np.empty(0, bool)]
    gate = -np.inf if min_quality is None else min_quality
    for table in scan(lake, version, columns=["face_id", "box", "quality"], drop_superseded=gone):
        ids.append(table["face_id"].to_numpy())
        box = table["box"].combine_chunks().flatten().to_numpy().reshape(-1, 4)
        areas.append(np.prod(np.maximum(box[:, 2:] - box[:, :2], 0), axis=1))
        # A face whose quality nobody has measured is NaN here, and may vote.
        good.append(~(table["quality"].to_numpy() < gate))
    face_id = np.concatenate(ids)
    embedded, units = [np.empty(0, np.int64)], []
    for table in scan(lake, embeddings, columns=["face_id", "embedding"], drop_superseded=gone):
        embedded.append(table["face_id"].to_numpy())
        flat = table["embedding"].combine_chunks().flatten().to_numpy()
        units.append(flat.reshape(table.num_rows, -1).astype(np.float32))
    if not np.array_equal(np.concatenate(embedded), face_id):
        raise UsageError(
            f"{lake.uri}: not every face is embedded by {embeddings.model}: run `facescale embed {lake.uri} "
            f"--embedder {embeddings.model}`"
        )
    unit = np.concatenate(units) if units else np.empty((0, 1), np.float32)
    # float16 leaves lengths of 1 ± 3e-4, and thresholds differ by less.
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    return Faces(face_id, unit, np.concatenate(areas), np.concatenate(good))


def read_claims(lake: Lake, inputs: CleanInputs) -> tuple[Claims, list[str]]:
    """Claims on images with labels as numbers, and the labels, sorted."""
    import pyarrow as pa

    tables = list(scan(lake, inputs.labels, columns=["image_id", "label"]))
    if tables:
        rows = pa.concat_tables(tables).combine_chunks().group_by(["image_id", "label"]).aggregate([])
        images, text = rows["image_id"].to_numpy(), rows["label"].combine_chunks()
    else:
        images, text = np.empty(0, np.int64), pa.array([], pa.string())
    names = text.unique().sort()
    label = pa.compute.index_in(text, names).to_numpy().astype(np.int64)
    copies = np.empty(0, np.int64)
    representative = copies
    if inputs.duplicates is not None:
        from facescale.curate.duplicates import representatives

        copies, representative = representatives(lake)
    order = np.lexsort((label, images))
    return Claims(images[order], label[order], len(names), copies, representative), names.to_pylist()


def _write(
    lake: Lake, version: TableVersion, parts: Sequence[PartKey], rows: Decisions, labels: Sequence[str]
) -> None:
    from facescale.lake.ids import make_image_id

    for part in parts:
        first = make_image_id(part.shard, part.first_row)
        low, high = np.searchsorted(rows.face_id, [first, first + (part.num_rows << 8)])
        span = slice(int(low), int(high))
        counters = rows.counts(span)
        commit_part(lake.store, part, [(version, rows.table(span, labels))], counters=counters)
