"""An ONNX file in, a network that runs batches out: ONNX Runtime on the CPU, on CUDA, or in TensorRT.

Made by facescale.vision.networks.load_network.

Shape legend: B images of a batch, H and W height and width of the network's input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from facescale.errors import CorruptError, MismatchError, MissingExtraError, UsageError
from facescale.models.onnx_shapes import free_input
from facescale.models.weights import find_weights, verify

if TYPE_CHECKING:
    from facescale.models.card import ModelCard

LAYOUTS = ("nchw", "nhwc")
CPU_CALL_PIXELS = 1 << 15
"""Input pixels of one call on a CPU, for each thread: what flows between the layers of a small network then stays in a
core's cache. MobileFaceNet takes 3.3 ms a face at 2 faces a call, 3.8 at 32; YuNet 1.65 ms for 256 x 256 px at 1 image,
1.9 at 8. Outputs are the same to the last bit."""
_DTYPES = {"tensor(float)": (np.float32, torch.float32), "tensor(float16)": (np.float16, torch.float16)}


class OnnxNetwork:
    """An ONNX file in ONNX Runtime.

    Threads are torch's of this process: both then keep within what the engine gave the worker. A file whose batch
    size is fixed gets its batches in pieces of that size. The card's option `layout` says how the input lies: nchw
    (the default) or nhwc.

    With the option `free_input` the sizes that the file declares for its input are taken for those of an example.

    Args:
        card: of an ONNX file.
        device: "cpu", or "cuda" with a CUDA build of ONNX Runtime.
        precision: "fp32"; a file whose input is float16 runs in that all the same.
        accelerate: none or tensorrt.
    """

    def __init__(
        self, card: ModelCard, *, device: torch.device, precision: str = "fp32", accelerate: str = "none"
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "onnx", f"the model {card.name!r}") from error
        if precision != "fp32":
            raise UsageError(
                f"model {card.name!r} is an ONNX file and runs in fp32, not {precision}: leave --precision out, or "
                "choose --runtime torch where the model has it"
            )
        self._layout = card.options.get("layout", LAYOUTS[0])
        if self._layout not in LAYOUTS:
            raise UsageError(
                f"model {card.name!r}: option layout is {self._layout!r}, expected {' or '.join(LAYOUTS)}"
            )
        providers = _providers(card, device, accelerate)
        path = find_weights(card)
        verify(card, path)
        options = onnxruntime.SessionOptions()
        self._threads = options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning threads take the cores from the other workers while they wait.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.device = device
        try:
            file = free_input(path.read_bytes()) if card.options.get("free_input") else str(path)
            self.session = onnxruntime.InferenceSession(file, options, providers=providers)
        except Exception as error:  # its own exception types share no base
            raise CorruptError(f"{path}: ONNX Runtime cannot load it: {error}") from error
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _DTYPES:
            raise MismatchError(
                f"{path}: expected one input of float32 or float16 images, got "
                f"{', '.join(f'{entry.name} {entry.type}' for entry in inputs)}"
            )
        self._input = inputs[0].name
        self._numpy_dtype, self._torch_dtype = _DTYPES[inputs[0].type]
        self._batch = inputs[0].shape[0] if isinstance(inputs[0].shape[0], int) else None
        self._outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run a batch; see facescale.vision.networks.Network.

        Raises:
            MismatchError: the file does not take images of this size.
        """
        batch = batch.to(self._torch_dtype)
        batch = (batch.permute(0, 2, 3, 1) if self._layout == "nhwc" else batch).contiguous()
        run = self._on_cuda if self.device.type == "cuda" else self._on_cpu
        size = self._batch or self._suitable(batch)
        if len(batch) == size and self._batch != 1:
            found = run(batch)
        else:
            fill = self._batch is not None
            pieces = [self._batched(run(piece)) for piece in self._pieces(batch, size, fill=fill)]
            found = {
                name: torch.cat([piece[name] for piece in pieces])[: len(batch)] for name in self._outputs
            }
        return {name: values.float() for name, values in found.items()}

    def _suitable(self, batch: torch.Tensor) -> int:
        """Images of a call."""
        if self.device.type == "cuda":
            return len(batch)
        pixels = batch[0].numel() // 3 if len(batch) else 0
        return min(max(1, self._threads * CPU_CALL_PIXELS // max(1, pixels)), max(1, len(batch)))

    def _batched(self, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Outputs with the batch in front: files for one image may leave it out (insightface's detectors)."""
        if self._batch != 1:
            return found
        return {
            name: values if len(values) == 1 and values.dim() > 1 else values[None]
            for name, values in found.items()
        }

    @staticmethod
    def _pieces(batch: torch.Tensor, size: int, *, fill: bool) -> list[torch.Tensor]:
        """Pieces of one size, the last one padded with zeros if it must be."""
        missing = -len(batch) % size if fill else 0
        if missing:
            batch = torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])])
        return list(torch.split(batch, size))

    def _on_cpu(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        try:
            found = self.session.run(self._outputs, {self._input: batch.numpy()})
        except Exception as error:  # its own exception types share no base
            raise MismatchError(
                f"the ONNX file does not take a batch of shape {tuple(batch.shape)}: {error}; see input_size and the "
                "option layout of the model's card"
            ) from error
        return {name: torch.from_numpy(values) for name, values in zip(self._outputs, found, strict=True)}

    def _on_cuda(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Bind input and outputs where they are: nothing crosses the bus but what the caller reads."""
        binding = self.session.io_binding()
        index = batch.device.index or 0
        binding.bind_input(
            self._input, "cuda", index, self._numpy_dtype, tuple(batch.shape), batch.data_ptr()
        )
        for name in self._outputs:
            binding.bind_output(name, "cuda", index)
        torch.cuda.current_stream(batch.device).synchronize()
        self.session.run_with_iobinding(binding)
        found = zip(self._outputs, binding.get_outputs(), strict=True)
        return {name: torch.utils.dlpack.from_dlpack(value._ortvalue).clone() for name, value in found}


def _providers(card: ModelCard, device: torch.device, accelerate: str) -> list[Any]:
    """Execution providers for a device.

    Raises:
        UsageError: the installed ONNX Runtime has no CUDA or TensorRT, which running elsewhere would hide; or an
            acceleration of torch.
    """
    import onnxruntime

    if accelerate not in ("none", "tensorrt"):
        raise UsageError(
            f"model {card.name!r} is an ONNX file, and --accelerate {accelerate} is for torch: choose --runtime torch "
            "where the model has it, or leave it out"
        )
    if accelerate == "tensorrt" and device.type != "cuda":
        raise UsageError(f"model {card.name!r}: --accelerate tensorrt needs --device cuda; this is {device}")
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    wanted = ["CUDAExecutionProvider"]
    if accelerate == "tensorrt":
        wanted.insert(0, "TensorrtExecutionProvider")
    missing = [name for name in wanted if name not in onnxruntime.get_available_providers()]
    if missing:
        raise UsageError(
            f"model {card.name!r} is an ONNX file and this ONNX Runtime has no {missing[0]}: pip install "
            "onnxruntime-gpu in place of onnxruntime, or choose --runtime torch where the model has it, or --device cpu"
        )
    return [(name, {"device_id": device.index or 0}) for name in wanted]
