"""What stages that need every part of their input share: a digest of the input, and whether a table is behind it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from facescale.lake.fingerprint import FINGERPRINT_HEX, parts_digest

if TYPE_CHECKING:
    from facescale.lake.lake import Lake
    from facescale.lake.parts import DoneParts, TableVersion


def input_digest(lake: Lake, parts: DoneParts) -> dict[str, Any]:
    """What goes into the settings of a stage that needs everything, so that its table is stale when input changed.

    Args:
        lake: the lake.
        parts: finished parts of `images`, listed.

    Returns:
        parts: which there are. bytes: of their files, since `--retry-failed` fills a part anew. superseded, where
        images are: a source that has vanished takes rows away and adds no part.
    """
    digests: dict[str, Any] = {"parts": parts_digest(parts.pairs()), "bytes": parts.num_bytes}
    superseded = lake.superseded()
    if len(superseded):
        digests["superseded"] = hashlib.sha256(superseded.tobytes()).hexdigest()[:FINGERPRINT_HEX]
    return digests


def is_behind(lake: Lake, version: TableVersion, parts: DoneParts) -> bool:
    """Whether a table that needed everything was made of other input than there is now.

    Args:
        lake: the lake.
        version: of duplicates, neighbors, clusters or decisions.
        parts: finished parts of `images`, listed.
    """
    made_of = (lake.describe_version(version) or {}).get("settings", {})
    now = input_digest(lake, parts)
    names = {"parts", "bytes", "superseded"}
    return {name: made_of[name] for name in names & made_of.keys()} != now
