"""Errors of commands that install releases, each with its exit status.

The message is one line, without the command's name.
"""

from stretto.errors import StrettoError


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
