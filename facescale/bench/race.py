"""A race: extract through Ray, the bare loop, and others, on the same files in one run, in turns.

Called by facescale.bench.speed and facescale.bench.peers. Contenders take turns round after round and each round in
another order, so that whatever else the machine does hits all alike. Ray is warm: its session is up and has extracted
before; what a command does at its start (planning, starting workers, loading models) is inside extract's time.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.bench.bare_loop import STEPS
from facescale.bench.memory import multiply_photos
from facescale.bench.metrics import share
from facescale.bench.photos import evenly
from facescale.config.job import JobConfig
from facescale.driver.context import SilentReporter
from facescale.errors import DataError, UsageError
from facescale.pipeline import run_job

if TYPE_CHECKING:
    from collections.abc import Callable

    from facescale.bench.contender import Contender
    from facescale.bench.results import Result
    from facescale.driver.context import Reporter
    from facescale.engine.worker import PartDone

EXTRACT, BARE = "extract", "bare loop"
MIN_PARTS = 40
BATCHES = (1, 4, 16)
_WARM_UP = 64  # photographs
_TRIAL = 96  # photographs for each batch size, twice


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


class Race:
    """The contenders and what they have done so far.

    Args:
        place: folder for lakes; its `photos` are what extract works on.
        links: the same photographs, for the others.
        copies: how often each of them is among `photos`, under other names; the others see it once.
        part_rows: of extract.
        extract: its other settings.
        bare: the bare loop with the same models.
        reporter: where remarks go.

    Attributes:
        rivals: further contenders by name, each with the photographs it gets over all rounds; None for all of them in
            each round.
    """

    def __init__(
        self,
        place: Path,
        links: list[str],
        part_rows: int,
        extract: dict[str, Any],
        bare: Contender,
        reporter: Reporter,
        *,
        copies: int = 1,
    ) -> None:
        self.place, self.links, self.part_rows, self.extract = place, links, part_rows, extract
        self.bare, self.reporter, self.copies = bare, reporter, copies
        self.rivals: dict[str, tuple[Contender, list[str] | None]] = {}
        self.batch = BATCHES[0]
        self.batches: dict[int, float] = {}
        self.turns = {EXTRACT: Turns(), BARE: Turns()}
        self.running = Turns()
        self.first_commit_s: list[float] = []
        self.steps = dict.fromkeys(STEPS, 0.0)
        self.parts = self.workers = 0

    def hold(self, rounds: int) -> None:
        """Warm up, find the bare loop's batch size, and take turns."""
        self.turns |= {name: Turns() for name in self.rivals}
        self.warm_up()
        self.choose_batch()
        self.run(rounds)

    def times(self, name: str) -> float | None:
        """Extract's rate over that of another contender; None when it did nothing."""
        rates = self.turns[EXTRACT].rate, self.turns[name].rate if name in self.turns else None
        return rates[0] / rates[1] if rates[0] and rates[1] else None

    def check_same_work(self) -> None:
        """DataError when extract and the bare loop did not find the same number of faces."""
        extract, bare = self.turns[EXTRACT], self.turns[BARE]
        if extract.faces != [self.copies * faces for faces in bare.faces]:
            raise DataError(
                f"extract found {extract.faces} faces and the bare loop {self.copies} x {bare.faces} (by round): they "
                "do not do the same work, so their speeds say nothing"
            )

    def warm_up(self) -> None:
        """Let everyone load, and extract once; none of it is counted."""
        some = self.links[:_WARM_UP]
        warm = self.place / "warm"
        multiply_photos([Path(link) for link in some], len(some), warm)
        self.reporter.say(f"warming up: Ray, and {len(some)} photographs")
        self._extract(warm)
        for rival, photos in self.rivals.values():
            rival.ask(photos=some[:1] if photos is not None else some)

    def choose_batch(self) -> None:
        """Find the bare loop's best batch size, by its best of two tries each."""
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

    def run(self, rounds: int) -> None:
        """Take turns, each round in another order."""
        for number in range(rounds):
            turns: list[Callable[[], None]] = [
                self._extract_turn,
                self._bare_turn,
                *(partial(self._rival_turn, name, number, rounds) for name in self.rivals),
            ]
            first = number % len(turns)
            for turn in turns[first:] + turns[:first]:
                turn()
            rates = ", ".join(f"{name} {of.rates[-1]:.2f}" for name, of in self.turns.items() if of.seconds)
            self.reporter.say(f"round {number + 1} of {rounds}, images/s: {rates}")

    def _extract(self, src: Path) -> tuple[Any, float, _Clock]:
        lake, clock = self.place / "lake", _Clock()
        config = JobConfig.model_validate(
            {
                "src": str(src),
                "lake": str(lake),
                "extract": {**self.extract, "part_rows": self.part_rows},
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
        self.turns[EXTRACT].add(stage.counters["images"], stage.counters["faces"], seconds)
        self.running.add(clock.running[0], 0, clock.running[1])
        self.first_commit_s.append(clock.commits[0][0] - start)
        self.parts, self.workers = stage.parts_run, stage.workers

    def _bare_turn(self) -> None:
        answer = self.bare.ask(photos=self.links, batch=self.batch)
        self.turns[BARE].add(answer["images"], answer["faces"], answer["seconds"])
        for name, seconds in answer["steps"].items():
            self.steps[name] += seconds

    def _rival_turn(self, name: str, number: int, rounds: int) -> None:
        rival, photos = self.rivals[name]
        photos = self.links if photos is None else photos[number::rounds]
        if photos:
            answer = rival.ask(photos=photos)
            self.turns[name].add(answer["images"], answer["faces"], answer["seconds"])


def add_figures(result: Result, race: Race, photos: list[Path], sample: list[Path]) -> None:
    """What every race tells, beside its goals."""
    bare = race.turns[BARE]
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
        "the same, times the bare loop": race.running.rate / bare.rate
        if race.running.rate and bare.rate
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
        "times extract sees each, under other names": race.copies,
    }
