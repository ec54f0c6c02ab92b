"""A lake that format version 1 wrote is read for ever: every value of it, by this and any later release.

tests/unit/lake_v1 was written by `python tests/unit/lake_v1/make.py` with facescale 0.1.0 and pyarrow 26; it is never
written again. When the format changes, add lake_v2 beside it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from facescale.lake.lake import Lake
from facescale.lake.scan import count_rows, scan
from facescale.lake.verify import verify

GOLDEN = Path(__file__).parent / "lake_v1"


@pytest.fixture
def lake(tmp_path):
    # A copy, so that no test can touch the original.
    return Lake.open(str(shutil.copytree(GOLDEN / "lake", tmp_path / "lake")))


def test_every_value(lake):
    expected = json.loads((GOLDEN / "expected.json").read_text())
    assert {v.folder for v in lake.current_versions()} == set(expected)
    assert [len(expected[folder]) for folder in sorted(expected)] == [11, 11, 11, 12]
    for version in lake.current_versions():
        table = pa.concat_tables(list(scan(lake, version)))
        assert count_rows(lake, version) == table.num_rows == len(expected[version.folder])
        for row, want in zip(table.to_pylist(), expected[version.folder], strict=True):
            for name, value in want.items():
                got = row[name].hex() if isinstance(row[name], bytes) else row[name]
                if isinstance(value, list | float):
                    assert np.array_equal(np.float32(got), np.float32(value)), (version.folder, name)
                else:
                    assert got == value, (version.folder, name)


def test_it_verifies(lake):
    report = verify(lake)
    assert report.problems == []
    assert report.checked["parts"] == 4


def test_what_made_it_is_told(lake):
    for version in lake.current_versions():
        described = lake.describe_version(version)
        assert described["settings"] == {"name": "a"}
        assert described["created_by"] == "facescale 0.1.0"
