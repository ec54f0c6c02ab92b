"""Planned shots → files on disk and their truth rows, in parallel.

In: shots, the cast, one seed per shot and a folder. Out: the files, and one dict per shot with the columns of the
truth table. Called by facescale.synth.crawl.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.synth.files import DAMAGE, damaged, encode, reencode
from facescale.synth.people import paint
from facescale.synth.plan import LOW_QUALITY, NEAR_DUPLICATE, NO_FACE, TWO_FACES, Shot, label_of
from facescale.synth.portrait import load_portrait, skimage_data
from facescale.synth.raster import reduce
from facescale.synth.render import finish, render
from facescale.synth.variety import pair_scene, poor_scene, single_scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor
    from pathlib import Path

    from facescale.synth.cast import Cast


class Shooting:
    """Renders and writes the shots; one person's pictures at a time, as painting costs more than photographing."""

    def __init__(
        self, folder: Path, shots: list[Shot], cast: Cast, seeds: list[np.random.SeedSequence]
    ) -> None:
        self._folder, self._shots, self._cast, self._seeds = folder, shots, cast, seeds

    def make(self, pool: Executor, progress: Callable[[int, int], None] | None) -> list[dict[str, Any]]:
        """Write every file; returns one truth row per shot, by shot index."""
        for label in {shot.path.partition("/")[0] for shot in self._shots}:
            (self._folder / label).mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = [{}] * len(self._shots)
        first = sorted((s for s in self._shots if s.original is None), key=lambda s: s.people[:1])
        groups = [list(group) for _, group in groupby(first, key=lambda s: s.people[:1])]
        copies = [s for s in self._shots if s.original is not None]
        for made in pool.map(self._people, groups):
            self._collect(made, rows, progress)
        for made in pool.map(lambda shot: [self._copy(shot, rows)], copies):
            self._collect(made, rows, progress)
        for shot in copies:
            rows[shot.index]["group"] = rows[shot.original]["group"] = shot.original  # type: ignore[index]
        return rows

    def _collect(
        self,
        made: Iterable[tuple[int, dict[str, Any]]],
        rows: list[dict[str, Any]],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        for index, row in made:
            rows[index] = row
        if progress is not None:
            progress(sum(map(bool, rows)), len(rows))

    def _people(self, shots: list[Shot]) -> list[tuple[int, dict[str, Any]]]:
        """The shots of one person (or of nobody)."""
        painted = {}
        out = []
        for shot in shots:
            for identity in shot.people:
                if identity not in painted:
                    painted[identity] = paint(load_portrait(), self._cast.people[identity])
            out.append((shot.index, self._shoot(shot, painted)))
            painted = {i: p for i, p in painted.items() if i in shots[0].people[:1]}  # guests go: 3 MiB each
        return out

    def _shoot(self, shot: Shot, painted: dict[int, np.ndarray]) -> dict[str, Any]:
        rng = np.random.default_rng(self._seeds[shot.index])
        if shot.kind == NO_FACE:
            pixels = _faceless(shot.picture, rng)
            data = encode(pixels, shot.file_format, int(rng.integers(70, 96)))
            return self._write(shot, data, pixels, np.zeros((0, 4)), [shot.picture, *_storage(shot)])
        draw = {TWO_FACES: pair_scene, LOW_QUALITY: poor_scene}.get(shot.kind, single_scene)
        scene = draw(rng)
        sitters = [
            (painted[identity], self._displacement(identity), view)
            for identity, view in zip(shot.people, scene.views, strict=True)
        ]
        photograph = render(sitters, scene.size, scene.look, rng)
        if shot.kind.startswith("damaged_"):
            kind = shot.kind.removeprefix("damaged_")
            intact = "png" if DAMAGE[kind][0] == ".png" else "jpeg"
            data = damaged(kind, encode(photograph.pixels, intact, scene.jpeg_quality), rng)
            return self._write(shot, data, None, np.zeros((0, 4)), [], status=DAMAGE[kind][1])
        pixels, boxes = _shrink(photograph.pixels, photograph.boxes, scene.shrink)
        data = encode(pixels, shot.file_format, scene.jpeg_quality)
        return self._write(shot, data, pixels, boxes, [*scene.variations, *_storage(shot)])

    def _copy(self, shot: Shot, rows: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        assert shot.original is not None
        row = rows[shot.original]
        data = (self._folder / row["path"]).read_bytes()
        changed: dict[str, Any] = {"path": shot.path, "kind": shot.kind, "original": row["path"]}
        if shot.kind == NEAR_DUPLICATE:
            rng = np.random.default_rng(self._seeds[shot.index])
            scale, gain = float(rng.uniform(0.8, 1.0)), float(rng.uniform(0.94, 1.06))
            data = reencode(data, scale, gain, int(rng.integers(50, 86)))
            width, height = max(1, round(row["width"] * scale)), max(1, round(row["height"] * scale))
            grow = np.tile([width / row["width"], height / row["height"]], 2)
            boxes = [(np.array(box) * grow).tolist() for box in row["boxes"]]
            changed |= {"width": width, "height": height, "boxes": boxes, "variations": ["reencoded"]}
        (self._folder / shot.path).write_bytes(data)
        return shot.index, row | changed | {"bytes": len(data)}

    def _displacement(self, identity: int) -> np.ndarray:
        return self._cast.people[identity].displacement

    def _write(
        self,
        shot: Shot,
        data: bytes,
        pixels: np.ndarray | None,
        boxes: np.ndarray,
        variations: list[str],
        status: str = "ok",
    ) -> dict[str, Any]:
        (self._folder / shot.path).write_bytes(data)
        return {
            "path": shot.path,
            "claimed": label_of(shot.claimed),
            "identities": [label_of(i) for i in shot.people] if len(boxes) else [],
            "kind": shot.kind,
            "variations": variations,
            "group": None,
            "original": None,
            "num_faces": len(boxes),
            "status": status,
            "boxes": boxes.tolist(),
            "width": None if pixels is None else pixels.shape[1],
            "height": None if pixels is None else pixels.shape[0],
            "bytes": len(data),
        }


def _storage(shot: Shot) -> list[str]:
    return [] if shot.file_format == "jpeg" else [shot.file_format]


def _shrink(pixels: np.ndarray, boxes: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """The picture and its boxes at a smaller scale; `factor` in (0, 1]."""
    if factor == 1:
        return pixels, boxes
    H, W = pixels.shape[:2]
    w, h = max(1, round(W * factor)), max(1, round(H * factor))
    return reduce(pixels, (w, h)), boxes * np.tile([w / W, h / H], 2)  # edges at whole px: a plain scaling


def _faceless(name: str, rng: np.random.Generator) -> np.ndarray:
    """A different piece of one of the pictures without people, uint8 [H, W, 3]."""
    picture = skimage_data(name)
    H, W = picture.shape[:2]
    w, h = (round(side * rng.uniform(0.55, 0.95)) for side in (W, H))
    x, y = rng.integers(W - w + 1), rng.integers(H - h + 1)
    piece = np.ascontiguousarray(picture[y : y + h, x : x + w][:, :: rng.choice([-1, 1])])
    scale = rng.uniform(240, 420) / max(w, h)
    resized = reduce(piece, (round(w * scale), round(h * scale)))
    look = single_scene(rng).look
    return finish(resized.astype(np.float32) / 255, replace(look, occlusion="none"), rng)
