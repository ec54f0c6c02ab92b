"""Verdicts in words: what a method decided becomes the columns of the table `decisions`.

Called by curate.clean, which fills them, and by driver.clean, which writes them.

Shape legend: N faces, R candidates (faces that may stand for a claim).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

VERDICTS = ("keep", "drop", "relabel", "merge", "quarantine")
KEEP, DROP, RELABEL, MERGE, QUARANTINE = range(5)

REASONS = {
    "no_claim": "nothing is said about the image",
    "owner": "similar to the person whom the label belongs to",
    "single_photo": "the only photograph under its label: nothing speaks for it or against it",
    "same_person": "the label is another name of the label_out, whose person it shows",
    "other_name": "shows the person whom another label belongs to",
    "unlike_owner": "less similar to the label's owner than the threshold",
    "rival": "another person is nearer than the label's owner, by more than the margin",
    "two_people": "two people share the name so evenly that it cannot be told whose it is",
    "no_majority": "no two photographs of the label show one person",
    "low_quality": "no face of the label is recognizable enough to say whose it is",
    "bystander": "not the face that the image's label is about",
    "no_counterpart": "on a copy of an image, and like none of the faces that stand for it",
    "majority": "in the largest group of its label",
    "minority": "outside the largest group of its label",
    "ambiguous_label": "another label is too similar to this one to tell them apart",
}
"""Every reason, in words."""

REASON_CODES = {name: code for code, name in enumerate(REASONS)}


@dataclass(eq=False)
class Ruling:
    """What a method says of each candidate, as if it stood for its vote's claim.

    Attributes:
        verdict: int8 [R].
        reason: int8 [R].
        label_out: int64 [R], -1 for none.
        score: float32 [R], NaN for none.
        threshold: float32 [R], NaN for none.
        person: int64 [R], whose nearest face is the evidence; -1 for none.
        members: int64 [R], whose face each candidate is taken to be; -1 for nobody's.
    """

    verdict: NDArray[np.int8]
    reason: NDArray[np.int8]
    label_out: Ints
    score: NDArray[np.float32]
    threshold: NDArray[np.float32]
    person: Ints
    members: Ints


@dataclass(eq=False)
class Decisions:
    """One row per face, in the order of face ids.

    Attributes:
        face_id: int64 [N].
        label_in: int64 [N], label claimed for the face; -1 for none.
        label_out: int64 [N], -1 for none.
        verdict: int8 [N], index into VERDICTS.
        reason: int8 [N], index into REASONS.
        score: float32 [N], what was compared; NaN where nothing was.
        threshold: float32 [N], with what; NaN likewise.
        evidence_id: int64 [N], the face that shows why; -1 for none.
    """

    face_id: Ints
    label_in: Ints
    label_out: Ints
    verdict: NDArray[np.int8]
    reason: NDArray[np.int8]
    score: NDArray[np.float32]
    threshold: NDArray[np.float32]
    evidence_id: Ints

    @classmethod
    def blank(cls, face_id: Ints) -> Decisions:
        """Faces about which nothing is said."""
        N = len(face_id)
        nan = np.full(N, np.nan, np.float32)
        return cls(
            face_id,
            np.full(N, -1),
            np.full(N, -1),
            np.full(N, KEEP, np.int8),
            np.full(N, REASON_CODES["no_claim"], np.int8),
            nan,
            nan.copy(),
            np.full(N, -1),
        )

    def counts(self, rows: slice) -> dict[str, int]:
        """Faces by verdict and by reason, for summaries: {"faces", "verdict.keep", …, "reason.owner", …}."""
        verdicts = np.bincount(self.verdict[rows], minlength=len(VERDICTS))
        reasons = np.bincount(self.reason[rows], minlength=len(REASONS))
        found = {"faces": len(self.face_id[rows])}
        found |= {f"verdict.{name}": int(verdicts[code]) for code, name in enumerate(VERDICTS)}
        return found | {
            f"reason.{name}": int(reasons[code]) for name, code in REASON_CODES.items() if reasons[code]
        }

    def table(self, rows: slice, labels: Sequence[str]) -> pa.Table:
        """Rows as the table `decisions` has them.

        Args:
            rows: which.
            labels: text of each label.
        """
        import pyarrow as pa

        names = pa.array(labels, pa.string())
        verdicts, reasons = pa.array(VERDICTS), pa.array(list(REASONS))

        def text(values: NDArray[np.int64], of: pa.Array) -> pa.Array:
            return of.take(pa.array(np.maximum(values, 0), mask=values < 0, type=pa.int64()))

        def numbers(values: NDArray[np.float32]) -> pa.Array:
            return pa.array(values, pa.float32(), mask=~np.isfinite(values))

        evidence = self.evidence_id[rows]
        return pa.table(
            {
                "face_id": pa.array(self.face_id[rows]),
                "label_in": text(self.label_in[rows], names),
                "label_out": text(self.label_out[rows], names),
                "verdict": verdicts.take(pa.array(self.verdict[rows])),
                "reason": reasons.take(pa.array(self.reason[rows])),
                "score": numbers(self.score[rows]),
                "threshold": numbers(self.threshold[rows]),
                "evidence_id": pa.array(evidence, pa.int64(), mask=evidence < 0),
            }
        )
