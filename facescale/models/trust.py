"""Whether files that can run code may be opened: asked by facescale.vision.networks, set by jobs with --trust.

TorchScript files, exported programs and pickled checkpoints bring code along. The answer is an environment variable, so
that the processes this one starts have it, too.
"""

from __future__ import annotations

import os

TRUST_VARIABLE = "FACESCALE_TRUST"


def trust_files(trust: bool) -> None:
    """Let this process, and those it starts, open such files; False leaves what the environment says."""
    if trust:
        os.environ[TRUST_VARIABLE] = "1"


def is_trusted() -> bool:
    """Whether the user said that they trust the files they name."""
    return os.environ.get(TRUST_VARIABLE) == "1"
