"""Backbones against what their makers published: parameters, operations, and the names of tensors in their files."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from facescale.errors import UsageError
from facescale.models.registry import cards
from facescale.vision.align import TEMPLATES
from facescale.vision.backbones import BACKBONES, create
from facescale.vision.embedder import build_module

# Millions of parameters and of multiply-adds, as rounded by those who published them; None where they did not.
PUBLISHED = {
    # arcface_torch's table of backbones counts multiply-adds ("FLOPs") in billions.
    "iresnet18": (24.0, 2600),
    "iresnet50": (43.6, 6300),
    "iresnet100": (65.2, 12100),
    "iresnet200": (None, 23500),
    "mbf": (None, 450),
    "vit_t": (None, 1500),
    "vit_s": (None, 5700),
    "vit_b": (None, 11400),
    "vit_l": (None, 25300),
    "mobilefacenet": (0.99, 221),  # table 2 of the paper
    # EdgeFace counts multiplications and additions apart.
    "edgeface_xxs": (1.24, 94.72 / 2),
    "edgeface_xs": (1.77, 154.00 / 2),
    "edgeface_s": (3.65, 306.12 / 2),
    "edgeface_base": (18.23, 1398.83 / 2),
}
KEYS = {
    "iresnet100": {
        "conv1.weight": (64, 3, 3, 3),
        "layer1.0.downsample.0.weight": (64, 64, 1, 1),
        "layer3.29.bn3.running_var": (256,),
        "layer4.2.prelu.weight": (512,),
        "fc.weight": (512, 25088),
        "features.running_mean": (512,),
    },
    "ir101": {
        "input_layer.2.weight": (64,),
        "body.3.shortcut_layer.0.weight": (128, 64, 1, 1),
        "body.48.res_layer.5.weight": (512,),
        "output_layer.3.weight": (512, 25088),
        "output_layer.4.running_mean": (512,),
    },
    "mobilefacenet": {
        "dw_conv.bn2.weight": (64,),
        "features.5.conv.1.0.weight": (256, 1, 3, 3),
        "gdconv.depthwise.weight": (512, 1, 7, 7),
        "conv3.bias": (128,),
    },
    "mbf": {
        "layers.0.layers.0.weight": (128, 3, 3, 3),
        "layers.3.layers.3.layers.2.layers.1.weight": (128,),
        "conv_sep.layers.2.weight": (512,),
        "features.layers.2.weight": (512, 512),
    },
    "inception_resnet_v1": {
        "conv2d_4b.bn.running_mean": (256,),
        "repeat_1.4.branch2.2.conv.weight": (32, 32, 3, 3),
        "mixed_6a.branch1.2.conv.weight": (256, 192, 3, 3),
        "repeat_2.9.branch1.1.conv.weight": (128, 128, 1, 7),
        "block8.conv2d.bias": (1792,),
        "last_linear.weight": (512, 1792),
    },
    "vit_b": {
        "patch_embed.proj.weight": (512, 3, 9, 9),
        "pos_embed": (1, 144, 512),
        "mask_token": (1, 1, 512),
        "blocks.23.attn.qkv.weight": (1536, 512),
        "blocks.0.mlp.fc1.bias": (2048,),
        "feature.0.weight": (512, 73728),
        "feature.3.running_var": (512,),
    },
    "edgeface_xs": {
        "stem.1.weight": (32,),
        "stages.1.downsample.1.weight": (64, 32, 2, 2),
        "stages.1.blocks.2.pos_embd.token_projection.weight": (64, 64, 1, 1),
        "stages.2.blocks.8.convs.1.weight": (34, 1, 3, 3),
        "stages.3.blocks.0.mlp.fc1.linear1.weight": (115, 192),
        "stages.3.blocks.2.xca.temperature": (4, 1, 1),
        "head.norm.weight": (192,),
        "head.fc.linear2.bias": (512,),
    },
}


@pytest.fixture(scope="module", params=BACKBONES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_size_work_and_names_are_those_published(name: str) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        module = create(name).eval()
        size = BACKBONES[name].size
        found = module(torch.empty(2, 3, size, size))
    assert found.shape == (2, BACKBONES[name].dim)
    state = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    expected = KEYS.get(name, {})
    assert {key: state.get(key) for key in expected} == expected
    parameters, work = PUBLISHED.get(name, (None, None))
    if parameters is not None:
        assert sum(v.numel() for v in module.parameters()) / 1e6 == pytest.approx(parameters, rel=0.012)
    if work is not None:
        per_image = counter.get_total_flops() / 2 / 2e6  # two images; a multiply-add counts twice
        assert per_image == pytest.approx(work, rel=0.06 if name == "mobilefacenet" else 0.03)


def test_facenet_fills_its_file_to_the_megabyte() -> None:
    with torch.device("meta"):
        state = create("inception_resnet_v1").state_dict()
    bytes_of_network = sum(v.numel() * v.element_size() for v in state.values())
    for people, mebibytes in (
        (8631, 107),
        (10575, 111),
    ):  # the files hold the classifier of their training, too
        classifier = (512 + 1) * people * 4
        assert (bytes_of_network + classifier) / 2**20 == pytest.approx(mebibytes, abs=1)


@pytest.mark.parametrize("name", ["iresnet18", "ir18", "mobilefacenet", "mbf", "vit_t", "edgeface_xs"])
def test_a_state_dict_carries_everything(name: str) -> None:
    """Two modules agree on nothing until one has the other's tensors; in inference mode each image is alone."""
    torch.manual_seed(1)
    one, other = create(name, dim=32), create(name, dim=32).eval()
    images = torch.randn(3, 3, 112, 112)
    for module in one.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1  # statistics as after training, not the neutral 0 and 1
    with torch.inference_mode():
        one.train()(images)
        expected = one.eval()(images)
        assert not torch.allclose(other(images), expected, atol=1e-3)
        other.load_state_dict(one.state_dict())
        torch.testing.assert_close(other(images), expected)
        torch.testing.assert_close(one(images[1:]), expected[1:], rtol=1e-3, atol=1e-3)
    assert torch.pdist(expected).min() > 1e-3


def test_facenet_gives_unit_vectors() -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        found = create("inception_resnet_v1", dim=16).eval()(torch.randn(2, 3, 160, 160))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_batch_norm_of_the_head_keeps_its_scale() -> None:
    """Margin losses fix the length of descriptors: insightface does not train that scale, and neither do we."""
    with torch.device("meta"):
        trained = {key for key, value in create("iresnet18").named_parameters() if value.requires_grad}
    assert "features.weight" not in trained and {"features.bias", "fc.weight"} <= trained


def test_unknown_names_and_options() -> None:
    with pytest.raises(UsageError, match="did you mean iresnet100"):
        create("iresnet1000")
    with pytest.raises(UsageError, match=r"'iresnet18': .*'epsilon'"):
        create("iresnet18", epsilon=1)


@pytest.mark.parametrize(
    "card",
    [c for c in cards("embedder") if any(c.for_backend(b).format == "state_dict" for b in c.backends)],
    ids=lambda card: card.name,
)
def test_cards_of_state_dicts_name_networks_that_fit_them(card: object) -> None:
    torch_card = card.for_backend("torch")  # type: ignore[attr-defined]
    with torch.device("meta"):
        module = build_module(torch_card).eval()
        size = torch_card.input_size
        assert module(torch.empty(1, 3, size, size)).shape == (1, torch_card.dim)
    assert TEMPLATES[torch_card.template].size == size == BACKBONES[torch_card.architecture].size
    assert TEMPLATES[torch_card.template].scheme == torch_card.landmark_scheme


def test_training_can_import_them_alone() -> None:
    code = (
        "import sys; from facescale.vision.backbones import create; create('edgeface_xxs');"
        "assert not {'pyarrow', 'fsspec', 'cv2', 'onnxruntime', 'ray'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
