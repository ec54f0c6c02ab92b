"""Aligned chips in, descriptors out: the one embedder class behind every network but dlib's.

Built by facescale.vision.registry, called by the extract and embed stages. What differs between networks stands on
their cards; a network that is a state dict brings a function that builds its module.

Shape legend: N faces, S chip side, D descriptor length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from facescale.errors import MismatchError
from facescale.vision.networks import load_network, normalize

if TYPE_CHECKING:
    from facescale.models.card import ModelCard
    from facescale.vision.networks import Build, Network


def load(
    card: ModelCard, *, device: torch.device, precision: str, batch: int, build: Build | None = None
) -> NetworkEmbedder:
    """Load the embedder of `card`; errors as of facescale.vision.networks.load_network."""
    network = load_network(card, device=device, precision=precision, build=build)
    return NetworkEmbedder(card, network, device=device, batch=batch)


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
            MismatchError: the network's output is not what the card says.
        """
        descriptors = np.empty((len(chips), self.dim), np.float32)
        for start in range(0, len(chips), self.batch):
            some = np.require(
                chips[start : start + self.batch], requirements=("C", "W")
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
