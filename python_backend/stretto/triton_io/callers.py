"""Whose a request is, and whether he is still there."""

import json
from typing import Any

from stretto.departures import STREAM, Departures

HOST = "stretto_host"  # the parameter by which the proxy says it


class Caller:
    """Who has sent a request: the sender of its responses and the departures know whether he is still there.

    host: that it comes from, as the proxy has said; '' where it came by another way.
    """

    def __init__(self, request: Any, departures: Departures | None = None) -> None:
        parameters = json.loads(request.parameters())
        self.sender = request.get_response_sender()
        self.host = str(parameters.get(HOST, ""))
        self._departures, self._stream = departures, _number(parameters.get(STREAM))

    @property
    def is_marked(self) -> bool:
        """Whether the proxy has said that nobody takes an answer; that costs nothing to ask."""
        return self._departures is not None and self._stream > 0 and self._departures.has(self._stream)

    def has_left(self) -> bool:
        """Whether nobody takes an answer; not to be asked of a request that is answered: Triton frees what it asks."""
        return self.is_marked or self.sender.is_cancelled()


def _number(said: object) -> int:
    """Of the proxy's stream that a request has come by; 0 where it came by another way."""
    return int(said) if isinstance(said, str) and said.isdecimal() and len(said) <= 19 else 0
