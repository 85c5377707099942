"""Streamed text of a reply on its way to the scheduler."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from vllm import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM

from stretto.engine.request.track import TextUpdate
from stretto.errors import InvalidRequest

PATIENCE_S = 30.0  # between two writes; a blocked reply occupies KV blocks
LONGEST_S = 600.0  # from the first to the last write; bounds clients that keep writing nothing


class TextFeed:
    """Streamed text of one reply; its ids are sent to the engine in order under the reply's request id.

    The reply is aborted if nothing is written for `patience_s`, or if the text has no end after `longest_s`.

    Args:
        engine: vLLM engine.
        request_id: Id of the reply.
        num_ids: Number of ids already sent with the prompt.
        room: Number of ids that may follow, not counting the end id, which always fits.
        patience_s: Longest time between two writes, in seconds.
    """

    longest_s = LONGEST_S

    def __init__(self, engine: AsyncLLM, request_id: str, num_ids: int, room: int, patience_s: float = PATIENCE_S):
        self._engine: Any = engine
        self._request_id, self._num_ids, self._room = request_id, num_ids, room
        self._patience_s, self._begun_s = patience_s, time.monotonic()
        self._waiting: list[int] = []
        self._is_complete = self._is_last_sent = self._has_begun = self._is_silent = False
        self._sending = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._abort: asyncio.Task[None] | None = None
        self._wait()

    async def write(self, ids: Sequence[int], is_last: bool) -> None:
        """Append `ids` (the last one being the end id if `is_last`); raise InvalidRequest if too long or complete."""
        if self._is_complete:
            raise InvalidRequest("text", "no more of it, as it is complete", f"{len(ids)} tokens")
        if len(ids) - is_last > self._room:
            raise InvalidRequest("text", f"at most {self._room} more tokens", len(ids) - is_last)
        self._room -= len(ids)
        self._num_ids += len(ids)
        self._waiting += ids
        self._is_complete = is_last
        self._wait()
        if self._has_begun:
            await self._send()

    async def begin(self) -> None:
        """Send the ids written so far, now that the engine has the reply."""
        if not self._has_begun:
            self._has_begun = True
            await self._send()

    def is_awaited(self, num_rows: int) -> bool:
        """Return True if a reply of `num_rows` rows is blocked until more text is written."""
        return not self._is_complete and num_rows > self._num_ids

    def check(self) -> None:
        """Raise InvalidRequest if the reply was aborted because no text, or no end, arrived in time."""
        if self._is_silent and self._left_s <= 0:
            raise InvalidRequest("text", f"its end within {self.longest_s:g} s of its beginning", "none")
        if self._is_silent:
            raise InvalidRequest("text", f"more of it, or its end, within {self._patience_s:g} s", "nothing")

    def end(self) -> None:
        """Stop the timer, because the reply has ended."""
        self._is_complete = True
        if self._timer is not None:
            self._timer.cancel()

    @property
    def _left_s(self) -> float:
        return self._begun_s + self.longest_s - time.monotonic()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._is_complete:
            patience_s = min(self._patience_s, self._left_s)
            self._timer = asyncio.get_running_loop().call_later(patience_s, self._give_up)

    def _give_up(self) -> None:
        self._is_silent = True
        self._abort = asyncio.ensure_future(self._engine.abort(self._request_id))

    async def _send(self) -> None:
        async with self._sending:
            ids, self._waiting = self._waiting, []
            known = self._engine.output_processor.external_req_ids.get(self._request_id)
            if not known or self._is_last_sent or not (ids or self._is_complete):
                return
            self._is_last_sent = self._is_complete
            update = TextUpdate(ids, self._is_last_sent)
            params = SamplingParams(max_tokens=1, extra_args=update.to_extra_args())
            request = EngineCoreRequest(known[0], [0], None, params, None, time.time(), None, None, None)
            await self._engine.engine_core.add_request_async(request)


class _NoText:
    """Null object for a reply whose text was complete from the start."""

    async def begin(self) -> None:
        """Do nothing."""

    def is_awaited(self, num_rows: int) -> bool:
        """Return False."""
        return False

    def check(self) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


NO_TEXT = _NoText()
