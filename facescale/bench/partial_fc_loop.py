"""One contender of `facescale bench partial-fc` in a process of its own: forward, backward, update of the head alone.

    python -m facescale.bench.partial_fc_loop '{"contender": "ours", "classes": 200000, …}'   →   one line of JSON

The two it is held against are written plainly after the public code of insightface's arcface_torch: the current one
(V2) takes the sampled rows of a full parameter by index and leaves a dense gradient to the optimizer, the older one
(V1) gathers sampled weights and momentum, steps on them and scatters both back. Both hold logits and a softmax of them.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from facescale.training.margins import CosFace
from facescale.training.partial_fc import PartialFC

DIM = 512
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4


class _Softmax(torch.autograd.Function):
    """Cross entropy that overwrites its logits with their softmax, as the public code does."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits.sub_(logits.amax(dim=1, keepdim=True)).exp_()
        logits.div_(logits.sum(dim=1, keepdim=True))
        ctx.save_for_backward(logits, target)
        return -logits.gather(1, target[:, None]).clamp(min=1e-30).log().mean()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        share, target = ctx.saved_tensors
        share[torch.arange(len(share), device=share.device), target] -= 1
        return share.div_(len(share)).mul_(gradient), None


def _loss(
    faces: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    unit = F.normalize(weight, dim=1)
    logits = (F.normalize(faces, dim=1).to(dtype) @ unit.to(dtype).T).float().clamp(-1, 1)
    margin = CosFace()
    rows = torch.arange(len(faces), device=faces.device)
    logits = logits.index_put((rows, target), logits[rows, target] - margin.margin).mul(margin.scale)
    loss: torch.Tensor = _Softmax.apply(logits, target)  # type: ignore[no-untyped-call]
    return loss


def _sample(labels: torch.Tensor, classes: int, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that take part, rising, and each face's place among them: positives, then the largest of random numbers."""
    drawn = torch.rand(classes, device=labels.device)
    drawn[labels] = 2.0
    rows = drawn.topk(max(int(classes * rate), len(labels))).indices.sort().values
    return rows, torch.searchsorted(rows, labels)


class Current:
    """PartialFC_V2: a full parameter, indexed; a dense gradient; torch's SGD."""

    def __init__(self, classes: int, rate: float, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.nn.Parameter(torch.randn(classes, DIM, device=device) * 0.01)
        self.rate, self.dtype = rate, dtype
        self.optimizer = torch.optim.SGD(
            [self.weight], lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )

    def state_bytes(self) -> int:
        """Centers and momentum."""
        return 2 * self.weight.numel() * 4

    def step(self, faces: torch.Tensor, labels: torch.Tensor) -> None:
        """Forward, backward, update."""
        weight: torch.Tensor = self.weight
        target = labels
        if self.rate < 1:
            rows, target = _sample(labels, len(self.weight), self.rate)
            weight = self.weight[rows]
        self.optimizer.zero_grad(set_to_none=True)
        _loss(faces, weight, target, self.dtype).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


class Older:
    """PartialFC_V1: sampled weights and momentum are gathered, stepped on, and put back."""

    def __init__(self, classes: int, rate: float, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.randn(classes, DIM, device=device) * 0.01
        self.velocity = torch.zeros_like(self.weight)
        self.rate, self.dtype = rate, dtype

    def state_bytes(self) -> int:
        """Centers and momentum."""
        return 2 * self.weight.numel() * 4

    def step(self, faces: torch.Tensor, labels: torch.Tensor) -> None:
        """Forward, backward, update."""
        if self.rate < 1:
            rows, target = _sample(labels, len(self.weight), self.rate)
            weight, velocity = self.weight[rows], self.velocity[rows]
        else:
            target, weight, velocity = labels, self.weight, self.velocity
        weight = weight.detach().requires_grad_()
        _loss(faces, weight, target, self.dtype).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            assert weight.grad is not None
            velocity.mul_(MOMENTUM).add_(weight.grad.add_(weight, alpha=WEIGHT_DECAY))
            weight.sub_(velocity, alpha=LEARNING_RATE)
            if self.rate < 1:
                self.weight[rows], self.velocity[rows] = weight.detach(), velocity


class Ours:
    """facescale.training.partial_fc."""

    def __init__(self, classes: int, rate: float, dtype: torch.dtype, device: torch.device) -> None:
        self.head = PartialFC(
            classes,
            DIM,
            CosFace(),
            sample_rate=rate,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            dtype=dtype,
            device=device,
        )
        self.head.learning_rate = LEARNING_RATE

    def state_bytes(self) -> int:
        """Centers and momentum."""
        return 2 * self.head.weight.numel() * 4

    def step(self, faces: torch.Tensor, labels: torch.Tensor) -> None:
        """Forward, backward, update."""
        self.head(faces, labels).backward()


class Head(Protocol):
    """A contender."""

    def __init__(self, classes: int, rate: float, dtype: torch.dtype, device: torch.device) -> None:
        """Make centers and momentum."""

    def state_bytes(self) -> int:
        """Of centers and momentum."""
        ...

    def step(self, faces: torch.Tensor, labels: torch.Tensor) -> None:
        """Forward, backward, update."""


CONTENDERS: dict[str, type[Head]] = {"ours": Ours, "V2": Current, "V1": Older}


def measure(
    contender: str, classes: int, batch: int, rate: float, dtype: str, device: str, steps: int, threads: int
) -> dict[str, Any]:
    """Time some steps after one to warm up; memory is the peak of all of them.

    Returns:
        faces_per_s, state_bytes, peak_bytes (of the process on a CPU, of the allocator on a GPU, less what was there
        before the head), and transient_bytes, the peak less the state; or {"error": "out of memory"}.
    """
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    where = torch.device(device)
    faces = torch.randn(batch, DIM, device=where)
    (faces[:, :8] @ faces[:, :8].T).sum()  # libraries load before memory is counted
    before = _memory(where)
    try:
        head = CONTENDERS[contender](classes, rate, getattr(torch, dtype), where)
        seconds = []
        for step in range(steps + 1):
            labels = torch.randint(0, classes, (batch,), device=where)
            descriptors = faces.clone().requires_grad_()
            _synchronize(where)
            start = time.perf_counter()
            head.step(descriptors, labels)
            _synchronize(where)
            if step:
                seconds.append(time.perf_counter() - start)
    except (torch.OutOfMemoryError, MemoryError):
        return {"error": "out of memory"}
    peak, state = _memory(where) - before, head.state_bytes()
    median = sorted(seconds)[len(seconds) // 2]
    return {
        "faces_per_s": batch / median,
        "state_bytes": state,
        "peak_bytes": peak,
        "transient_bytes": max(peak - state, 0),
    }


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
