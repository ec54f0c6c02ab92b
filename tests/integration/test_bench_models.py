"""`bench models`: which combinations there are, the row of one, and that a finished row is not made again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from facescale.bench import models
from facescale.bench.models import Combination, bench_models, combinations
from facescale.driver.context import SilentReporter
from facescale.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def test_combinations(shared_root: Path) -> None:
    found = combinations(None, None, accept_license=False)
    assert found[0] == Combination("dlib_mmod", "dlib_5pt", "dlib_resnet")
    assert Combination("yunet_n", "dlib_5pt", "mobilefacenet") in found  # its own landmarks
    assert Combination("ultraface_rfb_640", "mtcnn_onet", "mobilefacenet") in found
    assert Combination("blazeface", "mtcnn_onet", "mobilefacenet") in found
    assert Combination("yunet_n", "dlib_5pt", "dlib_resnet") in found
    assert len(found) == len(set(found))
    assert not {"scrfd_10g", "retinaface_r50"} & {one.detector for one in found}  # their weights are not here
    assert {one.detector for one in combinations(["mtcnn"], None, accept_license=False)} == {"mtcnn"}
    with pytest.raises(UsageError, match="mtcn"):
        combinations(["mtcn"], None, accept_license=False)


def test_a_row_is_measured_and_kept(
    test_data: Path, shared_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bench() -> dict[str, object]:
        result = bench_models(
            str(test_data),
            SilentReporter(),
            lakes=str(tmp_path / "lakes"),
            detectors=["blazeface"],
            limit_pairs=16,
            workers=0,
            weights_dir=str(shared_root / "models"),
        )
        (row,) = result.figures["models"]
        return dict(row)

    row = bench()
    assert (row["detector"], row["landmarks"], row["embedder"]) == (
        "blazeface",
        "mtcnn_onet",
        "mobilefacenet",
    )
    for name, least in (
        ("single: recall", 1.0),
        ("groups: recall", 0.1),
        ("groups and empty: precision", 0.8),
        ("empty without a face", 0.75),
        ("pairs: accuracy", 0.9),
        ("TAR at FAR 0.01", 0.8),
        ("images/s", 0.1),
    ):
        value = row[name]
        assert isinstance(value, float) and value >= least, name
    monkeypatch.setattr(models, "run_job", lambda *_: pytest.fail("the row was there"))
    assert bench() == row
