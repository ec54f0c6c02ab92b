"""Arithmetic of the networks: names of precisions, and fp32 that is really fp32. Used by every model here."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def exact_convolutions(device: torch.device) -> AbstractContextManager[None]:
    """Convolve float32 in float32: by default CUDA rounds the inputs to 10 bits of mantissa (TF32)."""
    if device.type != "cuda":
        return nullcontext()
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    )
