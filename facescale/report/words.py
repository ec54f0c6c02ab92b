"""What statuses, verdicts and kinds of copies mean, in words for the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from facescale.report.model import Tone

STATUSES = {
    "ok": "read, and searched for faces",
    "empty": "a file of no bytes, or a row without an embedding",
    "not_image": "something else under an image's name, such as a page of HTML",
    "unsupported": "an image of a kind that is not read",
    "truncated": "the file ends too early",
    "corrupt": "the pixels cannot be decoded",
    "too_many_bytes": "larger than extract.max_bytes; not read",
    "too_many_pixels": "larger than extract.max_pixels; not decoded",
    "too_many_faces": "more than 255 faces; the best 255 are kept",
    "same_image": "a further face of an imported image, listed under another row",
    "wrong_dimension": "an imported embedding of another length",
    "wrong_type": "an imported embedding that is not made of numbers",
    "not_finite": "an imported embedding with NaN, infinite or null numbers",
    "zero_vector": "an imported embedding that is zero",
    "unreadable": "the storage refused it",
    "source_changed": "changed after it was planned",
    "transient": "the storage failed; --retry-failed tries again",
    "poison": "ended or hung the process that worked on it",
}
"""What became of an image, by status."""

VERDICTS = {
    "keep": "stays under its label, or has none to lose",
    "relabel": "belongs to another label, and moves there",
    "merge": "its label is another name of the same person's",
    "quarantine": "undecided: under no label until somebody looks",
    "drop": "not the person of its label: under no label",
}
"""What happens to a face, by verdict."""

VERDICT_TONES: dict[str, Tone] = {
    "keep": "good",
    "relabel": "same",
    "merge": "same",
    "quarantine": "doubt",
    "drop": "bad",
}
"""The color of each verdict's badge."""

BIOMETRIC = (
    "This page holds pictures of people, and what it shows was found with face embeddings: biometric data. Keep it "
    "as you would keep the photographs: access restricted, deleted when its purpose is over. A similarity is not an "
    "identity: do not let a score alone decide about a person."
)
BIOMETRIC_WITHOUT_PHOTOS = (
    "The figures on this page come from face embeddings, which are biometric data, as are the crops in the lake. A "
    "similarity is not an identity: do not let a score alone decide about a person."
)
