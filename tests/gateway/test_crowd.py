"""256 simultaneous connections: replies and queues are bounded, each gets an answer, and nothing is left over."""

import asyncio
import gc
import json
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import pytest

from stretto_client import SpeechStream, Timeouts
from stretto_gateway import connection
from stretto_gateway.admission import Held, SlotWaiter
from stretto_gateway.config import Limits
from stretto_gateway.events import Streamed
from stretto_gateway.guard import SMALL_BYTES, LimitedBody
from stretto_gateway.metrics import Trace
from tests.client.fake_server import Until
from tests.gateway.conftest import NUM_SAMPLES, SPOKEN, Running, Start
from tests.patience import until_async

CALLERS = Counter({"key-of-who-says-much": 220, "key-of-the-second": 12, "key-of-the-third": 12, "key-of-the-last": 12})
LIMITS = Limits(max_active=32, max_waiting=128, drain_s=1)
BODY = json.dumps({"input": "A cat.", "response_format": "pcm"}) + SMALL_BYTES * " "  # large enough to be counted
OF_A_REQUEST = (Streamed, LimitedBody, Trace, SlotWaiter, SpeechStream, connection.Connection)
PATIENCE_S = 600.0  # on a busy machine


@dataclass
class Crowd:
    """Clients by key, each with its own connection."""

    running: Running
    http: aiohttp.ClientSession
    goes_on: asyncio.Event
    answered: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    async def come(self, callers: Counter[str]) -> None:
        """Send the requests of all `callers` at the same time.

        Replies start once each request is admitted, queued or refused.
        """
        admission = self.running.app.state.gateway.admission
        self.goes_on.clear()
        self.answered, self.refused = Counter(), Counter()
        async with asyncio.TaskGroup() as group:
            for key in callers.elements():
                group.create_task(self._ask(key))
            while admission.num_active + admission.num_waiting + self.refused.total() < callers.total():
                await asyncio.sleep(0.05)
            assert admission.num_active <= LIMITS.max_active
            assert admission.num_waiting <= LIMITS.max_waiting
            assert num_held() > 0
            self.goes_on.set()

    async def _ask(self, key: str) -> None:
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        async with self.http.post("/v1/audio/speech", data=BODY, headers=headers) as answer:
            content = await answer.read()
        if answer.status == 200:
            assert len(content) == 2 * NUM_SAMPLES
            self.answered[key] += 1
        else:
            assert (answer.status, answer.headers["retry-after"]) == (429, "1")
            assert json.loads(content)["error"]["code"] == "rate_limit_exceeded"
            self.refused[key] += 1


def num_held() -> int:
    """Return the number of body bytes that any guard counts."""
    return sum(each.num_bytes for each in gc.get_objects() if isinstance(each, Held))


def left() -> Counter[type]:
    """Return the number of live request and connection objects by type."""
    gc.collect()
    return Counter(type(each) for each in gc.get_objects() if isinstance(each, OF_A_REQUEST))


@pytest.mark.slow
async def test_many_requests_are_answered_without_leaks(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    # Callers share this process, and may take as long to send the head of a request.
    monkeypatch.setattr(connection, "HEAD_S", PATIENCE_S)
    goes_on = asyncio.Event()
    running = await start([Until(goes_on), *SPOKEN], limits=LIMITS, keys=tuple(CALLERS))
    running.app.state.gateway.client.timeouts = Timeouts(PATIENCE_S, PATIENCE_S, PATIENCE_S)
    admission, before, held_before = running.app.state.gateway.admission, left(), num_held()
    connector = aiohttp.TCPConnector(limit=CALLERS.total(), force_close=True)
    async with asyncio.timeout(PATIENCE_S), aiohttp.ClientSession(running.url, connector=connector) as http:
        crowd = Crowd(running, http, goes_on)
        await crowd.come(CALLERS)
        assert all(crowd.answered[key] for key in CALLERS), "somebody was kept out by others"
        assert crowd.refused.total() >= CALLERS.total() - LIMITS.max_active - LIMITS.max_waiting
        while crowd.refused:  # who retry, as requested
            num_refused = crowd.refused.total()
            await crowd.come(crowd.refused)
            assert crowd.refused.total() < num_refused
    state = running.server.server_state
    await until_async(lambda: not state.connections and not state.tasks)
    assert (admission.num_active, admission.num_waiting) == (0, 0)
    assert num_held() == held_before
    assert left() == before
