"""Which invented people may play: the default models must find each of them and tell them apart.

In: a number of identities and a seed. Out: that many `Person`s and how far apart they are. Called by
facescale.synth.crawl. This rejection sampling is why the crawl says nothing about recognition: it was
selected with the very models that it is then used to exercise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from facescale.errors import UsageError
from facescale.synth.people import Person, draw_people, paint
from facescale.synth.portrait import load_portrait
from facescale.synth.render import Look, View, render

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

DETECTOR, LANDMARKER, EMBEDDER = "dlib_mmod", "dlib_5pt", "dlib_resnet"
STRENGTH = 0.7
MIN_DISTANCE = 0.45  # L2 of raw descriptors; two photographs of one person are 0.2 apart, rarely 0.4
_AUDITION_PX = 224
_FACE_PX = 96.0
_MIN_BATCH, _MAX_BATCH = 8, 32  # auditions of one round
_PATIENCE = 8  # rounds without anyone new after which the face space counts as full


class Judge(Protocol):
    """Finds and describes the one face of each picture."""

    def describe(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Raw descriptors, float32 [N, D]; a row of NaN where not exactly one face was found."""
        ...


class DefaultJudge:
    """The default detector, landmarker and embedder, loaded once.

    Args:
        device: torch device.
    """

    def __init__(self, device: str = "cpu") -> None:
        from facescale.vision.registry import load_detector, load_embedder, load_landmarker

        self._detector = load_detector(DETECTOR, device=device, min_face_px=80)
        self._landmarker = load_landmarker(LANDMARKER, device=device)
        self._embedder = load_embedder(EMBEDDER, device=device)
        template = self._embedder.card.template
        if template is None:
            raise UsageError(f"synth: the card of {EMBEDDER} names no chip template")
        self._template = template

    def describe(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """See `Judge.describe`."""
        from facescale.vision.align import extract_chips

        boxes = [found.boxes for found in self._detector.detect(images)]
        single = np.array([len(b) == 1 for b in boxes], bool)
        boxes = [b[: int(one)] for b, one in zip(boxes, single, strict=True)]
        landmarks = self._landmarker.landmarks(images, boxes)
        out = np.full((len(images), self._embedder.dim), np.nan, np.float32)
        out[single] = self._embedder.embed(extract_chips(images, landmarks, self._template))
        return out


@dataclass(frozen=True, eq=False)
class Cast:
    """The people of a crawl.

    Args:
        people: in the order of their labels.
        descriptors: float32 [N, D], raw, of each one's plain portrait.
        auditioned: how many were drawn to find them.
    """

    people: list[Person]
    descriptors: np.ndarray
    auditioned: int


def choose_cast(
    count: int,
    seed: np.random.SeedSequence,
    judge: Judge,
    pool: Executor,
    *,
    min_distance: float = MIN_DISTANCE,
) -> Cast:
    """Draw people until `count` of them are found by the detector and far enough from all chosen before.

    Args:
        count: identities wanted.
        seed: of everything drawn here.
        judge: who finds and describes the faces.
        pool: threads that paint the auditions.
        min_distance: smallest L2 distance between raw descriptors of two people.

    Raises:
        UsageError: the face space is full: so many people so far apart were not found.
    """
    portrait = load_portrait()
    people: list[Person] = []
    chosen = np.zeros((0, 0), np.float32)
    auditioned = 0
    since_last = 0
    while since_last < _PATIENCE:
        since_last += 1
        rng = np.random.default_rng(seed.spawn(1)[0])
        wanted = min(max(2 * (count - len(people)), _MIN_BATCH), _MAX_BATCH)
        candidates = draw_people(portrait, 2 * wanted, rng, strength=STRENGTH)[:wanted]
        auditioned += len(candidates)
        descriptors = judge.describe(list(pool.map(_audition, candidates)))
        if not len(people):
            chosen = np.zeros((0, descriptors.shape[1]), np.float32)
        for person, descriptor in zip(candidates, descriptors, strict=True):
            apart = np.linalg.norm(chosen - descriptor, axis=1)
            if np.isfinite(descriptor).all() and (apart >= min_distance).all():
                people.append(person)
                since_last = 0
                chosen = np.concatenate([chosen, descriptor[None]])
            if len(people) == count:
                return Cast(people, chosen, auditioned)
    raise UsageError(
        f"synth: found only {len(people)} of {count} identities that are {min_distance} apart after "
        f"{auditioned} auditions: ask for fewer identities, or for a smaller min_distance"
    )


def _audition(person: Person) -> np.ndarray:
    """A plain portrait of one candidate, uint8 [224, 224, 3]; the background is the same for everyone."""
    view = View((_AUDITION_PX / 2, _AUDITION_PX / 2), _FACE_PX)
    painted = paint(load_portrait(), person)
    photograph = render(
        [(painted, person.displacement, view)], (_AUDITION_PX, _AUDITION_PX), Look(), np.random.default_rng(0)
    )
    return photograph.pixels
