"""Flags of the job commands, and keywords of the Python API, to paths in the configuration.

Names and values come in, a mapping for facescale.config.load goes out. Called by cli and api, so that a flag and a
keyword of the same name mean the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_PATHS = {
    "extract": (
        "detector landmarker embedder min_face_px precision part_rows max_bytes max_pixels decode_threads "
        "runtime accelerate det_threshold weights_dir"
    ),
    "engine": "workers threads device gpus_per_worker address",
}


def job_overrides(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags that jobs share → dotted configuration paths; other names are ignored, and None means not given.

    Args:
        flags: by name, e.g. the arguments of a command.
    """
    values = {
        f"{section}.{name}": flags[name]
        for section, names in _PATHS.items()
        for name in names.split()
        if name in flags
    }
    for name in ("src", "lake", "max_failures"):
        values[name] = flags.get(name)
    for name in ("accept_changes", "retry_failed"):
        values[name] = flags.get(name) or None
    for name in ("offline", "accept_license", "flip", "trust"):
        values[f"extract.{name}"] = flags.get(name) or None
    plugins = flags.get("plugin") or flags.get("plugins")
    values["extract.plugins"] = tuple(plugins) if plugins else None
    values["labels.source"] = flags.get("labels")
    values["labels.column"] = flags.get("label_column")
    values["labels.path_column"] = flags.get("path_column")
    return values


def everywhere(setting: str, value: Any) -> dict[str, Any]:
    """One value for a setting in every section of a job's configuration that has it, by dotted path."""
    from facescale.config.job import JobConfig

    sections = {name: field.annotation for name, field in JobConfig.model_fields.items()}
    return {
        f"{name}.{setting}": value
        for name, section in sections.items()
        if setting in getattr(section, "model_fields", ())
    }
