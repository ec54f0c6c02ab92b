"""Margin losses against the papers' formulas in float64, their gradients, and that a farther face never gains."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from facescale.training.margins import AdaFace, ArcFace, CombinedMargin, CosFace, ElasticFace, MagFace

ANGLES = torch.linspace(0.01, math.pi - 0.01, 400, dtype=torch.float64)
NORMS = torch.linspace(5, 120, 400, dtype=torch.float64)
MARGINS = [CosFace(), ArcFace(), CombinedMargin(), CombinedMargin(m1=1.35, m2=0.2, m3=0.1), MagFace()]


def applied(
    margin: Any, angle: torch.Tensor = ANGLES, norm: torch.Tensor = NORMS
) -> tuple[np.ndarray, np.ndarray]:
    turned, extra = margin(angle.cos(), norm)
    return turned.numpy(), extra.numpy()


def test_cosface() -> None:
    np.testing.assert_allclose(applied(CosFace(margin=0.35))[0], np.cos(ANGLES.numpy()) - 0.35, atol=1e-12)


def test_arcface_and_what_follows_where_it_would_rise() -> None:
    found = applied(ArcFace(margin=0.5))[0]
    inside = ANGLES.numpy() + 0.5 < math.pi
    np.testing.assert_allclose(found[inside], np.cos(ANGLES.numpy() + 0.5)[inside], atol=1e-9)
    beyond = np.cos(ANGLES.numpy()) - 0.5 * math.sin(0.5)  # mm of the authors' code: sin(pi - m) * m
    np.testing.assert_allclose(found[~inside], beyond[~inside], atol=1e-12)


def test_combined() -> None:
    found = applied(CombinedMargin(m1=1.35, m2=0.2, m3=0.1))[0]
    angle = 1.35 * ANGLES.numpy() + 0.2
    np.testing.assert_allclose(found[angle < math.pi], (np.cos(angle) - 0.1)[angle < math.pi], atol=1e-9)
    np.testing.assert_allclose(
        applied(CombinedMargin(m1=1, m2=0, m3=0.4))[0], np.cos(ANGLES.numpy()) - 0.4, atol=1e-9
    )


def test_elasticface_draws_a_margin_a_face() -> None:
    generator = torch.Generator().manual_seed(1)
    margin = ElasticFace(margin=0.5, deviation=0.05, generator=generator)
    narrow = torch.full((20_000,), 1.0, dtype=torch.float64)
    drawn = np.arccos(applied(margin, narrow, narrow)[0]) - 1.0
    assert (drawn.mean(), drawn.std()) == pytest.approx((0.5, 0.05), abs=2e-3)
    flat = ElasticFace(margin=0.3, deviation=0.0, arc=False)
    np.testing.assert_allclose(applied(flat)[0], np.cos(ANGLES.numpy()) - 0.3, atol=1e-12)


def test_magface() -> None:
    turned, extra = applied(MagFace(norms=(10, 110), margins=(0.45, 0.8), weight=35))
    length = np.clip(NORMS.numpy(), 10, 110)
    margin = (0.8 - 0.45) / (110 - 10) * (length - 10) + 0.45
    inside = ANGLES.numpy() + margin < math.pi
    np.testing.assert_allclose(turned[inside], np.cos(ANGLES.numpy() + margin)[inside], atol=1e-9)
    np.testing.assert_allclose(extra, 35 * (length / 110**2 + 1 / length), atol=1e-12)


def test_adaface() -> None:
    loss = AdaFace(margin=0.4, concentration=0.333, momentum=1.0)
    turned = applied(loss)[0]
    norm = NORMS.numpy().clip(0.001, 100)
    level = ((norm - norm.mean()) / (norm.std(ddof=1) + 1e-3) * 0.333).clip(-1, 1)
    expected = np.cos((ANGLES.numpy() - 0.4 * level).clip(1e-3, math.pi - 1e-3)) - (0.4 + 0.4 * level)
    near_poles = np.abs(np.cos(ANGLES.numpy())) > 1 - 1e-3
    np.testing.assert_allclose(turned[~near_poles], expected[~near_poles], atol=1e-9)
    slow = AdaFace(momentum=0.01)
    applied(slow)
    assert slow.mean == pytest.approx(20 + 0.01 * (norm.mean() - 20))


@pytest.mark.parametrize("margin", MARGINS, ids=lambda margin: type(margin).__name__)
def test_a_farther_face_never_gains(margin: Any) -> None:
    same = torch.full_like(NORMS, 40.0)
    assert (np.diff(applied(margin, ANGLES, same)[0]) < 0).all()


@pytest.mark.parametrize("margin", MARGINS, ids=lambda margin: type(margin).__name__)
def test_gradients(margin: Any) -> None:
    cosine = torch.tensor([-0.99, -0.7, -0.2, 0.1, 0.6, 0.97], dtype=torch.float64, requires_grad=True)
    norm = torch.tensor([12.0, 20.0, 35.0, 60.0, 90.0, 105.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(margin, (cosine, norm))
