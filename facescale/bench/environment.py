"""Virtual environments of the packages that benchmarks compare with: requirements in, the path of a Python out.

Called by facescale.bench.contender. What is compared with is no dependency of facescale, be it for its size or its
licence: it is installed when a benchmark is run, into a folder of the user's cache, and runs as a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import venv
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from facescale.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_STAMP = "complete"


def default_folder(name: str) -> Path:
    """Where an environment is kept: `bench-NAME` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "facescale" / f"bench-{name}"


def same_versions(names: Iterable[str]) -> list[str]:
    """Requirements for packages in the versions that are installed here, so that no comparison is one of versions."""
    here = []
    for name in names:
        try:
            here.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            here.append(name)
    return here


def make_environment(folder: Path, what: str, requirements: Sequence[str], *, without: str) -> Path:
    """Make a virtual environment, or take the one that is there.

    Args:
        folder: where; a stamp inside tells whether it is complete and of these versions.
        what: is installed, for messages.
        requirements: all of them, as pip is told not to look for more.
        without: the flag that leaves the comparison out, and the one that names another folder, for messages.

    Returns:
        Its Python.

    Raises:
        UsageError: the installation failed; the message has pip's last words.
    """
    wanted, stamp = "\n".join(requirements), folder / _STAMP
    python = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text("utf-8") == wanted:
        return python
    venv.create(folder, with_pip=True, clear=True, symlinks=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(
            f"{what} cannot be installed into {folder}: {done.stderr.strip()[-800:]}\n"
            f"Without a network use {without} with an environment made elsewhere by: "
            f"python -m pip install --no-deps {' '.join(requirements)}"
        )
    stamp.write_text(wanted, "utf-8")
    return python
