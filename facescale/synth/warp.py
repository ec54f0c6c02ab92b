"""Displacements of the portrait's points → smooth warps of the whole picture, forward and backward.

In: float64 [P, 2] px displacements of `Portrait.points`. Out: a `Warp`: where every portrait point goes and,
for cv2.remap, where every place of the warped picture comes from. Called by facescale.synth.people and
facescale.synth.render.

A thin-plate spline is linear in the displacements, so its solution is computed once per process as a matrix from
the P displacements to a grid of places 4 px apart; a warp is then one small product.

Shape legend: P points, G = g x g grid nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from facescale.synth.portrait import Portrait, load_portrait
from facescale.synth.raster import sample

_STEP_PX = 4.0
# x and y of the grid's first node: it covers the head, whose hair may be moved past the picture's upper border. What
# is outside it moves as its border does, which the fixed points around the head keep nearly still.
_ORIGIN_PX = (64.0, -64.0)
_NODES = 81
_SMOOTHING = 30.0  # px²: neighbors that are told to part (brow and temple are 7 px apart) part gently
_INVERSE_ROUNDS = 12


@dataclass(frozen=True, eq=False)
class Warp:
    """A smooth warp of the portrait.

    Args:
        forward: float32 [g, g, 2] px: the node at q goes to q + forward.
        backward: float32 [g, g, 2] px: what the warped picture shows at q comes from q + backward.
    """

    forward: np.ndarray
    backward: np.ndarray

    def move(self, points: np.ndarray) -> np.ndarray:
        """Where points of the portrait go: float64 [n, 2] px → float64 [n, 2] px."""
        return np.asarray(points + _sample(self.forward, points[None].astype(np.float32))[0])

    def sources(self, places: np.ndarray) -> np.ndarray:
        """Where places of the warped picture come from: float32 [H, W, 2] px → float32 [H, W, 2] px."""
        return np.asarray(places + _sample(self.backward, places))


def make_warp(displacement: np.ndarray) -> Warp:
    """Spread the displacement of the portrait's points over the picture.

    Args:
        displacement: float64 [P, 2] px, small enough not to fold (see `steepness`).
    """
    forward = spread(displacement)
    backward = -forward
    nodes = _nodes()
    for _ in range(_INVERSE_ROUNDS):  # v(q) = -u(q + v(q)) contracts while the warp is nowhere steeper than 1
        backward = -_sample(forward, nodes + backward)
    return Warp(forward, backward)


def spread(displacement: np.ndarray) -> np.ndarray:
    """The thin-plate spline near the displacements, at the grid's nodes.

    Args:
        displacement: float64 [..., P, 2] px.

    Returns:
        float32 [..., g, g, 2] px.
    """
    P = displacement.shape[-2]
    columns = np.moveaxis(displacement, -2, 0).reshape(P, -1)  # one product for all warps
    field = (_basis() @ columns).astype(np.float32).reshape(_NODES, _NODES, *displacement.shape[:-2], 2)
    return np.ascontiguousarray(np.moveaxis(field, (0, 1), (-3, -2)))


def steepness(forward: np.ndarray) -> np.ndarray:
    """Largest slope of each warp: below 1 it folds nowhere and `make_warp` inverts it.

    Args:
        forward: float32 [..., g, g, 2] px.

    Returns:
        float32 [...], the largest singular value of the displacement's derivative between neighboring nodes.
    """
    across = np.diff(forward, axis=-2)[..., :-1, :, :] / np.float32(_STEP_PX)
    down = np.diff(forward, axis=-3)[..., :, :-1, :] / np.float32(_STEP_PX)
    # Of a 2 x 2 matrix with columns p, q: half the sum of its squares, plus what the determinant leaves of it.
    half = ((across**2).sum(axis=-1) + (down**2).sum(axis=-1)) / 2
    determinant = across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0]
    square = half + np.sqrt(np.maximum(half**2 - determinant**2, 0))
    return np.asarray(np.sqrt(square.max(axis=(-2, -1))))


def turn_head(portrait: Portrait, yaw_deg: float, pitch_deg: float) -> np.ndarray:
    """Displacements that look like a small turn of the head: nearer points move further.

    Args:
        portrait: supplies points and depths.
        yaw_deg: positive turns the face to the right of the picture.
        pitch_deg: positive turns it down.

    Returns:
        float64 [P, 2] px.
    """
    yaw, pitch = np.radians([yaw_deg, pitch_deg])
    center = portrait.points.mean(axis=0)
    shrink = (portrait.points - center) * (np.cos([yaw, pitch]) - 1)
    return np.asarray(shrink + portrait.depth[:, None] * np.sin([yaw, pitch]))


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[complex, complex]:
    """Least-squares similarity z → a·z + b in complex coordinates from float64 [n, 2] to float64 [n, 2]."""
    z, w = source[:, 0] + 1j * source[:, 1], target[:, 0] + 1j * target[:, 1]
    dz = z - z.mean()
    a = complex(np.vdot(dz, w - w.mean()) / np.vdot(dz, dz))
    return a, complex(w.mean() - a * z.mean())


def _sample(field: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Field at places of the portrait, both float32 [H, W, 2]; constant beyond the grid."""
    at = (places - np.array(_ORIGIN_PX, np.float32)) / np.float32(_STEP_PX)
    return sample(field, at)


@lru_cache(maxsize=1)
def _nodes() -> np.ndarray:
    x, y = (np.arange(_NODES, dtype=np.float32) * np.float32(_STEP_PX) + start for start in _ORIGIN_PX)
    return np.stack(np.meshgrid(x, y), axis=-1)


@lru_cache(maxsize=1)
def _basis() -> np.ndarray:
    """float64 [G, P]: displacement of every node per unit displacement of each point (fixed points: zero)."""
    portrait = load_portrait()
    centers = np.concatenate([portrait.points, portrait.fixed])
    count = len(centers)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = _kernel(centers, centers) + _SMOOTHING * np.eye(count)
    system[:count, count:] = np.c_[np.ones(count), centers]
    system[count:, :count] = system[:count, count:].T
    given = np.zeros((count + 3, len(portrait.points)))
    given[: len(portrait.points)] = np.eye(len(portrait.points))
    nodes = _nodes().reshape(-1, 2).astype(np.float64)
    terms = np.c_[_kernel(nodes, centers), np.ones(len(nodes)), nodes]
    return np.asarray(terms @ np.linalg.solve(system, given))


def _kernel(places: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Thin-plate kernel r²·log r, float64 [n, C]."""
    square = ((places[:, None] - centers[None]) ** 2).sum(axis=2)
    return np.asarray(0.5 * square * np.log(np.maximum(square, 1e-12)))
