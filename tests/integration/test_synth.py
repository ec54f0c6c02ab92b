"""The synthetic crawl with the default models: who was chosen is found, recognized, and told apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from synth_samples import PLANTED, faultless

from facescale.imaging.decode import decode
from facescale.lake.ids import make_face_id
from facescale.synth.cast import DETECTOR, EMBEDDER, LANDMARKER, MIN_DISTANCE, DefaultJudge
from facescale.synth.compare import Evidence
from facescale.synth.crawl import make_crawl
from facescale.synth.score import score
from facescale.synth.truth import read_truth
from facescale.vision.align import extract_chips
from facescale.vision.registry import load_detector, load_embedder, load_landmarker

if TYPE_CHECKING:
    from facescale.synth.truth import SynthSummary


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> SynthSummary:
    out = tmp_path_factory.mktemp("crawl") / "out"
    return make_crawl(out, identities=5, images_per_identity=4, planted=PLANTED, seed=2)


def seen(crawl: SynthSummary) -> Evidence:
    """The tables of a lake, with faces and neighbors as the default models give them."""
    detector, landmarker, embedder = (
        load_detector(DETECTOR),
        load_landmarker(LANDMARKER),
        load_embedder(EMBEDDER),
    )
    images = faultless(crawl).images
    rows = read_truth(crawl.truth).to_pylist()
    decoded = [decode((Path(crawl.images) / row["path"]).read_bytes()).pixels for row in rows]
    whole = [i for i, pixels in enumerate(decoded) if pixels is not None]
    pictures = [decoded[i] for i in whole]
    boxes = [faces.boxes for faces in detector.detect(pictures)]
    counts = np.zeros(len(rows), np.int16)
    counts[whole] = [len(b) for b in boxes]
    landmarks = landmarker.landmarks(pictures, boxes)
    vectors = embedder.embed(extract_chips(pictures, landmarks, str(embedder.card.template)))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    owners = np.repeat(np.arange(len(rows)), counts)
    ordinals = np.concatenate([np.arange(len(b)) + 1 for b in boxes])
    face_ids = make_face_id(images["image_id"].to_numpy()[owners], ordinals)
    faces = pa.table(
        {
            "face_id": pa.array(face_ids, pa.int64()),
            "box": pa.array(np.concatenate(boxes).tolist(), pa.list_(pa.float32(), 4)),
        }
    )
    at = images.schema.get_field_index("num_faces")
    images = images.set_column(at, images.schema.field(at), pa.array(counts, images.schema.field(at).type))

    def search(ids: np.ndarray) -> np.ndarray:
        similarity = vectors[np.searchsorted(face_ids, ids)] @ vectors.T
        return face_ids[np.argsort(-similarity, axis=1)[:, :24]]

    return Evidence(images, faces, search)


def test_default_models_find_what_was_planted(crawl: SynthSummary) -> None:
    lines = score(read_truth(crawl.truth), seen(crawl))
    assert len(lines) == 18
    assert [line for line in lines if not line.ok] == []


def test_people_are_apart(crawl: SynthSummary) -> None:
    assert MIN_DISTANCE <= crawl.nearest <= crawl.mean_distance < 1
    assert crawl.auditioned < 100


def test_the_judge_wants_exactly_one_face(crawl: SynthSummary) -> None:
    rows = read_truth(crawl.truth).to_pylist()
    kinds = {"clean": True, "two_faces": False, "no_face": False}
    pictures = []
    for kind in kinds:
        # The judge looks for faces of 80 px and more.
        fitting = [
            row for row in rows if row["kind"] == kind and all(box[2] - box[0] > 95 for box in row["boxes"])
        ]
        pictures.append(decode((Path(crawl.images) / fitting[0]["path"]).read_bytes()).pixels)
    descriptors = DefaultJudge().describe(pictures)
    assert descriptors.shape == (3, 128)
    assert np.isfinite(descriptors).all(axis=1).tolist() == list(kinds.values())
    assert np.isnan(descriptors[1:]).all()
