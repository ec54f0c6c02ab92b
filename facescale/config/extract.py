"""What extract and embed make: the models and limits that change results, and the sizes that do not."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from facescale.config.base import Config


class LabelsConfig(Config):
    """Where the claimed labels of images come from."""

    source: str | None = None
    """`folder` (parent folder, or a tar member's json/cls/txt), or a CSV or Parquet file keyed by path; unset: none."""

    column: str | None = None
    """Column of the file that holds the label."""

    path_column: str = "path"
    """Column of the file that holds the image's path."""


class ExtractConfig(Config):
    """Images to faces, crops and embeddings."""

    detector: str = "dlib_mmod"
    """Registry name of the face detector (`facescale models list`)."""

    landmarker: str = "dlib_5pt"
    """Registry name of the landmark model; not used by a detector that gives landmarks itself."""

    embedder: str = "dlib_resnet"
    """Registry name of the embedder."""

    min_face_px: int = Field(default=40, ge=16, le=1024)
    """Side of the smallest face to look for, in pixels. 80 is four times as fast as 40 with the default detector."""

    quality_scorer: str = "iso_v1"
    """What measures the quality of faces. Another one makes new tables: images, faces and crops are made together."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the networks. auto is fp32; the others move scores and embeddings slightly and make new tables."""

    runtime: Literal["auto", "torch", "onnx"] = "auto"
    """What runs a model that has weights for several: torch or ONNX Runtime. auto is what its card names first."""

    accelerate: Literal["none", "compile", "cuda_graphs", "tensorrt"] = "none"
    """How embedders that are networks run: compile (torch.compile), cuda_graphs (torch), tensorrt (ONNX Runtime)."""

    flip: bool = False
    """Describe each face as it is and mirrored, and take the mean: twice the work, and other embeddings."""

    trust: bool = False
    """Open TorchScript files, exported programs and pickled checkpoints, which can run code; else FACESCALE_TRUST=1."""

    det_threshold: float | None = None
    """Faces score above it, in the detector's own unit; unset is the threshold of its card."""

    weights_dir: str | None = None
    """Folder that is searched for weights, by their sha256, before FACESCALE_WEIGHTS and before any download."""

    offline: bool = False
    """Download no weights; the environment variable FACESCALE_OFFLINE=1 says the same for every command."""

    accept_license: bool = False
    """Run models whose licence forbids commercial use; without it they are refused."""

    max_bytes: int = Field(default=256 << 20, ge=1)
    """Larger files are not read: status too_many_bytes."""

    max_pixels: int = Field(default=100_000_000, ge=1)
    """Larger images are not decoded: status too_many_pixels."""

    micro_batch: int = Field(default=16, ge=1, le=4096)
    """Images that are decoded and detected together; does not change results."""

    embed_batch: int = Field(default=32, ge=1, le=4096)
    """Faces that are embedded together; does not change results."""

    decode_threads: int = Field(default=2, ge=1, le=256)
    """Threads in each worker that read, decode and hash images."""

    part_rows: int | None = Field(default=None, ge=1, le=8192)
    """Rows of a part for new input, a power of two; unset works it out (64 to 8,192)."""

    plugins: tuple[str, ...] = ()
    """Python modules to import first, here and in every worker: they register further models."""

    @property
    def arithmetic(self) -> str:
        """`precision` with auto resolved: fp32 on every device, so results do not depend on where a part was made."""
        return "fp32" if self.precision == "auto" else self.precision
