"""Faces against millions of classes without their logits: log-sum-exp and gradients, a block of classes at a time.

The one kernel of facescale.training.partial_fc. A softmax over C classes needs of the logits [B, C] only the sum of
their exponentials, [B]; the backward pass makes each block of logits once more. So what is held beside the centers is
a few blocks, whatever C is, for four matrix products in place of three. Gradients of the centers are handed out block
by block, so that an optimizer may use and forget them.

Shape legend: B faces, D dimension, C classes, K centers a class, S sampled classes, n classes of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Sink = Callable[[torch.Tensor | slice, torch.Tensor], None]

DEFAULT_BLOCK_BYTES = 32 << 20
_LEAST_CLASSES = 256


@dataclass(frozen=True)
class Blocks:
    """How the classes are gone through.

    Attributes:
        scale: s of the logits.
        centers: K, rows of the weight a class has, next to each other.
        dtype: of the matrix products; sums and norms are float32 (float64 for float64 weights).
        sink: called with the rows of a block (a slice, or int64 rows) and the gradient of their weights.
        block_bytes: of one block of logits in float32.
    """

    scale: float
    sink: Sink
    centers: int = 1
    dtype: torch.dtype = torch.float32
    block_bytes: int = DEFAULT_BLOCK_BYTES

    def spans(self, batch: int, classes: int) -> Iterator[tuple[int, int]]:
        """Start and stop of each block of classes."""
        step = max(self.block_bytes // (4 * max(batch, 1) * self.centers), _LEAST_CLASSES)
        for start in range(0, classes, step):
            yield start, min(start + step, classes)


def blocked_logits(
    faces_BD: torch.Tensor,
    weight: torch.Tensor,
    classes_S: torch.Tensor | None,
    target_B: torch.Tensor,
    blocks: Blocks,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exp over the classes that are not a face's own, and the cosine with its own.

    Args:
        faces_BD: float [B, D], unit descriptors.
        weight: float [C · K, D], centers, of any length; its gradient goes to `blocks.sink`, not to `weight.grad`.
        classes_S: int64 [S], classes that take part, rising; None for all of them.
        target_B: int64 [B], position of each face's class among those; -1 where it is not there.
        blocks: how.

    Returns:
        float [B], log Σ exp(s · cos) over the classes that take part without the target (-inf where there is none), and
        float [B], cosine with the target (0 where there is none). A class's cosine is that of its nearest center.
    """
    found: tuple[torch.Tensor, torch.Tensor] = _BlockedLogits.apply(  # type: ignore[no-untyped-call]
        faces_BD, weight, classes_S, target_B, blocks
    )
    return found


class _BlockedLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        faces: torch.Tensor,
        weight: torch.Tensor,
        classes: torch.Tensor | None,
        target: torch.Tensor,
        blocks: Blocks,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cast = _cast(faces, blocks)
        total = torch.full((len(faces),), -torch.inf, dtype=faces.dtype, device=faces.device)
        own = torch.zeros_like(total)
        for start, stop in blocks.spans(len(faces), _count(weight, classes, blocks)):
            unit, _, _ = _unit(weight, classes, start, stop, blocks)
            logits, _ = _logits(cast, unit, blocks)
            here, column = _targets(target, start, stop)
            own[here] = logits[here, column] / blocks.scale
            logits[here, column] = -torch.inf
            total = torch.logaddexp(total, torch.logsumexp(logits, dim=1))
        ctx.save_for_backward(faces, total, target)
        ctx.weight, ctx.classes, ctx.blocks = weight, classes, blocks
        return total, own

    @staticmethod
    def backward(
        ctx: Any, grad_total: torch.Tensor, grad_own: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None, None]:
        faces, total, target = ctx.saved_tensors
        weight, classes, blocks = ctx.weight, ctx.classes, ctx.blocks
        cast = _cast(faces, blocks)
        grad_faces = torch.zeros_like(faces)
        # exp(-inf - -inf) is not a number: a face without other classes has no gradient from them.
        shift = torch.where(total.isinf(), torch.zeros_like(total), total)[:, None]
        factor = (grad_total * blocks.scale)[:, None]
        for start, stop in blocks.spans(len(faces), _count(weight, classes, blocks)):
            unit, length, rows = _unit(weight, classes, start, stop, blocks)
            logits, nearest = _logits(cast, unit, blocks)
            share = logits.sub_(shift).exp_().mul_(factor)
            here, column = _targets(target, start, stop)
            share[here, column] = grad_own[here]
            if nearest is not None:
                spread = torch.zeros(*share.shape, blocks.centers, dtype=share.dtype, device=share.device)
                share = spread.scatter_(2, nearest[..., None], share[..., None]).flatten(1)
            share = share.to(blocks.dtype) if faces.dtype != torch.float64 else share
            grad_faces += share @ unit
            grad_unit = (share.T @ cast).to(weight.dtype)
            straight = unit.to(weight.dtype)
            grad_unit -= straight * (straight * grad_unit).sum(dim=1, keepdim=True)
            blocks.sink(rows, grad_unit.div_(length))
        return grad_faces, None, None, None, None


def _cast(faces: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    return faces if faces.dtype == torch.float64 else faces.to(blocks.dtype)


def _count(weight: torch.Tensor, classes: torch.Tensor | None, blocks: Blocks) -> int:
    return len(weight) // blocks.centers if classes is None else len(classes)


def _unit(
    weight: torch.Tensor, classes: torch.Tensor | None, start: int, stop: int, blocks: Blocks
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | slice]:
    """Unit centers of a block [n · K, D] in the products' type, their lengths [n · K, 1], and their rows."""
    rows: torch.Tensor | slice
    if classes is None:
        rows = slice(start * blocks.centers, stop * blocks.centers)
        some = weight[rows]
    else:
        rows = classes[start:stop]
        if blocks.centers > 1:
            rows = (
                rows[:, None] * blocks.centers + torch.arange(blocks.centers, device=rows.device)
            ).flatten()
        some = weight.index_select(0, rows)
    length = torch.linalg.vector_norm(some, dim=1, keepdim=True).clamp_(min=1e-12)
    unit = some / length
    return unit if weight.dtype == torch.float64 else unit.to(blocks.dtype), length, rows


def _logits(
    cast: torch.Tensor, unit: torch.Tensor, blocks: Blocks
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """S · cosines [B, n] in float32 or float64, and which center is the nearest, where there are several."""
    cosines = cast @ unit.T
    values = cosines if cosines.dtype == torch.float64 else cosines.float()
    values = values.mul_(blocks.scale)
    if blocks.centers == 1:
        return values, None
    found = values.view(len(values), -1, blocks.centers).max(dim=2)
    return found.values, found.indices


def _targets(target: torch.Tensor, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Faces whose class is in a block, and its column there."""
    here = torch.nonzero((target >= start) & (target < stop)).squeeze(1)
    return here, target[here] - start
