"""lake.yaml: the format version of a lake, and which version of each table is current.

Called by lake only. Reading refuses files of another format version and damaged ones, each with a remedy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

import facescale
from facescale.errors import CorruptError, MismatchError, UsageError
from facescale.lake.backends import TEMPORARY
from facescale.lake.schema import table_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from facescale.lake.store import Store

FORMAT_VERSION = 1
LAKE_FILE = "lake.yaml"
SCRATCH = "_scratch"
TRUTH_FILE = "truth.parquet"
"""What a simulated lake knows about its faces (facescale.synth.simulate.TRUTH_SCHEMA)."""
REPORT_FILE = "report.html"
"""The page that `facescale report` leaves in a lake."""

_REPAIR = (
    "delete it and rerun the same command: finished parts are found again by their fingerprints "
    "(what `facescale lake use` chose must be chosen again)"
)


def creator() -> str:
    """Name and version of this program, for files that say who wrote them."""
    return f"facescale {facescale.__version__}"


def read_current(store: Store) -> dict[str, dict[str, str]]:
    """The current versions.

    Args:
        store: storage of the lake.

    Returns:
        {table: {model or "-": fingerprint}}.

    Raises:
        UsageError: there is no lake.
        MismatchError: another format version wrote it.
        CorruptError: the file cannot be understood.
    """
    where = store.location(LAKE_FILE)
    try:
        content = yaml.safe_load(store.read_bytes(LAKE_FILE))
    except FileNotFoundError as error:
        raise UsageError(
            f"{store.uri} is no lake ({LAKE_FILE} is missing); make one with: facescale extract SRC {store.uri}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise CorruptError(f"{where} cannot be read ({reason}); {_REPAIR}") from error
    if not isinstance(content, dict) or "format_version" not in content:
        raise CorruptError(f"{where} has no format_version; {_REPAIR}")
    if content["format_version"] != FORMAT_VERSION:
        raise MismatchError(
            f"{where} has format version {content['format_version']} (written by "
            f"{content.get('created_by', 'an unknown program')}), but {creator()} reads format version "
            f"{FORMAT_VERSION}; use the facescale that wrote it, or make a new lake with this one"
        )
    current = content.get("current") or {}
    if not _is_current(current):
        raise CorruptError(f"{where}: `current` is not {{table: {{model: fingerprint}}}}; {_REPAIR}")
    return {table: dict(models) for table, models in current.items()}


def write_current(store: Store, current: Mapping[str, Mapping[str, str]], *, if_absent: bool = False) -> bool:
    """Write lake.yaml atomically.

    Args:
        store: storage of the lake.
        current: {table: {model or "-": fingerprint}}.
        if_absent: leave an existing file alone.

    Returns:
        Whether it was written.
    """
    content = {"format_version": FORMAT_VERSION, "created_by": creator(), "current": current}
    return store.write_bytes(LAKE_FILE, yaml.safe_dump(content, sort_keys=True).encode(), if_absent=if_absent)


def refuse_foreign_files(store: Store) -> None:
    """Keep a lake out of a folder of someone's photographs; what a lost lake.yaml leaves behind is welcome.

    Raises:
        UsageError: there are files that are none of a lake's.
    """
    own = {*table_names(), "index", "calibration", TEMPORARY, SCRATCH, LAKE_FILE, REPORT_FILE, TRUTH_FILE}
    for path, _ in store.list():
        if path.split("/")[0] not in own:
            raise UsageError(
                f"{store.uri} is no lake and not empty (it holds {path!r}); give the lake a folder of its own"
            )


def _is_current(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(table, str)
        and isinstance(models, dict)
        and all(isinstance(model, str) and isinstance(name, str) for model, name in models.items())
        for table, models in value.items()
    )
