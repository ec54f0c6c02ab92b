"""Aligned chips in, descriptors out: the one embedder class behind every network but dlib's.

Built by facescale.vision.registry, called by the extract and embed stages. What differs between networks stands on
their cards; a state dict goes into the module that its card's architecture names (facescale.vision.backbones).

Shape legend: N faces, S chip side, D descriptor length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from facescale.errors import MismatchError, UsageError
from facescale.vision.backbones import BACKBONES, create
from facescale.vision.networks import load_network, normalize

if TYPE_CHECKING:
    from facescale.models.card import ModelCard
    from facescale.vision.networks import Network


def load(
    card: ModelCard, *, device: torch.device, precision: str, batch: int, accelerate: str = "none"
) -> NetworkEmbedder:
    """Load the embedder of `card`; errors as of facescale.vision.networks.load_network."""
    network = load_network(
        card,
        device=device,
        precision=precision,
        build=build_module if card.architecture in BACKBONES else None,
        accelerate=accelerate,
        batch=batch,
    )
    return NetworkEmbedder(card, network, device=device, batch=batch)


def build_module(card: ModelCard) -> torch.nn.Module:
    """The module of a card's architecture, with fresh weights; the card's option `backbone` holds its arguments.

    Raises:
        UsageError: an argument that the architecture does not have.
    """
    options = card.options.get("backbone", {})
    if not isinstance(options, dict):
        raise UsageError(
            f"model {card.name!r}: option backbone is {options!r}, expected a mapping of arguments"
        )
    return create(card.architecture, dim=card.dim, **options)


class NetworkEmbedder:
    """See `facescale.vision.protocols.Embedder`.

    Args:
        card: of the model.
        network: its first output holds the descriptors, [B, D].
        device: where to run.
        batch: chips of a forward pass.
    """

    def __init__(self, card: ModelCard, network: Network, *, device: torch.device, batch: int) -> None:
        self.card, self.network, self.device, self.batch = card, network, device, batch
        self.dim = card.dim or 0

    def embed(self, chips: np.ndarray) -> np.ndarray:
        """Describe each chip; see the protocol.

        Raises:
            MismatchError: the chips, or the network's output, are not what the card says.
        """
        size = self.card.input_size
        if chips.shape[1:] != (size, size, 3) or chips.dtype != np.uint8:
            raise MismatchError(
                f"{self.card.name} takes uint8 chips of [N, {size}, {size}, 3], got {chips.dtype} "
                f"{list(chips.shape)}: align them to the template {self.card.template}"
            )
        descriptors = np.empty((len(chips), self.dim), np.float32)
        for start in range(0, len(chips), self.batch):
            some = np.require(
                chips[start : start + self.batch], requirements=["C", "W"]
            )  # torch wants it writable
            pixels = torch.from_numpy(some).to(self.device)
            found = next(iter(self.network(normalize(pixels, self.card)).values()))
            if found.shape != (len(pixels), self.dim):
                raise MismatchError(
                    f"model {self.card.name!r} gave an output of shape {tuple(found.shape)} for {len(pixels)} faces; "
                    f"its card says dim {self.dim}"
                )
            descriptors[start : start + self.batch] = found.cpu().numpy()
        return descriptors
