"""Threads for work on callers' audio and files; those for texts are in `stretto_client.markup.READING`."""

import errno
import logging
import os
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from stretto_client.fair_threads import Turns
from stretto_gateway.answers import ApiError

LOG = logging.getLogger("stretto_gateway")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class FileTurns(Turns):
    """Threads for the gateway's own files; an error of the file system becomes the caller's response, and is logged."""

    async def run(
        self, call: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Return the result of a call; raise ApiError 507 for a full disk, 500 for other errors of the file system."""
        try:
            return await super().run(call, *args, **kwargs)
        except OSError as error:
            reason = error.strerror or str(error)
            LOG.error("the folder of voices and dictionaries: %s: %s", error.filename or "a file", reason)
            status, code = (507, "no_room") if error.errno in FULL else (500, "storage_failed")
            raise ApiError(status, f"the gateway's stored voices and dictionaries: {reason}", code=code) from None


AUDIO = Turns(os.cpu_count() or 1, "audio")
FILES = FileTurns(4, "files", time.monotonic)  # the time includes that of the disk
