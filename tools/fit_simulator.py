"""Fit the simulator's geometry to a lake: prints the YAML for facescale/synth/simulated.yaml, and how well it agrees.

    python tools/fit_simulator.py LAKE --labels FILE --label-column NAME

Faces of the identities of fold 0 are fitted, those of fold 1 and a simulation of as many people are held against
them: quantiles of the similarity of two faces of different people (impostors) and of one person (genuine).
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from facescale.driver.calibrate import CalibrateSettings, labeled_faces
from facescale.driver.context import SilentReporter
from facescale.driver.re_encoding import read_vectors
from facescale.lake.lake import Lake
from facescale.lake.scan import scan_ids
from facescale.sources.labels import LabelSpec
from facescale.synth.fit_geometry import fit_geometry
from facescale.synth.geometry import FaceModel
from facescale.synth.population import Mixture, Population

if TYPE_CHECKING:
    from collections.abc import Mapping

LEVELS = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
QUALITY_NOISE, COPY_NOISE = 0.03, 0.06


def quantiles(unit: np.ndarray, who: np.ndarray) -> dict[str, np.ndarray]:
    """Of impostor and genuine similarities, all pairs."""
    similarity = unit @ unit.T
    upper = np.triu_indices(len(unit), 1)
    same = who[upper[0]] == who[upper[1]]
    return {
        "impostor": np.quantile(similarity[upper][~same], LEVELS),
        "genuine": np.quantile(similarity[upper][same], LEVELS),
    }


def simulated(model: FaceModel, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Faces of as many people with as many faces each."""
    who = np.repeat(np.arange(len(counts)), counts)
    faces = np.arange(len(who))
    latent = model.latent_quality(faces)
    return model.vectors(faces, who, latent, np.full(len(who), -1)).astype(np.float64), who


def table(columns: Mapping[str, dict[str, np.ndarray]]) -> str:
    """Markdown."""
    lines = [
        "| similarity of | at | " + " | ".join(columns) + " |",
        "| --- | --- |" + " --- |" * len(columns),
    ]
    for kind in ("impostor", "genuine"):
        for at, level in enumerate(LEVELS):
            cells = " | ".join(f"{found[kind][at]:.3f}" for found in columns.values())
            lines.append(f"| {kind}s | {level:g} | {cells} |")
    return "\n".join(lines)


def plain(value: Any) -> Any:
    """Floats with four digits."""
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return float(f"{value:.4g}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lake")
    parser.add_argument("--embedder", default="dlib_resnet")
    parser.add_argument("--labels")
    parser.add_argument("--label-column")
    parser.add_argument("--path-column", default="path")
    given = parser.parse_args()
    lake = Lake.open(given.lake)
    spec = None if given.labels is None else LabelSpec(given.labels, given.label_column, given.path_column)
    people, _ = labeled_faces(lake, CalibrateSettings(embedder=given.embedder, labels=spec), SilentReporter())
    embeddings, faces = lake.current("embeddings", given.embedder), lake.current("faces")
    assert embeddings is not None and faces is not None
    unit = read_vectors(lake, embeddings, people.face_ids).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    who = np.unique(people.names.astype(str), return_inverse=True)[1]
    quality = scan_ids(lake, faces, people.face_ids, ["quality"])["quality"].to_numpy().astype(np.float64)
    columns: dict[str, dict[str, np.ndarray]] = {}
    geometry = None
    for fold in (0, 1):
        mine = people.fold == fold
        own = np.unique(who[mine], return_inverse=True)[1]
        if geometry is None:
            geometry = fit_geometry(
                unit[mine], own, quality[mine], quality_noise=QUALITY_NOISE, copy_noise=COPY_NOISE
            )
            print(yaml.safe_dump({"geometry": plain(dataclasses.asdict(geometry))}, sort_keys=False))
        columns[f"fold {fold}: {len(own):,} faces of {own.max() + 1:,} people"] = quantiles(unit[mine], own)
        for seed in (0,):
            population = Population(int(own.max()) + 1, len(own), seed, Mixture())
            model = FaceModel(geometry, population, unit.shape[1])
            columns[f"simulated, sizes of fold {fold}"] = quantiles(*simulated(model, np.bincount(own)))
    print(table(columns))


if __name__ == "__main__":
    main()
