"""The text of a reply that is written while it is spoken, on its way to the scheduler."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from vllm import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM

from stretto.engine.request.track import TextUpdate
from stretto.errors import InvalidRequest

PATIENCE_S = 30.0  # between two writes; a reply that is held keeps KV that others could use
LONGEST_S = 600.0  # from the first to the last: nobody keeps a place for ever by writing nothing, often


class TextFeed:
    """One text; its ids travel under the id of their reply, in order, once the engine has that.

    num_ids, room: how many ids there are, and may still come before the end's, for which there is always room. A text
    on which nothing is written for `patience_s`, or that has no end after `longest_s`, ends its reply.
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
        """Go on with `ids`, the end's behind the last; InvalidRequest where the text is complete, or grows too long."""
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
        """The engine has the reply: what was written before that follows."""
        if not self._has_begun:
            self._has_begun = True
            await self._send()

    def is_awaited(self, num_rows: int) -> bool:
        """Whether a reply of so many rows stands still until more is written."""
        return not self._is_complete and num_rows > self._num_ids

    def check(self) -> None:
        """InvalidRequest where the reply has been ended because nothing came, or no end."""
        if self._is_silent and self._left_s <= 0:
            raise InvalidRequest("text", f"its end within {self.longest_s:g} s of its beginning", "none")
        if self._is_silent:
            raise InvalidRequest("text", f"more of it, or its end, within {self._patience_s:g} s", "nothing")

    def end(self) -> None:
        """The reply is over."""
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
    """In the place of the text of a reply that had all of it at once."""

    async def begin(self) -> None:
        """Nothing."""

    def is_awaited(self, num_rows: int) -> bool:
        """Never."""
        return False

    def check(self) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


NO_TEXT = _NoText()
