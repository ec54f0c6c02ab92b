"""Networks from files of every format: the same numbers from each, and refusals that say what to do."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from facescale.errors import CorruptError, FacescaleError, MismatchError, UsageError
from facescale.models.card import ModelCard
from facescale.models.registry import card as registered
from facescale.models.trust import TRUST_VARIABLE, is_trusted, trust_files
from facescale.vision.embedder import NetworkEmbedder, build_module, load
from facescale.vision.networks import load_network, read_state

CPU = torch.device("cpu")
SIZE, DIM = 16, 6


class Tiny(nn.Module):
    """A recognizer of 16 px."""

    def __init__(self, layout: str = "nchw") -> None:
        super().__init__()
        self.layout = layout
        self.conv = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.linear = nn.Linear(5 * 14 * 14, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.layout == "nhwc":
            x = x.permute(0, 3, 1, 2)
        found: torch.Tensor = self.linear(torch.flatten(torch.relu(self.norm(self.conv(x))), 1))
        return found


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    torch.manual_seed(0)
    module = Tiny()
    module(torch.randn(16, 3, SIZE, SIZE))  # moves the statistics off 0 and 1
    return module.eval()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACESCALE_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("FACESCALE_CACHE", str(tmp_path / "cache"))  # remembers the digests of files it met
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    return tmp_path


def make_card(file: str, **fields: Any) -> ModelCard:
    values: dict[str, Any] = {
        "name": "tiny",
        "task": "embedder",
        "architecture": "tiny",
        "file": file,
        "licence": "CC0-1.0",
        "non_commercial": False,
        "source": "a friend",
        "mean": (127.5, 100.0, 90.0),
        "scale": (128.0, 60.0, 70.0),
        "input_size": SIZE,
        "template": "arcface_112",
        "landmark_scheme": "arcface5",
        "dim": DIM,
    }
    return ModelCard(**values | fields)


def embedder_of(card: ModelCard, *, batch: int = 4, **options: Any) -> NetworkEmbedder:
    network = load_network(
        card, device=CPU, build=lambda _: Tiny(card.options.get("layout", "nchw")), batch=batch, **options
    )
    return NetworkEmbedder(card, network, device=CPU, batch=batch)


@pytest.fixture(scope="module")
def chips() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(tiny: Tiny, chips: np.ndarray) -> np.ndarray:
    """By the formula, without facescale."""
    scaled = (chips - np.array([127.5, 100, 90])) / np.array([128, 60, 70])
    with torch.inference_mode():
        return tiny(torch.from_numpy(scaled).permute(0, 3, 1, 2).float()).numpy()


def save_onnx(module: nn.Module, path: Path, *, batch: int | None = None, layout: str = "nchw") -> None:
    """Write an ONNX file with the classic exporter, which needs no further package."""
    shape = (batch or 2, 3, SIZE, SIZE) if layout == "nchw" else (batch or 2, SIZE, SIZE, 3)
    with pytest.warns(DeprecationWarning):
        torch.onnx.export(
            module,
            (torch.zeros(shape),),
            path,
            dynamo=False,
            input_names=["chips"],
            output_names=["descriptors"],
            dynamic_axes=None if batch else {"chips": {0: "n"}, "descriptors": {0: "n"}},
        )


def save(kind: str, tiny: Tiny, folder: Path) -> ModelCard:
    """The tiny network as a file of a kind, and its card."""
    if kind.startswith("onnx"):
        layout, batch = ("nhwc" if kind == "onnx_nhwc" else "nchw"), (3 if kind == "onnx_fixed" else None)
        module = Tiny(layout)
        module.load_state_dict(tiny.state_dict())
        save_onnx(module.eval(), folder / "tiny.onnx", batch=batch, layout=layout)
        return make_card("tiny.onnx", options={} if layout == "nchw" else {"layout": "nhwc"})
    if kind == "torchscript":
        with pytest.warns(DeprecationWarning):
            torch.jit.trace(tiny, torch.zeros(1, 3, SIZE, SIZE)).save(str(folder / "tiny.ts"))
        return make_card("tiny.ts", format="torchscript")
    if kind == "exported":
        some = torch.zeros(2, 3, SIZE, SIZE)
        dynamic = ({0: torch.export.Dim("n", min=1, max=64)},)
        torch.export.save(torch.export.export(tiny, (some,), dynamic_shapes=dynamic), folder / "tiny.pt2")
        return make_card("tiny.pt2")
    if kind == "safetensors":
        save_file = pytest.importorskip("safetensors.torch").save_file
        save_file(tiny.state_dict(), folder / "tiny.safetensors")
        return make_card("tiny.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in tiny.state_dict().items()}}, folder / "tiny.pt")
    return make_card("tiny.pt")


KINDS = ("state_dict", "safetensors", "torchscript", "exported", "onnx", "onnx_nhwc", "onnx_fixed")


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_numbers(
    kind: str,
    tiny: Tiny,
    folder: Path,
    chips: np.ndarray,
    expected: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = save(kind, tiny, folder)
    if kind in ("torchscript", "exported"):
        with pytest.raises(UsageError, match=r"can run code .* --trust"):
            embedder_of(card)
        monkeypatch.setenv(TRUST_VARIABLE, "1")
    np.testing.assert_allclose(embedder_of(card).embed(chips), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(
    precision: str, tiny: Tiny, folder: Path, chips: np.ndarray, expected: np.ndarray
) -> None:
    found = embedder_of(save("state_dict", tiny, folder), precision=precision).embed(chips)
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.999 and found.dtype == np.float32
    assert np.abs(found - expected).max() > 0


def test_compiled_networks_see_one_batch_size(
    tiny: Tiny, folder: Path, chips: np.ndarray, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the compiler makes of a graph is torch's business, and takes 20 s: here it gets as far as the graph."""
    sizes = []

    def note_sizes(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        sizes.append(max(value.shape[0] for value in inputs if value.dim() == 4 and value.shape[1] == 3))
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=note_sizes))
    embedder = embedder_of(save("state_dict", tiny, folder), accelerate="compile")
    np.testing.assert_allclose(embedder.embed(chips), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(embedder.embed(chips[:1]), expected[:1], rtol=0, atol=1e-5)
    assert len(sizes) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graphs_give_the_same_numbers(
    tiny: Tiny, folder: Path, chips: np.ndarray, expected: np.ndarray
) -> None:
    card = save("state_dict", tiny, folder)
    device = torch.device("cuda")
    network = load_network(card, device=device, build=lambda _: Tiny(), accelerate="cuda_graphs", batch=4)
    embedder = NetworkEmbedder(card, network, device=device, batch=4)
    for _ in range(2):
        np.testing.assert_allclose(embedder.embed(chips), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "accelerate", "message"),
    [
        ("state_dict", "cuda_graphs", "needs --device cuda; this is cpu"),
        ("state_dict", "tensorrt", "--runtime onnx"),
        ("onnx", "compile", "--runtime torch"),
        ("onnx", "cuda_graphs", "--runtime torch"),
        ("onnx", "tensorrt", "needs --device cuda"),
    ],
)
def test_accelerations_that_cannot_be_are_refused(
    kind: str, accelerate: str, message: str, tiny: Tiny, folder: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        embedder_of(save(kind, tiny, folder), accelerate=accelerate)


def test_prefixes_and_what_is_left_out(folder: Path) -> None:
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    torch.save(
        {"epoch": 3, "state_dict": {"features.module.fc": one, "features.module.logits.w": two, "fc": two}},
        folder / "mag.pth",
    )
    options = {"prefix": ["features.module.", "features."], "ignore": ["logits."]}
    assert read_state(make_card("mag.pth", options=options)) == {"fc": one}
    torch.save({"module.features.fc": two}, folder / "other.pth")
    assert read_state(make_card("other.pth", options=options)) == {"fc": two}
    with pytest.raises(MismatchError, match=r"'model\.', as the option prefix .* 'features\.fc'"):
        read_state(make_card("other.pth", options={"prefix": "model."}))


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("ran"), "x")


def test_pickles_that_run_code_do_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "bad.pt").write_bytes(pickle.dumps({"a": Payload()}))
    torch.save({"state_dict": {}, "hparams": Payload()}, folder / "worse.pt")
    for file in ("bad.pt", "worse.pt"):
        with pytest.raises(CorruptError, match=r"can be read safely.*--trust"):
            read_state(make_card(file))
    assert not (folder / "ran").exists()
    monkeypatch.setenv(TRUST_VARIABLE, "1")  # what trusting means
    assert read_state(make_card("worse.pt")) == {} and (folder / "ran").exists()


def test_trust_is_for_this_process_and_those_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUST_VARIABLE, "0")
    trust_files(False)
    assert not is_trusted()
    trust_files(True)
    assert is_trusted()


@pytest.mark.parametrize("file", ["x.onnx", "x.pt", "x.ts", "x.pt2", "x.safetensors"])
def test_files_of_rubbish_are_refused(file: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    (folder / file).write_bytes(b"rubbish" * 100)
    kind = {"format": "torchscript"} if file == "x.ts" else {}
    with pytest.raises((CorruptError, UsageError), match=file.replace(".", r"\.") + "|safetensors"):
        embedder_of(make_card(file, **kind))


def test_weights_of_another_network_are_refused(tiny: Tiny, folder: Path) -> None:
    torch.save({**tiny.state_dict(), "more": torch.zeros(1)}, folder / "tiny.pt")
    with pytest.raises(MismatchError, match=r"architecture 'tiny' of its card.*more"):
        embedder_of(make_card("tiny.pt"))
    with pytest.raises(UsageError, match="'tiny' does not run files of format 'state_dict'"):
        load(make_card("tiny.pt"), device=CPU, precision="fp32", batch=4)


def test_chips_of_another_size_are_refused(tiny: Tiny, folder: Path, chips: np.ndarray) -> None:
    embedder = embedder_of(save("onnx", tiny, folder))
    with pytest.raises(MismatchError, match=r"takes uint8 chips of \[N, 16, 16, 3\]"):
        embedder.embed(chips[:, :8, :8])
    with pytest.raises(MismatchError, match="its card says dim 7"):
        embedder_of(make_card("tiny.onnx", dim=7)).embed(chips)
    with pytest.raises(MismatchError, match="option layout"):
        embedder_of(make_card("tiny.onnx", options={"layout": "nhwc"})).embed(chips)
    with pytest.raises(UsageError, match="option layout is 'chwn'"):
        embedder_of(make_card("tiny.onnx", options={"layout": "chwn"}))


def test_arguments_of_backbones_come_from_the_card() -> None:
    card = make_card("x.pt", architecture="iresnet18", options={"backbone": {"eps": 0.5}})
    assert build_module(card).bn1.eps == 0.5  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="option backbone is 3"):
        build_module(make_card("x.pt", architecture="iresnet18", options={"backbone": 3}))
    mag = build_module(registered("magface_r100"))
    assert {module.eps for module in mag.modules() if hasattr(module, "eps")} == {2e-5}


def test_real_weights_give_the_same_numbers_in_torch_and_onnx() -> None:
    """MobileFaceNet, if its files are there; chips are pictures, not noise."""
    card = registered("mobilefacenet")
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (8, 3, 9, 9)))
    smooth = nn.functional.interpolate(coarse, size=112, mode="bicubic").clamp(0, 255)
    pictures = smooth.permute(0, 2, 3, 1).to(torch.uint8).numpy()
    found = []
    for backend in card.backends:
        try:
            found.append(
                load(card.for_backend(backend), device=CPU, precision="fp32", batch=8).embed(pictures)
            )
        except FacescaleError as error:
            pytest.skip(str(error))
    assert len(found) == 2
    np.testing.assert_allclose(*found, rtol=0, atol=1e-4)
