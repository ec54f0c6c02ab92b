"""What the fault tests share: a small source of real pixels, an undisturbed run over it, jobs that are cleared away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from real_jobs import CONFIG, FLAGS, NUM_IMAGES, Job


@pytest.fixture(scope="session")
def portrait() -> Image.Image:
    """A face with its surroundings, 220 px square."""
    data = pytest.importorskip("skimage.data")
    return Image.fromarray(data.astronaut()).crop((124, 0, 344, 220))


@pytest.fixture(scope="session")
def pictures(portrait: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NUM_IMAGES files: faces, two faces in one, noise without a face, a truncated and an empty file."""
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    for i in range(NUM_IMAGES):
        file = folder / f"{i:02d}.jpg"
        image = portrait.rotate(3 * (i % 7 - 3)).resize((150 + i, 150 + i))
        if i % 10 == 3:
            twice = Image.new("RGB", (2 * image.width, image.height))
            twice.paste(image, (0, 0))
            twice.paste(image, (image.width, 0))
            image = twice
        if i % 10 == 5:
            image = Image.fromarray(noise)
        image.save(file)
        if i == 8:
            file.write_bytes(file.read_bytes()[:3000])
        if i == 17:
            file.write_bytes(b"")
    return folder


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Starts `facescale` commands; kills what is left of them in the end."""
    jobs: list[Job] = []

    def start_job(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> Job:
        jobs.append(Job([str(a) for a in arguments], tmp_path, dict(environment or {})))
        return jobs[-1]

    yield start_job
    for job in jobs:
        job.end()


@pytest.fixture(scope="session")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lake of a run that nothing happened to, made by two workers; its index has three shards.

    The run's configuration file, CONFIG, is beside the lake.
    """
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / CONFIG).write_text("index: {shard_faces: 9}\n")
    arguments = ["run", pictures, folder / "lake", *FLAGS, "--workers", "2", "--config", folder / CONFIG]
    job = Job([str(argument) for argument in arguments], folder)
    try:
        assert job.wait() == 0, job.errors()
    finally:
        job.end()
    return folder / "lake"
