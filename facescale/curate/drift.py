"""Does a calibration fit a lake? A sample of the lake's faces in, a warning or nothing out.

Called by the drivers of jobs that use thresholds, before they start; the measure is Calibration.drift.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from facescale.curate.calibration import DRIFT_BOUND, Calibration
from facescale.lake.parts import list_done
from facescale.lake.scan import scan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from facescale.lake.lake import Lake
    from facescale.lake.parts import TableVersion

MIN_FACES = 200
"""With fewer the spread of random pairs is not known well enough to warn."""
_SAMPLE = 4000
_PARTS = 64


def drift_warning(calibration: Calibration, lake: Lake, embeddings: TableVersion) -> str | None:
    """A sentence for the user where random pairs of the lake are not like those calibrated on; None where they are."""
    sample = sample_embeddings(lake, embeddings)
    if len(sample) < MIN_FACES:
        return None
    drift = calibration.drift(sample)
    if drift <= DRIFT_BOUND:
        return None
    return (
        f"random faces of {lake.uri} are not as alike as those that {calibration.embedder} was calibrated on: its "
        f"threshold for a false-match rate of 1e-3 lies {drift:.2f} deviations off (more than {DRIFT_BOUND} is "
        f"suspicious), so rates are not what they say. Calibrate on such faces: facescale calibrate {lake.uri} "
        f"--embedder {calibration.embedder} --labels FILE --label-column NAME"
    )


def sample_embeddings(lake: Lake, embeddings: TableVersion, count: int = _SAMPLE) -> NDArray[np.float32]:
    """Embeddings of faces spread evenly over a version: float32 [N, D], N about `count` at most.

    Reads 64 evenly spaced parts at most; the same faces each time.
    """
    parts = list(list_done(lake.store, embeddings).parts())
    chosen = [
        parts[i] for i in np.unique(np.linspace(0, len(parts) - 1, min(_PARTS, len(parts))).astype(int))
    ]
    each = -(-count // max(1, len(chosen)))
    found = []
    for part in chosen:
        tables = [table["embedding"].combine_chunks() for table in scan(lake, embeddings, parts=[part])]
        vectors = [
            t.flatten().to_numpy(zero_copy_only=False).reshape(len(t), -1).astype(np.float32) for t in tables
        ]
        if vectors:
            rows = np.concatenate(vectors)
            found.append(rows[np.unique(np.linspace(0, len(rows) - 1, min(each, len(rows))).astype(int))])
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)
