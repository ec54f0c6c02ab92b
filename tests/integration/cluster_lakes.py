"""Small lakes of simulated, calibrated faces, and the jobs that follow from them, for the tests of clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
from clustered_people import calibration
from index_lakes import FACES, IMAGES, write_parts

from facescale import pipeline
from facescale.config.job import JobConfig
from facescale.curate.calibration import Calibration, calibration_path, dump_calibration
from facescale.lake.lake import Lake
from facescale.lake.parts import TableVersion
from facescale.lake.scan import scan

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

MODEL = "simulated"
VECTORS = TableVersion("embeddings", "3" * 12, MODEL)
PER_IMAGE, PART = 2, 16


def config(lake: Lake, **sections: Any) -> JobConfig:
    models = {"neighbors": {"embedder": MODEL, "k": 30}, "cluster": {"embedder": MODEL}}
    for name, values in sections.items():
        models[name] = models.get(name, {}) | values
    return JobConfig.model_validate({"lake": lake.uri, "engine": {"workers": 0}, **models})


def run(job: str, lake: Lake, **sections: Any) -> Any:
    """The one stage of a job."""
    (stage,) = pipeline.run_job(job, config(lake, **sections)).stages
    return stage


def read(lake: Lake, table: str = "clusters", model: str = MODEL) -> pa.Table:
    version = lake.current(table, model)
    assert version is not None
    return pa.concat_tables(list(scan(lake, version)))


def calibrated(lake: Lake, **changes: Any) -> Calibration:
    known = Calibration(**{**vars(calibration()), **changes})
    lake.store.write_bytes(calibration_path(MODEL), dump_calibration(known))
    return known


def new_lake(folder: Path, unit: np.ndarray, *, faces_per_image: int = PER_IMAGE) -> Lake:
    lake = Lake.create(str(folder))
    for version, stage in ((IMAGES, "extract"), (FACES, "extract"), (VECTORS, "embed")):
        inputs = {"faces": FACES.fingerprint} if version is VECTORS else {}
        lake.write_version(version, stage=stage, settings={}, revision=1, inputs=inputs)
    if len(unit):
        write_parts(lake, unit, faces_per_image=faces_per_image, part_rows=PART, embeddings=VECTORS)
    lake.set_current([IMAGES, FACES, VECTORS])
    calibrated(lake)
    return lake
