"""Names of embedding networks in, torch modules without weights out; keys of their state dicts are the public ones.

Called by facescale.vision.registry, which loads a card's weights into them, and by training. Nothing here reads
files or knows of cards. A module takes float32 [B, 3, S, S], as its card's mean and scale make it, and gives
descriptors [B, D] that are not of unit length unless its makers normalize inside.

Shape legend, of the whole package: B images of a batch, S side of the input, C channels, H and W height and width of
a feature map, T patches, D descriptor length.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from facescale.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


@dataclass(frozen=True)
class Backbone:
    """Where an architecture is defined.

    Args:
        module: of this package.
        factory: class or function in it; takes `dim` and the options by keyword.
        options: its arguments for this architecture; those of a card come on top.
        dim: D of the public checkpoints.
        size: S of the public checkpoints, px.
    """

    module: str
    factory: str
    options: Mapping[str, Any] = field(default_factory=dict)
    dim: int = 512
    size: int = 112


def _iresnet(*layers: int) -> Backbone:
    return Backbone("iresnet", "IResNet", {"layers": layers})


def _ir(*layers: int) -> Backbone:
    return Backbone("ir", "IR", {"layers": layers})


def _vit(width: int, depth: int) -> Backbone:
    return Backbone("vit", "FaceViT", {"width": width, "depth": depth})


def _edgeface(
    widths: tuple[int, ...], heads: int, rank_ratio: float | None, *, depths: tuple[int, ...] = (3, 3, 9, 3)
) -> Backbone:
    options = {"widths": widths, "depths": depths, "heads": (heads,) * 4, "rank_ratio": rank_ratio}
    return Backbone("edgeface", "EdgeFace", options)


BACKBONES: dict[str, Backbone] = {
    "iresnet18": _iresnet(2, 2, 2, 2),
    "iresnet34": _iresnet(3, 4, 6, 3),
    "iresnet50": _iresnet(3, 4, 14, 3),
    "iresnet100": _iresnet(3, 13, 30, 3),
    "iresnet200": _iresnet(6, 26, 60, 6),
    "ir18": _ir(2, 2, 2, 2),
    "ir34": _ir(3, 4, 6, 3),
    "ir50": _ir(3, 4, 14, 3),
    "ir101": _ir(3, 13, 30, 3),
    "mobilefacenet": Backbone("mobilefacenet", "MobileFaceNet", dim=128),
    "mbf": Backbone("mbf", "MBF"),
    "mbf_large": Backbone("mbf", "MBF", {"blocks": (2, 8, 12, 4), "scale": 4}),
    "inception_resnet_v1": Backbone("inception", "InceptionResnetV1", size=160),
    "vit_t": _vit(256, 12),
    "vit_s": _vit(512, 12),
    "vit_b": _vit(512, 24),
    "vit_l": _vit(768, 24),
    "edgeface_xxs": _edgeface((24, 48, 88, 168), 4, None, depths=(2, 2, 6, 2)),
    "edgeface_xs": _edgeface((32, 64, 100, 192), 4, 0.6),
    "edgeface_s": _edgeface((48, 96, 160, 304), 8, 0.5),
    "edgeface_base": _edgeface((80, 160, 288, 584), 8, None),
}
"""Architectures by name: of insightface's arcface_torch (iresnet*, mbf*, vit_*; MagFace and LVFace use them too), of
AdaFace (ir*), of foamliu (mobilefacenet), of facenet-pytorch (inception_resnet_v1) and of EdgeFace."""


def create(name: str, *, dim: int | None = None, **options: Any) -> torch.nn.Module:
    """Make a network with fresh weights.

    Args:
        name: a key of BACKBONES.
        dim: D; None for that of the public checkpoints.
        options: in place of the architecture's own, e.g. eps of its normalization.

    Raises:
        UsageError: no such architecture, or an option that it does not have.
    """
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(BACKBONES)}"
        raise UsageError(f"there is no architecture {name!r}; {hint}")
    entry = BACKBONES[name]
    factory = getattr(importlib.import_module(f"{__name__}.{entry.module}"), entry.factory)
    try:
        module: torch.nn.Module = factory(dim=dim or entry.dim, **{**entry.options, **options})
    except TypeError as error:
        raise UsageError(
            f"architecture {name!r}: {error}; options it has: {', '.join(entry.options)}"
        ) from error
    return module
