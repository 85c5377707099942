"""A caller's connection: what it may send before anybody has asked who it is."""

import asyncio
from collections import Counter
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from stretto_gateway.caller import network

HEAD_S = 10.0  # in which the head of a request has to come
MAX_HEAD_BYTES = 65_536


class Connection(HttpToolsProtocol):
    """uvicorn's connection, which is closed where the head of a request takes too long, or too much memory.

    Of more than `limit_concurrency` those make room that have no request, of the host that has most of them the oldest
    first. Where all have one, uvicorn answers 503.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._num_kept_bytes = 0  # at most so many of what came are kept, and not handed on yet
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether there is no request in it."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def host(self) -> str:
        """Whose it is: an address, of IPv6 the /64 network."""
        return "" if self.client is None else network(self.client[0])

    def _order(self) -> float:
        """Which of those that wait has waited the longest: the least."""
        return 0.0 if self._timer is None else self._timer.when()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._wait_for_head()
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._num_kept_bytes += len(data)
        super().data_received(data)
        if self._num_kept_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head of a request has at most {MAX_HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        self._num_kept_bytes = 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_kept_bytes = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        is_last = not self.pipeline
        super().on_response_complete()
        if is_last:
            self._wait_for_head()

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _make_room(self) -> None:
        idle = [each for each in self.connections if isinstance(each, Connection) and each.is_idle and each is not self]
        if idle:
            (most, _), *_ = Counter(each.host for each in idle).most_common(1)
            oldest = min((each for each in idle if each.host == most), key=Connection._order)
            self.connections.discard(oldest)
            oldest.transport.abort()
