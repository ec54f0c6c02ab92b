"""Partial FC: descriptors and class ids in, a softmax loss over millions of classes out, centers updated on the way.

An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by Partial FC"
(arXiv 2203.15565). The centers of C classes are sharded over the ranks of a process group; every rank sees all faces.
Of the classes of its shard a rank takes those that are in the batch and a random share of the others, so that the
work falls with the sample rate.

What is ours: logits are never held (facescale.training.blocked_logits), and neither are gradients of centers: each
block's are used for the update and forgotten. Beside centers and momentum the memory is a few blocks, whatever C is.

Only sampled centers are updated, with momentum and weight decay of those alone: the momentum of a center that is not
sampled stands still instead of decaying, which is what the paper's code does as well.

Shape legend: B faces of one rank, G of all ranks, D dimension, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - its usual name

from facescale.errors import DataError, UsageError
from facescale.training.blocked_logits import DEFAULT_BLOCK_BYTES, Blocks, blocked_logits

if TYPE_CHECKING:
    from facescale.training.margins import Margin


_DRAWN = 4096  # centers drawn together, from a seed of their own


class PartialFC(torch.nn.Module):
    """The head of a recognizer in training.

    `forward` gives the loss; its backward pass gives the descriptors' gradient and, when `learning_rate` is set, moves
    the centers then and there. Without a learning rate the gradients of the centers are added up in `grads`, for tests
    and for other optimizers.

    On several ranks each calls `forward` with its own faces. The loss is the mean over the faces of all ranks, the same
    on every rank; gradients of descriptors are multiplied by the number of ranks, so that averaging over ranks, as
    DistributedDataParallel does with the backbone's, gives the gradient of that mean.

    Args:
        num_classes: C, of all ranks together.
        dim: D.
        margin: facescale.training.margins.
        sample_rate: share of the other classes that take part in a step; 1 takes all.
        centers: K of sub-center ArcFace (Deng et al., ECCV 2020): a class is as near as its nearest center.
        momentum: of SGD.
        weight_decay: of SGD, on centers that take part.
        dtype: of the matrix products; centers, momentum and sums are float32.
        block_bytes: of one block of logits.
        seed: of the centers and of the sampling; different ranks draw differently.
        group: process group; None is the default one, where torch.distributed is initialized.
        device: of centers and momentum.
    """

    weight: torch.Tensor
    velocity: torch.Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        margin: Margin,
        *,
        sample_rate: float = 1.0,
        centers: int = 1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        dtype: torch.dtype = torch.float32,
        block_bytes: int = DEFAULT_BLOCK_BYTES,
        seed: int = 0,
        group: Any = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if not 0 < sample_rate <= 1:
            raise UsageError(f"sample_rate: expected a share above 0 and up to 1, got {sample_rate}")
        if min(num_classes, dim, centers) < 1:
            raise UsageError(f"classes, dim and centers start at 1, got {num_classes}, {dim}, {centers}")
        self.num_classes, self.margin, self.sample_rate, self.centers = (
            num_classes,
            margin,
            sample_rate,
            centers,
        )
        self.momentum, self.weight_decay, self.dtype, self.block_bytes = (
            momentum,
            weight_decay,
            dtype,
            block_bytes,
        )
        self.group = group
        self.is_distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank(group) if self.is_distributed else 0
        self.world_size = dist.get_world_size(group) if self.is_distributed else 1
        self.first_class, self.stop_class = shard_of(num_classes, self.rank, self.world_size)
        self.seed, self.step = seed, 0
        self.learning_rate: float | None = None
        self.grads: torch.Tensor | None = None
        self.last_classes: torch.Tensor | None = None
        count = (self.stop_class - self.first_class) * centers
        self.register_buffer("weight", _initial(count, dim, self.first_class * centers, seed).to(device))
        self.register_buffer("velocity", torch.zeros(count, dim, device=device))

    def forward(self, descriptors_BD: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        """The loss of a batch.

        Args:
            descriptors_BD: float [B, D], as the backbone gives them; B is the same on all ranks.
            labels_B: int64 [B], class ids 0 … C - 1.

        Returns:
            Scalar, the mean over the faces of all ranks.

        Raises:
            DataError: a label is no class.
        """
        if len(labels_B) and (int(labels_B.min()) < 0 or int(labels_B.max()) >= self.num_classes):
            bad = labels_B[(labels_B < 0) | (labels_B >= self.num_classes)][0]
            raise DataError(f"label {int(bad)} is no class: they go from 0 to {self.num_classes - 1}")
        working = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        norms = torch.linalg.vector_norm(descriptors_BD.to(working), dim=1)
        faces = F.normalize(descriptors_BD.to(working), dim=1)
        if self.world_size > 1:
            # Each rank has the faces' gradient from its own classes only, and that of the lengths as a whole.
            faces, norms = _gather(faces, self.group, partial=True), _gather(norms, self.group, partial=False)
            labels_B = torch.cat(_all(labels_B, self.group))
        classes, target = self._sample(labels_B)
        self.last_classes = classes
        blocks = Blocks(
            scale=self.margin.scale,
            sink=self._take,
            centers=self.centers,
            dtype=self.dtype,
            block_bytes=self.block_bytes,
        )
        others, cosine = blocked_logits(faces, self.weight, classes, target, blocks)
        if self.world_size > 1:
            others, cosine = self._over_ranks(others, cosine, target)
        turned, extra = self.margin(cosine, norms)
        self.step += 1
        # -log(exp(z) / (exp(z) + Σ exp(others))) = log(1 + exp(lse(others) - z)); softplus would round beyond 20
        excess = others - self.margin.scale * turned
        return (torch.logaddexp(torch.zeros_like(excess), excess) + extra).mean()

    def _sample(self, labels_G: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Classes of this shard that take part, rising (None: all), and each face's position among them or -1."""
        count = self.stop_class - self.first_class
        local = labels_G - self.first_class
        mine = (local >= 0) & (local < count)
        if self.sample_rate == 1:
            return None, torch.where(mine, local, torch.full_like(local, -1))
        generator = torch.Generator(self.weight.device)
        generator.manual_seed((self.seed * 1_000_003 + self.step) * 65_537 + self.rank)
        taken = torch.rand(count, generator=generator, device=self.weight.device) < self.sample_rate
        taken[local[mine]] = True
        classes = torch.nonzero(taken).squeeze(1)
        place = torch.searchsorted(classes, local.clamp(0, max(count - 1, 0)))
        return classes, torch.where(mine, place, torch.full_like(place, -1))

    def _over_ranks(
        self, others: torch.Tensor, cosine: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same over all shards; what other ranks hold is a constant here, and has its gradient there."""
        parts = _all(others.detach(), self.group)
        parts[self.rank] = others
        owned = torch.where(target >= 0, cosine.detach(), torch.zeros_like(cosine))
        dist.all_reduce(owned, group=self.group)
        return torch.logsumexp(torch.stack(parts), dim=0), torch.where(target >= 0, cosine, owned)

    @torch.no_grad()
    def _take(self, rows: torch.Tensor | slice, gradient: torch.Tensor) -> None:
        """Use the gradient of some centers: one step of SGD, or a place in `grads`."""
        if self.learning_rate is None:
            if self.grads is None:
                self.grads = torch.zeros_like(self.weight)
            self.grads[rows] += gradient
            return
        if isinstance(rows, slice):
            weight, velocity = self.weight[rows], self.velocity[rows]
            gradient.add_(weight, alpha=self.weight_decay)
            velocity.mul_(self.momentum).add_(gradient)
            weight.sub_(velocity, alpha=self.learning_rate)
            return
        weight = self.weight.index_select(0, rows)
        velocity = self.velocity.index_select(0, rows).mul_(self.momentum)
        velocity.add_(gradient.add_(weight, alpha=self.weight_decay))
        self.velocity.index_copy_(0, rows, velocity)
        self.weight.index_copy_(0, rows, weight.sub_(velocity, alpha=self.learning_rate))


def shard_of(num_classes: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and stop class of a rank: contiguous, sizes differ by one at most, the larger ones first."""
    least, more = divmod(num_classes, world_size)
    first = rank * least + min(rank, more)
    return first, first + least + (rank < more)


def _initial(count: int, dim: int, first: int, seed: int) -> torch.Tensor:
    """Centers drawn from N(0, 0.01), the same for a class whatever the number of ranks."""
    weight = torch.empty(count, dim)
    at = 0
    while at < count:
        row = first + at
        block, inside = divmod(row, _DRAWN)
        generator = torch.Generator().manual_seed((seed << 32) + block)
        drawn = torch.randn(_DRAWN, dim, generator=generator)[inside:]
        stop = min(at + len(drawn), count)
        weight[at:stop] = drawn[: stop - at] * 0.01
        at = stop
    return weight


def _all(values: torch.Tensor, group: Any) -> list[torch.Tensor]:
    """The values of every rank; they have one shape."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, values.contiguous(), group=group)
    return parts


def _gather(values: torch.Tensor, group: Any, *, partial: bool) -> torch.Tensor:
    gathered: torch.Tensor = _Gather.apply(values, group, partial)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    """Values of all ranks, one after the other; partial gradients of all ranks are added up. See PartialFC."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, group: Any, partial: bool) -> torch.Tensor:
        ctx.group, ctx.count, ctx.partial = group, len(values), partial
        return torch.cat(_all(values, group))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gradient = gradient.contiguous()
        if ctx.partial:
            dist.all_reduce(gradient, group=ctx.group)
        rank, world_size = dist.get_rank(ctx.group), dist.get_world_size(ctx.group)
        return gradient[rank * ctx.count : (rank + 1) * ctx.count] * world_size, None, None
