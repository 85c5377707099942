"""Whose a request is, and whether he is still there."""

import json
from typing import Any

from stretto.departures import STREAM, Departures

HOST = "stretto_host"  # the parameter by which the proxy says it


class Caller:
    """Who has sent a request: the sender of its responses and the departures know whether he is still there."""

    def __init__(self, request: Any, departures: Departures | None = None) -> None:
        self.sender = request.get_response_sender()
        self._departures, self._stream = departures, _stream_of(request)

    @property
    def is_marked(self) -> bool:
        """Whether the proxy has said that nobody takes an answer; that costs nothing to ask."""
        return self._departures is not None and self._stream > 0 and self._departures.has(self._stream)

    def has_left(self) -> bool:
        """Whether nobody takes an answer; not to be asked of a request that is answered: Triton frees what it asks."""
        return self.is_marked or self.sender.is_cancelled()


def _stream_of(request: Any) -> int:
    """The number of the proxy's stream that a request has come by; 0 where it came by another way."""
    said = _parameters(request).get(STREAM, "0")
    return int(said) if isinstance(said, str) and said.isdecimal() and len(said) <= 19 else 0


def host_of(request: Any) -> str:
    """The host that a request comes from, as the proxy has said; '' where it came by another way."""
    return str(_parameters(request).get(HOST, ""))


def _parameters(request: Any) -> dict[str, Any]:
    return dict(json.loads(request.parameters()))
