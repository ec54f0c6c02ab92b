"""Every error facescale raises on purpose, and the exit code each one turns into.

    FacescaleError                 1  the job failed
    ├── UsageError                 2  the command, a flag or the configuration is wrong: nothing was started
    │   ├── MissingExtraError      2  an optional dependency is not installed
    │   └── MismatchError          2  two things that must agree do not: model, dimension, format version
    ├── DataError                  1  a table or a value breaks the schema it was written for
    ├── CorruptError               1  something in the lake or a weights file is damaged
    ├── DiskFullError              1  no space is left (facescale.lake.storage_errors)
    ├── TransientError             4  storage or network failed in a way that resubmitting can mend
    ├── IncompleteError            4  work is left over; running the same command again continues
    └── InfrastructureError        1  too many workers died: the machine or the cluster is at fault

A bad input image is not an error: it becomes a status in the `images` table (see facescale.imaging).
Messages say what is wrong, where (file, row, field), and what to do about it.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_TOO_MANY_FAILURES = 3
EXIT_INCOMPLETE = 4
EXIT_INTERRUPTED = 130


class FacescaleError(Exception):
    """Root of the tree; catch this to catch everything facescale raises on purpose."""

    exit_code = EXIT_FAILED


class UsageError(FacescaleError):
    """The command, a flag or the configuration is wrong; nothing was started."""

    exit_code = EXIT_USAGE


class MissingExtraError(UsageError):
    """An optional dependency is not installed.

    Args:
        package: what could not be imported, as its users know it.
        extra: the facescale extra that installs it.
        purpose: what it is needed for.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed: pip install 'facescale[{extra}]'"
        )
        self.package, self.extra, self.purpose = package, extra, purpose

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        """Pickle by the three arguments, so that the error crosses process borders whole."""
        return type(self), (self.package, self.extra, self.purpose)


class MismatchError(UsageError):
    """Two things that must agree do not: a model, a dimension, a format version."""


class DataError(FacescaleError):
    """A table or a value breaks the schema it was written for."""


class CorruptError(FacescaleError):
    """Something in the lake, or a weights file, is damaged."""


class DownloadError(FacescaleError):
    """A server does not have the weights, refuses them or gives something else; asking again is useless."""


class TransientError(FacescaleError):
    """Storage or network failed in a way that resubmitting can mend."""

    exit_code = EXIT_INCOMPLETE


class IncompleteError(FacescaleError):
    """Work is left over; running the same command again continues it."""

    exit_code = EXIT_INCOMPLETE


class InfrastructureError(FacescaleError):
    """Too many workers died: the machine or the cluster is at fault, not the input."""
