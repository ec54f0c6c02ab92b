"""`facescale bench extract`: images/s of extract through Ray, of a bare loop, and of the face_recognition package.

All three work on the same files in one run and take turns, round after round and each round in another order, so that
whatever else the machine does hits all alike. Ray is warm: its session is up and has extracted before; what a command
does at its start (planning, starting workers, loading models) is inside extract's time.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.bench.bare_loop import STEPS
from facescale.bench.contender import bare_loop, face_recognition
from facescale.bench.environment import default_folder
from facescale.bench.metrics import share
from facescale.bench.photos import evenly, find_photos, link_photos
from facescale.bench.results import Goal, Result, timed
from facescale.config.job import JobConfig
from facescale.driver.context import SilentReporter
from facescale.engine.session import ray_session
from facescale.errors import DataError, UsageError
from facescale.pipeline import run_job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from facescale.bench.contender import Contender
    from facescale.driver.context import Reporter
    from facescale.engine.worker import PartDone

MIN_PARTS = 40
DEFAULT_LIMIT = 1500
BATCHES = (1, 4, 16)
_WARM_UP = 64  # photographs
_TRIAL = 96  # photographs for each batch size, twice
_UPSAMPLES = {40: 1, 80: 0}  # smallest face → number_of_times_to_upsample


@dataclass
class Turns:
    """What one contender did, turn by turn.

    Attributes:
        images: of each turn.
        faces: of each turn.
        seconds: of each turn.
    """

    images: list[int] = field(default_factory=list)
    faces: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, images: int, faces: int, seconds: float) -> None:
        """Note one turn."""
        self.images.append(images)
        self.faces.append(faces)
        self.seconds.append(seconds)

    @property
    def rates(self) -> list[float]:
        """Images/s of each turn."""
        return [n / s for n, s in zip(self.images, self.seconds, strict=True)]

    @property
    def rate(self) -> float | None:
        """Images/s over all turns."""
        return sum(self.images) / sum(self.seconds) if self.seconds else None


class _Clock(SilentReporter):
    """Notes when parts were committed, to tell the start of a job from its running."""

    def __init__(self) -> None:
        self.commits: list[tuple[float, int]] = []

    def advance(self, done: PartDone) -> None:
        self.commits.append((time.perf_counter(), done.counters.get("images", 0)))

    @property
    def running(self) -> tuple[int, float]:
        """Images and seconds between the first commit and the last."""
        return sum(n for _, n in self.commits[1:]), self.commits[-1][0] - self.commits[0][0]


def parts_of(num_photos: int) -> int:
    """part_rows that makes at least MIN_PARTS parts: the largest power of two that does."""
    if num_photos < MIN_PARTS:
        raise UsageError(f"{num_photos} photographs make no {MIN_PARTS} parts: give at least {MIN_PARTS}")
    return 1 << ((num_photos // MIN_PARTS).bit_length() - 1)


def bench_extract(
    folder: str,
    reporter: Reporter,
    *,
    limit: int | None = DEFAULT_LIMIT,
    min_face_px: int = 40,
    rounds: int = 3,
    rival_photos: int = 12,
    rival_env: str | None = None,
    work: str | None = None,
) -> Result:
    """Measure all three.

    Args:
        folder: of photographs.
        reporter: where remarks go.
        limit: at most so many photographs, evenly spaced over the sorted list.
        min_face_px: smallest face; with a rival 40 or 80, which is its upsampling 1 or 0.
        rounds: turns of each.
        rival_photos: photographs for the face_recognition package, over all rounds; 0 leaves it out.
        rival_env: folder of its virtual environment; None for one in the user's cache.
        work: folder for lakes; None for a temporary one.

    Raises:
        UsageError: fewer than 40 photographs, or a smallest face the rival cannot search for.
        DataError: extract and the bare loop did not find the same number of faces, so they did not do the same.
    """
    if rival_photos and min_face_px not in _UPSAMPLES:
        raise UsageError(
            f"--min-face-px {min_face_px}: the face_recognition package can be told 40 or 80; give one of "
            "these, or --no-rival"
        )
    root = Path(folder).absolute()
    photos = find_photos(root, limit)
    part_rows = parts_of(len(photos))
    settings = {
        "photos": len(photos),
        "min_face_px": min_face_px,
        "part_rows": part_rows,
        "rounds": rounds,
        "rival_photos": rival_photos,
    }
    result = Result("extract", settings)
    with timed(result), ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="facescale-bench-", dir=work)))
        links = [str(link) for link in link_photos(photos, root, place / "photos")]
        race = _Race(place, links, part_rows, min_face_px, reporter)
        race.bare = stack.enter_context(bare_loop(min_face_px))
        if rival_photos:
            reporter.say("preparing the face_recognition package")
            environment = Path(rival_env) if rival_env else default_folder("face-recognition")
            race.rival = stack.enter_context(face_recognition(environment, upsample=_UPSAMPLES[min_face_px]))
        stack.enter_context(ray_session(None))
        race.warm_up()
        race.choose_batch()
        race.run(rounds, evenly(links, rival_photos))
    _add_figures(result, race, photos, evenly(photos, rival_photos))
    return result


class _Race:
    """The contenders and what they have done so far."""

    def __init__(
        self, place: Path, links: list[str], part_rows: int, min_face_px: int, reporter: Reporter
    ) -> None:
        self.place, self.links, self.part_rows, self.min_face_px = place, links, part_rows, min_face_px
        self.reporter = reporter
        self.bare: Contender | None = None
        self.rival: Contender | None = None
        self.batch = BATCHES[0]
        self.batches: dict[int, float] = {}
        self.turns = {"extract": Turns(), "bare loop": Turns(), "face_recognition": Turns()}
        self.running = Turns()
        self.first_commit_s: list[float] = []
        self.steps = dict.fromkeys(STEPS, 0.0)
        self.parts = self.workers = 0

    def warm_up(self) -> None:
        """Let everyone load, and extract once; none of it is counted."""
        some = self.links[:_WARM_UP]
        warm = self.place / "warm"
        link_photos([Path(link) for link in some], self.place / "photos", warm)
        self.reporter.say(f"warming up: Ray, and {len(some)} photographs")
        self._extract(warm)
        if self.rival is not None:
            self.rival.ask(photos=some[:1])

    def choose_batch(self) -> None:
        """Find the bare loop's best batch size, by its best of two tries each."""
        assert self.bare is not None
        trial = evenly(self.links, _TRIAL)
        for batch in BATCHES:
            self.bare.ask(photos=trial[:batch], batch=batch)
        for _ in range(2):
            for batch in BATCHES:
                answer = self.bare.ask(photos=trial, batch=batch)
                rate = answer["images"] / answer["seconds"]
                self.batches[batch] = max(self.batches.get(batch, 0.0), rate)
        self.batch = max(self.batches, key=lambda batch: self.batches[batch])
        rates = ", ".join(f"{batch}: {rate:.1f} images/s" for batch, rate in self.batches.items())
        self.reporter.say(f"bare loop, by batch size: {rates}; {self.batch} it is")

    def run(self, rounds: int, sample: Sequence[str]) -> None:
        """Take turns."""
        slices = [list(sample[i::rounds]) for i in range(rounds)]
        for number in range(rounds):
            turns: list[Callable[[], None]] = [
                self._extract_turn,
                self._bare_turn,
                partial(self._rival_turn, slices[number]),
            ]
            for turn in turns[number % 3 :] + turns[: number % 3]:
                turn()
            rates = ", ".join(f"{name} {of.rates[-1]:.2f}" for name, of in self.turns.items() if of.seconds)
            self.reporter.say(f"round {number + 1} of {rounds}, images/s: {rates}")

    def _extract(self, src: Path) -> tuple[Any, float, _Clock]:
        lake, clock = self.place / "lake", _Clock()
        config = JobConfig.model_validate(
            {
                "src": str(src),
                "lake": str(lake),
                "extract": {"min_face_px": self.min_face_px, "part_rows": self.part_rows},
            }
        )
        start = time.perf_counter()
        summary = run_job("extract", config, clock)
        seconds = time.perf_counter() - start
        shutil.rmtree(lake)
        return summary.stage("extract"), seconds, clock

    def _extract_turn(self) -> None:
        start = time.perf_counter()
        stage, seconds, clock = self._extract(self.place / "photos")
        self.turns["extract"].add(stage.counters["images"], stage.counters["faces"], seconds)
        self.running.add(clock.running[0], 0, clock.running[1])
        self.first_commit_s.append(clock.commits[0][0] - start)
        self.parts, self.workers = stage.parts_run, stage.workers

    def _bare_turn(self) -> None:
        assert self.bare is not None
        answer = self.bare.ask(photos=self.links, batch=self.batch)
        self.turns["bare loop"].add(answer["images"], answer["faces"], answer["seconds"])
        for name, seconds in answer["steps"].items():
            self.steps[name] += seconds

    def _rival_turn(self, photos: list[str]) -> None:
        if self.rival is None or not photos:
            return
        answer = self.rival.ask(photos=photos)
        self.turns["face_recognition"].add(answer["images"], answer["faces"], answer["seconds"])


def _add_figures(result: Result, race: _Race, photos: list[Path], sample: list[Path]) -> None:
    extract, bare, rival = race.turns.values()
    if extract.faces != bare.faces:
        raise DataError(
            f"extract found {extract.faces} faces and the bare loop {bare.faces} (by round): they do not do the "
            "same work, so their speeds say nothing"
        )
    rates = extract.rate or 0.0, bare.rate, rival.rate
    result.goals = [
        Goal("extract, times the face_recognition package", rates[0] / rates[2] if rates[2] else None, 20.0),
        Goal("extract, times the bare loop", rates[0] / rates[1] if rates[1] else None, 0.90),
    ]
    result.figures["images/s"] = [
        {
            "contender": name,
            "images/s": turns.rate,
            "by round": ", ".join(f"{rate:.2f}" for rate in turns.rates),
            "images a round": turns.images[0],
            "faces a round": ", ".join(str(n) for n in turns.faces),
        }
        for name, turns in race.turns.items()
        if turns.seconds
    ]
    result.figures["extract"] = {
        "parts": race.parts,
        "workers": race.workers,
        "seconds to the first commit (planning, starting workers, the first part)": float(
            np.mean(race.first_commit_s)
        ),
        "images/s from the first commit to the last": race.running.rate,
        "the same, times the bare loop": race.running.rate / rates[1]
        if race.running.rate and rates[1]
        else None,
    }
    total, images = sum(race.steps.values()), sum(bare.images)
    result.figures["bare loop, by step"] = [
        {"step": name, "ms an image": 1000 * seconds / images, "share": seconds / total}
        for name, seconds in race.steps.items()
    ]
    result.figures["bare loop, images/s by batch size (trial)"] = {
        str(batch): rate for batch, rate in race.batches.items()
    }
    result.figures["photographs"] = {
        "median bytes, all": float(np.median([p.stat().st_size for p in photos])),
        "median bytes, face_recognition's sample": float(np.median([p.stat().st_size for p in sample]))
        if sample
        else None,
        "face_recognition's sample, share of all": share(len(sample), len(photos)),
    }
