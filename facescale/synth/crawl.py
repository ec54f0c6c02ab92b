"""The synthetic crawl: a folder of image files with claimed labels, and a table of what each of them is.

In: a folder to make, sizes and a seed. Out:

    OUT/images/id_0007/img_00003.jpg    what a crawl gives: files in folders by claimed label
    OUT/truth.parquet                   one row per file: who is in it, what was planted, where faces are

Called by `facescale synth`, the demo and the tests; `facescale run` is given OUT/images. The truth lies
beside the images and not among them, as a Parquet file inside a source would be read as a container of
images. The same arguments and package versions give the same bytes, whatever the number of threads. It is a
fixture for plumbing, made from one portrait with people chosen by the default models, and no evidence about
recognition.
"""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from facescale.synth.cast import MIN_DISTANCE, DefaultJudge, choose_cast
from facescale.synth.plan import Planted, plan_shots
from facescale.synth.portrait import load_portrait
from facescale.synth.shoot import Shooting
from facescale.synth.truth import BUILDING, IMAGES_FOLDER, SynthSummary, existing_crawl, write_truth

if TYPE_CHECKING:
    from collections.abc import Callable

    from facescale.synth.cast import Judge

REVISION = 1  # raised whenever the same arguments give other pictures


def make_crawl(
    out: str | Path,
    *,
    identities: int = 40,
    images_per_identity: int = 8,
    seed: int = 0,
    planted: Planted | None = None,
    min_distance: float = MIN_DISTANCE,
    judge: Judge | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SynthSummary:
    """Make a synthetic crawl.

    Args:
        out: folder to make; may exist if it is empty or holds the crawl of the same arguments, which is kept.
        identities: people.
        images_per_identity: clean images of each.
        seed: of everything random.
        planted: amounts of what is planted; None for `Planted.for_size`.
        min_distance: smallest L2 distance between raw default descriptors of two people.
        judge: finds and describes faces when people are chosen; None for the default models on the CPU.
        threads: None for one per core.
        progress: called with files made and files planned, from this thread.

    Returns:
        What was made.

    Raises:
        UsageError: `out` holds something else, or sizes that cannot be.
        MissingExtraError: scikit-image or the default models are not installed.
    """
    started = time.perf_counter()
    folder = Path(out)
    planted = planted or Planted.for_size(identities * images_per_identity)
    cast_seed, plan_seed, shots_seed = np.random.SeedSequence([REVISION, seed]).spawn(3)
    shots = plan_shots(identities, images_per_identity, planted, plan_seed)
    request = {
        "revision": REVISION,
        "identities": identities,
        "images_per_identity": images_per_identity,
        "seed": seed,
        "planted": asdict(planted),
        "min_distance": min_distance,
    }
    existing = existing_crawl(folder, request)
    if existing is not None:
        return existing
    building = folder / BUILDING
    if building.exists():
        shutil.rmtree(building)  # ours alone: what a killed run left behind
    load_portrait()  # a missing extra shows before the models load
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        cast = choose_cast(identities, cast_seed, judge or DefaultJudge(), pool, min_distance=min_distance)
        shooting = Shooting(building / IMAGES_FOLDER, shots, cast, shots_seed.spawn(len(shots)))
        rows = shooting.make(pool, progress)
    return write_truth(folder, building, request, cast, rows, time.perf_counter() - started)
