"""`facescale bench gpu`: each step of extract alone, their sum, the pipeline of them, and how busy the device is.

Comes in: sizes; the photographs are made up. Goes out: images/s and faces/s of each step alone (decoding, upload,
detection, alignment, embedding …), of the extract stage with all of them in one worker, the ceiling (the slowest step
alone), the share of time the device worked, and what bf16 does to embeddings, of real faces if there are photographs.
Speed does not depend on what a photograph shows, so each is given the same number of faces, and an embedder whose
weights are not on this machine gets random ones. On `--device cpu` the same code runs as an emulation: steps then
compete for the same cores.
"""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facescale.bench.gpu_models import LANDMARKER, lay_faces, load_models, load_or_make_embedder
from facescale.bench.gpu_steps import Steps, make_photos, wait
from facescale.bench.photos import find_photos
from facescale.bench.results import Goal, Result, timed
from facescale.bench.utilization import DeviceMeter
from facescale.engine.session import usable_cpus
from facescale.engine.worker import PartDone, PartWorker, limit_threads
from facescale.errors import DataError, UsageError
from facescale.imaging.decode import decode
from facescale.lake.lake import Lake
from facescale.lake.parts import TableVersion
from facescale.models.weights import use_weights_folder
from facescale.sources.plan import plan_sources, planned_parts
from facescale.vision.columns import ExtractVersions
from facescale.vision.extract import ExtractSettings, ExtractStage
from facescale.vision.registry import load_quality_scorer, resolve_device

if TYPE_CHECKING:
    import torch

    from facescale.bench.gpu_models import Models
    from facescale.driver.context import Reporter

_COSINE_PHOTOS, _COSINE_BATCH = 200, 32
_FINGERPRINT = "0" * 12  # of tables that nobody reads


def bench_gpu(
    photos: str | None,
    reporter: Reporter,
    *,
    device: str = "cuda",
    detector: str = "yunet_n",
    embedder: str = "mobilefacenet",
    precision: str = "fp32",
    images: int = 1024,
    width_px: int = 1280,
    height_px: int = 720,
    faces_per_image: int = 2,
    micro_batch: int = 32,
    embed_batch: int = 128,
    decode_threads: int | None = None,
    rounds: int = 3,
    weights_dir: str | None = None,
    work: str | None = None,
) -> Result:
    """Measure.

    Args:
        photos: folder of photographs whose faces are embedded in bf16 and in fp32; None to compare made-up chips.
        reporter: where remarks go.
        device: cuda, cuda:N, or cpu for an emulation.
        detector: registry name; a RetinaFace gets random weights where its own are not on this machine.
        embedder: registry name; a known architecture gets random weights where its own are not on this machine.
        precision: of both networks.
        images: photographs a round.
        width_px: of each.
        height_px: of each.
        faces_per_image: faces of each.
        micro_batch: as in extract.
        embed_batch: as in extract.
        decode_threads: as in extract; None for one a CPU.
        rounds: of everything; the best of them counts, as a step alone is a ceiling.
        weights_dir: folder with weights.
        work: folder for the photographs and the lake; None for a temporary one.

    Raises:
        UsageError: a device that is not there, no weights, or more faces than fit the photographs.
    """
    use_weights_folder(weights_dir)
    where = resolve_device(device)
    threads = decode_threads or usable_cpus()
    limit_threads(threads)
    faces = lay_faces(faces_per_image, width_px, height_px)
    models = load_models(detector, embedder, device, precision, embed_batch, faces)
    settings: dict[str, Any] = {
        "device": _describe(where),
        "detector": detector,
        "embedder": embedder,
        "random weights": ", ".join(models.random) or "none",
        "precision": precision,
        "images": images,
        "size": f"{width_px} x {height_px}",
        "faces_per_image": faces_per_image,
        "micro_batch": micro_batch,
        "embed_batch": embed_batch,
        "decode_threads": threads,
    }
    result = Result("gpu", settings)
    with timed(result), ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="facescale-bench-", dir=work)))
        reporter.say(f"making {images} photographs of {width_px} x {height_px} px")
        files = make_photos(place / "photos", images, width_px, height_px)
        steps = Steps(models, where, files, threads, micro_batch, embed_batch)
        alone = steps.measure(rounds, reporter)
        stage = make_stage(place, models, precision, where, micro_batch, embed_batch, threads)
        runs = []
        with DeviceMeter(where) as meter:
            for number in range(rounds + 1):
                if number == 1:
                    meter.restart()  # the first round warms up
                runs.append(run_stage(stage, images * faces_per_image))
        pipeline = min(runs[1:])
        chips = steps.chips if photos is None else chips_of(photos, models, steps)
        cosine = bf16_cosine(embedder, device, chips)
    ceiling = max(alone.values())
    per_image = faces_per_image
    rows = [*alone.items(), ("sum", sum(alone.values())), ("pipeline (extract, one worker)", pipeline)]
    result.figures["steps"] = [
        {
            "step": name,
            "ms an image": 1000 * seconds / images,
            "images/s": images / seconds,
            "faces/s": per_image * images / seconds,
        }
        for name, seconds in rows
    ]
    slowest = max(alone, key=lambda name: alone[name])
    result.figures["pipeline"] = {
        "slowest step alone": slowest,
        "ceiling, images/s": images / ceiling,
        "pipeline, times the ceiling": ceiling / pipeline,
        "device busy, share": meter.busy,
        "bytes of a photograph, median": float(np.median([len(data) for data in files])),
    }
    result.figures["bf16 against fp32, cosine of embeddings"] = {
        "median": float(np.median(cosine)),
        "lowest": float(cosine.min()),
        "chips": len(cosine),
    }
    # Emulated steps take each other's cores: the goals are for a device of its own.
    on_device = where.type != "cpu"
    result.goals = [
        Goal("pipeline, times the slowest step alone", ceiling / pipeline if on_device else None, 0.90),
        Goal("device busy, share", meter.busy, 0.90),
        Goal(
            "bf16 against fp32, median cosine of real faces",
            float(np.median(cosine)) if photos is not None and not models.random else None,
            0.9995,
        ),
    ]
    return result


def make_stage(
    place: Path,
    models: Models,
    precision: str,
    device: torch.device,
    micro_batch: int,
    embed_batch: int,
    threads: int,
) -> tuple[ExtractStage, Lake]:
    """The extract stage over the photographs in `place`, with these models in the place of what it would load."""
    lake = Lake.create(str(place / "lake"))
    plan_sources(lake, str(place / "photos"))
    images, faces, crops = (TableVersion(table, _FINGERPRINT) for table in ("images", "faces", "crops"))
    embeddings = TableVersion("embeddings", _FINGERPRINT, models.embedder.card.name)
    settings = ExtractSettings(
        detector=models.detector.card.name,
        landmarker=LANDMARKER,
        embedder=models.embedder.card.name,
        min_face_px=40,
        precision=precision,
        max_bytes=1 << 28,
        max_pixels=100_000_000,
        device=str(device),
        micro_batch=micro_batch,
        embed_batch=embed_batch,
        decode_threads=threads,
        detect_ahead=True,
    )
    stage = ExtractStage(settings, lake.store, ExtractVersions(images, faces, crops, embeddings))
    stage.detector, stage.embedder = models.detector, models.embedder
    stage.landmarker, stage.scheme = models.landmarker, models.scheme
    stage.template = models.embedder.card.template or ""
    stage.scorer = load_quality_scorer(settings.quality_scorer)
    stage.pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    return stage, lake


def run_stage(made: tuple[ExtractStage, Lake], faces: int) -> float:
    """Seconds that one worker takes for all parts, tables included.

    Raises:
        DataError: a part failed, or not all faces are in the tables.
    """
    stage, lake = made
    worker = PartWorker(stage, lake.store, threads=usable_cpus())
    start, found = time.perf_counter(), 0
    for part in planned_parts(lake):
        done = worker.run(part)
        if not isinstance(done, PartDone):
            raise DataError(f"extract failed: {done.text}")
        found += done.counters["faces"]
    wait(resolve_device(stage.settings.device))
    if found != faces:
        raise DataError(f"extract made {found} faces of {faces}")
    return time.perf_counter() - start


def chips_of(photos: str, models: Models, steps: Steps) -> np.ndarray:
    """The best face of each of some photographs, as the embedder takes it: uint8 [N, S, S, 3].

    Raises:
        UsageError: no faces.
    """
    images = [decode(path.read_bytes()).pixels for path in find_photos(photos, _COSINE_PHOTOS)]
    whole = [image for image in images if image is not None]
    chips = steps.align_best(whole, models.detector.inner.detect(whole))
    if not len(chips):
        raise UsageError(
            f"no face was found in {len(whole)} photographs of {photos}: give a folder with people"
        )
    return chips


def bf16_cosine(embedder: str, device: str, chips: np.ndarray) -> np.ndarray:
    """Cosine of each chip's embeddings in bf16 and in fp32, float64 [N]."""
    found = []
    for precision in ("fp32", "bf16"):
        network, _ = load_or_make_embedder(embedder, device=device, precision=precision, batch=_COSINE_BATCH)
        raw = network.embed(chips).astype(np.float64)
        found.append(raw / np.linalg.norm(raw, axis=1, keepdims=True))
    cosine: np.ndarray = (found[0] * found[1]).sum(axis=1)
    return cosine


def _describe(device: torch.device) -> str:
    if device.type != "cuda":
        return f"cpu ({os.cpu_count()} CPUs), an emulation"
    import torch

    return torch.cuda.get_device_name(device)
