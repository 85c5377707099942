"""The memory that what callers have sent, or have had made, takes, as long as it is kept for them."""

from collections import Counter

from stretto_gateway.admission import is_room
from stretto_gateway.api_error import ApiError
from stretto_gateway.caller import CALLER
from stretto_gateway.config import Limits


class Held:
    """Bytes that are kept, by caller, of at most `max_held_bytes` in all.

    The guard has one of these for requests, which counts bodies beyond the first 64 KiB of each until they are
    answered, and with them the recordings of kept voices and the audio of batches; the sessions of WebSockets share
    another one, which counts what they hold. A caller may have as many bytes as are left over: alone half of them, and
    nobody can take them all.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self._num_bytes = Counter[str]()

    @property
    def num_bytes(self) -> int:
        """Of all callers."""
        return self._num_bytes.total()

    def add(self, num_bytes: int) -> None:
        """So many more of CALLER; ApiError 503 where there is no memory for them."""
        caller = CALLER.get()
        own = self._num_bytes[caller]
        if num_bytes and not is_room(self._num_bytes, caller, self.limits.max_held_bytes, num_bytes):
            told = f"{self.num_bytes} bytes are kept for callers, {own} of them yours"
            message = (
                f"{told}, and there is no room for {num_bytes} more; try again when some of it is answered or deleted"
            )
            raise ApiError(503, message, code="unavailable")
        self._num_bytes[caller] += num_bytes

    def remove(self, num_bytes: int) -> None:
        """So many less of CALLER."""
        caller = CALLER.get()
        self._num_bytes[caller] -= num_bytes
        if not self._num_bytes[caller]:
            del self._num_bytes[caller]  # of callers there is no end
