"""Requests that the full server has refused: whose turn it is, how many may wait, and for how long."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from stretto_gateway import server_queue
from stretto_gateway.admission import CALLER
from stretto_gateway.answers import ApiError
from stretto_gateway.config import Limits
from stretto_gateway.server_queue import ServerQueue
from tests.client.fake_server import ErrorText, Request, Step, Until
from tests.gateway.conftest import NUM_SAMPLES, SPOKEN, Running, Start
from tests.gateway.test_chat import TALKS
from tests.patience import until_async

FULL = ErrorText("full: 80 sequences are already in flight, 80 of them from this host; try again")
LONG = 10 * "It is twenty past nine, and the garden door is open. "


class Server:
    """A server with a number of places, and the queue of those that it refuses. A request's first letter is its caller.

    Attributes:
        tried: Names of requests in the order of their tries.
        full_for: Callers that the server refuses in any case.
    """

    def __init__(self, num_places: int, limits: Limits) -> None:
        self.num_places, self.queue = num_places, ServerQueue(limits)
        self.tried: list[str] = []
        self.full_for = ""
        self._holding: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def admitted(self) -> set[str]:
        return set(self._holding)

    async def ask(self, *names: str, is_later: bool = False) -> None:
        """Send requests, one after the other."""
        for name in names:
            CALLER.set(name[0])
            tries = self.queue.later_tries if is_later else self.queue.first_tries
            self._tasks[name] = asyncio.create_task(self._send(name, tries))
            await settled()

    async def _send(self, name: str, tries: Callable[[], AsyncGenerator[None, None]]) -> None:
        async with aclosing(tries()) as attempts:
            async for _ in attempts:
                self.tried.append(name)
                await asyncio.sleep(0)  # the server's answer
                if len(self._holding) < self.num_places and name[0] not in self.full_for:
                    break
        self._holding[name] = end = asyncio.Event()
        await end.wait()
        del self._holding[name]

    async def end(self, name: str) -> None:
        """End a reply."""
        self._holding[name].set()
        await self._tasks[name]
        self.queue.note_end()
        await settled()

    async def leave(self, name: str) -> None:
        """Disconnect the client of a request."""
        self._tasks[name].cancel()
        await asyncio.wait([self._tasks[name]])
        await settled()

    async def failure(self, name: str) -> ApiError:
        with pytest.raises(ApiError) as raised:
            await self._tasks[name]
        return raised.value


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(server_queue, "ROOM_S", 1e6)  # rounds begin only when a reply ends
    return Server(2, Limits(max_waiting=8, full_s=1e6, later_full_s=1e6))


async def test_refused_requests_are_tried_in_order_as_replies_end(server: Server) -> None:
    await server.ask("a1", "a2", "a3", "a4")
    assert (server.admitted, server.queue.num_waiting) == ({"a1", "a2"}, 2)
    assert server.tried == ["a1", "a2", "a3"], "a4 waits for a3"
    await server.end("a2")
    assert server.admitted == {"a1", "a3"}
    await server.end("a1")
    assert (server.admitted, server.queue.num_waiting) == ({"a3", "a4"}, 0)
    assert server.tried == ["a1", "a2", "a3", "a3", "a4", "a4"]


async def test_callers_take_turns(server: Server) -> None:
    await server.ask("a1", "a2", "a3", "a4", "a5", "b1", "b2", "c1")
    admitted = list[str]()
    for _ in range(6):
        before = server.admitted
        await server.end(min(before))
        admitted += server.admitted - before
    assert admitted[0] == "a3", "it waits for longest"
    assert admitted[1:] == ["b1", "c1", "a4", "b2", "a5"]


async def test_refused_caller_passes_its_turn_to_the_next(server: Server) -> None:
    """The server refuses a caller that has its share, and admits another one."""
    await server.ask("a1", "a2", "a3", "b1")
    server.full_for = "a"
    await server.end("a1")
    assert (server.tried[-2:], server.admitted) == (["a3", "b1"], {"a2", "b1"})


async def test_new_caller_is_tried_at_once(server: Server) -> None:
    await server.ask("a1", "a2", "a3")
    server.num_places = 3
    await server.ask("b1")
    assert server.admitted == {"a1", "a2", "b1"}


async def test_later_clause_goes_before_the_callers_new_requests(server: Server) -> None:
    await server.ask("a1", "a2", "a3", "a4")
    await server.ask("a1+", "a2+", is_later=True)
    assert server.tried[-1] == "a1+", "a2+ waits for a1+"
    for expected in ("a1+", "a2+", "a3", "a4"):
        await server.end(min(server.admitted))
        assert expected in server.admitted


async def test_later_clause_leaves_its_place_to_another_caller(server: Server) -> None:
    """The place of its last clause is free, but the other caller has waited for it."""
    await server.ask("a1", "a2", "b1")
    server._holding["a1"].set()
    await server.ask("a1+", is_later=True)
    assert server.admitted == {"a2", "b1"}
    await server.end("b1")
    assert server.admitted == {"a2", "a1+"}


async def test_rounds_begin_without_an_end_of_a_reply(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_queue, "ROOM_S", 0.0)
    await server.ask("a1", "a2", "a3", "b1")
    server.num_places = 4  # replies of other gateways have ended
    await until_async(lambda: server.admitted == {"a1", "a2", "a3", "b1"})
    assert server.queue._timer is None


async def test_disconnected_clients_leave_the_queue(server: Server) -> None:
    await server.ask("a1", "a2", "a3", "a4", "b1")
    await server.leave("a3")
    await server.leave("b1")
    assert server.queue.num_waiting == 1
    await server.end("a1")
    assert server.admitted == {"a2", "a4"}
    assert server.queue._turns == {}


async def test_client_that_disconnects_in_its_turn_passes_it_on(server: Server) -> None:
    await server.ask("a1", "a2", "a3", "b1")
    server._holding["a1"].set()
    await settled()
    server.queue.note_end()
    server._tasks["a3"].cancel()
    await settled()
    assert server.admitted == {"a2", "b1"}


async def test_one_caller_cannot_fill_the_queue(server: Server) -> None:
    await server.ask("a1", "a2", *(f"a{number}" for number in range(3, 8)))
    error = await server.failure("a7")
    assert (error.status, error.code) == (429, "server_full")
    assert error.response().headers["retry-after"] == "1"
    message = "4 requests are waiting for the speech server, 4 of them yours (at most 8 in all, half for one caller)"
    assert error.message == f"{message}; try again"
    await server.ask("b1", "b2", "b3")
    assert (await server.failure("b3")).message.startswith("6 requests are waiting for the speech server, 2 of them")
    await server.ask("c1")
    assert server.queue.num_waiting == 7


@pytest.mark.parametrize(("is_later", "seconds"), [(False, "0"), (True, "0.001")])
async def test_waiting_time_is_limited(is_later: bool, seconds: str) -> None:
    server = Server(0, Limits(full_s=0.0, later_full_s=0.001))
    await server.ask("a1", is_later=is_later)
    error = await server.failure("a1")
    assert (error.status, error.code) == (429, "server_full")
    assert error.message == f"the speech server was at capacity for {seconds} s; try again"
    assert (server.queue.num_waiting, server.tried) == (0, ["a1"])


async def speech(running: Running, text: str, key: str = "", hold_s: float = 0.0) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"model": "tts-1", "input": text, "response_format": "pcm", "hold_s": hold_s}
    async with running.http() as http:
        return await http.post("/v1/audio/speech", json=body, headers=headers)


class Places:
    """Script of a server with a number of places, which are free again once the test has set `ends`."""

    def __init__(self, num_places: int) -> None:
        self.num_places, self.ends = num_places, asyncio.Event()
        self.num_refused = 0

    def __call__(self, request: Request) -> list[Step]:
        if not self.num_places:
            self.num_refused += 1
            return [FULL]
        self.num_places -= 1
        return [Until(self.ends), *SPOKEN]


@pytest.mark.slow
async def test_gateway_waits_until_the_server_has_room(start: Start) -> None:
    places = Places(1)
    running = await start(places)
    first, second = (asyncio.create_task(speech(running, f"{word} cat.")) for word in ("A", "The"))
    await running.until(gateway_waiting_for_server=1, gateway_waiting=0)
    places.num_places = 1
    places.ends.set()
    for answer in (await first, await second):
        assert (answer.status_code, len(answer.content)) == (200, 2 * NUM_SAMPLES)
    assert await running.metric("gateway_waiting_for_server") == 0
    assert places.num_refused > 0


async def test_request_leaves_the_queue_while_its_speech_is_held_back(start: Start) -> None:
    complete = asyncio.Event()
    refusals = [FULL]

    def script(_: Request) -> list[Step]:
        return [refusals.pop()] if refusals else [SPOKEN[0], Until(complete), *SPOKEN[1:]]

    running = await start(script)
    asked = asyncio.create_task(speech(running, "A cat.", hold_s=10.0))
    await until_async(lambda: len(running.behind.requests) == 2)
    await running.until(gateway_waiting_for_server=0)
    assert not asked.done()
    complete.set()
    assert len((await asked).content) == 2 * NUM_SAMPLES


async def test_clauses_of_a_text_in_progress_wait_too(start: Start) -> None:
    places = Places(1)
    places.ends.set()
    running = await start(places)
    asked = asyncio.create_task(speech(running, LONG))
    await running.until(gateway_waiting_for_server=1)
    places.num_places = 1_000
    answer = await asked
    assert (answer.status_code, len(answer.content) > 2 * 2 * NUM_SAMPLES) == (200, True)


async def test_client_that_disconnects_leaves_the_gateways_queue(start: Start) -> None:
    running = await start(Places(0))
    asked = asyncio.create_task(speech(running, "A cat."))
    await running.until(gateway_waiting_for_server=1, gateway_active=1)
    asked.cancel()
    await running.until(gateway_waiting_for_server=0, gateway_active=0)


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/chat/completions", "/v1/audio/speech/batch"])
async def test_every_kind_of_request_waits(start: Start, path: str) -> None:
    places = Places(0)
    places.ends.set()
    running = await start(places, TALKS if "chat" in path else None)
    kinds: dict[str, dict[str, Any]] = {
        "/v1/audio/transcriptions": {"files": {"file": ("a.wav", b"RIFF")}, "data": {"model": "whisper-1"}},
        "/v1/chat/completions": {"json": {"model": "talker", "messages": [{"role": "user", "content": "Hi."}]}},
        "/v1/audio/speech/batch": {"json": {"items": [{"input": "A cat."}]}},
    }
    async with running.http() as http:
        asked = asyncio.create_task(http.post(path, **kinds[path]))
        await running.until(gateway_waiting_for_server=1)
        places.num_places = 2  # a batch speaks again, because the script's speech ends abruptly
        assert (await asked).status_code == 200
