"""Copies of images: identical files and near-duplicates by their hashes, each collapsed to the best image of its group.

Hashes and sizes of images come in, for every copy its representative goes out. Called by facescale.driver.dedup; the
stages after it ask `representatives` which images to leave out.

Groups are stars: every near copy is within the radius of its representative itself, and the representative is the
better image. A chain of small differences (frames of a video) is therefore cut into stars and not swallowed whole,
which connected components would do. Going from the best image to the worst, an image within the radius of an
earlier representative becomes a copy of the nearest, any other a representative; so no two representatives are
within the radius, and adding worse images never changes who represents the better ones.

The shape of an image does not have to agree: PDQ squeezes every image to a square, so a stretched copy keeps its
hash and is a copy all the same, while a crop that changes the shape changes the hash too. Unrelated hashes differ
in 128 ± 8 of 256 bits. PDQ: Facebook, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm"
(2019), which recommends 31 bits and a quality of at least 50.

Mirrored and rotated copies are found by the symmetric hash (facescale.imaging.hashes), whose turned form follows from
it, within the same radius: saved anew at JPEG 30 to 95 and half to twice the size they stay within 16 bits, and the
nearest two of 1,000 different portraits, in any position, are 66 apart.

Shape legend: N images, M of them candidates of the near search, P pairs, B images of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from facescale.errors import UsageError
from facescale.imaging.hashes import TURNS, turned
from facescale.index.backends import faiss_threads, require_faiss
from facescale.index.vectors import random_keys
from facescale.lake.scan import scan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.lake.lake import Lake

    Ints = NDArray[np.int64]
    Hashes = NDArray[np.uint8]
    Bools = NDArray[np.bool_]

REVISION = 2
"""Raised whenever the copies found change for the same images and settings."""

EXACT, NEAR = "exact", "near"
NO_DISTANCE = -1
HASH_BYTES = 32

_BLOCK = 1024  # B² pairs at most are held at once: 20 MB, however many copies of one image there are
_EVEN_SEED = 0


@dataclass(frozen=True, eq=False)
class ImageHashes:
    """What is known of the images of a lake.

    Attributes:
        image_id: int64 [N], rising.
        sha256: uint8 [N, 32], of the file; zeros where there is none.
        has_sha256: bool [N].
        pdq: uint8 [N, 32]; zeros where there is none.
        has_pdq: bool [N], whether the image has a hash with enough detail to go by.
        symmetric: uint8 [N, 32], the symmetric hash; zeros where there is none.
        has_symmetric: bool [N], whether there is one, of an image with enough detail.
        pixels: int64 [N], width × height; 0 where it did not decode.
        quality: float32 [N], the quality of its best face; 0 where there is none or nobody measured it.
        bytes: int64 [N], size of the file.
    """

    image_id: Ints
    sha256: Hashes
    has_sha256: Bools
    pdq: Hashes
    has_pdq: Bools
    symmetric: Hashes
    has_symmetric: Bools
    pixels: Ints
    quality: NDArray[np.float32]
    bytes: Ints


@dataclass(frozen=True, eq=False)
class Copies:
    """The images that are copies, K of them.

    Attributes:
        image_id: int64 [K], rising.
        representative: int64 [K], the image that is kept.
        group_id: int64 [K], the smallest id of the group.
        exact: bool [K], the same bytes as the representative.
        distance: int16 [K], bits to the representative, of the hash that told; -1 where one of them has none.
        turn: int8 [K], how the copy lies beside it: an index into facescale.imaging.hashes.TURNS.
    """

    image_id: Ints
    representative: Ints
    group_id: Ints
    exact: Bools
    distance: NDArray[np.int16]
    turn: NDArray[np.int8]


def find_copies(images: ImageHashes, *, max_distance: int, turns: bool = True, threads: int = 1) -> Copies:
    """Collapse identical files, then near-duplicates.

    Of a group the image with the most pixels is kept; among equals that with the best face, then the most bytes,
    then by a hash of the id, so that order of files means nothing.

    Args:
        images: all images of a lake.
        max_distance: bits up to which images are near-duplicates.
        turns: whether to look for mirrored and rotated copies, for eight times the comparisons.
        threads: of FAISS.

    Notes:
        Memory: 20 MB, and 260 bytes an image, input and FAISS included (226 and 32, at 100,000 images); 130 more
        with `turns`.

    Returns:
        A row per copy. The result does not depend on the order of parts or on the number of threads.

    Raises:
        MissingExtraError: FAISS is not installed.
    """
    rank = _best_first(images)
    keeper = _identical(images, rank)
    own = np.arange(len(keeper))
    candidates = rank[(keeper == own)[rank] & images.has_pdq[rank]]
    symmetric = _never_alike(images, candidates) if turns else None
    near = stars(images.pdq[candidates], max_distance, symmetric_M=symmetric, threads=threads)
    kept = own.copy()
    kept[candidates] = candidates[near]
    kept = kept[keeper]
    smallest = np.arange(len(kept))
    np.minimum.at(smallest, kept, own)
    copy = np.flatnonzero(kept != own)
    by = kept[copy]
    exact = keeper[copy] == by
    distance, turn = _apart(images, copy, by, max_distance, turns)
    ids = images.image_id
    return Copies(ids[copy], ids[by], ids[smallest[by]], exact, distance, turn)


def _apart(
    images: ImageHashes, copy: Ints, by: Ints, radius: int, turns: bool
) -> tuple[NDArray[np.int16], NDArray[np.int8]]:
    """Bits between copies and their representatives, and how they lie: upright wherever PDQ tells it."""
    hashed = images.has_pdq[copy] & images.has_pdq[by]
    distance = np.where(hashed, hamming(images.pdq[copy], images.pdq[by]), NO_DISTANCE)
    turn = np.zeros(len(copy), np.int8)
    if turns:
        far = np.flatnonzero(distance > radius)
        bits = np.stack(
            [
                hamming(turned(images.symmetric[by[far]], way), images.symmetric[copy[far]])
                for way in range(1, len(TURNS))
            ]
        )
        distance[far], turn[far] = bits.min(axis=0), bits.argmin(axis=0) + 1
    return distance.astype(np.int16), turn


def _never_alike(images: ImageHashes, rows: Ints) -> Hashes:
    """Symmetric hashes of these rows; images without one get bits of chance, which are near to nobody's."""
    hashes = images.symmetric[rows].copy()
    missing = ~images.has_symmetric[rows]
    hashes[missing] = np.random.default_rng(_EVEN_SEED).integers(
        0, 256, (int(missing.sum()), HASH_BYTES), np.uint8
    )
    return hashes


def stars(
    hashes_M: Hashes,
    radius: int,
    *,
    symmetric_M: Hashes | None = None,
    threads: int = 1,
    block: int = _BLOCK,
) -> Ints:
    """Group hashes, best first, into stars.

    Args:
        hashes_M: uint8 [M, 32], PDQ, the best image first.
        radius: bits.
        symmetric_M: uint8 [M, 32], symmetric hashes of the same images: then those near in any of seven other
            positions are copies too. None for PDQ alone.
        threads: of FAISS.
        block: hashes that are looked up at once; does not change the result.

    Returns:
        int64 [M], the row of each one's representative, which is its own where it is one.

    Notes:
        Every hash is compared with the representatives before it: M²/2 comparisons at 0.9 · 10⁹ a second and core,
        ten minutes for a million distinct images. FAISS's multi-index hashing (16 tables of 16 bits, one flip:
        exact up to 31 bits by pigeonhole) took as long at every size tried (50,000 to 1,000,000) and eight times
        the memory.
    """
    if radius < 0:
        raise UsageError(f"max_distance: {radius} bits; the radius is not negative")
    result = np.arange(len(hashes_M))
    if not len(hashes_M):
        return result
    faiss = require_faiss()
    kinds = [hashes_M] if symmetric_M is None else [hashes_M, symmetric_M]
    leaders = [faiss.IndexBinaryFlat(8 * HASH_BYTES) for _ in kinds]
    rows = np.empty(0, np.int64)
    with faiss_threads(threads):
        for start in range(0, len(hashes_M), block):
            blocks = [np.ascontiguousarray(kind[start : start + block]) for kind in kinds]
            hashes = blocks[0]
            of, leader, bits = _alike(leaders, blocks, radius)
            inside = [faiss.IndexBinaryFlat(8 * HASH_BYTES) for _ in kinds]
            for index, some in zip(inside, blocks, strict=True):
                index.add(some)
            worse, better, apart = _alike(inside, blocks, radius)
            earlier = better < worse
            worse, better, apart = worse[earlier], better[earlier], apart[earlier]
            covered = np.zeros(len(hashes), bool)
            covered[of] = True
            leads = _first_come(worse, better, covered)
            by_leader = leads[better] & ~leads[worse]
            of = np.concatenate([of, worse[by_leader]])
            by = np.concatenate([rows[leader], start + better[by_leader]])
            nearest = np.lexsort((by, np.concatenate([bits, apart[by_leader]]), of))
            copies, first = np.unique(of[nearest], return_index=True)
            result[start + copies] = by[nearest][first]
            for index, some in zip(leaders, blocks, strict=True):
                index.add(some[leads])
            rows = np.concatenate([rows, start + np.flatnonzero(leads)])
    return result


def hamming(a_P: Hashes, b_P: Hashes) -> Ints:
    """Bits that differ between hashes of the same row: uint8 [P, 32] twice → int64 [P]."""
    bits: Ints = np.unpackbits(a_P ^ b_P, axis=1).sum(axis=1, dtype=np.int64)
    return bits


def representatives(lake: Lake) -> tuple[Ints, Ints]:
    """The copies of a lake and who stands for them, by its current table of duplicates.

    Returns:
        (image_ids of copies int64 [K], rising; the representative of each, int64 [K]); empty when the lake has no
        such table yet.
    """
    version = lake.current("duplicates")
    columns = ["image_id", "representative"]
    tables = list(scan(lake, version, columns=columns)) if version is not None else []
    empty = np.empty(0, np.int64)
    copies, keepers = (
        np.concatenate([empty, *(table[name].to_numpy() for table in tables)]) for name in columns
    )
    return copies, keepers


def _best_first(images: ImageHashes) -> Ints:
    """Rows from the best image to the worst."""
    keys = random_keys(images.image_id, _EVEN_SEED)
    order: Ints = np.lexsort((images.image_id, keys, -images.bytes, -images.quality, -images.pixels))
    return order


def _identical(images: ImageHashes, rank: Ints) -> Ints:
    """Row of the best image with the same bytes, for each image: int64 [N]; its own without a digest."""
    result = np.arange(len(rank))
    ranked = rank[images.has_sha256[rank]]
    if not len(ranked):
        return result
    words = np.ascontiguousarray(images.sha256[ranked]).view(np.uint64)
    order = np.lexsort(words.T)  # stable: within one digest the best stays first
    same = np.concatenate([[False], (words[order[1:]] == words[order[:-1]]).all(axis=1)])
    start = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    result[ranked[order]] = ranked[order[start]]
    return result


def _alike(indexes: list[object], blocks: list[Hashes], radius: int) -> tuple[Ints, Ints, Ints]:
    """Pairs as of `_within`: by PDQ, and where there are symmetric hashes by theirs in every other position."""
    found = [_within(indexes[0], blocks[0], radius)]
    if len(indexes) > 1:
        found += [_within(indexes[1], turned(blocks[1], way), radius) for way in range(1, len(TURNS))]
    rows, columns, bits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return rows, columns, bits


def _within(index: object, hashes_B: Hashes, radius: int) -> tuple[Ints, Ints, Ints]:
    """Pairs (row of the query, row of the index, bits) up to the radius; FAISS's own bound is exclusive."""
    limits, bits, found = index.range_search(hashes_B, radius + 1)  # type: ignore[attr-defined]
    counts = np.diff(limits.astype(np.int64))
    return np.repeat(np.arange(len(hashes_B)), counts), found.astype(np.int64), bits.astype(np.int64)


def _first_come(worse_P: Ints, better_P: Ints, covered_B: Bools) -> Bools:
    """Who leads, when each leads unless it is covered or near a better one that leads: bool [B].

    All that have no better undecided neighbor are settled together, round by round.
    """
    undecided, leads = ~covered_B, np.zeros(len(covered_B), bool)
    while undecided.any():
        open_pair = undecided[worse_P] & undecided[better_P]
        worse_P, better_P = worse_P[open_pair], better_P[open_pair]
        waits = np.zeros(len(leads), bool)
        waits[worse_P] = True
        fresh = undecided & ~waits
        leads |= fresh
        undecided &= ~fresh
        undecided[worse_P[fresh[better_P]]] = False
    return leads
