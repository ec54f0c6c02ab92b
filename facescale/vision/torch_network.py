"""A torch module in, a network that runs batches out: eager, compiled, or recorded as a CUDA graph.

Made by facescale.vision.networks.load_network.

Shape legend: B images of a batch, H and W height and width of the network's input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from facescale.errors import UsageError
from facescale.vision.precision import DTYPES, exact_convolutions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Outputs = dict[str, torch.Tensor]

_WARM_UP = 3  # runs before a graph is recorded: libraries choose their kernels in the first ones


class TorchNetwork:
    """A module in inference mode, channels last.

    Compiled and recorded networks run one batch size: smaller batches are padded with zeros, which changes nothing for
    the others, as networks in inference mode treat every image alone.

    Args:
        module: with its weights loaded.
        device: where to run.
        precision: a key of facescale.vision.precision.DTYPES.
        accelerate: none, compile or cuda_graphs.
        batch: images of a batch for the latter two; None runs every size as it comes.
        name: of the model, for messages.

    Raises:
        UsageError: an acceleration that the device or this backend cannot do.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        device: torch.device,
        precision: str,
        accelerate: str = "none",
        batch: int | None = None,
        name: str = "",
    ) -> None:
        self.device, self._dtype = device, DTYPES[precision]
        _check(accelerate, device, module, name)
        if not isinstance(module, torch.fx.GraphModule):  # an exported program is in inference mode already
            module = module.eval()
        self.module = module.to(device, self._dtype)
        for values in [*self.module.parameters(), *self.module.buffers()]:
            values.requires_grad_(False)
            if values.dim() == 4:
                values.data = values.data.contiguous(memory_format=torch.channels_last)
        self._fixed = batch if accelerate != "none" else None
        self._forward: Callable[[torch.Tensor], Any] = self.module
        if accelerate == "compile":
            self._forward = torch.compile(self.module)
        self._record = accelerate == "cuda_graphs"
        self._graphs: dict[tuple[int, ...], _CudaGraph] = {}

    def __call__(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run a batch; see facescale.vision.networks.Network."""
        count = len(batch)
        if self._fixed is not None and count < self._fixed:
            batch = torch.cat([batch, batch.new_zeros(self._fixed - count, *batch.shape[1:])])
        # One layout too: another one would be compiled again.
        batch = batch.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), exact_convolutions(self.device):
            named = self._recorded(batch) if self._record else self._run(batch)
        return {name: values[:count].float() for name, values in named.items()}

    def _run(self, batch: torch.Tensor) -> Outputs:
        found: torch.Tensor | Mapping[str, torch.Tensor] = self._forward(batch.to(self._dtype))
        return {"output": found} if isinstance(found, torch.Tensor) else dict(found)

    def _recorded(self, batch: torch.Tensor) -> Outputs:
        shape = tuple(batch.shape)
        if shape not in self._graphs:
            self._graphs[shape] = _CudaGraph(self._run, batch)
        return self._graphs[shape](batch)


class _CudaGraph:
    """The kernels of one batch shape, recorded once: replaying them costs one launch instead of hundreds."""

    def __init__(self, run: Callable[[torch.Tensor], Outputs], example: torch.Tensor) -> None:
        self._input = example.clone(memory_format=torch.channels_last)
        here = torch.cuda.current_stream(example.device)
        aside = torch.cuda.Stream(example.device)  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                run(self._input)
        here.wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = run(self._input)

    def __call__(self, batch: torch.Tensor) -> Outputs:
        self._input.copy_(batch)
        self._graph.replay()
        return {name: values.clone() for name, values in self._output.items()}


def _check(accelerate: str, device: torch.device, module: torch.nn.Module, name: str) -> None:
    if accelerate == "tensorrt":
        raise UsageError(
            f"model {name!r} runs in torch, and TensorRT runs ONNX files: choose --runtime onnx where the model has "
            "it, or --accelerate compile"
        )
    if accelerate == "cuda_graphs" and device.type != "cuda":
        raise UsageError(f"model {name!r}: --accelerate cuda_graphs needs --device cuda; this is {device}")
    if accelerate == "compile" and isinstance(module, torch.jit.ScriptModule):
        raise UsageError(f"model {name!r} is a TorchScript file, which cannot be compiled again")
