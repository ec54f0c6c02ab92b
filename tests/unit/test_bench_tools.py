"""The benchmarks' tools: the memory meter, processes that answer, dlib's answers on disk, goals, part sizes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from facescale.bench.contender import Contender, rival_requirements
from facescale.bench.dlib_oracle import AnswerFile, DlibAnswer
from facescale.bench.memory import PssMeter, multiply_photos, peak_pss, pss_bytes
from facescale.bench.race import MIN_PARTS, parts_of
from facescale.bench.results import Goal, Result
from facescale.errors import CorruptError, FacescaleError, MismatchError, UsageError

MIB = 1 << 20
needs_pss = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="PSS is read from /proc, which this system lacks"
)
# A parent that starts a child; each takes memory of its own for a while.
FAMILY = """
import subprocess, sys, time
mine = bytearray(b"x") * (30 << 20)
child = subprocess.Popen([sys.executable, "-c", "import time; b = bytearray(b'x') * (50 << 20); time.sleep(2)"])
child.wait()
"""


@needs_pss
def test_peak_counts_parent_and_child() -> None:
    idle = peak_pss([sys.executable, "-c", "import time; time.sleep(1)"])
    peak = peak_pss([sys.executable, "-c", FAMILY])
    grown = (peak.bytes - idle.bytes) / MIB
    assert 80 <= grown < 100  # 30 and 50, and what a second interpreter takes
    assert peak.processes == 2
    assert sum(peak.by_role.values()) == peak.bytes
    assert peak.by_role["driver"] > 30 * MIB


@needs_pss
def test_peak_of_a_command_that_fails() -> None:
    with pytest.raises(FacescaleError, match=r"exit code 3: alas"):
        peak_pss([sys.executable, "-c", "import sys; print('alas'); sys.exit(3)"])


@needs_pss
def test_meter_of_a_process_that_ends() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
    with PssMeter(process.pid, period_s=0.05) as meter:
        process.wait()
        time.sleep(0.2)
    assert meter.peak.bytes > MIB
    assert pss_bytes(process.pid) == 0


def test_photos_are_multiplied_under_other_names(tmp_path: Path) -> None:
    photos = [tmp_path / "a.jpg", tmp_path / "b.png"]
    for photo in photos:
        photo.write_text(photo.name, "utf-8")
    multiply_photos(photos, 5, tmp_path / "many")
    found = sorted((tmp_path / "many").rglob("*.*"))
    assert [path.read_text("utf-8") for path in found] == ["a.jpg", "b.png", "a.jpg", "b.png", "a.jpg"]


ECHO = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["say"] == "die":
        sys.exit("the last words")
    print(json.dumps({"said": request["say"]}), flush=True)
"""


def test_contender_answers_and_ends() -> None:
    with Contender("echo", [sys.executable, "-c", ECHO]) as echo:
        assert echo.ready == {"ready": True}
        assert echo.ask(say="a\nb") == {"said": "a\nb"}
        process = echo._process
    assert process.returncode == 0


def test_contender_that_dies_leaves_its_last_words() -> None:
    with (
        Contender("echo", [sys.executable, "-c", ECHO]) as echo,
        pytest.raises(FacescaleError, match="echo ended with exit code 1: the last words"),
    ):
        echo.ask(say="die")


def test_contender_that_never_starts() -> None:
    with (
        pytest.raises(FacescaleError, match=r"exit code 1: no such module"),
        Contender("rival", [sys.executable, "-c", "raise SystemExit('no such module')"]),
    ):
        pass


def test_rival_brings_no_compiled_dlib() -> None:
    names = [requirement.partition("=")[0].partition("<")[0] for requirement in rival_requirements()]
    assert "face_recognition" in names
    assert "dlib-bin" in names
    assert "dlib" not in names


ANSWER = DlibAnswer(
    "a.jpg", "00", "ok", 1.5, [[1, 2, 3, 4]], [0.5], [[[1, 2]] * 5], [[0.1] * 128], [[0.1] * 128]
)


def test_answers_come_back(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "answers.jsonl", 1)
    assert file.read() == {}
    other = replace(ANSWER, path="b.jpg", boxes=[])
    file.append(ANSWER)
    file.append(other)
    assert AnswerFile.open(file.path).read() == {"a.jpg": ANSWER, "b.jpg": other}
    assert AnswerFile.open(file.path).upsample == 1


def test_answers_of_a_killed_run_go_on(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "answers.jsonl", 0)
    file.append(ANSWER)
    file.append(replace(ANSWER, path="b.jpg"))
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-40])
    assert list(file.read()) == ["a.jpg"]
    file.append(replace(ANSWER, path="b.jpg"))
    assert file.path.read_bytes() == whole


def test_answers_to_another_question_are_refused(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "answers.jsonl", 0)
    file.append(ANSWER)
    with pytest.raises(MismatchError, match="another question"):
        AnswerFile(file.path, 1).read()


@pytest.mark.parametrize("text", ["", "nonsense\n", "[]\n"])
def test_file_without_answers(tmp_path: Path, text: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(text, "utf-8")
    with pytest.raises(UsageError, match="not a file of `facescale bench oracle --save`"):
        AnswerFile.open(path)


def test_damaged_answers(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "answers.jsonl", 0)
    file.append(ANSWER)
    with open(file.path, "a", encoding="utf-8") as lines:
        lines.write("nonsense\n")
    with pytest.raises(CorruptError, match="line 3"):
        file.read()


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (Goal("g", 0.9, at_least=0.9), True),
        (Goal("g", 0.89, at_least=0.9), False),
        (Goal("g", 1.2, at_most=1.2), True),
        (Goal("g", 1.3, at_most=1.2), False),
        (Goal("g", None, at_least=0.9), None),
    ],
)
def test_goals(goal: Goal, met: bool | None) -> None:
    assert goal.met is met
    result = Result("b", {}, goals=[goal])
    assert json.loads(json.dumps(result.as_json()))["goals"][0]["met"] is met


@pytest.mark.parametrize(("photos", "part_rows"), [(40, 1), (79, 1), (80, 2), (1500, 32), (20_000, 256)])
def test_at_least_forty_parts(photos: int, part_rows: int) -> None:
    assert parts_of(photos) == part_rows
    assert -(-photos // part_rows) >= MIN_PARTS


def test_too_few_photos_for_forty_parts() -> None:
    with pytest.raises(UsageError, match="at least 40"):
        parts_of(39)
