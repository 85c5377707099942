"""Originating host and disconnect state of a request."""

import json
from typing import Any

from stretto.departures import STREAM, Departures

HOST = "stretto_host"  # request parameter set by the proxy


class Caller:
    """Client of a request, with its disconnect state from the response sender and the proxy's flags.

    Attributes:
        host: Host that the request comes from, as reported by the proxy; '' without a proxy.
    """

    def __init__(self, request: Any, departures: Departures | None = None) -> None:
        parameters = json.loads(request.parameters())
        self.sender = request.get_response_sender()
        self.host = str(parameters.get(HOST, ""))
        self._departures, self._stream = departures, _number(parameters.get(STREAM))

    @property
    def is_marked(self) -> bool:
        """Return True if the proxy has reported a disconnect; cheap."""
        return self._departures is not None and self._stream > 0 and self._departures.has(self._stream)

    def has_left(self) -> bool:
        """Return True if the client has disconnected.

        Never call this for an answered request: Triton frees its data.
        """
        return self.is_marked or self.sender.is_cancelled()


def _number(said: object) -> int:
    """Return the number of the proxy's stream of a request; 0 without a proxy."""
    return int(said) if isinstance(said, str) and said.isdecimal() and len(said) <= 19 else 0
