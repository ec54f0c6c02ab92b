"""The contenders of bench partial-fc do the same work: equal centers and gradients after some steps."""

from __future__ import annotations

import pytest
import torch

from facescale.bench.partial_fc_loop import DIM, Current, Older, Ours, measure


def test_contenders_learn_the_same() -> None:
    """Without sampling nothing is drawn, so the three must agree; centers start out equal."""
    cpu = torch.device("cpu")
    heads = [kind(700, 1.0, torch.float32, cpu) for kind in (Ours, Current, Older)]
    weights = [heads[0].head.weight, heads[1].weight.data, heads[2].weight]
    for weight in weights[1:]:
        weight.copy_(weights[0])
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        faces = torch.randn(16, DIM, generator=generator)
        labels = torch.randint(0, 700, (16,), generator=generator)
        gradients = []
        for head in heads:
            given = faces.clone().requires_grad_()
            head.step(given, labels)
            gradients.append(given.grad)
        for other in (1, 2):
            torch.testing.assert_close(gradients[other], gradients[0], rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(weights[other], weights[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("contender", ["ours", "V1", "V2"])
def test_a_measurement(contender: str) -> None:
    threads = torch.get_num_threads()
    found = measure(contender, 2000, 8, 0.5, "float32", "cpu", steps=1, threads=threads)
    assert found["faces_per_s"] > 0 and found["state_bytes"] == 2 * 2000 * DIM * 4
