"""`facescale bench cleaning`: how much planted label noise cleaning finds, and what it loses, beside CAST and DBSCAN.

Comes in: photographs with labels.csv, or a lake with labels that are right. Goes out: precision and recall of the wrong
faces found, true faces lost, and what is left, for each kind of noise (synth.noise), over several seeds.

Every method has one setting for all kinds and rates, which was fitted on the people of fold 0 (evaluate.split); the
goals are for the people of fold 1, whom nothing was fitted on.
"""

from __future__ import annotations

import tempfile
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.bench.chosen import Models, make_lake, models_of
from facescale.bench.cleaning_trials import Material, TrialScores, make_trial, methods, run_trial
from facescale.bench.photos import LABELS
from facescale.bench.results import Goal, Result, progress, timed
from facescale.config.clean import CleanConfig
from facescale.curate.calibration import require_calibration
from facescale.curate.claims import group_of
from facescale.driver.clean import cast_rules, find_inputs, ownership_rules, read_claims, read_faces
from facescale.errors import UsageError
from facescale.evaluate.center import center_faces
from facescale.evaluate.split import folds_of
from facescale.lake.lake import Lake
from facescale.synth.noise import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from facescale.driver.context import Reporter

    Trials = dict[tuple[str, float, str], list[TrialScores]]

RATES = (0.15, 0.3, 0.5)
_GOALS = {
    "uniform": ((0.98, 1.0), (0.98, 1.0)),
    "lookalike": ((0.96, 0.99), (0.95, 0.93)),
    "named": ((0.97, 1.0), (0.99, 1.0)),
    "unnamed": ((0.97, 0.98), (0.99, 0.99)),
    "outside": ((0.98, 0.99), (0.99, 0.99)),
}
"""(precision, recall) at 15 % and at 30 %; two points less are enough."""
_TOLERANCE = 0.02
_STUDENT_95 = (np.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for 95 % intervals of a mean, by degrees of freedom."""


def bench_cleaning(
    source: str,
    reporter: Reporter,
    *,
    lake: str | None = None,
    models: Models | None = None,
    seeds: int = 5,
    min_photos: int = 4,
) -> Result:
    """Plant noise and clean it.

    Args:
        source: a lake whose labels are right, or a folder of photographs with labels.csv (path, identity).
        reporter: where progress goes.
        lake: to make of the photographs, or to go on with; None for a temporary one. Not with a lake as the source.
        models: to run over photographs; of a lake, the calibrated embedder that is used.
        seeds: trials of each kind and rate, 2 .. 10.
        min_photos: of an identity that gets a label.

    Raises:
        UsageError: no labels, or fewer than three identities with enough photographs in a fold.
    """
    models = models or Models()
    settings: dict[str, Any] = {**models.settings(), "seeds": seeds, "min_photos": min_photos}
    result = Result("cleaning", settings)
    with timed(result), ExitStack() as stack:
        if (Path(source) / LABELS).is_file():
            work = stack.enter_context(tempfile.TemporaryDirectory(prefix="facescale-bench-"))
            folder = str(Path(source).absolute())
            labels, jobs = f"{folder}/{LABELS}", ("extract", "dedup")
            made = make_lake(folder, lake or str(Path(work) / "lake"), models, jobs, reporter, labels=labels)
        elif lake is not None:
            raise UsageError(f"{source} has no {LABELS}, and a lake needs no --lake")
        else:
            made = Lake.open(source)
            models = models_of(made, models)
            result.settings |= models.settings()
        config = CleanConfig(embedder=models.embedder)
        material, fold, counts = read_material(made, config)
        result.figures["photographs"] = counts
        calibration = require_calibration(models.embedder, made)
        contenders = methods(calibration, ownership_rules(config), cast_rules(config))
        cases = [(kind, rate) for kind in KINDS for rate in (RATES if kind != "clean" else (0.0,))]
        people = {
            "people nothing was fitted on (fold 1)": fold == 1,
            "everybody": np.ones(len(fold), bool),
            "people the settings were fitted on (fold 0)": fold == 0,
        }
        total = len(people) * len(cases) * seeds
        with progress(reporter, "cleaning", items=total, unit="trials") as advance:
            for title, chosen in people.items():
                found: Trials = {}
                some = material.only(chosen)
                for kind, rate in cases:
                    for seed in range(seeds):
                        trial = make_trial(some, kind, rate, _rng(kind, rate, seed), min_photos=min_photos)
                        for name, method in contenders.items():
                            found.setdefault((kind, rate, name), []).append(run_trial(trial, method))
                        advance(1)
                if not result.goals:
                    result.goals = goals(found)
                result.figures[f"wrong faces found, %: {title}"] = found_rows(found)
                result.figures[f"what is left: {title}"] = left_rows(found)
    return result


def read_material(lake: Lake, config: CleanConfig) -> tuple[Material, np.ndarray, dict[str, int]]:
    """Photographs with exactly one label and a face, without copies; the fold of each; counts of what there was."""
    inputs = find_inputs(lake, config)
    calibration = require_calibration(config.embedder, lake)
    faces = read_faces(lake, inputs.faces, inputs.embeddings, calibration.min_quality)
    claims, names = read_claims(lake, inputs)
    images, at, number = np.unique(claims.image_id, return_index=True, return_counts=True)
    copies = group_of(claims, images) != images
    meant = center_faces(lake, images)
    kept = (number == 1) & ~copies & (meant >= 0)
    label = claims.label[at][kept]
    material = Material(faces, images[kept], label, np.searchsorted(faces.face_id, meant[kept]))
    counts = {
        "with a label": len(images),
        "with several": int((number > 1).sum()),
        "copies of others": int(copies.sum()),
        "without a face": int((meant < 0).sum()),
        "used": int(kept.sum()),
        "identities": len(np.unique(label)),
    }
    if not len(label):
        raise UsageError(
            f"{lake.uri}: no photograph has a label and a face, so there is nothing to plant noise in"
        )
    return material, folds_of([names[number] for number in label]), counts


def goals(found: Trials) -> list[Goal]:
    """The figures that have a goal, of the method that is the default."""
    listed = []
    for kind, of_rates in _GOALS.items():
        for rate, (precision, recall) in zip(RATES, of_rates, strict=False):
            scores = found[kind, rate, "ownership"]
            what = f"{kind} {rate:.0%}"
            listed += [
                Goal(f"precision, {what}", _mean(scores, _precision), precision - _TOLERANCE),
                Goal(f"recall, {what}", _mean(scores, _recall), recall - _TOLERANCE),
            ]
    worst = max(
        _mean(scores, _lost) or 0.0
        for (kind, rate, name), scores in found.items()
        if name == "ownership" and rate <= 0.3 and kind != "clean"
    )
    halves = found["unnamed", 0.5, "ownership"]
    return [
        *listed,
        Goal("true faces lost, the worst kind up to 30%", worst, at_most=0.02),
        Goal("true faces lost, clean data", _mean(found["clean", 0.0, "ownership"], _lost), at_most=0.005),
        Goal(
            "labels in quarantine, of those half outsider", _mean(halves, lambda s: s.hit_in_quarantine), 0.6
        ),
        Goal("purity of all other labels then", _mean(halves, lambda s: s.scores.kept_purity), 0.97),
    ]


def found_rows(found: Trials) -> list[dict[str, Any]]:
    """Precision and recall in percent: mean, worst, half the width of the 95 % interval of the mean."""
    rows = []
    for (kind, rate, name), scores in found.items():
        if kind != "clean":
            row = _case(kind, rate, name)
            row |= _three("precision", scores, _precision) | _three("recall", scores, _recall)
            rows.append(row)
    return rows


def left_rows(found: Trials) -> list[dict[str, Any]]:
    """True faces lost (mean, worst) and kept purity in percent; labels and identities in numbers a trial."""
    return [
        _case(kind, rate, name)
        | {
            "true lost": _percent(_mean(scores, _lost)),
            "worst": _percent(max((_lost(one) or 0.0 for one in scores), default=None)),
            "kept purity": _percent(_mean(scores, lambda s: s.scores.kept_purity)),
            "relabel recall": _percent(_mean(scores, lambda s: s.scores.relabel_recall)),
            "identities lost": _mean(scores, lambda s: s.scores.identities_lost),
            "hijacked": _mean(scores, lambda s: s.scores.identities_hijacked),
            "labels hit": _mean(scores, lambda s: s.labels_hit),
            "in quarantine": _percent(_mean(scores, lambda s: s.hit_in_quarantine)),
            "purity of other hit ones": _percent(_mean(scores, lambda s: s.rest_purity)),
        }
        for (kind, rate, name), scores in found.items()
    ]


def _case(kind: str, rate: float, name: str) -> dict[str, Any]:
    return {"noise": f"{kind} {rate:.0%}" if rate else kind, "method": name}


def _three(
    name: str, scores: Sequence[TrialScores], figure: Callable[[TrialScores], float | None]
) -> dict[str, Any]:
    values = np.array([value for value in map(figure, scores) if value is not None])
    if not len(values):
        return {name: None, f"{name}, worst": None, f"{name}, ±": None}
    width = None
    if len(values) > 1:
        width = _STUDENT_95[len(values) - 1] * float(values.std(ddof=1)) / np.sqrt(len(values))
    return {
        name: _percent(float(values.mean())),
        f"{name}, worst": _percent(float(values.min())),
        f"{name}, ±": _percent(width),
    }


def _mean(scores: Sequence[TrialScores], figure: Callable[[TrialScores], float | None]) -> float | None:
    values = [value for value in map(figure, scores) if value is not None]
    return float(np.mean(values)) if values else None


def _precision(one: TrialScores) -> float | None:
    return one.scores.precision


def _recall(one: TrialScores) -> float | None:
    return one.scores.recall


def _lost(one: TrialScores) -> float | None:
    return one.scores.true_faces_lost


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * float(share), 1)


def _rng(kind: str, rate: float, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(kind.encode()), round(100 * rate)])
