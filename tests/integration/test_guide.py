"""What the user guide says, run: its Python, its queries with their answers, its commands, its figures."""

from __future__ import annotations

import doctest
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
import yaml

from facescale import cli
from facescale.config.job import JobConfig
from facescale.curate.calibration import load_calibration
from facescale.curate.claims import Claims, Faces
from facescale.curate.clean import clean_by_ownership
from facescale.curate.cluster import ClusterRules, resolve
from facescale.curate.decisions import REASONS, VERDICTS
from facescale.curate.ownership import OwnershipRules
from facescale.lake.ids import make_face_id, make_image_id, split_ids
from facescale.models.annotator_card import HOWS, annotator_part
from facescale.models.card import parse_card
from facescale.vision.annotator import decode

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "GUIDE.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(pycon|python|sql)\n(.*?)```(?:\s*```text\n(.*?)```)?", GUIDE, re.DOTALL)
CALIBRATION = load_calibration("dlib_resnet")
CLOSE = 0.006  # cosines are shown with two digits


def table_below(heading: str) -> list[list[str]]:
    """Cells of the rows of the first table under a heading, or under a line of the guide that holds it."""
    rows = re.search(r"\n\|[ -][^\n]*\n\| --- .*?\n\n", GUIDE[GUIDE.index(heading) :], re.DOTALL)
    assert rows is not None
    return [
        [cell.strip() for cell in line.strip()[1:-1].split("|")] for line in rows[0].strip().splitlines()[2:]
    ]


def answer_of(query: str) -> list[list[str]]:
    """What DuckDB answers, as the guide writes it: the names of the columns, then rows; - is null."""
    import duckdb

    found = duckdb.sql(query)
    rows = [["-" if cell is None else str(cell) for cell in row] for row in found.fetchall()]
    return [
        list(found.columns),
        *([cell.lower() if cell in ("True", "False") else cell for cell in row] for row in rows),
    ]


@pytest.fixture
def place(finished_crawl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder of the crawl itself, so that the guide's `run` finds its work done; the lake is put back after."""
    lake = finished_crawl / "crawl.lake"
    shutil.copytree(lake, tmp_path / "before")
    monkeypatch.chdir(finished_crawl)
    yield
    shutil.rmtree(lake)
    shutil.copytree(tmp_path / "before", lake)


@pytest.mark.usefixtures("place")
def test_examples() -> None:
    """From top to bottom, as a reader would type them."""
    known: dict[str, Any] = {}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
    told: list[str] = []
    queries = 0
    for number, (language, code, shown) in enumerate(BLOCKS):
        if language == "pycon":
            example = doctest.DocTestParser().get_doctest(code, known, f"block {number}", "GUIDE.md", 0)
            runner.run(example, out=told.append, clear_globs=False)
            known = example.globs
            assert not runner.summarize(verbose=False).failed, "".join(told)
        elif language == "python":
            exec(code, known)
        else:
            queries += 1
            expected = [re.split(r"\s{2,}", line.strip()) for line in shown.strip().splitlines()]
            assert answer_of(code) == expected, code
    assert queries == 7
    assert known["losses"].rows()[0] == ("id_0002", 5, pytest.approx(0.2))
    training = known["training"]
    assert set(training["label_out"]) == {"id_0000", "id_0001", "id_0002"} and len(training) == 17 - 2
    assert {jpeg[:2] for jpeg in training["jpeg"]} == {b"\xff\xd8"}


def test_commands_and_flags_exist() -> None:
    app: Any = typer.main.get_command(cli.app)
    shown = re.findall(r"(?:^    |`)facescale ([a-z].*?)(?:`|\s{2,}|$)", GUIDE, re.MULTILINE)
    assert len(shown) >= 10
    for line in shown:
        words = line.split()
        command = app.commands[words[0]]
        if hasattr(command, "commands"):
            of_photographs = command.commands.get("photographs")  # `synth OUT`
            command = command.commands.get(words[1], of_photographs)
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


def test_the_card_of_an_annotator(tmp_path: Path) -> None:
    """It is one, and each of its columns is read off outputs of the shapes that the text speaks of."""
    (text,) = [found for found in re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL) if "annotator:" in found]
    card = parse_card(text, where="the guide")
    part = annotator_part(card)
    rng = np.random.default_rng(0)
    shapes = {
        "age": (3, 8),
        "expression": (3, 4),
        "real_or_not": (3, 2),
        "mask": (3, 1),
        "points": (3, 68, 2),
    }
    shapes["parsing"] = (3, 5, 32, 32)
    assert {column.output for column in part.columns} == set(shapes)
    for column in part.columns:
        found, finite = decode(column, rng.normal(size=shapes[str(column.output)]).astype(np.float32), card)
        assert len(found) == 3 and finite.all()
    hows = {name.strip("`") for row in table_below("facescale lake select") for name in row[0].split(", ")}
    assert hows == set(HOWS) - {"given"}


def test_ids() -> None:
    for _, shard, row, ordinal, number in table_below("## Ids"):
        parts = [int(re.split(r" · | = ", cell)[0].replace(",", "")) for cell in (shard, row, ordinal)]
        assert make_face_id(make_image_id(parts[0], parts[1]), parts[2]) == int(number)
        assert [int(value) for value in split_ids(np.int64(number))] == parts


def test_figures_of_the_calibration() -> None:
    check = CALIBRATION.evidence["check_on_the_other_fold"]
    rows = table_below("## Similarity and false-match rates")
    assert len(rows) == 4
    for rate, *cosines, pairs, centers in rows:
        for cosine, curve in zip(cosines, (CALIBRATION.pairs, CALIBRATION.centers), strict=True):
            assert float(cosine) == pytest.approx(curve.similarity_at(float(rate)), abs=CLOSE)
        for shown, kind in ((pairs, "pairs"), (centers, "centers")):
            (row,) = [row for row in check[kind] if row["nominal"] == float(rate)]
            assert shown == f"{100 * row['genuine_share']:.1f} %"
    counts = CALIBRATION.evidence["counts"]
    (row,) = [row for row in check["pairs"] if row["nominal"] == 1e-3]
    assert f"fitted on {counts['faces']:,} faces of {counts['people']} people" in GUIDE
    assert f"checked on {check['people']}\nothers: at a nominal rate of 0.001 the rate on those was " in GUIDE
    bounds = f"was {row['realized']:.4f} (95 % bounds {row['low']:.4f} to {row['high']:.4f})"
    assert bounds in GUIDE
    assert f"quantile of its photographs, {CALIBRATION.min_quality:.2f} for the default embedder" in GUIDE


def test_thresholds() -> None:
    config = JobConfig(lake="lake").model_dump()
    of_pairs = ("split", "merge", "same_name", "floor", "cast_link", "cast_merge", "cast_drop")
    curves = dict.fromkeys(of_pairs, CALIBRATION.pairs)
    seen = set()
    for name, default, cosine, *_ in table_below("## Thresholds and how they were chosen"):
        section, setting = name.strip("`").split(".")
        assert config[section][setting] == yaml.safe_load(default.replace(",", "")), name
        seen.add(name)
        if section == "cluster" and cosine:
            cuts = resolve(ClusterRules(), CALIBRATION, 1000)
            cuts_of = {"link_ratio": cuts.link, "merge_ratio": cuts.bound.small}
            assert float(cosine) == pytest.approx(cuts_of.get(setting, cuts.bound.large), abs=CLOSE), name
        elif cosine:
            labels = 3 if setting in ("relabel_fmr", "rival_fmr") else 1
            curve = curves.get(setting.removesuffix("_fmr"), CALIBRATION.centers)
            assert float(cosine) == pytest.approx(curve.similarity_at(float(default) / labels), abs=CLOSE), (
                name
            )
    every = {f"`{section}.{name}`" for section in ("dedup", "cluster", "clean") for name in config[section]}
    assert every - {"`cluster.embedder`", "`clean.embedder`", "`clean.method`", "`clean.preset`"} <= seen


def test_thresholds_of_clusters() -> None:
    rows = table_below("## Clusters")
    assert len(rows) == 3
    for faces, link, small, large, rate in rows:
        cuts = resolve(ClusterRules(), CALIBRATION, int(faces.split()[-1].replace(",", "")))
        values = (cuts.link, cuts.bound.small, cuts.bound.large)
        assert [float(cosine) for cosine in (link, small, large)] == pytest.approx(values, abs=CLOSE)
        assert float(f"{CALIBRATION.pairs.fmr_of(cuts.link):.0e}") == float(rate)


def test_the_four_labels() -> None:
    """The worked example: people whose faces are as alike as the default embedder's are, in the mean."""
    rng = np.random.default_rng(0)

    def direction() -> np.ndarray:
        vector = rng.standard_normal(128)
        return vector / np.linalg.norm(vector)

    everybody = direction()
    own, between = CALIBRATION.genuine.pairs.quantile(0.5), CALIBRATION.random.median

    def photograph(person: np.ndarray) -> np.ndarray:
        parts = np.sqrt(between) * everybody + np.sqrt(own - between) * person
        vector = parts + np.sqrt(1 - own) * direction()
        return vector / np.linalg.norm(vector)

    a, b, c, d, e, f = (direction() for _ in range(6))
    shown = [
        ("alex", a, 6),
        ("alex", b, 4),
        ("sam", c, 7),
        ("sam", d, 5),
        ("kim", e, 5),
        ("kim", a, 1),
        ("lee", f, 1),
    ]
    others = [(f"other {number}", direction(), 5) for number in range(8)]
    faces = np.array(
        [photograph(person) for _, person, count in shown + others for _ in range(count)], np.float32
    )
    names = np.repeat([name for name, _, _ in shown + others], [count for _, _, count in shown + others])
    labels, label = np.unique(names, return_inverse=True)
    N = len(faces)
    images = make_image_id(np.zeros(N, np.int64), np.arange(N))
    nothing = np.empty(0, np.int64)
    found = clean_by_ownership(
        Faces(make_face_id(images, np.ones(N, np.int64)), faces, np.ones(N, np.float32), np.ones(N, bool)),
        Claims(images, label, len(labels), nothing, nothing),
        CALIBRATION,
        OwnershipRules(),
    )
    reasons = list(REASONS)
    verdicts = [
        (VERDICTS[v], reasons[r], str(labels[o]) if o >= 0 else "-")
        for v, r, o in zip(found.verdict, found.reason, found.label_out, strict=True)
    ]
    expected = [("keep", "owner", "alex")] * 6 + [("drop", "unlike_owner", "-")] * 4
    expected += [("quarantine", "two_people", "-")] * 12
    expected += [("keep", "owner", "kim")] * 5 + [("relabel", "other_name", "alex")]
    expected += [("keep", "single_photo", "lee")]
    assert verdicts[: len(expected)] == expected
    assert {reason for _, reason, _ in expected} - {"owner"} <= set(re.findall(r"`(\w+)`", GUIDE))
    dropped = found.score[6:10]
    assert f"score {dropped.mean():.2f} against {found.threshold[6]:.2f}" in GUIDE
    (moved,) = np.flatnonzero(found.reason == reasons.index("other_name"))
    assert f"score {found.score[moved]:.2f} against {found.threshold[moved]:.2f}" in GUIDE
