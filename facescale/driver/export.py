"""Drive export: a cleaned lake in, a training set with class ids, a data card and its evidence out; resumes by itself.

Which faces are in is decided here, in memory (36 bytes a face of the lake); pixels are moved by the stage.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facescale.curate.duplicates import representatives
from facescale.driver.context import StageSummary
from facescale.driver.whole import input_digest
from facescale.errors import MismatchError, UsageError
from facescale.index.vectors import random_keys
from facescale.lake.backends import TEMPORARY
from facescale.lake.face_filter import FaceFilter
from facescale.lake.fingerprint import fingerprint
from facescale.lake.ids import image_id_of, make_image_id
from facescale.lake.parts import PartKey, list_done
from facescale.lake.scan import scan
from facescale.lake.store import Store
from facescale.training import export as stage_module
from facescale.training.classes import Classes, ClassRules, choose
from facescale.training.data_card import write_card
from facescale.training.export import (
    SPLITS,
    ExportSettings,
    ExportStage,
    ExportUnit,
    done_path,
    selection_path,
)
from facescale.training.join_records import join_records
from facescale.vision.align import SCHEMES, TEMPLATES, check_scheme

if TYPE_CHECKING:
    from facescale.config.export import ExportConfig
    from facescale.driver.context import JobContext
    from facescale.lake.lake import Lake
    from facescale.lake.parts import DoneParts, TableVersion

_BYTES_A_FACE = 24_000
"""Of a unit in a worker: the stored crop, the chip as JPEG, and half as much for lists of both."""
_LEAST_UNITS, _LEAST_FACES = 16, 2048  # small sets too are spread over workers, whose number must not matter
_LOOK_UP = 1 << 20  # faces whose columns are looked at together for a condition
_DEFAULT_TEMPLATES = {"arcface5": "arcface_112", "dlib5": "dlib_150"}
CLASSES_FILE = "classes.parquet"
CARD_FILE = "dataset.json"


@dataclass(frozen=True, eq=False)
class _Faces:
    """What the choice goes by, a row a face: 36 bytes."""

    face_id: np.ndarray
    quality: np.ndarray
    label: np.ndarray
    names: list[str]


def run_export(context: JobContext) -> StageSummary:
    """Write the training set.

    Raises:
        UsageError: no output is named, it holds something else, or the lake lacks what the names come from.
        MismatchError: the template needs other landmarks.
    """
    start = time.monotonic()
    lake, config = context.lake, context.config.export
    if not config.out:
        raise UsageError("export needs a folder or URL to write to: facescale export LAKE OUT")
    versions = {name: _current(lake, name) for name in ("images", "faces", "crops")}
    source = _names_version(lake, config)
    done = list_done(lake.store, versions["images"])
    settings, described = _settings(lake, config, versions, source, done)
    out = Store(config.out)
    finished = _refuse_other(out, config.out, settings.fingerprint)
    summary = StageSummary("export", tables={"export": out.uri})
    if finished is None:
        faces = _read_faces(lake, config, versions["faces"], source)
        classes = _choose(lake, config, faces)
        if not len(classes.row):
            raise UsageError(
                f"{lake.uri}: no face is left to export ({_why(classes)}): lower --min-faces, --min-quality or --where"
            )
        units = _plan_units(out, settings, config, faces, classes, done)
        left = [unit for unit in units if not out.exists(done_path(settings, unit.key.shard))]
        stage = ExportStage(settings, lake, out, **versions)
        made = context.map(
            stage, left, num_parts=len(left), items=sum(unit.key.num_rows for unit in left), unit="faces"
        )
        summary.parts_run, summary.parts_kept = made.parts_run, len(units) - len(left)
        summary.workers, summary.deaths, summary.left_over = made.workers, made.deaths, made.left_over
        if summary.left_over:
            return summary
        if settings.format == "recordio":
            join_records(out, settings, [unit.key.shard for unit in units], classes)
        card = described | {
            "faces": [int((classes.is_val == bool(side)).sum()) for side in range(2)],
            "identities": [int((classes.name_is_val == bool(side)).sum()) for side in range(2)],
            "num_classes": list(classes.num_classes),
            "left_out": classes.left_out,
            "shards": [
                sum(_record(out, settings, unit)["shards"][side] for unit in units) for side in range(2)
            ],
        }
        _write_classes(out, classes)
        finished = write_card(out, lake, card, CARD_FILE)
        _tidy(out)
    summary.counters = {
        "faces": sum(finished["faces"]),
        "identities": sum(finished["identities"]),
        "shards": sum(finished["shards"]),
    } | {f"left out: {why}": count for why, count in finished["left_out"].items()}
    summary.seconds = time.monotonic() - start
    return summary


def _current(lake: Lake, table: str) -> TableVersion:
    version = lake.current(table)
    if version is None:
        raise UsageError(f"{lake.uri} has no finished {table}: run `facescale extract SRC {lake.uri}` first")
    return version


def _names_version(lake: Lake, config: ExportConfig) -> TableVersion:
    table, job = {"decisions": ("decisions", "clean"), "clusters": ("clusters", "cluster")}.get(
        config.names, ("labels", "extract --labels …")
    )
    version = lake.current(table) if table == "labels" else lake.current(table, config.embedder)
    if version is None:
        other = "" if config.names == "claims" else ", or name faces by --names claims or clusters"
        raise UsageError(
            f"{lake.uri} has no {table} of {config.embedder}: run `facescale {job}` first{other}"
            if table != "labels"
            else f"{lake.uri} has no labels: run `facescale {job}` first"
        )
    return version


def _settings(
    lake: Lake, config: ExportConfig, versions: dict[str, TableVersion], source: TableVersion, done: DoneParts
) -> tuple[ExportSettings, dict[str, Any]]:
    """The stage's settings, and what the data card says of where the set comes from."""
    made = (lake.describe_version(versions["faces"]) or {}).get("settings", {})
    scheme = made.get("landmark_scheme", "")
    template = config.template
    if template == "auto":
        template = _DEFAULT_TEMPLATES.get(scheme, "crop")
    if template != "crop":
        if template not in TEMPLATES:
            raise UsageError(
                f"template {template!r} is not known: use auto, crop, {', '.join(sorted(TEMPLATES))}"
            )
        if scheme not in SCHEMES:
            raise MismatchError(
                f"{lake.uri}: landmarks of scheme {scheme!r} fit no template: use --template crop"
            )
        check_scheme(template, scheme, embedder="this export")
    values = config.model_dump(mode="json", exclude={"out", "template"}) | {"template": template}
    duplicates = lake.current("duplicates")
    inputs = {name: version.fingerprint for name, version in versions.items()} | {"names": source.fingerprint}
    if duplicates is not None:
        inputs["duplicates"] = duplicates.fingerprint
    if config.val_share and (clusters := lake.current("clusters", config.embedder)) is not None:
        inputs["clusters"] = clusters.fingerprint
    if config.where is not None:
        inputs |= {version.folder: version.fingerprint for version in FaceFilter(lake, config.where).versions}
    name = fingerprint("export", values | input_digest(lake, done), stage_module.REVISION, inputs)
    settings = ExportSettings(
        format=config.format,
        template=template,
        jpeg_quality=config.jpeg_quality,
        shard_faces=config.shard_faces,
        seed=config.seed,
        fingerprint=name,
    )
    described = {
        "fingerprint": name,
        "lake": lake.uri,
        "settings": values,
        "versions": {table: version.folder for table, version in versions.items()} | {"names": source.folder},
        "side_px": None if template == "crop" else TEMPLATES[template].size,
    }
    return settings, described


def _refuse_other(out: Store, where: str, name: str) -> dict[str, Any] | None:
    """The card of this very training set when it is finished; None when there is work left.

    Raises:
        UsageError: the folder holds something that this export did not make.
    """
    if out.exists(CARD_FILE):
        card: dict[str, Any] = json.loads(out.read_bytes(CARD_FILE))
        if card.get("fingerprint") == name:
            _tidy(out)
            return card
        raise UsageError(
            f"{where} holds a training set of another lake or other settings: name another folder"
        )
    foreign = next((path for path, _ in out.list() if not path.startswith(f"_scratch/{name}/")), None)
    started = any(True for _ in out.list(f"_scratch/{name}"))
    if foreign is not None and not started:
        raise UsageError(f"{where} is not empty (it holds {foreign}): name a new folder")
    return None


def _tidy(out: Store) -> None:
    """Remove what only an unfinished export needs."""
    out.clean_temporaries()
    out.delete_tree("_scratch")
    if out.is_local and not any(True for _ in out.list(TEMPORARY)):
        out.delete_tree(TEMPORARY)


def _read_faces(lake: Lake, config: ExportConfig, faces: TableVersion, source: TableVersion) -> _Faces:
    """Every face with its quality and its name."""
    table = _concat(scan(lake, faces, columns=["face_id", "quality"]))
    face_id = table["face_id"].to_numpy()
    quality = pc.fill_null(table["quality"], float("nan")).to_numpy().astype(np.float32)
    column = {"decisions": "label_out", "clusters": "cluster_id"}.get(config.names, "label")
    key = "image_id" if config.names == "claims" else "face_id"
    named = _concat(scan(lake, source, columns=[key, column]))
    named = named.filter(named[column].is_valid())
    ids, texts = named[key].to_numpy(), named[column].cast(pa.string()).combine_chunks()
    if config.names == "claims":
        ids = ids + 1  # the best-scored face; images without a face match nothing
    coded = texts.dictionary_encode()
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    words = coded.dictionary.to_pylist()
    order = np.argsort(np.array(words, object), kind="stable") if words else np.zeros(0, np.int64)
    rank = np.empty(len(words), np.int64)
    rank[order] = np.arange(len(words))
    label = np.full(len(face_id), -1)
    place = np.searchsorted(face_id, ids)
    found = (
        (place < len(face_id)) & (face_id[np.minimum(place, max(len(face_id) - 1, 0))] == ids)
        if len(face_id)
        else np.zeros(len(ids), bool)
    )
    label[place[found]] = rank[coded.indices.to_numpy()[found]]
    return _Faces(face_id, quality, label, [words[i] for i in order.tolist()])


def _choose(lake: Lake, config: ExportConfig, faces: _Faces) -> Classes:
    copies, _ = representatives(lake)
    together = None
    if config.val_share and config.names != "clusters":
        together = _sharing_clusters(lake, config.embedder, faces)
    wanted = None
    if config.where is not None:
        condition = FaceFilter(lake, config.where)
        blocks = np.split(faces.face_id, range(_LOOK_UP, len(faces.face_id), _LOOK_UP))
        wanted = np.concatenate([condition.mask(block) for block in blocks])
    return choose(
        faces.label,
        faces.names,
        faces.quality,
        np.isin(image_id_of(faces.face_id), copies),
        random_keys(faces.face_id, config.seed),
        ClassRules(
            min_faces=config.min_faces,
            max_faces=config.max_faces,
            min_quality=config.min_quality,
            val_share=config.val_share,
            seed=config.seed,
        ),
        wanted_N=wanted,
        together_L=together,
        before=_earlier(config.classes) if config.classes else None,
    )


def _sharing_clusters(lake: Lake, embedder: str, faces: _Faces) -> np.ndarray | None:
    """Names whose faces share a cluster, by number: they may be one person, who must not be on both sides."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    version = lake.current("clusters", embedder)
    if version is None:
        return None
    table = _concat(scan(lake, version, columns=["face_id", "cluster_id"]))
    table = table.filter(table["cluster_id"].is_valid())
    place = np.searchsorted(faces.face_id, table["face_id"].to_numpy())
    label = faces.label[place]
    _, cluster = np.unique(table["cluster_id"].to_numpy(), return_inverse=True)
    name, cluster = label[label >= 0], cluster[label >= 0]
    size = len(faces.names) + (int(cluster.max()) + 1 if len(cluster) else 0)
    links = coo_array((np.ones(len(name), np.int8), (name, len(faces.names) + cluster)), shape=(size, size))
    _, group = connected_components(links, directed=False)
    numbers: np.ndarray = group[: len(faces.names)].astype(np.int64)
    return numbers


def _earlier(path: str) -> dict[str, tuple[int, bool]]:
    """Class id and side of each name of an earlier export."""
    folder, _, name = path.rpartition("/")
    try:
        table = Store(folder or ".").read_table(name, ["label", "class_id", "split"])
    except FileNotFoundError as error:
        raise UsageError(
            f"{path}: there is no such file; --classes wants {CLASSES_FILE} of an earlier export"
        ) from error
    if set(table.column_names) != {"label", "class_id", "split"}:
        raise UsageError(
            f"{path} has no columns label, class_id, split: it is no {CLASSES_FILE} of an export"
        )
    rows = table.to_pylist()
    return {row["label"]: (row["class_id"], row["split"] == "val") for row in rows}


def _plan_units(
    out: Store,
    settings: ExportSettings,
    config: ExportConfig,
    faces: _Faces,
    classes: Classes,
    done: DoneParts,
) -> list[ExportUnit]:
    """Draw parts into units, and write down which faces each takes; the same for every resume."""
    face_id = faces.face_id[classes.row]
    order = np.lexsort((face_id, classes.class_id, classes.is_val))
    key = np.empty(len(order), np.int64)
    key[order] = np.arange(len(order)) + 1
    key -= np.where(classes.is_val, int((~classes.is_val).sum()), 0)
    parts = sorted(done.parts(), key=lambda part: (part.shard, part.first_row))
    first = np.array([make_image_id(part.shard, part.first_row) for part in parts], np.int64)
    of = np.searchsorted(first, face_id, side="right") - 1
    sizes = np.bincount(of, minlength=len(parts))
    budget = max(int(config.memory_gib * 2**30 / _BYTES_A_FACE), 1)
    budget = min(budget, max(len(face_id) // _LEAST_UNITS, _LEAST_FACES))
    drawn = np.random.default_rng(settings.seed).permutation(np.flatnonzero(sizes))
    number = np.cumsum(sizes[drawn]) // budget  # a unit passes the budget by less than one part
    label = pa.DictionaryArray.from_arrays(
        pa.array(faces.label[classes.row].astype(np.int32)), pa.array(faces.names)
    )
    table = pa.table(
        {
            "face_id": face_id,
            "class_id": classes.class_id,
            "is_val": classes.is_val,
            "key": key,
            "label": label.cast(pa.string()),
        }
    )
    units: list[ExportUnit] = []
    next_shard = [0, 0]
    for unit, group in enumerate(np.split(drawn, np.flatnonzero(np.diff(number)) + 1)):
        rows = np.flatnonzero(np.isin(of, group))
        mine = tuple(parts[i] for i in np.sort(group).tolist())
        units.append(ExportUnit(PartKey(unit, 0, len(rows)), mine, (next_shard[0], next_shard[1])))
        for side in range(2):
            count = int((classes.is_val[rows] == bool(side)).sum())
            next_shard[side] += -(-count // settings.shard_faces)
        path = selection_path(settings, unit)
        if not out.exists(path):
            out.write_table(path, table.take(pa.array(rows)))
    return units


def _record(out: Store, settings: ExportSettings, unit: ExportUnit) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(out.read_bytes(done_path(settings, unit.key.shard)))
    return record


def _write_classes(out: Store, classes: Classes) -> None:
    split = np.array(SPLITS, object)[classes.name_is_val.astype(int)]
    order = np.lexsort((classes.ids, classes.name_is_val))
    table = pa.table(
        {"class_id": classes.ids, "split": split, "label": classes.names, "faces": classes.counts}
    )
    out.write_table(CLASSES_FILE, table.take(pa.array(order)))


def _why(classes: Classes) -> str:
    return (
        ", ".join(f"{count:,} {why}" for why, count in classes.left_out.items() if count)
        or "there are no faces"
    )


def _concat(tables: Any) -> pa.Table:
    found = list(tables)
    if not found:
        raise UsageError("the lake has no faces, so there is nothing to export")
    return pa.concat_tables(found)
