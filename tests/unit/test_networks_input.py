"""What a network is given: normalized planes, and no more of a batch at a time than suits a CPU's caches."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from facescale.models.registry import card
from facescale.models.weights import use_weights_folder
from facescale.vision import onnx_network
from facescale.vision.extract import CUT_AT_ONCE, image_spans
from facescale.vision.networks import normalize
from facescale.vision.onnx_network import OnnxNetwork

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("plain", [True, False])
def test_planes_are_the_formula_of_the_card(order: str, plain: bool) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    numbers = {"mean": (0.0,) * 3, "scale": (1.0,) * 3} if plain else {}
    model = dataclasses.replace(card("mobilefacenet"), channel_order=order, **numbers)
    values = pixels[..., ::-1] if order == "bgr" else pixels
    expected = (values - np.float32(model.mean)) / np.float32(model.scale)
    found = normalize(torch.from_numpy(pixels), model)
    assert found.is_contiguous()
    np.testing.assert_array_equal(found.numpy(), expected.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("name", ["yunet_n", "mobilefacenet"])
def test_a_batch_in_pieces_gives_the_same_bits(
    name: str, shared_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_weights_folder(str(shared_root / "models"))
    task = "detector" if name == "yunet_n" else "embedder"
    network = OnnxNetwork(card(name, task), device=torch.device("cpu"))
    side = 112 if task == "embedder" else 96
    batch = torch.rand(5, 3, side, side, generator=torch.Generator().manual_seed(1)) * 255
    monkeypatch.setattr(onnx_network, "CPU_CALL_PIXELS", 5 * side * side)
    whole = network(batch)
    for pixels in (1, 2 * side * side):
        monkeypatch.setattr(onnx_network, "CPU_CALL_PIXELS", pixels)
        pieces = network(batch)
        assert pieces.keys() == whole.keys()
        assert all(torch.equal(pieces[output], whole[output]) for output in whole)


@given(st.lists(st.integers(1, 255), min_size=1, max_size=40), st.integers(1, 8))
def test_images_are_split_without_loss_and_within_the_bound(counts: list[int], threads: int) -> None:
    spans = image_spans(counts, threads)
    assert [i for span in spans for i in range(span.start, span.stop)] == list(range(len(counts)))
    for span in spans:
        some = counts[span]
        assert some and (len(some) == 1 or sum(some) <= min(CUT_AT_ONCE, -(-sum(counts) // threads)))
