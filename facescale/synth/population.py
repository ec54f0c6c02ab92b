"""Who is on each photograph of a simulated crawl, and what is said about it: rows in, people, labels, kinds out.

Everything about a row follows from its number and the seed (facescale.synth.hashing); held are only the faces of each
label (8 bytes a label). docs/SIMULATOR.md explains the model. Called by simulate.

Shape legend: N rows, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from facescale.errors import UsageError
from facescale.synth.hashing import permute, uniforms, unpermute

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float64]

KINDS = (
    "clean",
    "shuffled",
    "lookalike",
    "second_person",
    "outsider",
    "outlier",
    "namesake",
    "alias",
    "bystander",
)
"""What a face is, by number: right under its label; under a random label; under that of a relative; one of a block of
another person under the label; somebody without a label, once; nobody; right, but of the other person of that name;
right, under the person's second name; beside the person who is meant."""
CLEAN, SHUFFLED, LOOKALIKE, SECOND_PERSON, OUTSIDER, OUTLIER, NAMESAKE, ALIAS, BYSTANDER = range(len(KINDS))
NOBODY = -1

_FILE = "simulated.yaml"
_COPY_STEPS = 40


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What a crawl is made of; shares are 0..1.

    Attributes:
        zipf_exponent: faces of the r-th label fall as (r + offset) to the minus this.
        zipf_offset: as a share of the number of labels; larger ones make the head flatter.
        families: share of people with relatives.
        family_size: people in a family.
        family_likeness: share of the variance between people that relatives have in common.
        twins: share of families with a pair of twins.
        twin_likeness: as family_likeness, of twins.
        ages: share of people who are seen at two ages.
        age_shift: distance between the two, as a share of the usual distance between people.
        aliases: share of people with a second name.
        namesakes: share of people whose name is another person's, too.
        shuffled: share of photographs under a random label.
        lookalike: share of photographs under a relative's label.
        second_person_labels: share of labels with a block of one other person.
        second_person_share: share of such a label's photographs that are of the other.
        outsiders: share of photographs of people without a label.
        outliers: share of photographs whose face is none.
        copies: share of photographs that are copies of an earlier one of their label.
        virality: above 1 the earliest photographs get more copies than others; 1 is evenly.
        exact: share of copies that are the same file.
        bystanders: share of faces that stand beside the person who is meant.
        low_quality: share of faces of a quality that drifts.
        drift_below: latent quality below which faces drift to a common center.
    """

    zipf_exponent: float = 1.0
    zipf_offset: float = 0.01
    families: float = 0.0
    family_size: int = 4
    family_likeness: float = 0.3
    twins: float = 0.0
    twin_likeness: float = 0.9
    ages: float = 0.0
    age_shift: float = 0.4
    aliases: float = 0.0
    namesakes: float = 0.0
    shuffled: float = 0.0
    lookalike: float = 0.0
    second_person_labels: float = 0.0
    second_person_share: float = 0.3
    outsiders: float = 0.0
    outliers: float = 0.0
    copies: float = 0.0
    virality: float = 2.0
    exact: float = 0.4
    bystanders: float = 0.0
    low_quality: float = 0.0
    drift_below: float = 0.6

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, free = getattr(self, entry.name), ("zipf_exponent", "virality", "family_size")
            if not 0 <= value or (value > 1 and entry.name not in free):
                raise UsageError(f"{entry.name} is {value}: it must be 0 or more, and a share at most 1")
        noise = self.shuffled + self.lookalike + self.outsiders + self.outliers
        if noise > 0.9 or self.bystanders > 0.5 or self.family_size < 2:
            raise UsageError(
                f"the shares of wrong photographs add up to {noise:g} (at most 0.9), bystanders are "
                f"{self.bystanders:g} (at most 0.5), family_size {self.family_size} (at least 2)"
            )


def load_mixture(preset: str, changes: Mapping[str, str] | None = None) -> Mixture:
    """A preset, with some shares changed.

    Args:
        preset: clean, noisy or bridges.
        changes: values as text, by name.

    Raises:
        UsageError: an unknown preset or name, or a value out of range.
    """
    presets = simulated_yaml()["presets"]
    if preset not in presets:
        raise UsageError(f"there is no preset {preset!r}; known: {', '.join(sorted(presets))}")
    mixture = Mixture(**presets[preset])
    known = [entry.name for entry in fields(Mixture)]
    for name, text in (changes or {}).items():
        if name not in known:
            raise UsageError(f"--set {name}: there is no such share; known: {', '.join(known)}")
        try:
            value: Any = int(text) if isinstance(getattr(mixture, name), int) else float(text)
            mixture = replace(mixture, **{name: value})
        except ValueError:
            raise UsageError(f"--set {name}={text}: expected a number") from None
    return mixture


def simulated_yaml() -> dict[str, Any]:
    """The file with the presets and the fitted geometry."""
    found: dict[str, Any] = yaml.safe_load(
        (resources.files("facescale.synth") / _FILE).read_text(encoding="utf-8")
    )
    return found


@dataclass(frozen=True, eq=False)
class Photos:
    """Photographs, by row.

    Attributes:
        original: int64 [N], number of the photograph that it is a copy of; its own for those that are none.
        slot: int64 [N], its own number.
        label: int64 [N], whose label it is under, 0..L - 1.
        second_name: bool [N], under that person's other name.
        person: int64 [N], who is on it; NOBODY for outliers. Persons of L and above have no label.
        kind: int8 [N], index of KINDS.
        exact: bool [N], the same file as the original.
    """

    original: Ints
    slot: Ints
    label: Ints
    second_name: NDArray[np.bool_]
    person: Ints
    kind: NDArray[np.int8]
    exact: NDArray[np.bool_]


@dataclass(frozen=True)
class Population:
    """The people and photographs of a simulation.

    Attributes:
        labels: L, people with a label.
        photos: photographs; each shows one person, and some a bystander.
        seed: decides everything.
        mixture: of the crawl.
    """

    labels: int
    photos: int
    seed: int
    mixture: Mixture

    @cached_property
    def starts(self) -> Ints:
        """int64 [L + 1]: photographs of label i are the slots starts[i]..starts[i + 1] - 1; at least one each."""
        offset = max(1.0, self.mixture.zipf_offset * self.labels)
        weight = (np.arange(self.labels) + offset) ** -self.mixture.zipf_exponent
        ends = np.cumsum(weight)
        shared = np.floor(ends / ends[-1] * (self.photos - self.labels) + 1e-9).astype(np.int64)
        return np.concatenate([[0], shared + np.arange(1, self.labels + 1)])

    def label_of(self, slots: Ints) -> Ints:
        """Whose label photographs are under."""
        return np.searchsorted(self.starts, slots, side="right") - 1

    def photos_of(self, rows: Ints) -> Photos:
        """Everything about the photographs at rows, int64 [N] of 0..photos - 1."""
        m, seed = self.mixture, self.seed
        slot = permute(seed, "rows", rows, self.photos)
        label = self.label_of(slot)
        original = self._originals(slot, label)
        # What is wrong with a photograph is wrong with its copies, so everything hangs on the original.
        person, kind = label.copy(), np.full(len(rows), CLEAN, np.int8)
        said = self._name_of(label)
        block = uniforms(seed, "block of label", label) < m.second_person_labels
        block &= uniforms(seed, "in block", original) < m.second_person_share
        named = uniforms(seed, "block is named", label) < 0.5
        other = permute(seed, "second persons", label, self.labels)
        person[block] = np.where(named, other, self.labels + label)[block]
        kind[block & (person != label)] = SECOND_PERSON
        draw, low = uniforms(seed, "noise", original), 0.0
        relative, related = self._relatives(label)
        within = m.families * (1 - 1 / m.family_size) if m.families else 0.0
        for code, share in (
            (SHUFFLED, m.shuffled),
            (OUTSIDER, m.outsiders),
            (OUTLIER, m.outliers),
            (LOOKALIKE, min(m.lookalike / m.families, 0.5) if within else 0.0),
        ):
            hit = (draw >= low) & (draw < low + share) & (kind == CLEAN)
            low += share
            if code == LOOKALIKE:
                hit &= related
                person[hit] = relative[hit]
            elif code == SHUFFLED:
                anywhere = (uniforms(seed, "shuffled from", original) * self.photos).astype(np.int64)
                person[hit] = self.label_of(anywhere[hit])
            elif code == OUTSIDER:
                person[hit] = 2 * self.labels + original[hit]
            else:
                person[hit] = NOBODY
            kind[hit & (person != label)] = code
        second = uniforms(seed, "alias", label) < m.aliases
        second &= (uniforms(seed, "under alias", original) < 0.35) & (said == label)
        kind[second & (kind == CLEAN)] = ALIAS
        kind[(said != person) & (kind == CLEAN)] = NAMESAKE
        right = said == person  # whoever it was meant to be
        kind[right] = np.where(second, ALIAS, CLEAN)[right]
        exact = (slot != original) & (uniforms(seed, "exact", slot) < m.exact)
        return Photos(original, slot, said, second, person, kind, exact)

    def family_of(self, person: Ints) -> tuple[Ints, NDArray[np.bool_], NDArray[np.bool_]]:
        """(family, whether the person has relatives, whether a twin) of persons; those without a label have none."""
        m = self.mixture
        known = (person >= 0) & (person < self.labels)
        place = permute(self.seed, "families", np.where(known, person, 0), self.labels)
        family, member = place // m.family_size, place % m.family_size
        has = known & (uniforms(self.seed, "is family", family) < m.families)
        twin = has & (member < 2) & (uniforms(self.seed, "has twins", family) < m.twins)
        return family, has, twin

    def bystander_of(self, rows: Ints, count: int) -> tuple[NDArray[np.bool_], Ints]:
        """Which photographs have a bystander, and who it is: int64 [N], half of them people with a label.

        Args:
            rows: int64 [N].
            count: bystanders in all photographs together.
        """
        has = permute(self.seed, "bystanders", rows, self.photos) < count
        known = uniforms(self.seed, "bystander is known", rows) < 0.5
        anywhere = (uniforms(self.seed, "bystander from", rows) * self.photos).astype(np.int64)
        stranger = 2 * self.labels + self.photos + rows
        return has, np.where(known, self.label_of(anywhere), stranger)

    def _originals(self, slot: Ints, label: Ints) -> Ints:
        """The photograph that each is a copy of, or itself; a copy of a copy is a copy of that one's original."""
        m, original = self.mixture, slot.copy()
        if not m.copies:
            return original
        first = self.starts[label]
        active = np.arange(len(slot))
        for _ in range(_COPY_STEPS):
            place = original[active] - first[active]
            copied = (place > 0) & (uniforms(self.seed, "is copy", original[active]) < m.copies)
            active, place = active[copied], place[copied]
            if not len(active):
                break
            drawn = uniforms(self.seed, "copy of", original[active]) ** m.virality
            original[active] = first[active] + (drawn * place).astype(np.int64)
        return original

    def _relatives(self, person: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """A relative of each person, a twin for twins, and whether there is one."""
        m = self.mixture
        place = permute(self.seed, "families", person, self.labels)
        member, first = place % m.family_size, place - place % m.family_size
        other = first + np.where(member < 2, 1 - member, (member + 1) % m.family_size)
        _, has, _ = self.family_of(person)
        has &= other < self.labels
        return unpermute(self.seed, "families", np.where(has, other, place), self.labels), has

    def _name_of(self, person: Ints) -> Ints:
        """The person whose name a person has: themselves, but for namesakes."""
        if not self.mixture.namesakes or self.labels < 2:
            return person
        place = permute(self.seed, "namesakes", person, self.labels)
        pair = uniforms(self.seed, "is namesake", place // 2) < self.mixture.namesakes
        other = place - place % 2
        return np.where(pair, unpermute(self.seed, "namesakes", other, self.labels), person)
