"""Copies of images: stars against a plain greedy search, the best copy kept, chains cut, real near-duplicates."""

from __future__ import annotations

import csv
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facescale.curate.duplicates import Copies, ImageHashes, find_copies, hamming, stars
from facescale.errors import UsageError
from facescale.imaging.decode import decode
from facescale.imaging.hashes import TURNS, perceptual, sha256, turned

pytest.importorskip("faiss")
RADIUS = 31


def flipped(hashes: np.ndarray, bits: int, rng: np.random.Generator) -> np.ndarray:
    """The hashes with this many bits of each turned over."""
    mask = np.zeros((len(hashes), 256), np.uint8)
    for row in mask:
        row[rng.choice(256, bits, replace=False)] = 1
    return hashes ^ np.packbits(mask, axis=1)


def random_hashes(count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (count, 32), np.uint8)


def images(pdq: np.ndarray, **given: np.ndarray) -> ImageHashes:
    """Images of these hashes that differ in everything else."""
    count = len(pdq)
    rng = np.random.default_rng(count)
    values = {
        "image_id": np.arange(count, dtype=np.int64) << 8,
        "sha256": random_hashes(count, rng),
        "has_sha256": np.ones(count, bool),
        "pdq": pdq,
        "has_pdq": np.ones(count, bool),
        "symmetric": random_hashes(count, rng),
        "has_symmetric": np.ones(count, bool),
        "pixels": np.full(count, 10_000),
        "quality": np.zeros(count, np.float32),
        "bytes": np.full(count, 1000),
    }
    return ImageHashes(**{**values, **given})


def groups(found: Copies) -> dict[int, set[int]]:
    """Rows of the copies by the row of their representative."""
    result: dict[int, set[int]] = {}
    for copy, by in zip(found.image_id >> 8, found.representative >> 8, strict=True):
        result.setdefault(int(by), set()).add(int(copy))
    return result


def greedy(hashes: np.ndarray, radius: int) -> list[int]:
    """One image after the other, from the best to the worst."""
    leaders: list[int] = []
    result = []
    for row, own in enumerate(hashes):
        apart = [int(np.unpackbits(own ^ hashes[leader]).sum()) for leader in leaders]
        near = [(bits, leader) for bits, leader in zip(apart, leaders, strict=True) if bits <= radius]
        result.append(min(near)[1] if near else row)
        if not near:
            leaders.append(row)
    return result


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    centers=st.integers(1, 4),
    sizes=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=40),
    radius=st.sampled_from([0, 10, 31]),
    block=st.sampled_from([1, 2, 7, 1024]),
)
def test_stars_are_those_of_a_greedy_search(
    seed: int, centers: int, sizes: list[tuple[int, int]], radius: int, block: int
) -> None:
    rng = np.random.default_rng(seed)
    middle = random_hashes(centers, rng)
    rows = [flipped(middle[[center % centers]], bits, rng) for center, bits in sizes]
    hashes = np.concatenate([*rows, middle]) if rows else middle
    found = stars(hashes, radius, block=block)
    assert found.tolist() == greedy(hashes, radius)
    leaders = np.flatnonzero(found == np.arange(len(found)))
    assert (hamming(hashes, hashes[found]) <= radius).all()
    between = np.unpackbits(hashes[leaders][:, None] ^ hashes[leaders][None], axis=2).sum(axis=2)
    assert (between[~np.eye(len(leaders), dtype=bool)] > radius).all()


def test_the_radius_is_inclusive_and_every_distance_is_found() -> None:
    rng = np.random.default_rng(0)
    center = random_hashes(1, rng)
    for bits in range(34):
        pair = np.concatenate([center, flipped(center, bits, rng)])
        assert (stars(pair, RADIUS).tolist() == [0, 0]) == (bits <= RADIUS)


def test_threads_change_nothing() -> None:
    rng = np.random.default_rng(1)
    hashes = np.repeat(random_hashes(300, rng), 4, axis=0)
    hashes = flipped(hashes, 12, rng)[rng.permutation(1200)]
    np.testing.assert_array_equal(stars(hashes, RADIUS, threads=1), stars(hashes, RADIUS, threads=2))


def test_a_video_is_cut_into_stars() -> None:
    """Each frame is 8 bits from the next and the last is a hundred and more from the first."""
    rng = np.random.default_rng(2)
    order = rng.permutation(256)
    frames = np.zeros((20, 256), np.uint8)
    for number in range(20):
        frames[number, order[: 8 * number]] = 1
    frames = np.packbits(frames, axis=1)
    shuffled = rng.permutation(20)
    found = find_copies(images(frames[shuffled]), max_distance=RADIUS)
    assert 3 <= len(groups(found)) <= 10
    assert found.distance.max() <= RADIUS
    for keeper, members in groups(found).items():
        assert all(abs(shuffled[keeper] - shuffled[member]) <= 3 for member in members)


def test_many_copies_of_one_image_are_one_group() -> None:
    """More than fit a block, each a little different."""
    rng = np.random.default_rng(3)
    hashes = flipped(np.repeat(random_hashes(1, rng), 3000, axis=0), 7, rng)
    found = find_copies(images(hashes), max_distance=RADIUS)
    assert len(found.image_id) == 2999 and len(groups(found)) == 1
    assert set(found.group_id) == {0}


@pytest.mark.parametrize("first", ["pixels", "quality", "bytes"])
def test_the_best_copy_is_kept(first: str) -> None:
    rng = np.random.default_rng(4)
    hashes = flipped(np.repeat(random_hashes(1, rng), 5, axis=0), 3, rng)
    better = {"pixels": np.int64, "quality": np.float32, "bytes": np.int64}
    kinds = list(better)[list(better).index(first) :]
    # The later a criterion, the more it favors another image.
    given = {
        name: np.array([5, 1, 1, 1, 1]).astype(better[name])[np.roll(np.arange(5), step + 2)]
        for step, name in enumerate(kinds)
    }
    assert list(groups(find_copies(images(hashes, **given), max_distance=RADIUS))) == [2]


def test_ties_are_not_broken_by_position() -> None:
    kept = []
    for seed in range(40):
        hashes = np.repeat(random_hashes(1, np.random.default_rng(seed)), 4, axis=0)
        ids = (np.arange(4, dtype=np.int64) + 4 * seed) << 8
        found = find_copies(images(hashes, image_id=ids), max_distance=RADIUS)
        kept.append(int(found.representative[0] >> 8) % 4)
    assert min(np.bincount(kept, minlength=4)) > 2


def test_identical_files() -> None:
    """They need no hash: two that did not decode, and one digest in a near group."""
    rng = np.random.default_rng(5)
    hashes = random_hashes(7, rng)
    digests = random_hashes(7, rng)
    digests[1] = digests[0]  # did not decode, both
    digests[4] = digests[3]  # 4 is 3 again, and both are near 2, which is larger
    hashes[3] = hashes[4] = flipped(hashes[[2]], 9, rng)[0]
    hashes[6] = hashes[5]  # near, but for the detail
    given = {
        "sha256": digests,
        "has_pdq": np.array([False, False, True, True, True, True, False]),
        "pixels": np.array([0, 0, 900, 400, 400, 400, 400]),
    }
    found = find_copies(images(hashes, **given), max_distance=RADIUS)
    assert found.image_id.tolist() == [int(found.image_id[0]), 3 << 8, 4 << 8]
    assert sorted([int(found.image_id[0]), int(found.representative[0])]) == [0, 1 << 8]
    assert found.exact.tolist() == [True, False, False]
    assert found.distance.tolist() == [-1, 9, 9]
    assert found.group_id.tolist() == [0, 2 << 8, 2 << 8]
    no_digest = images(hashes, **given, has_sha256=np.zeros(7, bool))
    assert find_copies(no_digest, max_distance=RADIUS).image_id.tolist() == [3 << 8, 4 << 8]


def position(pixels: np.ndarray, way: int) -> np.ndarray:
    """The picture, put down another way."""
    pixels = pixels.swapaxes(0, 1) if way & 4 else pixels
    pixels = pixels[:, ::-1] if way & 1 else pixels
    return np.ascontiguousarray(pixels[::-1] if way & 2 else pixels)


@pytest.mark.parametrize("way", range(1, 8))
def test_turned_copies_are_found_however_they_are_saved(way: int) -> None:
    """Each is turned, scaled by 0.5 to 2 and saved at JPEG 30 to 95; rotations are what OpenCV calls them."""
    rng = np.random.default_rng(way)
    pictures = [scene(rng) for _ in range(12)]
    saved = []
    for picture in pictures:
        scale, quality = float(rng.uniform(0.5, 2)), int(rng.integers(30, 96))
        copy = cv2.resize(position(picture, way), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        saved.append(cv2.imdecode(cv2.imencode(".jpg", copy, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1))
    known = {3: cv2.ROTATE_180, 5: cv2.ROTATE_90_CLOCKWISE, 6: cv2.ROTATE_90_COUNTERCLOCKWISE}
    if way in known:
        np.testing.assert_array_equal(cv2.rotate(pictures[0], known[way]), position(pictures[0], way))
    both = [perceptual(picture) for picture in pictures + saved]
    given = images(
        np.stack([np.frombuffer(found.pdq, np.uint8) for found in both]),
        symmetric=np.stack([np.frombuffer(found.symmetric, np.uint8) for found in both]),
        pixels=np.repeat([9000, 1000], 12),
    )
    found = find_copies(given, max_distance=RADIUS)
    assert groups(found) == {row: {row + 12} for row in range(12)}
    assert found.turn.tolist() == [way] * 12
    assert not len(find_copies(given, max_distance=RADIUS, turns=False).image_id)


@given(seed=st.integers(0, 2**32 - 1), way=st.integers(0, 7))
@settings(max_examples=30, deadline=None)
def test_the_symmetric_hash_of_a_turned_picture_follows_from_that_of_the_picture(seed: int, way: int) -> None:
    picture = scene(np.random.default_rng(seed))
    expected = np.frombuffer(perceptual(position(picture, way)).symmetric, np.uint8)
    own = np.frombuffer(perceptual(picture).symmetric, np.uint8)
    assert hamming(turned(own, way)[None], expected[None])[0] <= 2  # coefficients that are all but zero


def scene(rng: np.random.Generator) -> np.ndarray:
    """A picture of soft blobs with sharp edges, uint8 [240, 300, 3]."""
    small = rng.integers(0, 256, (12, 15, 3), dtype=np.uint8)
    smooth = cv2.resize(small, (300, 240), interpolation=cv2.INTER_CUBIC)
    for _ in range(8):
        corner, size = rng.integers(0, 200, 2), rng.integers(10, 80, 2)
        color = rng.integers(0, 256, 3).tolist()
        cv2.rectangle(smooth, corner.tolist(), (corner + size).tolist(), color, -1)
    return smooth


def test_images_of_which_only_pdq_is_known_are_near_to_nobody_otherwise() -> None:
    """Tables made before there was a symmetric hash hold none."""
    rng = np.random.default_rng(11)
    none = {"symmetric": np.zeros((40, 32), np.uint8), "has_symmetric": np.zeros(40, bool)}
    assert not len(find_copies(images(random_hashes(40, rng), **none), max_distance=RADIUS).image_id)


def test_no_images_and_one() -> None:
    for count in (0, 1):
        found = find_copies(images(np.zeros((count, 32), np.uint8)), max_distance=RADIUS)
        assert len(found.image_id) == len(found.distance) == 0
    with pytest.raises(UsageError, match="max_distance"):
        stars(np.zeros((2, 32), np.uint8), -1)


def test_memory_is_what_the_docstring_says() -> None:
    count = 30_000
    rng = np.random.default_rng(6)
    tracemalloc.start()
    try:
        given = images(random_hashes(count, rng))
        find_copies(given, max_distance=RADIUS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6 + 390 * count


def test_real_photographs(test_data: Path) -> None:
    """The groups of labels.csv are whole; of LFW only true copies go, which were looked at one by one."""
    with (test_data / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] in ("neardup", "rotated", "single")]
    data = [(test_data / row["path"]).read_bytes() for row in rows]
    decoded = [decode(item) for item in data]
    hashed = [perceptual(image.pixels) for image in decoded if image.pixels is not None]
    given = images(
        np.stack([np.frombuffer(found.pdq, np.uint8) for found in hashed]),
        symmetric=np.stack([np.frombuffer(found.symmetric, np.uint8) for found in hashed]),
        sha256=np.stack([np.frombuffer(sha256(item), np.uint8) for item in data]),
        has_pdq=np.array([found.quality >= 50 for found in hashed]),
        has_symmetric=np.array([found.quality >= 50 for found in hashed]),
        pixels=np.array([(image.width or 0) * (image.height or 0) for image in decoded]),
        bytes=np.array([len(item) for item in data]),
    )
    found = find_copies(given, max_distance=RADIUS)
    paths = np.array([row["path"] for row in rows])
    keeper = paths.copy()
    keeper[found.image_id >> 8] = paths[found.representative >> 8]
    group = np.array([row["dup_group"] for row in rows])
    for name in ("biden", "obama_frame", "obama2", "rot"):
        assert len(set(keeper[group == name])) == 1, name
    assert keeper[group == "obama_frame"][0].endswith("1080p.jpg")
    (same,) = np.flatnonzero((group[found.image_id >> 8] == "obama1") & found.exact)
    assert {
        path.rsplit("_", 1)[1]
        for path in (paths[found.image_id >> 8][same], keeper[found.image_id >> 8][same])
    } == {"obama.jpg"}
    positions = {
        Path(paths[i >> 8]).stem: TURNS[turn] for i, turn in zip(found.image_id, found.turn, strict=True)
    }
    positions = {name: turn for name, turn in positions.items() if name.startswith("rot_")}
    (kept,) = {0, 90, 180, 270} - {int(name.removeprefix("rot_")) for name in positions}
    assert {TURNS.index(turn) for turn in positions.values()} == {3, 5, 6}, (kept, positions)
    assert [turn for turn in found.turn if turn] == [turn for turn in found.turn if turn in (3, 5, 6)]
    lost = {path for path, by in zip(paths, keeper, strict=True) if path.startswith("lfw/") and by != path}
    seen = {"Ari_Fleischer_0006", "Ari_Fleischer_0011", "Julie_Gerberding_0004", "Julie_Gerberding_0006"}
    seen |= {"Renee_Zellweger_0010", "Renee_Zellweger_0013"}  # one photograph each, encoded or cut out twice
    wrong = [path for path in lost if Path(path).stem not in seen]
    assert len(wrong) < 0.005 * sum(path.startswith("lfw/") for path in paths)
    assert len(lost) >= 3
