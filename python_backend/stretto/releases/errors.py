"""Errors of commands that install releases, each with its exit status.

The message is one line, without the command's name.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stretto.errors import StrettoError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ReleaseError(StrettoError):
    """An installation or a server failed.

    Attributes:
        status: Exit status of the command.
    """

    status = 1


class BadArgument(ReleaseError):
    """A name is malformed, or an argument fits several releases."""

    status = 2


class Unavailable(ReleaseError):
    """There is no such release, or the hub cannot be reached."""

    status = 5


class NotAllowed(ReleaseError):
    """The licence is not accepted, or the hub refuses access."""

    status = 6


class DoesNotFit(ReleaseError):
    """The memory or the disk is too small."""

    status = 7


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Replace errors of the file system by a ReleaseError that names the file, or the folder if there is no file.

    Args:
        folder: Folder that is written to.
    """
    try:
        yield
    except BrokenPipeError:  # of a standard stream
        raise
    except OSError as error:
        raise disk_error(error, folder) from error


def disk_error(error: OSError, folder: Path) -> ReleaseError:
    """Return the ReleaseError for an error of the file system; see `disk_errors`."""
    error_type = DoesNotFit if error.errno in FULL else ReleaseError
    return error_type(f"{error.filename or folder}: {error.strerror or error}")
