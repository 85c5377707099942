"""Account of the memory that the gateway holds for its callers."""

from collections import Counter

from stretto_gateway.admission import is_room
from stretto_gateway.api_error import ApiError
from stretto_gateway.caller import CALLER
from stretto_gateway.config import Limits


class Held:
    """Held bytes per caller, at most `max_held_bytes` in total.

    The guard has one account for requests: bodies beyond the first 64 KiB of each, recordings of stored voices, and
    audio of batches. WebSocket sessions share another one. A caller may use at most as many bytes as are free. So one
    caller alone gets half, and none can exhaust the limit.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self._num_bytes = Counter[str]()

    @property
    def num_bytes(self) -> int:
        """Bytes held for all callers."""
        return self._num_bytes.total()

    def add(self, num_bytes: int) -> None:
        """Add `num_bytes` for CALLER; raise ApiError 503 if there is no memory for them."""
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
        """Release `num_bytes` of CALLER."""
        caller = CALLER.get()
        self._num_bytes[caller] -= num_bytes
        if not self._num_bytes[caller]:
            del self._num_bytes[caller]  # drop empty entries: the number of callers is unbounded
