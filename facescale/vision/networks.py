"""A card in, a network that runs out: tensors to named tensors, in torch or in ONNX Runtime.

The one place that knows how weights files are opened. Detectors and embedders (facescale.vision.registry) prepare the
input, call the network and read what comes out, and do not care what ran it.

Shape legend: B images of a batch, H and W height and width of the network's input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from facescale.errors import CorruptError, MismatchError, MissingExtraError, UsageError
from facescale.models.weights import find_weights, verify
from facescale.vision.precision import DTYPES, exact_convolutions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from facescale.models.card import ModelCard

    Build = Callable[[ModelCard], torch.nn.Module]


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
        float32 [B, 3, H, W], channels last in memory.
    """
    if card.channel_order == "bgr":
        pixels = pixels.flip(-1)
    values = pixels.float()
    if any(card.mean):
        values = values.sub_(torch.tensor(card.mean, device=pixels.device))
    if set(card.scale) != {1.0}:
        values = values.div_(torch.tensor(card.scale, device=pixels.device))
    return values.permute(0, 3, 1, 2)


def load_network(
    card: ModelCard, *, device: torch.device, precision: str = "fp32", build: Build | None = None
) -> Network:
    """Open the weights of a card.

    Args:
        card: for the backend that is meant (`ModelCard.for_backend`).
        device: where to run.
        precision: of weights and activations; ONNX files run as they are, in fp32 only.
        build: makes the module that a state dict or safetensors file is loaded into; its forward returns a tensor or
            a mapping of names to tensors.

    Raises:
        UsageError: no weights, a precision or a device that the file's backend cannot do.
        MissingExtraError: the file needs a package that is not installed.
        MismatchError: the weights do not fit the architecture.
        CorruptError: the file is not that of the card.
    """
    if card.format == "onnx":
        return OnnxNetwork(card, device=device, precision=precision)
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
    return TorchNetwork(module, device=device, precision=precision)


def read_state(card: ModelCard) -> dict[str, torch.Tensor]:
    """Tensors of a state dict or safetensors file, by name; a leading "module." of DataParallel is dropped.

    Raises:
        CorruptError: the file is not that of the card, or not a file of tensors (nothing in it is executed).
    """
    path = find_weights(card)
    verify(card, path)
    if card.format == "safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise MissingExtraError("safetensors", "train", f"the model {card.name!r}") from error
        state: Any = load_file(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle and zip errors of many kinds
            raise CorruptError(f"{path}: not a file of tensors that can be read safely: {error}") from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    return {name.removeprefix("module."): value for name, value in state.items()}


class TorchNetwork:
    """A module in inference mode, channels last.

    Args:
        module: with its weights loaded.
        device: where to run.
        precision: a key of facescale.vision.precision.DTYPES.
    """

    def __init__(self, module: torch.nn.Module, *, device: torch.device, precision: str) -> None:
        self.device, self._dtype = device, DTYPES[precision]
        self.module = module.eval().requires_grad_(False).to(device, self._dtype)
        for values in [*self.module.parameters(), *self.module.buffers()]:
            if values.dim() == 4:
                values.data = values.data.contiguous(memory_format=torch.channels_last)

    def __call__(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run a batch; see Network."""
        with torch.inference_mode(), exact_convolutions(self.device):
            found: torch.Tensor | Mapping[str, torch.Tensor] = self.module(batch.to(self._dtype))
        named = {"output": found} if isinstance(found, torch.Tensor) else found
        return {name: values.float() for name, values in named.items()}


class OnnxNetwork:
    """An ONNX file in ONNX Runtime.

    Threads are torch's of this process: both then keep within what the engine gave the worker.

    Args:
        card: of an ONNX file.
        device: "cpu", or "cuda" with a CUDA build of ONNX Runtime.
        precision: "fp32".
    """

    def __init__(self, card: ModelCard, *, device: torch.device, precision: str = "fp32") -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "onnx", f"the model {card.name!r}") from error
        if precision != "fp32":
            raise UsageError(
                f"model {card.name!r} is an ONNX file and runs in fp32, not {precision}: leave --precision out, or "
                "choose --backend torch where the model has it"
            )
        path = find_weights(card)
        verify(card, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning threads take the cores from the other workers while they wait.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.device = device
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=_providers(card, device)
            )
        except Exception as error:  # its own exception types share no base
            raise CorruptError(f"{path}: ONNX Runtime cannot load it: {error}") from error
        self._input = self.session.get_inputs()[0].name
        self._outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run a batch; see Network."""
        if self.device.type == "cuda":
            return self._on_cuda(batch)
        found = self.session.run(self._outputs, {self._input: batch.contiguous().numpy()})
        return {name: torch.from_numpy(values) for name, values in zip(self._outputs, found, strict=True)}

    def _on_cuda(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Bind input and outputs where they are: nothing crosses the bus but what the caller reads."""
        batch = batch.contiguous()
        binding = self.session.io_binding()
        index = batch.device.index or 0
        binding.bind_input(self._input, "cuda", index, np.float32, tuple(batch.shape), batch.data_ptr())
        for name in self._outputs:
            binding.bind_output(name, "cuda", index)
        torch.cuda.current_stream(batch.device).synchronize()
        self.session.run_with_iobinding(binding)
        found = zip(self._outputs, binding.get_outputs(), strict=True)
        return {name: torch.utils.dlpack.from_dlpack(value._ortvalue).clone() for name, value in found}


def _providers(card: ModelCard, device: torch.device) -> list[Any]:
    """Execution providers for a device.

    Raises:
        UsageError: the installed ONNX Runtime has no CUDA; running on the CPU instead would look like success.
    """
    import onnxruntime

    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise UsageError(
            f"model {card.name!r} is an ONNX file and this ONNX Runtime has no CUDA: pip install onnxruntime-gpu in "
            "place of onnxruntime, or choose --backend torch where the model has it, or --device cpu"
        )
    return [("CUDAExecutionProvider", {"device_id": device.index or 0})]
