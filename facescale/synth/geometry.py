"""Embeddings of simulated faces: who is on them, how good they are, in; unit vectors out.

The model, in an orthonormal basis (docs/SIMULATOR.md):

    x = mean + w (person + age) + spread noise + (1 - w) hub,   then scaled to unit length

`person` and `noise` are normal with spectra fitted to real embeddings; w is 1 down to a latent quality, and falls below
it, so that bad faces of all people come to lie at one center. Called by simulate; fitted by fit_geometry.

Shape legend: N faces, D dimension.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.errors import UsageError
from facescale.synth.hashing import normals, uniforms
from facescale.synth.population import simulated_yaml

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.synth.population import Mixture, Population

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float64]
    Vectors = NDArray[np.float32]

MIN_DIM = 8
_FITTED_DIM = 128
_HUB_LENGTH = 1.0
_AT_ONCE = 4096


@dataclass(frozen=True)
class Spectrum:
    """Variance by direction, falling as (1 + j / bend)^-power exp(-(j / cut)^steep), j = 0..127; stretched for other D.

    Attributes:
        variance: of all directions together.
        bend: see above.
        power: see above.
        cut: see above.
        steep: see above.
    """

    variance: float
    bend: float
    power: float
    cut: float
    steep: float

    def scales(self, dim: int) -> NDArray[np.float32]:
        """Standard deviation of each direction, float32 [D]."""
        j = np.arange(dim) * (_FITTED_DIM / dim)
        weight = (1 + j / self.bend) ** -self.power * np.exp(-((j / self.cut) ** self.steep))
        found: NDArray[np.float32] = np.sqrt(self.variance * weight / weight.sum()).astype(np.float32)
        return found


@dataclass(frozen=True)
class Geometry:
    """The fitted figures of an embedder; see simulated.yaml, which says what they were fitted to.

    Attributes:
        mean: squared length of the mean of all embeddings.
        between: of people.
        within: of the faces of one person.
        person_spread: standard deviation of the logarithm of a person's spread.
        face_spread: likewise of a face's.
        quality: latent quality at the levels 0, 0.02, 0.1, 0.25, 0.5, 0.75, 1 of its distribution.
        quality_noise: standard deviation of the measured quality around the latent one.
        copy_noise: length of what saving again adds.
    """

    mean: float
    between: Spectrum
    within: Spectrum
    person_spread: float
    face_spread: float
    quality: tuple[float, ...]
    quality_noise: float
    copy_noise: float

    def settings(self) -> dict[str, Any]:
        """Plain values, for fingerprints."""
        return asdict(self) | {"quality": list(self.quality)}


QUALITY_LEVELS = (0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 1.0)


def load_geometry() -> Geometry:
    """The geometry that ships."""
    values = simulated_yaml()["geometry"]
    return Geometry(
        **{
            **values,
            "between": Spectrum(**values["between"]),
            "within": Spectrum(**values["within"]),
            "quality": tuple(values["quality"]),
        }
    )


@dataclass(frozen=True, eq=False)
class FaceModel:
    """Makes embeddings.

    Attributes:
        geometry: of the embedder.
        population: whose faces.
        dim: D.
    """

    geometry: Geometry
    population: Population
    dim: int

    def __post_init__(self) -> None:
        if not MIN_DIM <= self.dim <= 8192:
            raise UsageError(f"dimension {self.dim}: {MIN_DIM} to 8192 are possible")

    @cached_property
    def basis(self) -> Vectors:
        """float32 [D, D], orthonormal rows: the directions of falling variance."""
        square = normals(self._seed, "basis", np.arange(self.dim), self.dim).astype(np.float64)
        q, r = np.linalg.qr(square)
        basis: Vectors = (q * np.sign(np.diag(r))).astype(np.float32)
        return basis

    @cached_property
    def mean(self) -> Vectors:
        """float32 [D]: in a direction without variance, as that of vectors of unit length is."""
        mean: Vectors = self.basis[-1] * np.float32(np.sqrt(self.geometry.mean))
        return mean

    @cached_property
    def hub(self) -> Vectors:
        """float32 [D], where faces of no quality are, beside the mean."""
        return self._direction("hub") * np.float32(_HUB_LENGTH * np.sqrt(self.geometry.between.variance))

    def latent_quality(self, faces: Ints) -> Floats:
        """float64 [N] of 0..1."""
        m = self._mixture
        draw = uniforms(self._seed, "quality", faces)
        fine = np.interp(draw, QUALITY_LEVELS, self.geometry.quality)
        low = uniforms(self._seed, "is low", faces) < m.low_quality
        return np.where(low, draw * m.drift_below, fine)

    def measured_quality(self, faces: Ints, latent: Floats) -> NDArray[np.float32]:
        """float32 [N] of 0..1: what a scorer would say."""
        noise = normals(self._seed, "quality noise", faces, 1)[:, 0] * self.geometry.quality_noise
        return np.clip(latent + noise, 0, 1).astype(np.float32)

    def vectors(self, faces: Ints, person: Ints, latent: Floats, copies: Ints) -> Vectors:
        """Embeddings.

        Args:
            faces: int64 [N], keys of the photographs; copies have that of their original.
            person: int64 [N], who is on them; negative for nobody.
            latent: float64 [N], quality.
            copies: int64 [N], key of the copy; negative for originals.

        Returns:
            float32 [N, D] of unit length.
        """
        found = np.empty((len(faces), self.dim), np.float32)
        for start in range(0, len(faces), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            found[rows] = self._block(faces[rows], person[rows], latent[rows], copies[rows])
        return found

    def _block(self, faces: Ints, person: Ints, latent: Floats, copies: Ints) -> Vectors:
        g, m, seed = self.geometry, self._mixture, self._seed
        between, within = g.between.scales(self.dim), g.within.scales(self.dim)
        people, of = np.unique(person, return_inverse=True)
        spread = np.exp(
            g.person_spread * normals(seed, "person spread", people, 1)[of, 0]
            + g.face_spread * normals(seed, "face spread", faces, 1)[:, 0]
        )
        x = self._people(people)[of] * between
        aged = (uniforms(seed, "has ages", people) < m.ages)[of] & (uniforms(seed, "is older", faces) < 0.4)
        if aged.any():
            x[aged] += np.float32(m.age_shift) * normals(seed, "age", person[aged], self.dim) * between
        nobody = np.flatnonzero(person < 0)  # each is unlike everybody, and unlike the others
        if len(nobody):
            x[nobody] = normals(seed, "nobody", faces[nobody], self.dim) * (1.5 * between)
        weight = (
            np.clip(latent / m.drift_below, 0, 1)[:, None].astype(np.float32)
            if m.low_quality
            else np.float32(1)
        )
        x = weight * x + spread[:, None] * normals(seed, "face", faces, self.dim) * within
        x = x @ self.basis + self.mean + (1 - weight) * self.hub
        unit: Vectors = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        copied = np.flatnonzero(copies >= 0)
        if len(copied):
            noise = normals(seed, "copy", copies[copied], self.dim) * np.float32(
                g.copy_noise / np.sqrt(self.dim)
            )
            unit[copied] += noise
            unit[copied] /= np.linalg.norm(unit[copied], axis=1, keepdims=True)
        return unit

    def _people(self, people: Ints) -> Vectors:
        """float32 [N, D] of variance 1: persons, correlated with their relatives."""
        m, seed = self._mixture, self._seed
        own = normals(seed, "person", people, self.dim)
        family, has, twin = self.population.family_of(people)
        related = np.flatnonzero(has)
        if len(related):
            like = np.float32(m.family_likeness)
            shared = normals(seed, "family", family[related], self.dim)
            own[related] = np.sqrt(1 - like) * own[related] + np.sqrt(like) * shared
        pairs = np.flatnonzero(twin)
        if len(pairs):
            like = np.float32(m.twin_likeness)
            shared = normals(seed, "twins", family[pairs], self.dim)
            own[pairs] = np.sqrt(1 - like) * own[pairs] + np.sqrt(like) * shared
        return own

    def _direction(self, name: str) -> Vectors:
        vector = normals(self._seed, name, np.zeros(1, np.int64), self.dim)[0]
        unit: Vectors = vector / np.linalg.norm(vector)
        return unit

    @property
    def _seed(self) -> int:
        return self.population.seed

    @property
    def _mixture(self) -> Mixture:
        return self.population.mixture
