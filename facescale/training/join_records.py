"""Pieces of a RecordIO file in, train.rec and train.idx out, as arcface_torch reads them. Called by driver.export."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from facescale.training.export import SPLITS, records_path
from facescale.training.recordio import MAX_LABEL, labels_record
from facescale.vision.align import TEMPLATES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facescale.lake.store import Store
    from facescale.training.classes import Classes
    from facescale.training.export import ExportSettings


def join_records(out: Store, settings: ExportSettings, units: Sequence[int], classes: Classes) -> None:
    """Write train.rec, train.idx and property; those of the validation set go to val/, under the same names.

    Identities are ranges of keys, and records lie in the shuffled order of the units: so reading the file from its
    start is shuffled, and reading it by key is not.

    Args:
        out: where the pieces are, and where the files go.
        settings: of the export.
        units: numbers of the units, in the order of the file.
        classes: of the export.
    """
    for side, split in enumerate(SPLITS):
        mine = classes.is_val == bool(side)
        if not mine.any():
            continue
        num_classes = classes.num_classes[side]
        counts = np.bincount(classes.class_id[mine], minlength=num_classes)
        count = int(counts.sum())
        headed = count + 1 + num_classes < MAX_LABEL
        folder = "" if split == "train" else f"{split}/"
        keys, offsets, at = [], [], 0
        with out.temporary_folder() as place:
            with (place / "train.rec").open("wb") as file:
                if headed:
                    at += file.write(labels_record(0, (count + 1, count + 1 + num_classes)))
                    keys.append(np.array([0]))
                    offsets.append(np.array([0]))
                for unit in units:
                    name = records_path(settings, split, unit)
                    if not out.exists(name):
                        continue  # a unit without a face of this split
                    table = out.read_table(f"{name}.idx")
                    keys.append(table["key"].to_numpy())
                    offsets.append(table["offset"].to_numpy() + at)
                    at += file.write(out.read_bytes(name))
                last = np.cumsum(counts) + 1
                for class_id in range(num_classes if headed else 0):
                    start, stop = int(last[class_id] - counts[class_id]), int(last[class_id])
                    keys.append(np.array([count + 1 + class_id]))
                    offsets.append(np.array([at]))
                    at += file.write(labels_record(count + 1 + class_id, (start, stop)))
            key, offset = np.concatenate(keys), np.concatenate(offsets)
            order = np.argsort(key)
            lines = "".join(
                f"{k}\t{o}\n" for k, o in zip(key[order].tolist(), offset[order].tolist(), strict=True)
            )
            out.write_file(f"{folder}train.rec", place / "train.rec")
        out.write_bytes(f"{folder}train.idx", lines.encode())
        side_px = 0 if settings.template == "crop" else TEMPLATES[settings.template].size
        out.write_bytes(f"{folder}property", f"{num_classes},{side_px},{side_px}\n".encode())
