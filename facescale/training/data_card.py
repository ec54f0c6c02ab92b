"""The data card of a training set: what it holds, where from, by which models. Called by driver.export."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from facescale.models.registry import cards

if TYPE_CHECKING:
    from facescale.lake.lake import Lake
    from facescale.lake.store import Store

_FILES = {
    "webdataset": "`train-NNNNNN.tar`: FACE_ID.jpg, .cls (class id), .json (label, uri, quality)",
    "parquet": "`train-NNNNNN.parquet`: face_id, class_id, label, uri, quality, jpeg",
    "folder": "`train/CLASS_ID/FACE_ID.jpg`",
    "recordio": "`train.rec`, `train.idx`, `property`: as insightface's arcface_torch reads them",
}


def write_card(out: Store, lake: Lake, card: dict[str, Any], name: str) -> dict[str, Any]:
    """Write README.md and then the card itself, whose presence says that the set is whole.

    Args:
        out: the training set.
        lake: that it was made of.
        card: counts, settings and versions.
        name: of the JSON file.

    Returns:
        The card, with the models and the sources added.
    """
    card = card | {"models": _models(lake, card), "made_by": _provenance(lake, card)}
    out.write_bytes("README.md", _text(card).encode())
    out.write_bytes(name, json.dumps(card, indent=1, sort_keys=True).encode())
    return card


def _models(lake: Lake, card: dict[str, Any]) -> list[dict[str, Any]]:
    """Names, licences and digests of the models whose output decided about the faces."""
    known = {entry.name: entry for entry in cards()}
    found = []
    settings: dict[str, Any] = {}
    for info in lake.versions():
        if info.version.folder in card["versions"].values() or info.version.table == "embeddings":
            settings |= (lake.describe_version(info.version) or {}).get("settings", {})
    for task in ("detector", "landmarker", "embedder"):
        name = settings.get(task)
        if name is None:
            continue
        entry = known.get(name)
        found.append(
            {
                "task": task,
                "name": name,
                "sha256": settings.get(f"{task}_sha256"),
                "licence": entry.licence if entry else "unknown",
                "non_commercial": entry.non_commercial if entry else None,
            }
        )
    return found


def _provenance(lake: Lake, card: dict[str, Any]) -> dict[str, Any]:
    """What made each version the set was made of."""
    folders = set(card["versions"].values())
    return {
        info.version.folder: lake.describe_version(info.version)
        for info in lake.versions()
        if info.version.folder in folders
    }


def _text(card: dict[str, Any]) -> str:
    """The card for people, in Markdown."""
    settings, (train, val) = card["settings"], card["faces"]
    lines = [
        "# Training set",
        "",
        f"{train:,} faces of {card['identities'][0]:,} identities to train on, {val:,} of {card['identities'][1]:,} "
        f"others to validate with; {card['num_classes'][0]:,} training classes.",
        "",
        f"Files: {_FILES[settings['format']]}; `classes.parquet`: class_id, split, label, faces; `dataset.json`: all "
        "of this and what made it.",
        "",
        f"Chips: {settings['template']}"
        + (f", {card['side_px']} px" if card["side_px"] else "")
        + f", JPEG {settings['jpeg_quality']}.",
        "",
        f"Names: {settings['names']} of `{card['versions']['names']}` in {card['lake']}.",
        "",
        "| left out, because | faces |",
        "| --- | --- |",
        *(f"| {why.replace('_', ' ')} | {count:,} |" for why, count in card["left_out"].items()),
        "",
        "| model | task | licence | commercial use |",
        "| --- | --- | --- | --- |",
    ]
    for model in card["models"]:
        use = {True: "not allowed", False: "allowed", None: "unknown"}[model["non_commercial"]]
        lines.append(f"| {model['name']} | {model['task']} | {model['licence']} | {use} |")
    lines += [
        "",
        "Face images and embeddings are biometric data. Where the photographs come from decides what may be done with "
        "them; this tool does not know their licences.",
        "",
    ]
    return "\n".join(lines)
