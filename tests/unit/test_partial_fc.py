"""Partial FC against a dense float64 softmax over the same classes: on one rank and on several, sampled and whole."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from facescale.errors import DataError, UsageError
from facescale.training.margins import ArcFace, CosFace, MagFace
from facescale.training.partial_fc import PartialFC, shard_of

C, D, B = 53, 16, 12


def batch(seed: int = 0, size: int = B) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    faces = torch.randn(size, D, generator=generator, dtype=torch.float64) * 3
    return faces, torch.randint(0, C, (size,), generator=generator)


def dense(
    faces: torch.Tensor,
    labels: torch.Tensor,
    weight: torch.Tensor,
    classes: torch.Tensor,
    margin: Any,
    centers: int = 1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss and gradients of faces and of all centers, by cross entropy over these classes."""
    faces, weight = faces.clone().requires_grad_(), weight.clone().requires_grad_()
    unit = torch.nn.functional.normalize(weight, dim=1)
    cosine = torch.nn.functional.normalize(faces, dim=1) @ unit.T
    cosine = cosine.view(len(faces), -1, centers).amax(dim=2)[:, classes]
    place = torch.searchsorted(classes, labels)
    rows = torch.arange(len(faces))
    turned, extra = margin(cosine[rows, place], faces.norm(dim=1))
    logits = cosine.index_put((rows, place), turned) * margin.scale
    loss = torch.nn.functional.cross_entropy(logits, place) + extra.mean()
    loss.backward()
    assert faces.grad is not None and weight.grad is not None
    return loss.detach(), faces.grad, weight.grad


@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("centers", [1, 3])
@pytest.mark.parametrize(
    "margin", [ArcFace(scale=16), CosFace(scale=64), MagFace(scale=8, norms=(2, 20))], ids=str
)
def test_as_a_dense_softmax_over_the_same_classes(rate: float, centers: int, margin: Any) -> None:
    head = PartialFC(C, D, margin, sample_rate=rate, centers=centers, block_bytes=1).double()
    faces, labels = batch()
    faces.requires_grad_()
    loss = head(faces, labels)
    loss.backward()
    classes = torch.arange(C) if head.last_classes is None else head.last_classes
    assert set(labels.tolist()) <= set(classes.tolist())
    expected, by_faces, by_weight = dense(faces.detach(), labels, head.weight, classes, margin, centers)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(faces.grad, by_faces, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(head.grads, by_weight, rtol=1e-8, atol=1e-10)


def test_blocks_change_nothing() -> None:
    """300 classes are two blocks when a block is as small as it gets."""
    results = []
    for block_bytes in (1, 1 << 30):
        head = PartialFC(300, D, ArcFace(), block_bytes=block_bytes).double()
        faces, labels = batch()
        faces.requires_grad_()
        loss = head(faces, labels + 240 * (labels < 10))
        loss.backward()
        results.append((loss.detach(), faces.grad, head.grads))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_the_update_is_sgd_of_the_centers_that_take_part(rate: float) -> None:
    """Three steps beside torch's SGD on the same gradients; centers that are not drawn stand still."""
    head = PartialFC(C, D, ArcFace(scale=16), sample_rate=rate, weight_decay=0.01, seed=3).double()
    head.learning_rate = 0.1
    weight, velocity = head.weight.clone(), torch.zeros_like(head.weight)
    for step in range(3):
        faces, labels = batch(step)
        faces.requires_grad_()
        head(faces, labels).backward()
        classes = torch.arange(C) if head.last_classes is None else head.last_classes
        _, _, gradient = dense(faces.detach(), labels, weight, classes, ArcFace(scale=16))
        velocity[classes] = 0.9 * velocity[classes] + gradient[classes] + 0.01 * weight[classes]
        weight[classes] -= 0.1 * velocity[classes]
        torch.testing.assert_close(head.weight, weight, rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(head.velocity, velocity, rtol=1e-8, atol=1e-11)
    assert head.grads is None


def test_the_share_that_is_drawn() -> None:
    head = PartialFC(20_000, 4, CosFace(), sample_rate=0.1)
    head(torch.randn(8, 4), torch.arange(8))
    first = head.last_classes
    head(torch.randn(8, 4), torch.arange(8))
    assert first is not None and head.last_classes is not None
    assert abs(len(first) - 2000) < 200 and not torch.equal(first, head.last_classes)
    assert set(range(8)) <= set(first.tolist())


def test_bfloat16_products_come_near() -> None:
    faces, labels = batch()
    losses = [
        float(PartialFC(C, D, CosFace(scale=16), dtype=dtype)(faces.float(), labels))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


def test_one_class_has_no_others() -> None:
    head = PartialFC(1, D, CosFace())
    faces = torch.randn(3, D, requires_grad=True)
    loss = head(faces, torch.zeros(3, dtype=torch.int64))
    loss.backward()
    assert float(loss.detach()) == 0 and torch.equal(faces.grad, torch.zeros_like(faces))


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="label 53 is no class: they go from 0 to 52"):
        PartialFC(C, D, CosFace())(torch.randn(1, D), torch.tensor([53]))
    with pytest.raises(UsageError, match="sample_rate"):
        PartialFC(C, D, CosFace(), sample_rate=0.0)


def test_centers_do_not_depend_on_the_number_of_ranks() -> None:
    assert [shard_of(10, rank, 3) for rank in range(3)] == [(0, 4), (4, 7), (7, 10)]
    from facescale.training.partial_fc import _initial

    whole = _initial(9000, 4, 0, seed=5)
    parts = [
        _initial(stop - first, 4, first, seed=5)
        for first, stop in (shard_of(9000, rank, 4) for rank in range(4))
    ]
    assert torch.equal(whole, torch.cat(parts))


def _on_a_rank(rank: int, world_size: int, port: int, rate: float, folder: str) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    torch.set_num_threads(1)
    try:
        faces, labels = batch()
        mine = slice(rank * B // world_size, (rank + 1) * B // world_size)
        faces = faces[mine].clone().requires_grad_()
        head = PartialFC(C, D, MagFace(scale=8, norms=(2, 20)), sample_rate=rate).double()
        loss = head(faces, labels[mine])
        loss.backward()
        classes = torch.arange(len(head.weight)) if head.last_classes is None else head.last_classes
        found = {
            "loss": loss.detach(),
            "faces": faces.grad,
            "weight": head.grads,
            "classes": classes + head.first_class,
        }
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("world_size", "rate"), [(2, 1.0), (2, 0.4), (4, 0.4)])
def test_ranks_together_are_a_dense_softmax(world_size: int, rate: float, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_on_a_rank, (world_size, port, rate, str(tmp_path)), nprocs=world_size)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world_size)]
    faces, labels = batch()
    weight = PartialFC(C, D, CosFace()).double().weight
    classes = torch.cat([part["classes"] for part in found])
    expected, by_faces, by_weight = dense(faces, labels, weight, classes, MagFace(scale=8, norms=(2, 20)))
    for part in found:
        torch.testing.assert_close(part["loss"], expected, rtol=1e-10, atol=1e-10)
    # Averaged over ranks, as DistributedDataParallel does, this is the gradient of the mean over all faces.
    gathered = torch.cat([part["faces"] for part in found]) / world_size
    torch.testing.assert_close(gathered, by_faces, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(
        torch.cat([part["weight"] for part in found]), by_weight, rtol=1e-8, atol=1e-10
    )
