"""A card in, a network that runs out: tensors to named tensors, in torch or in ONNX Runtime.

The one place that knows how weights files are opened. Detectors and embedders (facescale.vision.registry) prepare the
input, call the network and read what comes out, and do not care what ran it. What runs them is in
facescale.vision.torch_network and onnx_network.

Shape legend: B images of a batch, H and W height and width of the network's input.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Protocol

import torch

from facescale.errors import CorruptError, MismatchError, MissingExtraError, UsageError
from facescale.models.trust import is_trusted
from facescale.models.weights import find_weights, verify
from facescale.vision.onnx_network import OnnxNetwork
from facescale.vision.torch_network import TorchNetwork

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from facescale.models.card import ModelCard

    Build = Callable[[ModelCard], torch.nn.Module]

ACCELERATIONS = ("none", "compile", "cuda_graphs", "tensorrt")
"""compile: torch.compile; cuda_graphs: recorded once, replayed; tensorrt: ONNX Runtime's TensorRT provider."""


class Network(Protocol):
    """Runs a batch."""

    def __call__(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run a batch.

        Args:
            batch: float32 [B, 3, H, W] on the network's device, as `normalize` makes it.

        Returns:
            Named outputs on the same device, float32, batch first.
        """
        ...


def normalize(pixels: torch.Tensor, card: ModelCard) -> torch.Tensor:
    """What the network of `card` sees: (x - mean) / scale in its channel order.

    Args:
        pixels: uint8 or float [B, H, W, 3] RGB.
        card: of the model.

    Returns:
        float32 [B, 3, H, W], contiguous.
    """
    batch, height, width, _ = pixels.shape
    values = torch.empty((batch, 3, height, width), device=pixels.device)
    # Plane by plane: on a CPU a quarter of the time of flipping and permuting whole pixels.
    for channel in range(3):
        values[:, channel] = pixels[..., 2 - channel if card.channel_order == "bgr" else channel]
    if any(card.mean):
        values = values.sub_(torch.tensor(card.mean, device=pixels.device)[:, None, None])
    if set(card.scale) != {1.0}:
        values = values.div_(torch.tensor(card.scale, device=pixels.device)[:, None, None])
    return values


def load_network(
    card: ModelCard,
    *,
    device: torch.device,
    precision: str = "fp32",
    build: Build | None = None,
    accelerate: str = "none",
    batch: int | None = None,
) -> Network:
    """Open the weights of a card.

    Args:
        card: for the backend that is meant (`ModelCard.for_backend`).
        device: where to run.
        precision: of weights and activations; ONNX files run as they are, in fp32 only.
        build: makes the module that a state dict or safetensors file is loaded into; its forward returns a tensor or
            a mapping of names to tensors. Not needed for files that bring their own network.
        accelerate: one of ACCELERATIONS.
        batch: images of a batch, the most that a call brings; compile and cuda_graphs pad smaller ones to it.

    Raises:
        UsageError: no weights, a precision, device or acceleration that the file's backend cannot do, or a file that
            can run code and is not trusted.
        MissingExtraError: the file needs a package that is not installed.
        MismatchError: the weights do not fit the architecture.
        CorruptError: the file is not that of the card.
    """
    if card.format == "onnx":
        return OnnxNetwork(card, device=device, precision=precision, accelerate=accelerate)
    options: dict[str, Any] = {"device": device, "precision": precision, "name": card.name}
    options |= {"accelerate": accelerate, "batch": batch}
    if card.format in ("torchscript", "exported"):
        return TorchNetwork(_read_program(card), **options)
    if card.format not in ("state_dict", "safetensors") or build is None:
        raise UsageError(
            f"model {card.name!r}: architecture {card.architecture!r} does not run files of format {card.format!r}"
        )
    module = build(card)
    state = read_state(card)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise MismatchError(
            f"model {card.name!r}: the weights do not fit the architecture {card.architecture!r} of its card: "
            f"{' '.join(str(error).split())[:400]}"
        ) from error
    return TorchNetwork(module, **options)


def read_state(card: ModelCard) -> dict[str, torch.Tensor]:
    """Tensors of a state dict or safetensors file, by name.

    A leading "module." of DataParallel is dropped. Options of the card: `prefix`, one or several: only the tensors
    below the first of them that is there are taken, without it ("model."); `ignore`: beginnings of names that are not
    needed (["logits."]), looked at afterwards.

    Raises:
        CorruptError: the file is not that of the card, or not a file of tensors (nothing in it is executed).
        MismatchError: no tensor has one of the card's prefixes.
    """
    path = find_weights(card)
    verify(card, path)
    state = _read_tensors(card, path)
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise CorruptError(f"{path}: expected tensors by name, got {type(state).__name__}")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    prefixes = card.options.get("prefix", ())
    prefixes = (prefixes,) if isinstance(prefixes, str) else tuple(prefixes)
    if prefixes:
        found = next((p for p in prefixes if any(name.startswith(p) for name in state)), None)
        if found is None:
            raise MismatchError(
                f"{path}: no tensor of model {card.name!r} begins with {' or '.join(map(repr, prefixes))}, as the "
                f"option prefix of its card says; the first is {next(iter(state), None)!r}"
            )
        state = {name.removeprefix(found): value for name, value in state.items() if name.startswith(found)}
    ignored = tuple(card.options.get("ignore", ()))
    return {name: value for name, value in state.items() if not name.startswith(ignored or ("\0",))}


def _read_tensors(card: ModelCard, path: Path) -> Any:
    if card.format == "safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise MissingExtraError("safetensors", "train", f"the model {card.name!r}") from error
        try:
            return load_file(path)
        except Exception as error:  # its own exception type has no base but Exception
            raise CorruptError(f"{path}: not a safetensors file: {error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=not is_trusted())
    except Exception as error:  # pickle and zip errors of many kinds
        # torch's advice on its own arguments stands between its first words and the reason.
        reason = " ".join(str(error).rpartition("WeightsUnpickler error: ")[2].split())[:200]
        raise CorruptError(
            f"{path}: not a file of tensors that can be read safely: {reason}; if it holds more than tensors and you "
            "trust where it came from, --trust reads it, and runs what it brings"
        ) from error


def _read_program(card: ModelCard) -> torch.nn.Module:
    """Open a TorchScript file or an exported program: both bring a network, and torch unpickles parts of both."""
    path = find_weights(card)
    verify(card, path)
    if not is_trusted():
        raise UsageError(
            f"model {card.name!r} is a {card.format} file, which can run code when it is opened: if you trust where "
            f"it came from ({card.source}), add --trust"
        )
    try:
        if card.format == "exported":
            return torch.export.load(str(path)).module()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # files of this format will be around for years
            script: torch.nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # of many kinds
        raise CorruptError(f"{path}: torch cannot load this {card.format} file: {error}") from error
    return script
