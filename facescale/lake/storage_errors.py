"""Storage failures: what the operating system or an object store raised comes in, a facescale error goes out.

Every message names the file and says what to do. Called by store around each operation.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

from facescale.errors import FacescaleError, TransientError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
AWAY = {
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ECONNABORTED,
    errno.EHOSTUNREACH,
    errno.EHOSTDOWN,
    errno.ENETUNREACH,
    errno.ENETDOWN,
    errno.ENOTCONN,
    errno.EPIPE,
    errno.EAGAIN,
    # What s3fs makes of SlowDown, ServiceUnavailable and InternalError.
    errno.EBUSY,
    errno.EREMOTEIO,
}
"""Errors by which network file systems and object stores say that their server is away or busy."""
# Client libraries of object stores raise classes of their own that are no OSError.
_CLIENT_PACKAGES = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "s3fs", "urllib3"}
_CREDENTIAL_ERRORS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "DefaultCredentialsError",
}


class DiskFullError(FacescaleError):
    """The disk or a quota is full; what was being written has been taken back."""


@contextlib.contextmanager
def storage_errors(location: str, action: str) -> Iterator[None]:
    """Turn what storage raises into facescale's errors; a file that does not exist stays FileNotFoundError.

    Args:
        location: full name of the file, for the message.
        action: "read", "write", "list" or "delete".

    Raises:
        DiskFullError: no space or quota left.
        UsageError: permission denied, read-only file system, no credentials, or a bucket that does not exist.
        TransientError: the network or the storage service failed; resubmitting can mend it.
        FacescaleError: any other storage failure.
        FileNotFoundError: as it came, because to readers it is an answer.
    """
    try:
        yield
    except FacescaleError:
        raise
    except FileNotFoundError as error:
        if action != "write":
            raise
        raise UsageError(
            f"cannot write {location}: its bucket or folder is not there; create it first"
        ) from error
    except OSError as error:
        raise _translated(error, location, action) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in _CLIENT_PACKAGES:
            raise
        if type(error).__name__ in _CREDENTIAL_ERRORS:
            raise UsageError(
                f"cannot {action} {location}: no credentials ({error}); set them in the environment "
                "(AWS_*, GOOGLE_APPLICATION_CREDENTIALS)"
            ) from error
        raise TransientError(
            f"cannot {action} {location}: {error}; rerun the same command to continue"
        ) from error


def _translated(error: OSError, location: str, action: str) -> FacescaleError:
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in _FULL:
        return DiskFullError(f"cannot {action} {location}: {reason}; free space, then rerun the same command")
    if error.errno in _DENIED or isinstance(error, PermissionError):
        return UsageError(
            f"cannot {action} {location}: {reason}; grant access to it, or choose another place"
        )
    # Making a folder where a file is: EEXIST from mkdir, ENOTDIR further down, FileExistsError from memory://.
    if error.errno in {errno.ENOTDIR, errno.EEXIST} or isinstance(error, FileExistsError):
        return UsageError(f"cannot {action} {location}: one of its parents is a file; choose another place")
    # Object stores have no errno: s3fs and gcsfs raise bare OSError for what they could not do just now.
    if error.errno in AWAY or error.errno is None or isinstance(error, (ConnectionError, TimeoutError)):
        return TransientError(f"cannot {action} {location}: {reason}; rerun the same command to continue")
    return FacescaleError(
        f"cannot {action} {location}: {reason}; check the disk, then rerun the same command"
    )
