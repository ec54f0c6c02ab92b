"""Fingerprints name table versions: what made a table goes in, 12 hex digits go out.

Called at planning, once per table; the digits name the version's folder, so changed settings make a new
folder beside the old one instead of silently reusing it.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

from facescale.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from facescale.lake.parts import PartKey

FINGERPRINT_HEX = 12


def fingerprint(stage: str, settings: Mapping[str, Any], revision: int, inputs: Mapping[str, str]) -> str:
    """Digest of everything that decides a table's content.

    Args:
        stage: name of the stage that makes the table.
        settings: resolved, result-changing settings that concern this table (JSON values only; key order is
            irrelevant). Worker counts and paths do not belong here.
        revision: the stage's integer REVISION, raised whenever its results change.
        inputs: fingerprint (or digest) of each input, by name.

    Returns:
        The first 12 hex digits of the SHA-256 of the canonical JSON: 48 bits, so among 1,000 versions of a
        lake a collision has a chance of 2e-9.

    Raises:
        DataError: a value is no JSON value (or NaN or infinite), which could not be compared across runs.
    """
    payload = {"stage": stage, "settings": settings, "revision": revision, "inputs": inputs}
    text = json.dumps(_plain_json(payload, "fingerprint"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_HEX]


def parts_digest(parts: Iterable[tuple[int, int] | PartKey]) -> str:
    """Digest of a set of parts, for stages whose result depends on all of them (index, clusters).

    Args:
        parts: (shard, first row) pairs or part keys, in any order; repeats count once.

    Returns:
        12 hex digits; they change when a part is added or removed.
    """
    pairs = {(p[0], p[1]) if isinstance(p, tuple) else (p.shard, p.first_row) for p in parts}
    text = ";".join(f"{int(shard)},{int(row)}" for shard, row in sorted(pairs))
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_HEX]


def _plain_json(value: Any, where: str) -> Any:
    """The value built of plain JSON types, or DataError naming the key that is not."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise DataError(f"{where}: {value} has no JSON form; use null or a finite number")
        return float(value)
    if isinstance(value, (list, tuple)):
        return [_plain_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if hasattr(value, "items"):
        for key in value:
            if not isinstance(key, str):
                raise DataError(f"{where}: key {key!r} is {type(key).__name__}, and JSON keys are strings")
        return {key: _plain_json(item, f"{where}.{key}") for key, item in value.items()}
    raise DataError(
        f"{where}: {type(value).__name__} is no JSON value; convert it before it is fingerprinted"
    )
