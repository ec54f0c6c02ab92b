"""Margin losses: cosines of faces with their own class in, logits out. Called by facescale.training.partial_fc.

All of them change the logit of a face's own class only, s · f(cos θ), and leave those of the other classes s · cos θ.

    CosFace      cos θ − m                             Wang et al. 2018, arXiv 1801.09414
    ArcFace      cos(θ + m)                            Deng et al. 2019, arXiv 1801.07698
    combined     cos(m1 · θ + m2) − m3                 ibid., equation 4
    ElasticFace  ArcFace or CosFace, m ~ N(m, s²)      Boutros et al. 2022, arXiv 2109.09416
    MagFace      cos(θ + m(a)), a the descriptor's length, and a regularizer g(a)    Meng et al. 2021, arXiv 2103.06627
    AdaFace      cos(θ − m·â) − (m + m·â), â the length in standard deviations       Kim et al. 2022, arXiv 2204.00964

cos(θ + m) rises again where θ + m passes π, which would reward the worst faces. As the authors' code does, it is
continued there by cos θ − m · sin m, so that f falls with θ everywhere.

Shape legend: B faces of a batch.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch


class Margin(Protocol):
    """A margin: the scale and what becomes of a face's cosine with its own class."""

    scale: float

    def __call__(self, cosine_B: torch.Tensor, norm_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Apply the margin.

        Args:
            cosine_B: float [B], of each face with its own class.
            norm_B: float [B], lengths of the descriptors before normalization.

        Returns:
            float [B], what stands in place of the cosine, and float [B], what is added to the loss of each face.
        """
        ...


def add_angle(cosine_B: torch.Tensor, angle: torch.Tensor | float) -> torch.Tensor:
    """cos(θ + angle) for an angle of 0 or more, continued monotonically beyond θ + angle = π; see the module's head."""
    angle = torch.as_tensor(angle, dtype=cosine_B.dtype, device=cosine_B.device)
    cosine = cosine_B.clamp(-1, 1)
    sine = (1 - cosine.square()).clamp(min=1e-12).sqrt()
    turned = cosine * angle.cos() - sine * angle.sin()
    return torch.where(cosine > (math.pi - angle).cos(), turned, cosine - angle * angle.sin())


class CosFace:
    """cos θ − m.

    Args:
        scale: s.
        margin: m.
    """

    def __init__(self, scale: float = 64.0, margin: float = 0.4) -> None:
        self.scale, self.margin = scale, margin

    def __call__(self, cosine_B: torch.Tensor, norm_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Margin."""
        return cosine_B - self.margin, torch.zeros_like(cosine_B)


class ArcFace:
    """cos(θ + m).

    Args:
        scale: s.
        margin: m in radians.
    """

    def __init__(self, scale: float = 64.0, margin: float = 0.5) -> None:
        self.scale, self.margin = scale, margin

    def __call__(self, cosine_B: torch.Tensor, norm_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Margin."""
        return add_angle(cosine_B, self.margin), torch.zeros_like(cosine_B)


class CombinedMargin:
    """cos(m1 · θ + m2) − m3.

    Beyond m1 · θ + m2 = π the cosine is continued by its mirror, −2 − cos(m1 · θ + m2): falling and continuous.

    Args:
        scale: s.
        m1: factor of the angle, from 1 (SphereFace).
        m2: added to the angle (ArcFace).
        m3: taken from the cosine (CosFace).
    """

    def __init__(self, scale: float = 64.0, m1: float = 1.0, m2: float = 0.3, m3: float = 0.2) -> None:
        self.scale, self.m1, self.m2, self.m3 = scale, m1, m2, m3

    def __call__(self, cosine_B: torch.Tensor, norm_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Margin."""
        if self.m1 == 1:
            return add_angle(cosine_B, self.m2) - self.m3, torch.zeros_like(cosine_B)
        edge = 1 - torch.finfo(cosine_B.dtype).eps
        angle = self.m1 * cosine_B.clamp(-edge, edge).acos() + self.m2
        turned = torch.where(angle <= math.pi, angle.cos(), -2 - angle.cos())
        return turned - self.m3, torch.zeros_like(cosine_B)


class ElasticFace:
    """ArcFace or CosFace with a margin drawn anew for every face.

    Args:
        scale: s.
        margin: mean of the margins.
        deviation: of the margins.
        arc: ArcFace (cos(θ + m)) or CosFace (cos θ − m).
        generator: of the draws; None is torch's own of the device.
    """

    def __init__(
        self,
        scale: float = 64.0,
        margin: float = 0.5,
        deviation: float = 0.0125,
        *,
        arc: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        self.scale, self.margin, self.deviation, self.arc, self.generator = (
            scale,
            margin,
            deviation,
            arc,
            generator,
        )

    def __call__(self, cosine_B: torch.Tensor, norm_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Margin."""
        draws = torch.empty_like(cosine_B).normal_(self.margin, self.deviation, generator=self.generator)
        draws = draws.clamp(min=0)
        turned = add_angle(cosine_B, draws) if self.arc else cosine_B - draws
        return turned, torch.zeros_like(cosine_B)


class MagFace:
    """ArcFace with a margin that grows with the descriptor's length, which so comes to say how recognizable a face is.

    Args:
        scale: s.
        norms: (l, u), between which lengths are taken.
        margins: margin at each of them; linear in between.
        weight: λ of the regularizer g(a) = a / u² + 1 / a.
    """

    def __init__(
        self,
        scale: float = 64.0,
        norms: tuple[float, float] = (10.0, 110.0),
        margins: tuple[float, float] = (0.45, 0.8),
        weight: float = 35.0,
    ) -> None:
        self.scale, self.norms, self.margins, self.weight = scale, norms, margins, weight

    def __call__(self, cosine_B: torch.Tensor, norm_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Margin."""
        (low, high), (least, most) = self.norms, self.margins
        length = norm_B.clamp(low, high)
        margin = least + (most - least) / (high - low) * (length - low)
        return add_angle(cosine_B, margin), self.weight * (length / high**2 + 1 / length)


class AdaFace:
    """A margin that stresses hard faces where they are recognizable and easy ones where they are not.

    The lengths' mean and deviation are running averages over the batches that were seen; no gradient goes through them.

    Args:
        scale: s.
        margin: m.
        concentration: h; lengths of 1/h deviations from the mean have the full margin.
        momentum: share of a new batch in the running averages.
    """

    def __init__(
        self, scale: float = 64.0, margin: float = 0.4, concentration: float = 0.333, momentum: float = 0.01
    ) -> None:
        self.scale, self.margin, self.concentration, self.momentum = scale, margin, concentration, momentum
        self.mean, self.deviation = 20.0, 100.0

    def __call__(self, cosine_B: torch.Tensor, norm_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Margin; updates the running averages."""
        length = norm_B.detach().clamp(0.001, 100)
        if len(length) > 1:
            self.mean += self.momentum * (float(length.mean()) - self.mean)
            self.deviation += self.momentum * (float(length.std()) - self.deviation)
        level = ((length - self.mean) / (self.deviation + 1e-3) * self.concentration).clamp(-1, 1)
        edge = 1 - 1e-3  # the authors clamp the angle away from 0 and π by 1e-3 rad; here the cosine
        angle = cosine_B.clamp(-edge, edge).acos() - self.margin * level
        turned = angle.clamp(1e-3, math.pi - 1e-3).cos()
        return turned - (self.margin + self.margin * level), torch.zeros_like(cosine_B)
