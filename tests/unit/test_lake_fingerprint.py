"""Fingerprints: golden values, sensitivity, and refused settings."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest

from facescale.errors import DataError
from facescale.lake.fingerprint import fingerprint, parts_digest
from facescale.lake.parts import PartKey

SETTINGS = {"detector": "dlib_mmod", "min_face_px": 40, "scales": [1, 0.5], "precision": None, "mirror": True}


def test_golden_values():
    # These name folders of existing lakes: a change here orphans everything anyone has computed.
    assert fingerprint("extract", SETTINGS, 1, {"images": "0123456789ab"}) == "fb21fcbfbce0"
    assert parts_digest([(0, 0), (0, 64), (7, 0)]) == "7f26420cb0f3"


@pytest.mark.parametrize(
    ("stage", "settings", "revision", "inputs"),
    [
        ("embed", SETTINGS, 1, {"images": "a"}),
        ("extract", {**SETTINGS, "min_face_px": 41}, 1, {"images": "a"}),
        ("extract", {**SETTINGS, "scales": [0.5, 1]}, 1, {"images": "a"}),
        ("extract", {**SETTINGS, "precision": "null"}, 1, {"images": "a"}),
        ("extract", SETTINGS, 2, {"images": "a"}),
        ("extract", SETTINGS, 1, {"images": "b"}),
        ("extract", SETTINGS, 1, {}),
    ],
)
def test_every_ingredient_counts(stage, settings, revision, inputs):
    assert fingerprint(stage, settings, revision, inputs) != fingerprint(
        "extract", SETTINGS, 1, {"images": "a"}
    )


def test_equal_json_gives_equal_names():
    class Precision(StrEnum):
        BF16 = "bf16"

    assert fingerprint("s", {"a": (1, 2), "p": Precision.BF16, "f": np.float64(0.5)}, 1, {}) == fingerprint(
        "s", {"f": 0.5, "p": "bf16", "a": [1, 2]}, 1, {}
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"path": Path("/x")}, r"settings\.path: PosixPath is no JSON value"),
        ({"a": [1, {"b": {1, 2}}]}, r"settings\.a\[1\]\.b: set is no JSON value"),
        ({"a": float("nan")}, r"settings\.a: nan has no JSON form"),
        ({"a": np.int64(3)}, r"settings\.a: int64 is no JSON value"),
        ({"a": {1: 2}}, r"settings\.a: key 1 is int, and JSON keys are strings"),
    ],
)
def test_what_is_no_json_is_refused_by_its_key(settings, says):
    with pytest.raises(DataError, match=says):
        fingerprint("s", settings, 1, {})


def test_parts_digest_is_of_the_set():
    one = parts_digest([(0, 64), (0, 0)])
    assert one == parts_digest([(0, 0), (0, 64), (0, 0)])
    assert one == parts_digest([PartKey(0, 0, 64), PartKey(0, 64, 3)])
    assert one != parts_digest([(0, 0)])
    assert len(one) == 12
