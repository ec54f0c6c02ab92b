"""`facescale bench clusters`: clusters at our one setting, beside connected components and Leiden at their best.

Comes in: photographs with labels.csv, or a lake with labels that are right. Goes out: BCubed and pairwise scores, over
everybody and over the people whom no setting was fitted on (fold 1 of evaluate.split).

Every method gets the same faces and the same lists of neighbors, bystanders and group photographs included; scored are
the single photographs. Ours has one setting. The others try every threshold of a grid, and for each figure the
threshold counts that is best for it, which nobody could choose without knowing the truth.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse.csgraph import connected_components

from facescale.bench.chosen import Models, make_lake, models_of
from facescale.bench.contender import leiden
from facescale.bench.environment import default_folder
from facescale.bench.lake_faces import read_faces
from facescale.bench.photos import LABELS, read_labels
from facescale.bench.results import Goal, Result, progress, timed
from facescale.config.cluster import ClusterConfig
from facescale.curate.calibration import DRIFT_BOUND
from facescale.curate.cluster_copies import inherit
from facescale.curate.cluster_fit import UNASSIGNED
from facescale.curate.duplicates import representatives
from facescale.curate.graph import adjacency, pairs_of
from facescale.driver.clean import read_faces as read_embedded
from facescale.driver.cluster import make_rows, plan_cluster, read_lists
from facescale.errors import UsageError
from facescale.evaluate.center import center_faces
from facescale.evaluate.clusters import ClusterScores, images_sharing_a_cluster, score_clusters
from facescale.evaluate.split import folds_of
from facescale.lake.ids import image_id_of
from facescale.lake.lake import Lake
from facescale.lake.scan import scan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from facescale.curate.calibration import Calibration
    from facescale.curate.graph import Pairs
    from facescale.driver.cluster import ClusterPlan
    from facescale.driver.context import Reporter

    Ints = NDArray[np.int64]

OURS = "facescale cluster"
_FITTED = ("link_ratio", "merge_ratio", "merge_ratio_large")
_LOOSEST_FMR, _STRICTEST_FMR = 1e-1, 1e-6
_EVERYBODY = "all single photographs"
_SHIFTS = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
_SHIFT_STEPS = 65
_CLIFF = 0.05
"""Pairwise F that may be lost where thresholds are off by as much as a lake's drift may be without a warning."""


@dataclass(frozen=True, eq=False)
class People:
    """Who is on which face.

    Attributes:
        face_id: int64 [P]; -1 for a photograph on which no face was found: it is in nobody's cluster.
        name: [P].
    """

    face_id: Ints
    name: NDArray[Any]

    def only(self, chosen: NDArray[np.bool_]) -> People:
        """Some of them."""
        return People(self.face_id[chosen], self.name[chosen])


@dataclass(frozen=True, eq=False)
class Trial:
    """What a method made of the lake.

    Attributes:
        method: its name.
        setting: its threshold, or ours.
        clusters: int64 [N], cluster of each face of `face_ids`; UNASSIGNED where there is none.
        seconds: it took.
    """

    method: str
    setting: str
    clusters: Ints
    seconds: float


def bench_clusters(
    source: str,
    reporter: Reporter,
    *,
    lake: str | None = None,
    models: Models | None = None,
    rival: bool = True,
    rival_env: str | None = None,
    steps: int = 33,
) -> Result:
    """Cluster by every method, and score.

    Args:
        source: a folder of photographs with labels.csv, or a lake whose labels are right and that has neighbors.
        reporter: where progress goes.
        lake: to make of the photographs, or to go on with; None for a temporary one. Not with a lake as the source.
        models: to run over photographs; of a lake, the calibrated embedder whose neighbors are scored.
        rival: compare with Leiden, too.
        rival_env: folder of its virtual environment; None for one in the user's cache.
        steps: thresholds that each of the others tries.

    Raises:
        UsageError: a file, a column or a table is missing, or nobody has a label.
    """
    models = models or Models()
    embedder = models.embedder
    result = Result("clusters", {**models.settings(), "steps": steps})
    with timed(result), ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="facescale-bench-")))
        if (Path(source) / LABELS).is_file():
            jobs = ("extract", "dedup", "neighbors")
            made = make_lake(source, lake or str(work / "lake"), models, jobs, reporter)
            people = _people_of_photos(Path(source).absolute(), made, embedder)
        elif lake is not None:
            raise UsageError(f"{source} has no {LABELS}, and a lake needs no --lake")
        else:
            made = Lake.open(source)
            models = models_of(made, models)
            result.settings |= models.settings()
            people = _people_of_lake(made)
        if not len(people.name):
            raise UsageError(f"{source}: no single photograph has an identity, so there is nothing to score")
        plan = plan_cluster(made, ClusterConfig(embedder=embedder))
        ground = _Ground(made, plan)
        ours = ground.ours(ClusterConfig(embedder=embedder))
        others = list(_components(ground, steps, reporter))
        if rival:
            reporter.say("preparing the leidenalg package")
            environment = Path(rival_env) if rival_env else default_folder("leiden")
            others += _leiden(ground, steps, environment, work, reporter)
        folds = folds_of(people.name.tolist())
        sections = {
            _EVERYBODY: people,
            "people whom no setting was fitted on (fold 1)": people.only(folds == 1),
            "people whom the settings were fitted on (fold 0)": people.only(folds == 0),
        }
        for title, some in sections.items():
            _score(result, title, some, ground, ours, others, models.expected())
        result.figures["our setting, and around it"] = _around(ground, people, embedder)
        _add_shifted(result, people, ground, embedder)
        result.figures["lake"] = {
            "faces": len(ground.face_id),
            "single photographs": len(people.name),
            "single photographs without a face": int((people.face_id < 0).sum()),
            "identities": len(np.unique(people.name)),
            "pairs of similar faces": len(ground.pairs.first),
            "images with two faces in one cluster of ours": images_sharing_a_cluster(
                image_id_of(ground.face_id), ours.clusters
            ),
        }
    return result


class _Ground:
    """What every method gets: faces, pairs from their lists, and which faces are on copies."""

    def __init__(self, lake: Lake, plan: ClusterPlan) -> None:
        self.lake, self.plan = lake, plan
        every = read_embedded(lake, plan.faces, plan.embeddings, None)
        self.face_id, self.unit = every.face_id, every.unit
        none = np.empty(0, np.int64)
        self.copies, self.keepers = representatives(lake) if plan.duplicates else (none, none)
        lists = read_lists(lake, plan.neighbors, -1.0)
        self.at = np.searchsorted(self.face_id, lists.face_id)
        N = len(lists.face_id)
        self.pairs: Pairs = pairs_of(lists.links, np.ones(N, bool), image_id_of(lists.face_id))

    def ours(self, config: ClusterConfig, *, shift: float = 0.0) -> Trial:
        """Ours, as the job makes it; with every threshold `shift` higher, as cosine."""
        start = time.perf_counter()
        plan = dataclasses.replace(self.plan, calibration=shifted(self.plan.calibration, shift))
        rows, _ = make_rows(self.lake, plan, config)
        setting = " ".join(f"{getattr(config, name):g}" for name in _FITTED)
        return Trial(OURS, setting, rows.cluster_id, time.perf_counter() - start)

    def components(self, threshold: float) -> Trial:
        """Connected components of the links above a threshold."""
        start = time.perf_counter()
        graph = adjacency(len(self.at), self.pairs, threshold)
        labels = connected_components(graph, directed=False)[1].astype(np.int64)
        return self.trial("components", threshold, labels, time.perf_counter() - start)

    def trial(self, method: str, threshold: float, labels: Ints, seconds: float) -> Trial:
        """What another made of the faces that have lists; copies are given the clusters of what they copy."""
        label = np.full(len(self.face_id), UNASSIGNED)
        label[self.at] = labels
        unsure = np.empty(len(label), np.float32)
        re_encode = self.plan.calibration.re_encode
        inherit(label, unsure, self.unit, self.face_id, self.copies, self.keepers, re_encode)
        return Trial(method, f"{threshold:.4f}", label, seconds)

    def thresholds(self, steps: int) -> NDArray[np.float64]:
        """A grid of cosines, from where one pair of strangers in ten passes to where one in a million does."""
        curve = self.plan.calibration.pairs
        return np.linspace(curve.similarity_at(_LOOSEST_FMR), curve.similarity_at(_STRICTEST_FMR), steps)


def _people_of_photos(root: Path, lake: Lake, embedder: str) -> People:
    """The center face of each photograph of labels.csv that shows a single person whose identity is known."""
    photos = [photo for photo in read_labels(root) if photo.kind == "single" and photo.identity]
    faces = read_faces(lake, embedder)
    row = faces.center_of(faces.rows_of(root, [photo.path for photo in photos]))
    face_id = np.where(row >= 0, faces.face_ids[np.maximum(row, 0)], -1)
    return People(face_id, np.array([photo.identity for photo in photos]))


def _people_of_lake(lake: Lake) -> People:
    """The center face of each image with one label."""
    version = lake.current("labels")
    if version is None:
        raise UsageError(f"{lake.uri} has no labels, so there is nothing to score")
    tables = list(scan(lake, version, columns=["image_id", "label"]))
    images = np.concatenate([np.empty(0, np.int64), *(table["image_id"].to_numpy() for table in tables)])
    names = np.array([name for table in tables for name in table["label"].to_pylist()])
    unique, first, number = np.unique(images, return_index=True, return_counts=True)
    return People(center_faces(lake, unique[number == 1]), names[first[number == 1]])


def _components(ground: _Ground, steps: int, reporter: Reporter) -> Iterator[Trial]:
    with progress(reporter, "components", items=steps, unit="thresholds") as advance:
        for threshold in ground.thresholds(steps).tolist():
            yield ground.components(threshold)
            advance(1)


def _leiden(
    ground: _Ground, steps: int, environment: Path, work: Path, reporter: Reporter
) -> Iterator[Trial]:
    """Modularity over the links above each threshold, and the constant Potts model at each threshold."""
    graph, out = str(work / "graph.npz"), str(work / "labels.npy")
    pairs = ground.pairs
    np.savez(graph, first=pairs.first, second=pairs.second, similarity=pairs.similarity)
    with (
        leiden(environment) as contender,
        progress(reporter, "leiden", items=2 * steps, unit="thresholds") as advance,
    ):
        for objective in ("modularity", "CPM"):
            for threshold in ground.thresholds(steps).tolist():
                request = {"graph": graph, "faces": len(ground.at), "out": out}
                answer = contender.ask(**request, objective=objective, threshold=threshold)
                yield ground.trial(f"Leiden, {objective}", threshold, np.load(out), answer["seconds"])
                advance(1)


def _score(
    result: Result,
    title: str,
    people: People,
    ground: _Ground,
    ours: Trial,
    others: list[Trial],
    expected: Mapping[str, float],
) -> None:
    """Add the tables of one set of people, and the goals for everybody."""
    if not len(people.name):
        return
    several = np.unique(people.name, return_counts=True)[1].max() > 1
    for least, what in ((1, title), (2, f"{title}, identities with two or more")):
        if least == 2 and not several:
            continue

        def score(trial: Trial, least: int = least) -> ClusterScores:
            found = _clusters_of(ground.face_id, trial.clusters, people.face_id)
            return score_clusters(people.name, found, min_photos=least)

        mine = score(ours)
        rows = [_row(ours, "one setting", mine)]
        best = {"bcubed_f": 0.0, "pairwise_f": 0.0}
        for method in dict.fromkeys(trial.method for trial in others):
            scored = [(score(trial), trial) for trial in others if trial.method == method]
            for measure, says in (("bcubed_f", "best BCubed F"), ("pairwise_f", "best pairwise F")):
                scores, trial = max(scored, key=_by(measure))
                rows.append(_row(trial, says, scores))
                best[measure] = max(best[measure], getattr(scores, measure))
        result.figures[what] = rows
        if title != _EVERYBODY:
            continue
        for measure, name in (("bcubed_f", "BCubed F"), ("pairwise_f", "pairwise F")):
            value = getattr(mine, measure)
            if least == 1 and measure in expected:
                result.goals.append(Goal(f"{name}, {what}", value, expected[measure]))
            result.goals.append(
                Goal(f"{name} above the best of the others, {what}", value - best[measure], 0.001)
            )


def _by(measure: str) -> Callable[[tuple[ClusterScores, Trial]], float]:
    return lambda scored: float(getattr(scored[0], measure))


def _row(trial: Trial, chosen: str, scores: ClusterScores) -> dict[str, Any]:
    return {
        "method": trial.method,
        "chosen for": chosen,
        "setting": trial.setting,
        "BCubed P": scores.bcubed_precision,
        "R": scores.bcubed_recall,
        "F": scores.bcubed_f,
        "pairwise P": scores.pairwise_precision,
        "R ": scores.pairwise_recall,
        "F ": scores.pairwise_f,
        "singleton P": scores.singleton_precision,
        "clusters / identities": scores.cluster_count_ratio,
        "seconds": round(trial.seconds, 2),
    }


def _around(ground: _Ground, people: People, embedder: str) -> list[dict[str, Any]]:
    """Scores at each ratio's third and threefold: results that hang on a setting would show here."""
    default = ClusterConfig(embedder=embedder)
    rows = []
    for name in _FITTED:
        for factor in (1 / 3, 1.0, 3.0):
            value = getattr(default, name) * factor
            trial = ground.ours(ClusterConfig.model_validate({"embedder": embedder, name: value}))
            scores = score_clusters(people.name, _clusters_of(ground.face_id, trial.clusters, people.face_id))
            rows.append(
                {"setting": name, "value": round(value, 2)}
                | dataclasses.asdict(scores, dict_factory=_of_both)
            )
    return rows


def shifted(calibration: Calibration, by: float) -> Calibration:
    """A calibration whose every threshold of two faces is `by` higher, as cosine: one that was fitted wrongly."""
    curve, genuine = calibration.pairs, calibration.genuine
    pairs = dataclasses.replace(curve, similarity=tuple(value + by for value in curve.similarity))
    same = dataclasses.replace(genuine.pairs, values=tuple(value + by for value in genuine.pairs.values))
    return dataclasses.replace(calibration, pairs=pairs, genuine=dataclasses.replace(genuine, pairs=same))


def _add_shifted(result: Result, people: People, ground: _Ground, embedder: str) -> None:
    """Scores with all thresholds off: a setting on the edge of a cliff shows here, and is a goal that is missed.

    In deviations of the cosine of random pairs, as embedders differ in what a cosine is; beside it, the connected
    components of the links above the threshold that suits them best, off by as much.
    """
    deviation = ground.plan.calibration.random.deviation
    config = ClusterConfig(embedder=embedder)

    def score(trial: Trial) -> ClusterScores:
        return score_clusters(people.name, _clusters_of(ground.face_id, trial.clusters, people.face_id))

    grid = ground.thresholds(_SHIFT_STEPS).tolist()
    best = max(grid, key=lambda threshold: score(ground.components(threshold)).pairwise_f)
    rows = []
    for step in _SHIFTS:
        ours = score(ground.ours(config, shift=step * deviation))
        theirs = score(ground.components(best + step * deviation))
        rows.append(
            {
                "thresholds off by, deviations": step,
                "as cosine": round(step * deviation, 4),
                "BCubed F": ours.bcubed_f,
                "pairwise F": ours.pairwise_f,
                "components at": round(best + step * deviation, 4),
                "their BCubed F": theirs.bcubed_f,
                "their pairwise F": theirs.pairwise_f,
            }
        )
    result.figures["with every threshold off"] = rows
    own = next(row for row in rows if row["thresholds off by, deviations"] == 0)["pairwise F"]
    near = [row["pairwise F"] for row in rows if abs(row["thresholds off by, deviations"]) <= DRIFT_BOUND]
    lost = max(own - value for value in near)
    what = f"pairwise F lost where every threshold is {DRIFT_BOUND:g} deviations off, all single photographs"
    result.goals.append(Goal(what, lost, at_most=_CLIFF))


def _of_both(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name.replace("_", " "): value for name, value in items if name.startswith(("bcubed", "pairwise"))}


def _clusters_of(face_ids: Ints, clusters: Ints, wanted: Ints) -> Ints:
    """Clusters of some faces; UNASSIGNED for one that is not there."""
    if not len(face_ids):
        return np.full(len(wanted), UNASSIGNED)
    at = np.minimum(np.searchsorted(face_ids, wanted), len(face_ids) - 1)
    return np.where(face_ids[at] == wanted, clusters[at], UNASSIGNED)
