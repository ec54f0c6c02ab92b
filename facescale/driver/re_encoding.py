"""How similar a face stays to itself when its photograph is saved again, as a lake can tell. Called by calibrate.

Shape legend: N faces, D dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.curate.calibration_fit import genuine_pairs
from facescale.curate.duplicates import representatives
from facescale.curate.re_encode import JPEG_QUALITY, QUANTILE, SCALE, re_encode_similarity
from facescale.engine.session import usable_cpus
from facescale.lake.ids import make_face_id
from facescale.lake.scan import scan_ids
from facescale.vision.registry import load_embedder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.lake.lake import Lake
    from facescale.lake.parts import TableVersion

_RE_ENCODED = 500
_TOP = 0.99
_MIN_COPIES, _MAX_COPIES = 50, 20_000


def measure_re_encode(
    lake: Lake,
    versions: dict[str, TableVersion],
    face_ids: NDArray[np.int64],
    names: NDArray[Any],
    vectors: NDArray[np.float32],
    *,
    embedder: str,
    device: str,
) -> tuple[float, dict[str, Any]]:
    """Similarity above which a face may be another's re-encoded self, and how that was found out.

    Without crops the copies that dedup knows tell it; without those it is the most alike 1 % of two photographs of one
    person, which is strict: a copy that is less alike has no counterpart.

    Args:
        lake: the lake.
        versions: of faces, embeddings and, but for an imported lake, crops.
        face_ids: int64 [N], faces whose person is known.
        names: object [N], of these people.
        vectors: float32 [N, D], their embeddings.
        embedder: registry name.
        device: "auto", "cpu" or "cuda".
    """
    if "crops" in versions:
        similarity = _re_encoded(lake, versions, face_ids, vectors, embedder, device)
        return float(np.quantile(similarity, QUANTILE)), {
            "forms": len(similarity),
            "jpeg_quality": list(JPEG_QUALITY),
            "scale": list(SCALE),
            "quantile": QUANTILE,
            "lowest": round(float(similarity.min()), 5),
            "median": round(float(np.median(similarity)), 5),
        }
    copies = _similarity_of_copies(lake, versions["embeddings"])
    if len(copies) >= _MIN_COPIES:
        value = float(np.quantile(copies, 1 - _TOP))
        return value, {"measured": "on copies that dedup found", "copies": len(copies), "quantile": 1 - _TOP}
    codes = np.unique(names.astype(str), return_inverse=True)[1]
    pairs = genuine_pairs(codes)
    if not len(pairs):
        return 1.0, {"measured": "nothing: no crops, no copies, no person with two faces"}
    alike = (vectors[pairs[:, 0]] * vectors[pairs[:, 1]]).sum(axis=1)
    return float(np.quantile(alike, _TOP)), {
        "measured": "on two photographs of one person, as there are no crops and no copies",
        "pairs": len(pairs),
        "quantile": _TOP,
    }


def _similarity_of_copies(lake: Lake, embeddings: TableVersion) -> NDArray[np.float32]:
    """Of the only face of each of some copies with the only face of the image that it copies."""
    if lake.current("duplicates") is None:
        return np.zeros(0, np.float32)
    copies, keepers = representatives(lake)
    images = lake.current("images")
    assert images is not None
    chosen = np.linspace(0, len(copies) - 1, min(len(copies), _MAX_COPIES)).astype(int)
    pairs = np.stack([copies[chosen], keepers[chosen]])
    faces = scan_ids(lake, images, pairs.ravel(), ["num_faces"])["num_faces"].to_numpy().reshape(2, -1)
    pairs = pairs[:, (faces == 1).all(axis=0)]
    first, second = (read_vectors(lake, embeddings, make_face_id(ids, 1)) for ids in pairs)
    similarity: NDArray[np.float32] = (first * second).sum(axis=1)
    return similarity


def _re_encoded(
    lake: Lake,
    versions: dict[str, TableVersion],
    face_ids: NDArray[np.int64],
    vectors: NDArray[np.float32],
    embedder: str,
    device: str,
) -> NDArray[np.float64]:
    """Similarity of a sample of faces with themselves re-encoded."""
    import torch

    if not len(face_ids):
        return np.ones(1)
    order = np.argsort(face_ids)
    rows = order[np.sort(np.random.default_rng(0).permutation(len(order))[:_RE_ENCODED])]
    crops = scan_ids(lake, versions["crops"], face_ids[rows], ["jpeg", "matrix"])
    points = scan_ids(lake, versions["faces"], face_ids[rows], ["landmarks"])["landmarks"].combine_chunks()
    matrices = crops["matrix"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(usable_cpus())
    try:
        made_by = lake.describe_version(versions["embeddings"]) or {}
        settings = made_by.get("settings", {})
        precision = settings.get("precision", "fp32")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            precision = "fp32"
        return re_encode_similarity(
            crops["jpeg"].to_pylist(),
            matrices.reshape(-1, 2, 3).astype(np.float64),
            points.flatten().to_numpy().reshape(len(rows), -1, 2),
            vectors[rows],
            load_embedder(
                embedder,
                device=device,
                precision=precision,
                backend=settings.get("backend", "auto"),
                flip=settings.get("flip", False),
            ),
        )
    finally:
        torch.set_num_threads(threads)


def read_vectors(lake: Lake, version: TableVersion, face_ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Embeddings of faces in their order: float32 [N, D]; [0, 1] of none."""
    if not len(face_ids):
        return np.zeros((0, 1), np.float32)
    column = scan_ids(lake, version, face_ids, ["embedding"])["embedding"].combine_chunks()
    flat: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    vectors: NDArray[np.float32] = flat.reshape(len(face_ids), -1).astype(np.float32)
    return vectors
