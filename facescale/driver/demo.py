"""The demo: make the synthetic crawl, run the main job on it as a user would, hold what was found against the truth.

The people of the crawl are relatives, so to speak: all are one portrait, warped, and more alike than strangers are. The
thresholds that ship are for strangers and would take some of them for one person. So the demo does what a user with
unusual photographs should do: it extracts, calibrates on labels that it can trust (of half of the people), and runs
the rest.
"""

from __future__ import annotations

import csv
import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from facescale.config.engine import EngineConfig
from facescale.config.extract import LabelsConfig
from facescale.config.job import JobConfig
from facescale.curate.calibration import calibration_path
from facescale.driver.calibrate import CalibrateSettings, run_calibrate
from facescale.errors import EXIT_DONE
from facescale.lake.lake import Lake
from facescale.lake.lake_file import REPORT_FILE
from facescale.sources.labels import LabelSpec
from facescale.synth.crawl import make_crawl
from facescale.synth.plan import CLEAN, WRONG_LABEL
from facescale.synth.score import score_demo
from facescale.synth.truth import read_truth

if TYPE_CHECKING:
    from collections.abc import Callable

    from facescale.driver.context import JobSummary, Reporter
    from facescale.synth.score import Score


@dataclass
class DemoResult:
    """What the demo showed; `ok` when the job was whole and every floor is reached. `report` is the page's path."""

    summary: JobSummary
    scores: list[Score] = field(default_factory=list)
    seconds: float = 0.0
    report: str = ""

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
    run: Callable[[str, JobConfig], JobSummary],
    reporter: Reporter,
) -> DemoResult:
    """Make the crawl under `out`, run the main job into `out`/lake, score it.

    Args:
        out: folder; a crawl that is there already is kept, and the job resumes.
        identities: invented people.
        images_per_identity: photographs of each.
        seed: of the crawl.
        workers: as in the engine's configuration.
        run: runs a job by its name.
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
    summary = run("extract", config)
    if summary.exit_code == EXIT_DONE:
        _calibrate(Path(out), config.lake, reporter)
        extracted = summary.stages
        summary = run("run", config)
        # What the first job did is not kept from an earlier time, as it would look to the second.
        done = {stage.stage: stage for stage in extracted}
        summary.stages = [done.get(stage.stage, stage) for stage in summary.stages]
    scores = score_demo(config.lake, out)
    report = Path(config.lake) / REPORT_FILE
    return DemoResult(summary, scores, time.monotonic() - start, str(report) if report.exists() else "")


def _calibrate(out: Path, lake_uri: str, reporter: Reporter) -> None:
    """Fit the thresholds on the people of the crawl, unless the lake has a calibration already."""
    if Lake.open(lake_uri).store.exists(calibration_path(CalibrateSettings.embedder)):
        return
    people = out / "people.csv"
    people.write_text(_trusted_labels(out), encoding="utf-8")
    labels = LabelSpec(str(people), "identity", "path")
    result = run_calibrate(lake_uri, CalibrateSettings(labels=labels), reporter)
    reporter.say(
        f"calibrate: faces of different people reach a cosine of {result.thresholds['pairs']['1e-03']:.3f} in one "
        "pair of a thousand"
    )


def _trusted_labels(out: Path) -> str:
    """CSV of who is on each photograph of one person; copies are left out, since they would prove nothing."""
    truth = read_truth(out)
    stream = io.StringIO(newline="")
    lines = csv.writer(stream)
    lines.writerow(["path", "identity"])
    columns = (truth[name].to_pylist() for name in ("path", "kind", "identities"))
    lines.writerows(
        (path, who[0]) for path, kind, who in zip(*columns, strict=True) if kind in (CLEAN, WRONG_LABEL)
    )
    return stream.getvalue()
