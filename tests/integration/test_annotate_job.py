"""annotate over a real lake: its columns against direct computation, resuming, what is refused, conditions on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from onnx_files import pooled_scores

import facescale
from facescale.config.job import JobConfig
from facescale.errors import CorruptError, MismatchError, UsageError
from facescale.lake.parts import TableVersion
from facescale.models.annotator_card import AnnotatorPart, EyeCrop
from facescale.models.card import ModelCard, read_card
from facescale.models.registry import register_card
from facescale.pipeline import dry_run
from facescale.vision.annotator import load as load_network_annotator
from facescale.vision.annotator_chips import annotator_chips
from facescale.vision.crops import decode_jpeg
from facescale.vision.registry import register_annotator

LAKE = "crawl.lake"
SIZE = 64
# Mean red, green and blue of the chip, 0 to 255, then twice red.
WEIGHTS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [2, 0, 0]], np.float32)
HERE = {"workers": 0, "threads": 1}


def tone_card(**more: Any) -> dict[str, Any]:
    columns = [
        {"name": "red", "type": "float", "description": "Mean red.", "pick": 0},
        {"name": "main_color", "type": "string", "description": "The strongest.", "how": "argmax", "range": [0, 3],
         "classes": ["red", "green", "blue"]},
        {"name": "is_bright", "type": "bool", "description": "Bright.", "how": "threshold", "pick": 1, "threshold": 90},
        {"name": "colors", "type": "list<float>", "description": "All.", "range": [0, 3]},
    ]  # fmt: skip
    return {
        "name": "tone",
        "task": "annotator",
        "architecture": "onnx",
        "file": "tone.onnx",
        "licence": "Apache-2.0",
        "non_commercial": False,
        "source": "the tests",
        "input_size": SIZE,
        "annotator": {"columns": columns, "crop": {"eyes_at": [0.5, 0.4], "eye_distance": 0.4}},
    } | more


def write_card(folder: Path, **more: Any) -> Path:
    card = tone_card(**more)
    path = folder / f"{card['name']}.yaml"
    path.write_text(yaml.safe_dump(card))
    return path


@pytest.fixture
def card(crawl: Path) -> Path:
    """A card with its weights beside it, and the crawl's folder as working directory."""
    pooled_scores(crawl / "tone.onnx", WEIGHTS, np.zeros(4, np.float32), SIZE)
    return write_card(crawl)


def direct(lake: facescale.Lake) -> np.ndarray:
    """Mean color of the square of 2.5 eye distances around each face, cut out of the crop by hand: float [N, 3]."""
    found = []
    faces = lake.faces()
    for row, (face_id, points) in enumerate(zip(faces.face_id, faces.landmarks, strict=True)):
        (crop,) = lake.rows("crops", [face_id]).to_pylist()
        pixels = cv2.imdecode(np.frombuffer(crop["jpeg"], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        matrix = np.array(crop["matrix"], np.float64).reshape(2, 3)
        eyes = (
            np.array([points[[2, 3]].mean(axis=0), points[[0, 1]].mean(axis=0)]) @ matrix[:, :2].T
            + matrix[:, 2]
        )
        side = np.linalg.norm(eyes[1] - eyes[0]) / 0.4
        left, top = np.rint(eyes.mean(axis=0) - np.array([0.5, 0.4]) * side).astype(int)
        square = pixels[top : top + round(side), left : left + round(side)]
        assert square.shape[0] > 40, row
        found.append(square.reshape(-1, 3).mean(axis=0))
    return np.array(found)


def test_columns_against_direct_computation(card: Path) -> None:
    summary = facescale.annotate(LAKE, annotators=[card], **HERE)
    assert summary.exit_code == 0
    (stage,) = summary.stages
    assert (stage.counters, stage.parts_run, stage.notes) == ({"faces": 18}, 1, [])
    lake = facescale.Lake.open(LAKE)
    found = lake.table("attributes")
    assert found.column_names == ["face_id", "status", "red", "main_color", "is_bright", "colors"]
    assert found["face_id"].to_pylist() == lake.faces().face_id.tolist()
    assert set(found["status"].to_pylist()) == {"ok"}
    colors = direct(lake)
    np.testing.assert_allclose(np.array(found["colors"].to_pylist()), colors, atol=1.5)
    red = found["red"].to_numpy()
    np.testing.assert_allclose(red, [row[0] for row in found["colors"].to_pylist()], rtol=1e-6)
    names = np.array(["red", "green", "blue"])
    assert found["main_color"].to_pylist() == names[np.array(found["colors"].to_pylist()).argmax(1)].tolist()
    assert found["is_bright"].to_pylist() == [row[1] >= 90 for row in found["colors"].to_pylist()]
    assert lake.verify().ok
    field = pq.read_schema(next(Path(LAKE, "attributes").rglob("*.parquet"))).field("red")
    assert field.metadata[b"description"] == b"Mean red."

    again = facescale.annotate(LAKE, annotators=[card], **HERE).stages[0]
    assert (again.parts_run, again.parts_kept) == (0, 1)


def test_another_card_is_another_version(card: Path) -> None:
    facescale.annotate(LAKE, annotators=[card], **HERE)
    lake = facescale.Lake.open(LAKE)
    before, version = lake.table("attributes"), lake.version_of("attributes")
    changed = write_card(card.parent, mean=[10.0, 0.0, 0.0])
    facescale.annotate(LAKE, annotators=[changed], **HERE)
    assert lake.version_of("attributes") != version
    np.testing.assert_allclose(
        lake.table("attributes")["red"].to_numpy(), before["red"].to_numpy() - 10, atol=1e-3
    )
    lake.use("attributes", version.fingerprint, "tone")
    assert lake.table("attributes") == before
    assert [folder for folder, _ in lake.prune(dry_run=True) if folder.startswith("attributes/")]
    # Other weights under the same name are another version too, though the card does not give their sha256.
    pooled_scores(card.parent / "tone.onnx", WEIGHTS * 2, np.zeros(4, np.float32), SIZE)
    facescale.annotate(LAKE, annotators=[changed], **HERE)
    assert sum(v.table == "attributes" for v in lake.versions()) == 3


def test_a_missing_part_is_made_again_and_conditions_wait_for_it(card: Path) -> None:
    facescale.annotate(LAKE, annotators=[card], **HERE)
    lake = facescale.Lake.open(LAKE)
    seen = lake.table("attributes")
    (part,) = Path(LAKE, lake.version_of("attributes").folder).rglob("*.parquet")
    part.unlink()
    with pytest.raises(UsageError, match="tone has not seen 18 of these faces yet: run `facescale annotate"):
        lake.table("faces", where="red > 0")
    assert len(lake.table("faces", where="quality > 0")) == 18
    stage = facescale.annotate(LAKE, annotators=[card], **HERE).stages[0]
    assert (stage.parts_run, stage.parts_kept, stage.counters) == (1, 0, {"faces": 18})
    assert lake.table("attributes") == seen
    assert len(lake.table("faces", where="red > 0")) == 18


def test_conditions(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facescale.annotate(LAKE, annotators=[card], **HERE)
    lake = facescale.Lake.open(LAKE)
    table = lake.table("attributes")
    red, quality = table["red"].to_numpy(), lake.faces().quality
    middle = float(np.median(red))
    text = f"red > {middle!r} and not (quality < 0.9)"
    expected = table["face_id"].to_numpy()[(red > middle) & (quality >= 0.9)]
    assert 0 < len(expected) < 18
    for name in ("faces", "embeddings", "attributes", "crops"):
        assert lake.table(name, ["face_id"], where=text)["face_id"].to_pylist() == expected.tolist()
    assert lake.table("faces", ["quality"], where=text).column_names == ["quality"]
    assert len(lake.table("decisions", where="tone.main_color in ('green', 'none')")) == 0
    with pytest.raises(UsageError, match="images has no row for each face"):
        lake.table("images", where=text)
    with pytest.raises(UsageError, match="no column readiness; did you mean"):
        lake.table("faces", where="readiness > 1")

    from facescale.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["lake", "select", LAKE, "--where", text, "--out", "chosen.parquet", "--json"])
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["selected"], told["faces"]) == (len(expected), 18)
    chosen = pq.read_table("chosen.parquet")
    assert chosen.column_names == ["face_id", "image_id", "red", "quality"]
    assert chosen["face_id"].to_pylist() == expected.tolist()

    photo = "crawl/images/id_0001/img_00001.jpg"
    with facescale.Searcher.open(lake, threads=1) as searcher:
        every = searcher.search_files([photo], 18).hits["face_id"].to_pylist()
        found = searcher.search_files([photo], 18, where=text)
        few = searcher.search_files([photo], 2, where=text, label="id_0001")
        assert found.hits["face_id"].to_pylist() == [face for face in every if face in expected]
        assert set(few.hits["face_id"].to_pylist()) <= set(expected.tolist())
        with pytest.raises(UsageError, match="--where, character 1"):
            searcher.search_files([photo], where="reed > 1")
    with pytest.raises(SystemExit):
        main(["search", LAKE, photo, "-k", "18", "--where", text, "--json"])
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert [int(hit["face_id"]) for hit in hits] == found.hits["face_id"].to_pylist()


def test_export_takes_only_faces_that_meet_a_condition(card: Path) -> None:
    facescale.annotate(LAKE, annotators=[card], **HERE)
    lake = facescale.Lake.open(LAKE)
    red = lake.table("attributes", ["red"])["red"].to_numpy()
    least = float(np.sort(red)[3])
    every = facescale.export(LAKE, "all", format="parquet", min_faces=1, **HERE).stages[0].counters
    some = facescale.export(LAKE, "some", format="parquet", min_faces=1, where=f"red >= {least!r}", **HERE)
    counters = some.stages[0].counters
    assert 0 < every["faces"] - counters["faces"] == counters["left out: condition"] <= 3
    exported = np.concatenate(
        [
            pq.read_table(path)["face_id"].to_numpy()
            for path in Path("some").rglob("*.parquet")
            if path.name != "classes.parquet"
        ]
    ).astype(np.int64)
    assert len(exported) == counters["faces"]
    assert (red[np.searchsorted(lake.faces().face_id, exported)] >= least).all()
    with pytest.raises(UsageError, match="character 1: there is no column"):
        facescale.export(LAKE, "none", where="reddish > 1", **HERE)


def test_attributes_of_other_faces_are_refused(card: Path) -> None:
    facescale.annotate(LAKE, annotators=[card], **HERE)
    lake = facescale.Lake.open(LAKE)
    lake.set_current([TableVersion("faces", "f" * 12)])
    with pytest.raises(MismatchError, match=r"made of other faces .* run `facescale annotate"):
        lake.table("attributes", where="red > 0")


def test_two_annotators_with_one_column(card: Path) -> None:
    other = write_card(card.parent, name="tone_2", mean=5.0)
    assert len(facescale.annotate(LAKE, annotators=[card, other], **HERE).stages) == 2
    lake = facescale.Lake.open(LAKE)
    with pytest.raises(UsageError, match=r"several tables have a column red: say tone\.red or tone_2\.red"):
        lake.table("faces", where="red > 0")
    with pytest.raises(UsageError, match=r"attributes of tone, tone_2: say which with model=NAME"):
        lake.table("attributes")
    assert len(lake.table("faces", where="tone.red > tone_2.red")) == 18
    assert lake.table("attributes", ["red"], model="tone_2").num_rows == 18


def test_what_the_network_cannot_say_is_null_and_counted(card: Path) -> None:
    """log of a mean that is negative for some faces: NaN."""
    lake = facescale.Lake.open(LAKE)
    facescale.annotate(LAKE, annotators=[card], **HERE)
    red = lake.table("attributes")["red"].to_numpy()
    from onnx_files import node, write_onnx

    write_onnx(
        card.parent / "log.onnx",
        [
            node("GlobalAveragePool", ["image"], ["pooled"]),
            node("Flatten", ["pooled"], ["means"], axis=1),
            node("Log", ["means"], ["logs"]),
        ],
        {},
        {"image": ["n", 3, SIZE, SIZE]},
        {"logs": ["n", 3]},
    )
    columns = [
        {"name": "red", "type": "float", "description": "Log.", "pick": 0},
        {"name": "best", "type": "int32", "description": "Best.", "how": "argmax"},
    ]
    middle = float(np.median(red))
    annotator = {"columns": columns, "crop": {"eyes_at": [0.5, 0.4], "eye_distance": 0.4}}
    logs = write_card(card.parent, name="log", file="log.onnx", mean=[middle, 0.0, 0.0], annotator=annotator)
    (stage,) = facescale.annotate(LAKE, annotators=[logs], **HERE).stages
    broken = red < middle
    assert 0 < broken.sum() < 18
    assert stage.counters == {"faces": 18, "not_finite": int(broken.sum())}
    assert "gave no finite number" in stage.notes[0]
    found = lake.table("attributes", model="log")
    assert found["status"].to_pylist() == ["not_finite" if bad else "ok" for bad in broken]
    for name in ("red", "best"):
        assert found[name].is_null().to_pylist() == broken.tolist()
    assert lake.verify().ok
    assert len(lake.table("faces", where="log.status = 'not_finite'")) == broken.sum()
    assert len(lake.table("faces", where="log.red < 99 or not log.red < 99")) == 18 - broken.sum()


class Parts(torch.nn.Module):
    """A network with two outputs: a map of three classes, and the middle and a corner of the chip as points."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = torch.nn.Conv2d(3, 3, 1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        points = torch.tensor([[0.5, 0.4], [0.0, 0.0]]).expand(len(image), 2, 2)
        return {"map": self.classes(image), "points": points}


def test_a_state_dict_with_a_plug_in(card: Path) -> None:
    module = Parts()
    with torch.no_grad():  # the second class is red: where red is above half, it is the highest
        module.classes.weight.zero_()[1, 0] = 1
        module.classes.bias.copy_(torch.tensor([0.5, 0.0, -1.0]))
    torch.save(module.state_dict(), card.parent / "parts.pt")
    register_annotator(
        "parts", lambda card, **more: load_network_annotator(card, build=lambda _: Parts(), **more)
    )
    columns = [
        {"name": "skin", "type": "float", "description": "Skin.", "how": "shares", "output": "map", "pick": "skin",
         "classes": ["none", "skin", "hair"]},
        {"name": "where", "type": "list<float>", "description": "Points.", "unit": "px", "how": "points",
         "output": "points", "point_unit": "side"},
    ]  # fmt: skip
    annotator = {"columns": columns, "crop": {"eyes_at": [0.5, 0.4], "eye_distance": 0.4}}
    own = write_card(
        card.parent, name="parts", file="parts.pt", architecture="parts", annotator=annotator, scale=255.0
    )
    facescale.annotate(LAKE, annotators=[own], **HERE)
    lake = facescale.Lake.open(LAKE)
    found = lake.table("attributes")
    shares = found["skin"].to_numpy()
    faces, crops = lake.faces(), lake.table("crops")
    part = AnnotatorPart((), EyeCrop(eyes_at=(0.5, 0.4), eye_distance=0.4))
    chips = annotator_chips(
        [decode_jpeg(jpeg) for jpeg in crops["jpeg"].to_pylist()],
        np.array(crops["matrix"].to_pylist()).reshape(-1, 2, 3),
        faces.landmarks,
        "dlib5",
        read_card(own),
        part,
    )
    red = chips.pixels[..., 0] > 127.5
    np.testing.assert_allclose(shares, red.mean(axis=(1, 2)), atol=1e-6)
    assert len(set(shares)) > 1
    points = np.array(found["where"].to_pylist()).reshape(-1, 2, 2)
    landmarks = faces.landmarks
    right, left = landmarks[:, :2].mean(axis=1), landmarks[:, 2:4].mean(axis=1)
    np.testing.assert_allclose(points[:, 0], (left + right) / 2, atol=0.05)
    # The corner: half a side to the left of the eyes' middle and 0.4 above, along the line of the eyes.
    side = np.linalg.norm(right - left, axis=1) / 0.4
    corner = np.linalg.norm(points[:, 1] - points[:, 0], axis=1)
    np.testing.assert_allclose(corner, np.hypot(0.5, 0.4) * side, rtol=1e-3)
    assert lake.verify().ok


class Own:
    """Not a network at all: a plug-in in Python, whose arrays are as the card says, or not."""

    def __init__(self, card: ModelCard, wrong: str) -> None:
        self.card, self.wrong = card, wrong

    def annotate(self, chips: np.ndarray) -> dict[str, np.ndarray]:
        assert chips.shape[1:] == (150, 150, 3) and chips.dtype == np.uint8
        level = chips.mean(axis=(1, 2, 3))
        good = {"level": level, "word": np.array(["dark", "light"], object)[(level > 99).astype(int)]}
        return {
            "": good,
            "shape": good | {"level": level[:, None]},
            "names": {"level": level},
            "count": good | {"level": level[:-1]},
        }[self.wrong]


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ("", ""),
        ("shape", r"level as an array of shape"),
        ("names", "gave the columns level;"),
        ("count", "shape"),
    ],
)
def test_a_plug_in_in_python(crawl: Path, wrong: str, what: str) -> None:
    name = f"own_{wrong}" if wrong else "own"
    columns = [
        {"name": "level", "type": "float", "description": "Level."},
        {
            "name": "word",
            "type": "string",
            "description": "Word.",
            "how": "argmax",
            "classes": ["dark", "light"],
        },
    ]
    card = ModelCard(
        **tone_card(
            name=name, architecture=name, sha256="0" * 64, input_size=150, template="dlib_150",
            landmark_scheme="dlib5", annotator={"columns": columns},
        )
    )  # fmt: skip
    register_card(card)
    register_annotator(name, lambda card, **_: Own(card, wrong))
    if wrong:
        with pytest.raises(MismatchError, match=f"annotator {name} .*{what}"):
            facescale.annotate(LAKE, annotators=[name], **HERE)
        assert facescale.Lake.open(LAKE).current("attributes", name) is None
        return
    facescale.annotate(LAKE, annotators=[name], **HERE)
    found = facescale.Lake.open(LAKE).table("attributes")
    assert found["word"].to_pylist() == [
        "light" if level > 99 else "dark" for level in found["level"].to_pylist()
    ]


def test_refused_before_anything_is_written(card: Path) -> None:
    fenced = write_card(card.parent, name="fenced", non_commercial=True, file="tone.onnx")
    for names, error, what in (
        ([fenced], UsageError, "annotator fenced is under Apache-2.0 .* add --accept-license"),
        ([], UsageError, "--with NAME, or --with CARD.yaml"),
        (["tome"], UsageError, "there is no annotator 'tome'"),
        (["dlib_resnet"], UsageError, "is a model of task embedder, expected annotator"),
        (["nothing.yaml"], UsageError, r"nothing\.yaml: cannot read this model card"),
        ([card, card], UsageError, "'tone' is named twice"),
        ([write_card(card.parent, name="gone", file="gone.onnx")], UsageError, "model 'gone'"),
        (
            [write_card(card.parent, name="aligned", template="arcface_112", landmark_scheme="arcface5",
                        input_size=112, annotator={"columns": tone_card()["annotator"]["columns"]})],
            MismatchError,
            "annotator aligned needs landmarks of scheme 'arcface5'",
        ),
    ):  # fmt: skip
        with pytest.raises(error, match=what):
            facescale.annotate(LAKE, annotators=names, **HERE)
    assert not Path(LAKE, "attributes").exists()
    wrong = write_card(card.parent, input_size=32)
    with pytest.raises(facescale.errors.FacescaleError):
        facescale.annotate(LAKE, annotators=[wrong], **HERE)
    assert facescale.Lake.open(LAKE).current("attributes", "tone") is None


def test_dry_run(card: Path) -> None:
    config = JobConfig(lake=LAKE, annotate={"annotators": [str(card)]}, engine={"workers": 0})
    (stage,) = dry_run("annotate", config).stages
    assert (stage.stage, stage.tables, stage.parts, stage.parts_done) == ("annotate", ["attributes"], 1, 0)
    assert stage.note == "tone: red, main_color, is_bright, colors"
    assert not Path(LAKE, "attributes").exists()


def test_verify_sees_what_is_wrong(card: Path) -> None:
    facescale.annotate(LAKE, annotators=[card], **HERE)
    lake = facescale.Lake.open(LAKE)
    version = lake.version_of("attributes")
    (path,) = [path for path, _ in lake.store.list(version.folder) if path.endswith(".parquet")]
    table = lake.store.read_table(path)

    def problems(changed: pa.Table) -> str:
        with lake.store.batch() as batch:
            batch.add_table(path, changed, footer={"facescale.part_rows": "64", "facescale.counters": "{}"})
        return " ".join(str(problem) for problem in lake.verify().problems)

    assert problems(table) == ""
    status = table.schema.get_field_index("status")
    poison = table.set_column(status, table.schema.field("status"), pa.array(["poison"] * 18))
    assert "red of a crop that was not looked at (18 rows" in problems(poison)
    odd = table.set_column(status, table.schema.field("status"), pa.array(["fine"] * 18))
    assert "unknown status (18 rows" in problems(odd)
    red = table.schema.get_field_index("red")
    nan = table.set_column(red, table.schema.field("red"), pa.array([np.nan] * 18, pa.float32()))
    assert "red is not finite (18 rows" in problems(nan)
    assert "1 faces that `images` counts are missing" in problems(table.slice(1))
    assert "column 'red' is missing" in problems(table.drop_columns(["red"]))
    declared = json.loads(table.schema.metadata[b"facescale.columns"])
    declared[0]["unit"] = "miles"
    other = table.replace_schema_metadata(
        {**table.schema.metadata, b"facescale.columns": json.dumps(declared).encode()}
    )
    assert "declares other columns" in problems(other)
    description = Path(LAKE, version.folder, "_version.json")
    description.write_text("{")
    with pytest.raises(CorruptError, match="is damaged"):
        lake.table("attributes")
