"""Images that kill, hang or upset every worker that looks at them: each costs itself, and no other image."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from deadly_model import CORNER_PX, CORNERS, NAME
from PIL import Image
from real_jobs import FLAGS, NUM_IMAGES, Job, assert_sound, current_tables

from facescale.lake.ids import image_id_of, make_image_id

DEADLY = {"kill": 2, "hang": 11, "raise": 18}
"""Row of each deadly image; each has a face, and a harmless neighbor in its part."""
DETAILS = {
    "kill": "killed its worker process with SIGKILL",
    "hang": "took longer than 6 s",
    "raise": "raised RuntimeError: cannot stand blue corners",
}
CONFIG = """
engine: {deadline_min_s: 5, deadline_first_row_s: 0.01, deadline_item_s: 6}
# Careful mode takes one image at a time. Everywhere the same, so that results are equal to the last bit: in another
# batch, a convolution may round otherwise.
extract: {micro_batch: 1, embed_batch: 1}
"""


@pytest.fixture
def deadly_pictures(pictures: Path, tmp_path: Path) -> Path:
    """The pictures, three of them with a colored corner that does not touch the face."""
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    for what, row in DEADLY.items():
        image = Image.open(folder / f"{row:02d}.jpg")
        image.paste(CORNERS[what], (0, 0, CORNER_PX, CORNER_PX))
        image.save(folder / f"{row:02d}.jpg", quality=95)
    return folder


def test_each_deadly_image_costs_itself_alone(
    deadly_pictures: Path, tmp_path: Path, start: Callable[..., Job]
) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(CONFIG)
    command = ("extract", deadly_pictures, "--config", config, *FLAGS, "--detector", NAME)
    command += ("--plugin", "deadly_model", "--json")
    calm = start(*command, tmp_path / "calm", "--workers", "0")
    assert calm.wait() == 0, calm.errors()
    lake, environment = tmp_path / "lake", {"FACESCALE_TEST_DEADLY": "1"}
    job = start(*command, lake, "--workers", "2", environment=environment)
    assert job.wait() == 0, job.errors()
    job.assert_gone()

    (stage,), (calm_stage,) = job.summary()["stages"], calm.summary()["stages"]
    assert stage["deaths"] >= 4  # two of `kill`, two of `hang`; the worker of `raise` lives on
    statuses = {name: n for name, n in stage["counters"].items() if name.startswith("status.")}
    assert statuses == {"status.ok": 19, "status.truncated": 1, "status.empty": 1, "status.poison": 3}
    assert sum(statuses.values()) == stage["counters"]["images"] == NUM_IMAGES
    assert calm_stage["counters"]["status.ok"] == 22

    found, expected = current_tables(lake), current_tables(tmp_path / "calm")
    assert found.keys() == expected.keys()
    deadly_ids = make_image_id(0, list(DEADLY.values()))
    for folder, table in expected.items():
        ids = table.column(0).to_numpy()
        deadly = np.isin(image_id_of(ids), deadly_ids)
        assert deadly.sum() >= len(DEADLY), "each deadly image has rows in the calm run"
        expected_rows = table.filter(~deadly)
        if folder.startswith("images/"):
            rows = found[folder].filter(deadly).to_pylist()
            assert [row["status"] for row in rows] == ["poison"] * 3
            assert [row["num_faces"] for row in rows] == [0] * 3
            assert [row["detail"] for row in rows] == [DETAILS[what] for what in DEADLY]
            assert [Path(row["uri"]).name for row in rows] == [f"{row:02d}.jpg" for row in DEADLY.values()]
            assert found[folder].filter(~deadly).equals(expected_rows)
        else:
            assert found[folder].equals(expected_rows), folder
    assert_sound(lake)
