"""Faces in cells, and lists made by brute force over what each face visits, for the tests of neighbors by cells."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from facescale.curate.cells import Base


def people(count: int, dim: int, *, spread: float = 0.8, each: int = 10, seed: int = 0) -> np.ndarray:
    """float32 [count, dim], unit length, around random centers."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((-(-count // each), dim))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    vectors = np.repeat(centers, each, axis=0)[:count]
    vectors = vectors + spread * rng.standard_normal(vectors.shape) / np.sqrt(dim)
    vectors = vectors[rng.permutation(count)]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def ids_of(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int64) * 256 + 1


def make_base(
    vectors: np.ndarray, cell: np.ndarray, cells: int, *, pieces: int = 1, present: np.ndarray | None = None
) -> tuple[np.ndarray, Base]:
    """(unit vectors as they come back from float16, the base in so many pieces)."""
    half = vectors.astype(np.float16)
    lengths = np.linalg.norm(half.astype(np.float32), axis=1)
    rows = np.arange(len(vectors)) if present is None else np.flatnonzero(present)
    order = rows[np.argsort(cell[rows], kind="stable")]
    starts = np.searchsorted(cell[order], np.arange(cells + 1)).astype(np.int64)
    bounds = starts[np.linspace(0, cells, pieces + 1).astype(int)]
    base = Base(
        ids_of(len(vectors))[order],
        lengths[order],
        starts,
        tuple(torch.from_numpy(half[order[a:b]]) for a, b in itertools.pairwise(bounds)),
        bounds,
    )
    return half.astype(np.float32) / lengths[:, None], base


def oracle(
    unit: np.ndarray, cells: np.ndarray, k: int, *, present: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar faces whose own cell is visited, in float64 and plain numpy; -1 and -inf where missing."""
    sims = (unit.astype(np.float64) @ unit.astype(np.float64).T).astype(np.float32)
    visited = (cells[:, None, :] == cells[None, :, :1]).any(2)
    if present is not None:
        visited &= present
    np.fill_diagonal(visited, False)
    sims[~visited] = -np.inf
    sims = np.pad(sims, ((0, 0), (0, max(0, k - len(unit)))), constant_values=-np.inf)
    order = np.argsort(-sims, axis=1, kind="stable")[:, :k]
    sims = np.take_along_axis(sims, order, 1)
    return np.where(np.isneginf(sims), -1, ids_of(max(k, len(unit)))[order]), sims
