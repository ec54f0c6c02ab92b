"""`bench peers` on a few photographs: the plain loop does the same work, and everybody is counted. Ray is left out."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from facescale.bench import peers, race
from facescale.bench.bare_loop import BareLoop
from facescale.bench.contender import plain_requirements
from facescale.bench.photos import evenly, find_photos, link_photos
from facescale.bench.plain_loop import PlainLoop
from facescale.driver.context import SilentReporter
from facescale.errors import DataError, UsageError
from facescale.vision.align import extract_chips, points_from_dlib
from facescale.vision.registry import load_detector, load_embedder

if TYPE_CHECKING:
    from facescale.config.job import JobConfig

MIN_FACE_PX = 40


@pytest.fixture(scope="module")
def photos(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 photographs, of which some show several people."""
    folder = tmp_path_factory.mktemp("photos")
    some = evenly(find_photos(test_data / "lfw"), 16) + evenly(find_photos(test_data / "other"), 4)
    link_photos(some, test_data, folder)
    return folder


def test_the_plain_loop_finds_and_describes_the_same_faces(photos: Path) -> None:
    plain = PlainLoop(peers.plain_models(MIN_FACE_PX))
    detector, embedder = load_detector("yunet_n", min_face_px=MIN_FACE_PX), load_embedder("mobilefacenet")
    faces = 0
    for path in find_photos(photos):
        image = cv2.imread(str(path))
        boxes, points = plain.detect(image)
        rgb = np.ascontiguousarray(image[:, :, ::-1])
        found = detector.detect([rgb])[0]
        assert found.landmarks is not None
        np.testing.assert_allclose(boxes, found.boxes, atol=0.01)
        np.testing.assert_allclose(
            points_from_dlib(points), found.landmarks, atol=0.51
        )  # of an enlarged pixel
        assert plain.faces_of(str(path)) == len(boxes)
        if len(boxes):
            ours = embedder.embed(extract_chips([rgb], [found.landmarks], "arcface_112"))
            theirs = np.stack([plain.describe(image, landmarks) for landmarks in points])
            cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
            assert cosine.min() > 0.95  # it does not smooth before it reduces
        faces += len(boxes)
    assert faces >= 20


def test_a_file_that_is_no_image_has_no_faces(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"none")
    assert PlainLoop(peers.plain_models(MIN_FACE_PX)).faces_of(str(tmp_path / "x.jpg")) == 0


def test_the_bare_loop_uses_the_landmarks_of_a_detector_that_has_them(photos: Path) -> None:
    loop = BareLoop(detector="yunet_n", embedder="mobilefacenet", min_face_px=MIN_FACE_PX, batch=4, threads=1)
    paths = [str(path) for path in find_photos(photos)]
    plain = PlainLoop(peers.plain_models(MIN_FACE_PX))
    assert loop.run(paths) == sum(map(plain.faces_of, paths))
    assert loop.landmarker is None and loop.descriptors[0].shape[1] == 128


def test_everybody_is_counted(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_job = race.run_job

    def run_inline(job: str, config: JobConfig, reporter: Any) -> Any:
        engine = config.engine.model_copy(update={"workers": 0, "threads": 1})
        return run_job(job, config.model_copy(update={"engine": engine}), reporter)

    monkeypatch.setattr(race, "run_job", run_inline)
    monkeypatch.setattr(peers, "ray_session", lambda _: nullcontext())
    python = tmp_path / "env" / "bin" / "python"  # an environment that is there already
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "env" / "complete").write_text("\n".join(plain_requirements()))
    result = peers.bench_peers(
        str(photos),
        SilentReporter(),
        limit=8,
        copies=5,
        rounds=2,
        rival_photos=0,
        plain_env=str(tmp_path / "env"),
        work=str(tmp_path),
    )
    rows = {row["contender"]: row for row in result.figures["images/s"]}
    assert set(rows) == {"extract", "bare loop", "plain loop"}
    faces = {name: [int(n) for n in row["faces a round"].split(", ")] for name, row in rows.items()}
    assert faces["plain loop"] == faces["bare loop"] and len(faces["bare loop"]) == 2
    assert faces["extract"] == [5 * n for n in faces["bare loop"]]
    assert (rows["extract"]["images a round"], rows["plain loop"]["images a round"]) == (40, 8)
    measured = {goal.name: goal.value for goal in result.goals}
    assert measured.pop("extract, times the face_recognition package") is None
    assert all(value is not None and value > 0 for value in measured.values())
    assert [path.name for path in tmp_path.iterdir()] == ["env"]  # lakes and links are gone


def test_contenders_that_do_other_work_are_refused(tmp_path: Path) -> None:
    held = race.Race(tmp_path, [], 1, {}, None, SilentReporter(), copies=2)  # type: ignore[arg-type]
    held.turns |= {
        race.EXTRACT: race.Turns([20], [200], [1.0]),
        race.BARE: race.Turns([10], [100], [1.0]),
        peers.PLAIN: race.Turns([10], [101], [1.0]),
    }
    held.check_same_work()
    peers.check_plain_loop(held)
    assert held.times(peers.PLAIN) == 2
    for name, check in (
        (race.BARE, held.check_same_work),
        (peers.PLAIN, lambda: peers.check_plain_loop(held)),
    ):
        held.turns[name] = dataclasses.replace(held.turns[name], faces=[97])
        with pytest.raises(DataError, match="do not do the same work"):
            check()


def test_a_size_that_the_package_cannot_search_for(photos: Path) -> None:
    with pytest.raises(UsageError, match="--no-rival"):
        peers.bench_peers(str(photos), SilentReporter(), min_face_px=50)
