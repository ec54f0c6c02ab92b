"""Calibrations: which one is taken, whose weights it is for, and that fitted rates are those of a brute-force count."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from cleaning_samples import calibration as simulated
from cleaning_samples import simulate

from facescale.curate import calibration as calibrations
from facescale.curate.calibration import (
    calibration_path,
    dump_calibration,
    load_calibration,
    parse_calibration,
    require_calibration,
    shared_path,
)
from facescale.curate.calibration_fit import check, fit, genuine_pairs
from facescale.errors import CorruptError, MismatchError, UsageError
from facescale.lake.lake import Lake
from facescale.lake.parts import TableVersion
from facescale.models.registry import card

SHIPPED = ("dlib_resnet", "mobilefacenet")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_calibration_is_of_its_cards_weights_and_has_evidence_of_other_people(name: str) -> None:
    found = load_calibration(name)
    assert found.dim == card(name).dim
    assert found.weights_sha256 in card(name).digests
    other = found.evidence["check_on_the_other_fold"]
    assert other["people"] > 500
    for row in (*other["pairs"], *other["centers"]):
        assert row["nominal"] > 1e-2 or row["low"] <= row["nominal"] <= row["high"]
        assert row["similarity"] == pytest.approx(
            (found.pairs if row in other["pairs"] else found.centers).similarity_at(row["nominal"]), abs=1e-4
        )


def test_rates_are_those_of_a_count_over_every_pair() -> None:
    vectors, who = simulate(60, 6, seed=1, alike=0.3)
    found = fit(vectors, who, np.arange(len(who)), embedder="toy", re_encode=0.9)
    cosine = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    first, second = np.triu_indices(len(who), 1)
    strangers = cosine[first, second][who[first] != who[second]]
    same = cosine[first, second][who[first] == who[second]]
    for rate in (0.3, 0.1, 0.03, 0.0125):
        counted = (strangers >= found.pairs.similarity_at(rate)).mean()
        assert counted == pytest.approx(rate, rel=0.03)
    assert len(genuine_pairs(who)) == len(same) == found.genuine.pairs.count
    for level in (0.01, 0.1, 0.5):
        assert found.genuine.pairs.quantile(level) == pytest.approx(np.quantile(same, level), abs=1e-3)


def test_a_check_on_others_counts_what_the_thresholds_let_through() -> None:
    vectors, who = simulate(80, 5, seed=2)
    found = check(simulated(), vectors, who, np.arange(len(who)), nominal=(0.1, 0.01))
    cosine = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    first, second = np.triu_indices(len(who), 1)
    strangers = cosine[first, second][who[first] != who[second]]
    for row in found["pairs"]:
        assert row["realized"] == pytest.approx((strangers >= row["similarity"]).mean(), rel=0.01)
        assert row["low"] <= row["realized"] <= row["high"]
        assert row["impostors"] == len(strangers)


def test_a_file_gives_back_what_was_fitted() -> None:
    found = simulated()
    again = parse_calibration(dump_calibration(found), where="x.yaml")
    assert again.digest == found.digest
    rates = (0.5, 0.1, 1e-3, 1e-6)
    assert [again.pairs.similarity_at(rate) for rate in rates] == pytest.approx(
        [found.pairs.similarity_at(rate) for rate in rates], abs=1e-5
    )
    with pytest.raises(MismatchError, match=r"x\.yaml has format version 99"):
        parse_calibration(
            dump_calibration(found).replace(b"format_version: 1", b"format_version: 99"), where="x.yaml"
        )
    for damaged in (b"[", b"a: 1", dump_calibration(found)[:400], dump_calibration(found) + b"more: 1\n"):
        with pytest.raises(CorruptError, match=r"x\.yaml is .*facescale calibrate"):
            parse_calibration(damaged, where="x.yaml")


def lake_embedded_with(folder: Path, embedder: str, sha256: str) -> Lake:
    lake = Lake.create(str(folder))
    version = TableVersion("embeddings", "e" * 12, embedder)
    lake.write_version(
        version, stage="embed", settings={"embedder_sha256": sha256}, revision=1, inputs={"faces": "f" * 12}
    )
    lake.set_current([version])
    return lake


def test_embeddings_of_another_backends_file_of_the_same_card_are_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One card may have a file for ONNX Runtime and one for torch: they are the same weights."""
    own = card("mobilefacenet")
    torch_file = {"file": "mobilefacenet.pt", "format": "state_dict", "sha256": "7" * 64}
    both = dataclasses.replace(own, variants={"torch": torch_file})
    monkeypatch.setattr(calibrations, "cards", lambda task=None: [both])
    monkeypatch.setattr(calibrations, "card", lambda name, task=None: both)
    lake = lake_embedded_with(tmp_path / "torch", "mobilefacenet", "7" * 64)
    assert require_calibration("mobilefacenet", lake).weights_sha256 == own.sha256
    lake = lake_embedded_with(tmp_path / "other", "mobilefacenet", "8" * 64)
    with pytest.raises(MismatchError, match=r"was made with weights 888888888888.*facescale calibrate"):
        require_calibration("mobilefacenet", lake)


def test_a_lakes_own_calibration_wins_over_the_shipped_one(tmp_path: Path) -> None:
    lake = lake_embedded_with(tmp_path / "lake", "mobilefacenet", card("mobilefacenet").sha256 or "")
    own = dataclasses.replace(load_calibration("mobilefacenet"), re_encode=0.5)
    lake.store.write_bytes(calibration_path("mobilefacenet"), dump_calibration(own))
    assert (
        load_calibration("mobilefacenet", lake).re_encode
        == 0.5
        != load_calibration("mobilefacenet").re_encode
    )
    with pytest.raises(UsageError, match=r"'nobody' is not calibrated.*facescale calibrate"):
        load_calibration("nobody", lake)


def test_one_beside_the_users_cards_is_for_lakes_that_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACESCALE_CARDS", str(tmp_path / "cards"))
    shipped = load_calibration("dlib_resnet")
    mine = dataclasses.replace(shipped, re_encode=0.5)
    shared_path("dlib_resnet").parent.mkdir()
    shared_path("dlib_resnet").write_bytes(dump_calibration(mine))
    assert load_calibration("dlib_resnet").re_encode == 0.5
    lake = Lake.create(str(tmp_path / "lake"))
    assert load_calibration("dlib_resnet", lake).re_encode == 0.5
    lake.store.write_bytes(
        calibration_path("dlib_resnet"), dump_calibration(dataclasses.replace(mine, re_encode=0.6))
    )
    assert load_calibration("dlib_resnet", lake).re_encode == 0.6
    with pytest.raises(MismatchError, match="'dlib_resnet', not of 'mobilefacenet'"):
        shared_path("mobilefacenet").write_bytes(dump_calibration(mine))
        load_calibration("mobilefacenet")
