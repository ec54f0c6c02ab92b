"""What a crawl will hold, decided before anything is drawn: one `Shot` per file.

In: sizes, planted amounts and a seed. Out: shots with their paths, in path order of nobody's choosing, so that
neither a name nor a position tells what was planted. Called by facescale.synth.crawl.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from facescale.errors import UsageError
from facescale.synth.files import DAMAGE, FORMATS

CLEAN, WRONG_LABEL, LOW_QUALITY, TWO_FACES = "clean", "wrong_label", "low_quality", "two_faces"
FACELESS = ("chelsea", "coffee", "coins", "rocket", "horse")  # of skimage.data, nobody in sight
NO_FACE, EXACT_DUPLICATE, NEAR_DUPLICATE = "no_face", "exact_duplicate", "near_duplicate"
_FORMAT_SHARES = {"jpeg": 0.84, "png": 0.04, "webp": 0.05, "rotated": 0.05, "mislabeled": 0.02}


@dataclass(frozen=True, kw_only=True)
class Planted:
    """How many files of each planted kind a crawl holds, beside its clean images.

    Args:
        wrong_labels: images of one person under another's label.
        exact_duplicates: byte copies of clean images.
        near_duplicates: clean images stored again: smaller, brighter, another JPEG quality.
        two_faces: images of two people, claimed as the first.
        no_faces: images without a person.
        low_quality: images of a small, blurred or dark face.
        damaged: files that are no whole picture, of each kind (truncated, empty, HTML, garbage, broken, bomb).
    """

    wrong_labels: int = 0
    exact_duplicates: int = 0
    near_duplicates: int = 0
    two_faces: int = 0
    no_faces: int = 0
    low_quality: int = 0
    damaged: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise UsageError(f"synth: {field.name} must be 0 or more, got {getattr(self, field.name)}")

    @classmethod
    def for_size(cls, images: int) -> Planted:
        """The default amounts for a number of clean images: about three planted files to every ten."""
        shares = {
            "wrong_labels": 0.05,
            "exact_duplicates": 0.04,
            "near_duplicates": 0.05,
            "two_faces": 0.04,
            "no_faces": 0.04,
            "low_quality": 0.05,
            "damaged": 0.006,
        }
        return cls(**{name: max(1, round(images * share)) for name, share in shares.items()})


@dataclass(frozen=True)
class Shot:
    """One file of the crawl.

    Args:
        index: position in the plan; seeds everything about the file.
        kind: `clean`, a planted kind, or `damaged_<kind>`.
        claimed: identity whose folder it is in.
        people: identities in the picture.
        file_format: a key of FORMATS; ignored for copies and damaged files.
        picture: what a picture without people shows, one of FACELESS.
        original: index of the shot this one copies, else None.
        path: relative to the images folder.
    """

    index: int
    kind: str
    claimed: int
    people: tuple[int, ...] = ()
    file_format: str = "jpeg"
    picture: str = ""
    original: int | None = None
    path: str = ""


def label_of(identity: int) -> str:
    """Folder name and label of an identity."""
    return f"id_{identity:04d}"


def plan_shots(
    identities: int, images_per_identity: int, planted: Planted, seed: np.random.SeedSequence
) -> list[Shot]:
    """Decide every file of a crawl.

    Raises:
        UsageError: sizes that cannot be: no identity, wrong labels or pairs with only one person, more copies
            than there are clean images.
    """
    _check(identities, images_per_identity, planted)
    rng = np.random.default_rng(seed)
    shots: list[Shot] = []

    def add(kind: str, claimed: int, people: tuple[int, ...] = (), **more: object) -> None:
        stored = str(rng.choice(list(_FORMAT_SHARES), p=list(_FORMAT_SHARES.values())))
        shots.append(Shot(len(shots), kind, claimed, people, **({"file_format": stored} | more)))  # type: ignore[arg-type]

    def anyone() -> int:
        return int(rng.integers(identities))

    def other_than(identity: int) -> int:
        return int((identity + rng.integers(1, identities)) % identities)

    for identity in range(identities):
        for _ in range(images_per_identity):
            add(CLEAN, identity, (identity,))
    for _ in range(planted.wrong_labels):
        person = anyone()
        add(WRONG_LABEL, other_than(person), (person,))
    for _ in range(planted.low_quality):
        person = anyone()
        add(LOW_QUALITY, person, (person,))
    for _ in range(planted.two_faces):
        person = anyone()
        add(TWO_FACES, person, (person, other_than(person)))
    for i in range(planted.no_faces):
        add(NO_FACE, anyone(), picture=FACELESS[i % len(FACELESS)])
    for kind in DAMAGE:
        for _ in range(planted.damaged):
            person = anyone()
            add(f"damaged_{kind}", person, (person,))
    copies = planted.exact_duplicates + planted.near_duplicates
    originals = rng.choice(identities * images_per_identity, size=copies, replace=False)
    for i, original in enumerate(originals):
        kind = EXACT_DUPLICATE if i < planted.exact_duplicates else NEAR_DUPLICATE
        source = shots[original]
        stored = source.file_format if kind == EXACT_DUPLICATE else "jpeg"
        add(kind, source.claimed, source.people, original=int(original), file_format=stored)
    return _named(shots, rng)


def _check(identities: int, images_per_identity: int, planted: Planted) -> None:
    if identities < 1 or images_per_identity < 1:
        raise UsageError(
            f"synth: identities and images_per_identity must be 1 or more, got {identities} and {images_per_identity}"
        )
    if identities < 2 and planted.wrong_labels + planted.two_faces:
        raise UsageError("synth: wrong labels and two-face images need 2 or more identities, got 1")
    copies, clean = planted.exact_duplicates + planted.near_duplicates, identities * images_per_identity
    if copies > clean:
        raise UsageError(f"synth: {copies} duplicates need as many clean images, and there are {clean}")


def _named(shots: list[Shot], rng: np.random.Generator) -> list[Shot]:
    """Number the files of each folder in random order."""
    counters: dict[int, int] = {}
    named: list[Shot | None] = [None] * len(shots)
    for position in rng.permutation(len(shots)):
        shot = shots[position]
        number = counters[shot.claimed] = counters.get(shot.claimed, 0) + 1
        if shot.kind.startswith("damaged_"):
            suffix = DAMAGE[shot.kind.removeprefix("damaged_")][0]
        else:
            suffix = FORMATS[shot.file_format]
        path = f"{label_of(shot.claimed)}/img_{number:05d}{suffix}"
        named[position] = Shot(**(vars(shot) | {"path": path}))
    return [shot for shot in named if shot is not None]
