"""How much of what was planted in a synthetic crawl a lake shows: the numbers that the demo prints.

In: a lake made from OUT/images and OUT/truth.parquet. Out: one `Score` per planted kind, with the floor it must
reach (floors.yaml beside this file, with the reasons). Called by the demo and the tests; who prints is the caller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import yaml

from facescale.errors import UsageError
from facescale.lake.lake import Lake
from facescale.lake.parts import NO_MODEL
from facescale.lake.scan import scan, scan_ids
from facescale.lake.schema import table_schema
from facescale.synth.compare import Comparison, Evidence
from facescale.synth.truth import read_truth

if TYPE_CHECKING:
    from pathlib import Path

    from facescale.synth.compare import Search

HITS = 24  # enough that voters remain when copies and images of two people are left out


@dataclass(frozen=True)
class Score:
    """One line of the demo's table.

    Args:
        name: the planted kind, or the control of one.
        meaning: what counts as found.
        planted: how many there are; 1 or more.
        found: how many of them the lake shows.
        share: found of planted, 0..1.
        floor: least share.
        needed: the same in whole files or faces: floor times planted, rounded down, at least 1.
        ok: whether that many were found.
    """

    name: str
    meaning: str
    planted: int
    found: int
    share: float
    floor: float
    needed: int
    ok: bool


def score_demo(lake: Lake | str, truth: str | Path, *, embedder: str | None = None) -> list[Score]:
    """Score a lake against the crawl it was made from.

    Args:
        lake: after `facescale run OUT/images LAKE`, or its URI.
        truth: OUT/truth.parquet, or OUT.
        embedder: whose index to search; None for the only one.

    Returns:
        One score per kind that was planted, in the order of floors.yaml.

    Raises:
        UsageError: the lake has no images, faces or index, or `truth` is no truth table.
    """
    opened = Lake.open(lake) if isinstance(lake, str) else lake
    return score(read_truth(truth), _read(opened, embedder))


def score(truth: pa.Table, evidence: Evidence) -> list[Score]:
    """Compare a truth table with what a lake says; see `score_demo`."""
    lines = Comparison(truth, evidence).lines()
    scores = []
    for name, entry in _floors().items():
        planted, found = lines.get(name, (0, 0))
        if planted:
            floor = float(entry["floor"])
            # The tolerance keeps 0.9 x 10 at 9. Rounding down, as one hard image must not fail a crawl of three.
            needed = max(1, math.floor(floor * planted + 1e-9))
            scores.append(
                Score(name, entry["meaning"], planted, found, found / planted, floor, needed, found >= needed)
            )
    return scores


def _floors() -> dict[str, dict[str, Any]]:
    text = resources.files("facescale.synth").joinpath("floors.yaml").read_text("utf-8")
    floors: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return floors


def _read(lake: Lake, embedder: str | None) -> Evidence:
    tables = {}
    wanted = {
        "images": ["image_id", "uri", "status", "num_faces", "sha256", "pdq"],
        "faces": ["face_id", "box"],
    }
    for table, columns in wanted.items():
        version = lake.current(table)
        if version is None:
            raise UsageError(
                f"{lake.uri} has no {table}: make it with `facescale run` on the images of the crawl"
            )
        found = list(scan(lake, version, columns=columns))
        tables[table] = (
            pa.concat_tables(found) if found else table_schema(table).empty_table().select(columns)
        )
    if not tables["images"].num_rows:
        raise UsageError(f"{lake.uri} holds no image yet: run `facescale run` on the images of the crawl")
    return Evidence(tables["images"], tables["faces"], _search(lake, embedder), _curation(lake, embedder))


def _curation(lake: Lake, embedder: str | None) -> dict[str, pa.Table]:
    """The tables of curation that the lake has."""
    wanted = {
        "duplicates": ["image_id", "representative"],
        "clusters": ["face_id", "cluster_id"],
        "decisions": ["face_id", "label_out"],
    }
    found = {}
    for table, columns in wanted.items():
        models = [NO_MODEL] if table == "duplicates" else lake.current_models(table)
        model = models[0] if len(models) == 1 else embedder
        version = lake.current(table, model) if model is not None else None
        if version is not None:
            rows = list(scan(lake, version, columns=columns))
            empty = table_schema(table).empty_table().select(columns)
            found[table] = pa.concat_tables(rows) if rows else empty
    return found


def _search(lake: Lake, embedder: str | None) -> Search:
    """A search by face_id through the stored index, with the stored embeddings as queries."""
    # Here, so that crawls and their comparison need no index package.
    from facescale.index.search import Index
    from facescale.index.vectors import vectors_of

    models = lake.current_models("index")
    model = embedder or (models[0] if len(models) == 1 else None)
    if model is None:
        raise UsageError(f"{lake.uri} has indexes of {', '.join(models) or 'no model'}: name one as embedder")
    embeddings = lake.current("embeddings", model)
    if embeddings is None:
        raise UsageError(f"{lake.uri} has no embeddings of {model}: make them with `facescale embed`")
    index = Index.open(lake, model)

    def search(face_ids: np.ndarray) -> np.ndarray:
        rows = scan_ids(lake, embeddings, face_ids, ["face_id", "embedding"])
        ids, _ = index.search(vectors_of(rows, where=embeddings.folder), HITS)
        return np.asarray(ids)

    return search
