"""The demo: make the synthetic crawl, run the main job on it as a user would, hold what was found against the truth."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from facescale.config.engine import EngineConfig
from facescale.config.extract import LabelsConfig
from facescale.config.job import JobConfig
from facescale.errors import EXIT_DONE
from facescale.synth.crawl import make_crawl
from facescale.synth.score import score_demo

if TYPE_CHECKING:
    from collections.abc import Callable

    from facescale.driver.context import JobSummary, Reporter
    from facescale.synth.score import Score


@dataclass
class DemoResult:
    """What the demo showed; `ok` when the job was whole and every floor is reached."""

    summary: JobSummary
    scores: list[Score] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the demo may end with exit code 0."""
        return self.summary.exit_code == EXIT_DONE and all(score.ok for score in self.scores)


def run_demo(
    out: str,
    *,
    identities: int,
    images_per_identity: int,
    seed: int,
    workers: int | None,
    run: Callable[[JobConfig], JobSummary],
    reporter: Reporter,
) -> DemoResult:
    """Make the crawl under `out`, run the main job into `out`/lake, score it.

    Args:
        out: folder; a crawl that is there already is kept, and the job resumes.
        identities: invented people.
        images_per_identity: photographs of each.
        seed: of the crawl.
        workers: as in the engine's configuration.
        run: the main job.
        reporter: where progress goes.
    """
    start = time.monotonic()
    reporter.say(
        f"making the synthetic crawl in {out} ({identities} people, {images_per_identity} images each)"
    )
    crawl = make_crawl(out, identities=identities, images_per_identity=images_per_identity, seed=seed)
    config = JobConfig(
        src=str(Path(out) / "images"),
        lake=str(Path(out) / "lake"),
        labels=LabelsConfig(source="folder"),
        engine=EngineConfig(workers=workers),
    )
    reporter.say(f"{crawl.files:,} files; facescale run {config.src} {config.lake} --labels folder")
    summary = run(config)
    scores = score_demo(config.lake, out)
    return DemoResult(summary, scores, time.monotonic() - start)
