"""dlib's max-margin face detector file: a `.dat` stream in, folded convolutions and settings out.

Called by facescale.vision.mmod. The stream holds the loss options (window, overlap limits), the input layer
(means) and nineteen layers from the input to the scores: convolution, batch norm and ReLU six times, and a
last convolution. Everything that is not needed is checked, so that another network is refused, not misread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from facescale.models.dlib_layers import expect_name, expect_plain, read_convolution, skip_layer_state

if TYPE_CHECKING:
    import numpy.typing as npt

    from facescale.models.dlib_dat import DatReader
    from facescale.models.dlib_layers import Convolution

NUM_CONVOLUTIONS = 7
_NUM_LAYERS = 3 * NUM_CONVOLUTIONS - 2


@dataclass(frozen=True, eq=False)
class MmodWeights:
    """What the file holds: see `facescale.vision.mmod` for how it is used.

    Args:
        window_px: side of the square detection window.
        max_overlap: a box is dropped when it overlaps a better one by more than this.
        mean: float32 [3], RGB, subtracted from the pixels.
        convolutions: from the input to the score map; a ReLU follows all but the last.
    """

    window_px: int
    max_overlap: float
    mean: npt.NDArray[np.float32]
    convolutions: tuple[Convolution, ...]


def read_mmod(reader: DatReader) -> MmodWeights:
    """Read the whole stream.

    Raises:
        CorruptError: it is damaged, or not this network.
    """
    reader.expect(1, "loss layer version")
    expect_name(reader, "loss_mmod_")
    window_px, max_overlap = _read_options(reader)
    for _ in range(_NUM_LAYERS - 1):
        reader.expect(2, "layer version")
    reader.expect(3, "input layer version")
    expect_name(reader, "input_rgb_image_pyramid")
    mean = np.array([reader.float_() for _ in range(3)], np.float32)
    convolutions = []
    for index in range(NUM_CONVOLUTIONS):
        convolution = read_convolution(reader)
        skip_layer_state(reader)
        if index == 0:
            reader.expect(1, "images per sample")
        if index < NUM_CONVOLUTIONS - 1:
            convolution = convolution.then(*_read_batch_norm(reader))
            skip_layer_state(reader)
            expect_plain(reader, "relu_")
        convolutions.append(convolution)
    reader.expect_end()
    return MmodWeights(window_px, max_overlap, mean, tuple(convolutions))


def _read_options(reader: DatReader) -> tuple[int, float]:
    """The window's side and the overlap limit."""
    reader.expect(1, "options version")
    width, height = reader.int_(), reader.int_()
    if width != height:
        reader.fail(f"detection window of {width} x {height} is not square")
    reader.float_(), reader.float_(), reader.float_()  # costs and overlap that only training uses
    max_overlap = reader.float_()
    max_covered = reader.float_()
    if max_covered < 1:
        reader.fail(f"boxes may be covered by {max_covered}, expected 1, which never drops one")
    reader.float_(), reader.float_()  # overlap with regions to ignore in training
    return width, max_overlap


def _read_batch_norm(reader: DatReader) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Scale and offset, float64 [channels], that batch norm applies at inference.

    dlib writes the statistics of the last training batch (means, inverse deviations), then the running ones.
    Inference uses the running ones; with the others the detector finds nothing.
    """
    expect_name(reader, "bn_con2")
    gamma, beta = np.split(reader.tensor().reshape(-1).astype(np.float64), 2)
    reader.alias_tensor()
    reader.alias_tensor()
    reader.tensor(), reader.tensor()  # of the last batch
    mean, variance = (reader.tensor().reshape(-1).astype(np.float64) for _ in range(2))
    reader.int_(), reader.int_()  # updates made, window of the running average
    for _ in range(4):
        reader.float_()  # learning rates and weight decays
    epsilon = reader.float_()
    if not len(gamma) == len(mean) == len(variance):
        reader.fail(f"batch norm of {len(gamma)} channels with statistics of {len(mean)} and {len(variance)}")
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - scale * mean
