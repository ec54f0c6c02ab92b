"""Faces of a lake in, the chips that an embedder takes out, cut from the stored crops; no image is read.

Called by facescale.driver.quantize and by benchmarks.

Shape legend: N faces, S chip side.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from facescale.engine.session import usable_cpus
from facescale.errors import UsageError
from facescale.lake.scan import scan, scan_ids
from facescale.vision.align import check_scheme, chip_template
from facescale.vision.crops import chips_from_crops, decode_jpeg

if TYPE_CHECKING:
    from facescale.lake.lake import Lake
    from facescale.lake.parts import TableVersion
    from facescale.models.card import ModelCard

_AT_ONCE = 256  # decoded crops in memory: 256 × 192 KiB


def sample_chips(lake: Lake, card: ModelCard, count: int, *, seed: int = 0) -> np.ndarray:
    """Chips of some faces at random, by a seed; as `chips_of`. Holds the ids of all faces: 8 bytes each."""
    faces = _current(lake, "faces")
    parts = [part["face_id"].to_numpy() for part in scan(lake, faces, columns=["face_id"])]
    ids = np.concatenate([np.zeros(0, np.int64), *parts])
    chosen = np.random.default_rng(seed).permutation(len(ids))[:count]
    return chips_of(lake, card, ids[np.sort(chosen)])


def chips_of(lake: Lake, card: ModelCard, face_ids: np.ndarray) -> np.ndarray:
    """Chips of given faces, for the embedder of a card.

    Args:
        lake: with faces and crops.
        card: of the embedder.
        face_ids: int64 [N], of the current faces version.

    Returns:
        uint8 [N, S, S, 3], in the order of `face_ids`.

    Raises:
        UsageError: the lake has no faces, or no crops.
        MismatchError: its landmarks are of another scheme than the embedder's template.
    """
    faces, crops = _current(lake, "faces"), _current(lake, "crops")
    made_by = (lake.describe_version(faces) or {}).get("settings", {})
    template = card.template or ""
    check_scheme(template, made_by.get("landmark_scheme", "dlib5"), embedder=card.name)
    size = chip_template(template).size
    chips = np.zeros((len(face_ids), size, size, 3), np.uint8)
    with ThreadPoolExecutor(usable_cpus()) as pool:
        for start in range(0, len(face_ids), _AT_ONCE):
            some = face_ids[start : start + _AT_ONCE]
            points = scan_ids(lake, faces, some, ["landmarks"])["landmarks"].combine_chunks()
            stored = scan_ids(lake, crops, some, ["jpeg", "matrix"])
            matrices = stored["matrix"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            chips[start : start + len(some)] = chips_from_crops(
                list(pool.map(decode_jpeg, stored["jpeg"].to_pylist())),
                matrices.reshape(-1, 2, 3).astype(np.float64),
                points.flatten().to_numpy(zero_copy_only=False).reshape(len(some), -1, 2),
                template,
                pool=pool,
            )
    return chips


def _current(lake: Lake, table: str) -> TableVersion:
    version = lake.current(table)
    if version is None:
        raise UsageError(f"{lake.uri} has no finished {table}: run `facescale extract SRC {lake.uri}` first")
    return version
