"""`facescale bench peers`: YuNet and MobileFaceNet through extract, beside the ways people run such models on a CPU.

Beside extract run: the face_recognition package (CNN detector); a plain loop over the same ONNX files, one photograph
and then one face at a time, with ONNX Runtime's own settings; and the bare batched loop. The first two have virtual
environments of their own. All take turns in one run; see facescale.bench.race.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facescale.bench.contender import bare_loop, plain_loop
from facescale.bench.environment import default_folder
from facescale.bench.memory import multiply_photos
from facescale.bench.photos import evenly, find_photos
from facescale.bench.race import BARE, EXTRACT, Race, add_figures, parts_of
from facescale.bench.results import Goal, Result, timed
from facescale.bench.speed import PACKAGE, check_package, enter_package
from facescale.engine.session import ray_session
from facescale.errors import DataError
from facescale.models.registry import card
from facescale.models.weights import find_weights, use_weights_folder
from facescale.vision.dense import MAX_SIDE_PX

if TYPE_CHECKING:
    from facescale.driver.context import Reporter

DETECTOR, EMBEDDER = "yunet_n", "mobilefacenet"
PLAIN = "plain loop"
DEFAULT_LIMIT, DEFAULT_COPIES = 1500, 8
_TOLERANCE = 0.01  # of the number of faces: the plain loop's arithmetic is not ours to the last bit


def bench_peers(
    folder: str,
    reporter: Reporter,
    *,
    limit: int | None = DEFAULT_LIMIT,
    copies: int = DEFAULT_COPIES,
    min_face_px: int = 40,
    rounds: int = 3,
    rival_photos: int = 12,
    rival_env: str | None = None,
    plain_env: str | None = None,
    weights_dir: str | None = None,
    work: str | None = None,
) -> Result:
    """Measure all four.

    Args:
        folder: of photographs.
        reporter: where remarks go.
        limit: at most so many photographs, evenly spaced over the sorted list.
        copies: times that extract sees each of them, under other names: what it does at its start takes as long as a
            thousand photographs with these models, and no job is as short as that.
        min_face_px: smallest face; with the face_recognition package 40 or 80.
        rounds: turns of each.
        rival_photos: photographs for the face_recognition package, over all rounds; 0 leaves it out.
        rival_env: folder of its virtual environment; None for one in the user's cache.
        plain_env: folder of the plain loop's; likewise.
        weights_dir: folder with the ONNX files; None for where they are found otherwise.
        work: folder for lakes; None for a temporary one.

    Raises:
        UsageError: too few photographs for 40 parts, no weights, or a smallest face the package cannot search for.
        DataError: the contenders did not find the same faces, so they did not do the same.
    """
    if rival_photos:
        check_package(min_face_px)
    use_weights_folder(weights_dir)
    models = plain_models(min_face_px)
    root = Path(folder).absolute()
    photos = find_photos(root, limit)
    part_rows = parts_of(copies * len(photos))
    settings: dict[str, Any] = {
        "detector": DETECTOR,
        "embedder": EMBEDDER,
        "photos": len(photos),
        "copies": copies,
        "min_face_px": min_face_px,
        "part_rows": part_rows,
        "rounds": rounds,
        "rival_photos": rival_photos,
    }
    result = Result("peers", settings)
    with timed(result), ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="facescale-bench-", dir=work)))
        multiply_photos(photos, copies * len(photos), place / "photos")
        links = [str(photo) for photo in photos]
        bare = stack.enter_context(bare_loop(min_face_px, detector=DETECTOR, embedder=EMBEDDER))
        extract = {"detector": DETECTOR, "embedder": EMBEDDER, "min_face_px": min_face_px}
        race = Race(place, links, part_rows, extract, bare, reporter, copies=copies)
        reporter.say("preparing the plain loop")
        environment = Path(plain_env) if plain_env else default_folder("plain-loop")
        race.rivals[PLAIN] = stack.enter_context(plain_loop(environment, models)), None
        if rival_photos:
            sample = evenly(links, rival_photos)
            race.rivals[PACKAGE] = enter_package(stack, reporter, rival_env, min_face_px, sample)
        stack.enter_context(ray_session(None))
        race.hold(rounds)
    race.check_same_work()
    check_plain_loop(race)
    result.goals = [
        Goal("extract, times the face_recognition package", race.times(PACKAGE), 60.0),
        Goal("extract, times the plain loop", race.times(PLAIN), 1.3),
        Goal("extract, times the bare loop", race.times(BARE), 0.85),
    ]
    add_figures(result, race, photos, evenly(photos, rival_photos))
    return result


def plain_models(min_face_px: int) -> dict[str, Any]:
    """What the plain loop needs to know: files and numbers of the cards.

    Raises:
        UsageError: the weights are not there.
    """
    detector, embedder = card(DETECTOR, "detector"), card(EMBEDDER, "embedder")
    return {
        "detector": str(find_weights(detector)),
        "embedder": str(find_weights(embedder)),
        "threshold": detector.threshold,
        "nms_iou": detector.nms_iou,
        "max_side_px": MAX_SIDE_PX,
        "min_face_px": min_face_px,
        "channel_order": embedder.channel_order,
        "mean": embedder.mean,
        "scale": embedder.scale,
    }


def check_plain_loop(race: Race) -> None:
    """DataError when the plain loop found another number of faces than extract, by more than a hundredth."""
    faces, plain = (sum(race.turns[name].faces) for name in (EXTRACT, PLAIN))
    if abs(faces / race.copies - plain) > _TOLERANCE * plain:
        raise DataError(
            f"extract found {faces / race.copies:g} faces and the plain loop {plain}: they do not do the same work, "
            "so their speeds say nothing"
        )
