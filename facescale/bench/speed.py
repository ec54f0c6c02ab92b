"""`facescale bench extract`: images/s of extract through Ray, of a bare loop, and of the face_recognition package.

All three work on the same files in one run and take turns; see facescale.bench.race.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from facescale.bench.contender import bare_loop, face_recognition
from facescale.bench.environment import default_folder
from facescale.bench.photos import evenly, find_photos, link_photos
from facescale.bench.race import BARE, Race, add_figures, parts_of
from facescale.bench.results import Goal, Result, timed
from facescale.engine.session import ray_session
from facescale.errors import UsageError

if TYPE_CHECKING:
    from facescale.bench.contender import Contender
    from facescale.driver.context import Reporter

PACKAGE = "face_recognition"
DEFAULT_LIMIT = 1500
_UPSAMPLES = {40: 1, 80: 0}  # smallest face → number_of_times_to_upsample


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
    if rival_photos:
        check_package(min_face_px)
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
        bare = stack.enter_context(bare_loop(min_face_px))
        race = Race(place, links, part_rows, {"min_face_px": min_face_px}, bare, reporter)
        if rival_photos:
            race.rivals[PACKAGE] = enter_package(
                stack, reporter, rival_env, min_face_px, evenly(links, rival_photos)
            )
        stack.enter_context(ray_session(None))
        race.hold(rounds)
    race.check_same_work()
    result.goals = [
        Goal("extract, times the face_recognition package", race.times(PACKAGE), 20.0),
        Goal("extract, times the bare loop", race.times(BARE), 0.90),
    ]
    add_figures(result, race, photos, evenly(photos, rival_photos))
    return result


def enter_package(
    stack: ExitStack, reporter: Reporter, environment: str | None, min_face_px: int, photos: list[str]
) -> tuple[Contender, list[str]]:
    """Start the face_recognition package; with the photographs it gets, over all rounds.

    Raises:
        UsageError: it cannot search for faces of this size.
    """
    check_package(min_face_px)
    reporter.say("preparing the face_recognition package")
    folder = Path(environment) if environment else default_folder("face-recognition")
    return stack.enter_context(face_recognition(folder, upsample=_UPSAMPLES[min_face_px])), photos


def check_package(min_face_px: int) -> None:
    """UsageError when the face_recognition package cannot be told this size of a face."""
    if min_face_px not in _UPSAMPLES:
        raise UsageError(
            f"--min-face-px {min_face_px}: the face_recognition package can be told 40 or 80; give one of "
            "these, or --no-rival"
        )
