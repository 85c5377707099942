"""ElevenLabs' WebSockets: text that is still being written, flushes, contexts, times, keys and errors."""

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import websockets
from websockets.exceptions import ConnectionClosed, InvalidStatus

from plugins.elevenlabs.tests.gateway.test_elevenlabs import FOREIGN, KEY, WORD_S, WORD_SAMPLES, speaks
from stretto_elevenlabs.stream_input import MAX_CONTEXTS
from stretto_gateway.config import Limits
from tests.client.fake_server import PROFILE, ErrorText, Request, Step, Until
from tests.gateway.conftest import NUM_SAMPLES, SPOKEN, Running, Start
from tests.gateway.realtime.test_bounds import open_socket, status
from tests.patience import PATIENCE_S

BEGIN = {"text": " ", "voice_settings": {"stability": 0.5, "similarity_boost": 0.8}}
END: dict[str, Any] = {"text": ""}


class Writer:
    """Client of a connection."""

    def __init__(self, socket: Any):
        self.socket = socket

    async def send(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            await self.socket.send(json.dumps(message))

    async def next(self) -> dict[str, Any]:
        """Return the next message."""
        async with asyncio.timeout(PATIENCE_S):
            message: dict[str, Any] = json.loads(await self.socket.recv())
        return message

    async def until_final(self, context_id: str | None = None) -> list[dict[str, Any]]:
        """Return the messages of a context up to its last one."""
        messages = []
        while not messages or not messages[-1]["isFinal"]:
            message = await self.next()
            if message.get("contextId") == context_id:
                assert "error" not in message, message
                messages.append(message)
        return messages

    async def closed(self) -> tuple[dict[str, Any], int]:
        """Return the last message and the code with which the server closes the connection."""
        message: dict[str, Any] = {}
        while True:
            try:
                message = await self.next()
            except ConnectionClosed:
                return message, self.socket.close_code


@asynccontextmanager
async def opened(
    running: Running, end: str = "stream-input", voice: str = "slt", headers: dict[str, str] | None = None, **query: Any
) -> AsyncIterator[Writer]:
    words = "&".join(f"{name}={value}" for name, value in ({"output_format": "pcm_16000"} | query).items())
    url = f"ws{running.url.removeprefix('http')}/v1/text-to-speech/{voice}/{end}?{words}"
    async with websockets.connect(url, additional_headers=headers) as socket:
        yield Writer(socket)


def sound(messages: list[dict[str, Any]]) -> bytes:
    return b"".join(base64.b64decode(message["audio"] or "") for message in messages)


def letters(messages: list[dict[str, Any]], field: str = "alignment") -> list[tuple[str, int, int]]:
    """Return all characters with their starts and ends in milliseconds, as Pipecat counts them.

    The times of a message begin where those of the previous one end.
    """
    timed = list[tuple[str, int, int]]()
    since_ms = 0
    for message in messages:
        if times := message.get(field):
            starts, durations = times["charStartTimesMs"], times["charDurationsMs"]
            triples = zip(times["chars"], starts, durations, strict=True)
            timed += [(char, since_ms + start, since_ms + start + duration) for char, start, duration in triples]
            since_ms += starts[-1] + durations[-1]
    return timed


async def test_text_is_spoken_while_it_is_written(start: Start) -> None:
    running = await start(speaks)
    async with opened(running, voice=FOREIGN, model_id="eleven_flash_v2_5", auto_mode="true") as writer:
        await writer.send(
            BEGIN | {"generation_config": {"chunk_length_schedule": [50]}, "try_trigger_generation": True}
        )
        await writer.send({"text": "It is nine. ", "try_trigger_generation": True}, {"text": "Come "})
        first = await writer.next()  # the first sentence is complete
        assert base64.b64decode(first.get("audio") or ""), first
        await writer.send({"text": "in. "}, END)
        messages = [first, *await writer.until_final()]
        last, code = await writer.closed()
    assert code == 1000
    assert not last
    assert messages[-1] == {"audio": None, "isFinal": True}
    assert len(sound(messages)) == 5 * WORD_SAMPLES * 2
    timed = letters(messages)
    assert [letter for letter, _, _ in timed] == list("It is nine. Come in. ")
    assert timed[0][1] == 0
    assert timed[-1][2] == round(5 * WORD_S * 1000)
    assert all(begin <= end for _, begin, end in timed)
    assert timed == letters(messages, "normalizedAlignment")


async def test_flush_speaks_the_text_and_keeps_the_connection_open(start: Start) -> None:
    running = await start(speaks)
    async with opened(running) as writer:
        await writer.send(BEGIN, {"text": "It is"}, {"text": " nine", "flush": True})
        before = [await writer.next()]
        while len(sound(before)) < 3 * WORD_SAMPLES * 2:
            before.append(await writer.next())
        await writer.send({"text": " "}, {"text": "Come in", "flush": True}, {"text": " now", "flush": True}, END)
        after = await writer.until_final()
    texts = [request["text"].decode() for request in running.behind.requests]
    assert texts[0] == "It is nine"
    assert " ".join(texts[1:]).split() == ["Come", "in", "now"]
    assert len(sound(before + after)) == 6 * WORD_SAMPLES * 2
    assert "".join(letter for letter, _, _ in letters(before + after)) == "It is nineCome in now"
    assert letters(before + after)[-1][2] == round(6 * WORD_S * 1000)
    await running.idle()


async def test_many_flushes_are_spoken_in_order(start: Start) -> None:
    running = await start(speaks)
    words = [f"w{number}" for number in range(40)]
    async with opened(running) as writer:
        await writer.send(BEGIN, *({"text": f"{word}. ", "flush": True} for word in words), END)
        messages = await writer.until_final()
    spoken = dict.fromkeys(request["text"].decode() for request in running.behind.requests)  # some are drawn anew
    assert " ".join(spoken).replace(".", "").split() == words
    assert len(sound(messages)) == len(words) * WORD_SAMPLES * 2


async def test_contexts_are_spoken_beside_each_other(start: Start) -> None:
    running = await start(speaks)
    async with opened(running, "multi-stream-input", inactivity_timeout=180) as writer:
        for name, text in (("a", "It is nine. "), ("b", "Come in. ")):
            await writer.send({"text": " ", "voice_settings": {"speed": 2.0}, "context_id": name})
            await writer.send({"text": text, "context_id": name, "flush": True})
        await writer.send({"text": "", "context_id": "a"}, {"text": ""}, {"context_id": "a", "flush": True})
        await writer.send({"context_id": "b", "close_context": True})
        second = await writer.until_final("b")
        assert second[-1] == {"audio": None, "isFinal": True, "contextId": "b"}
        await writer.send({"text": "Now. ", "context_id": "a"}, {"context_id": "a", "close_context": True})
        first = await writer.until_final("a")
        await writer.send({"context_id": "a", "close_context": True}, {"close_socket": True})
        _, code = await writer.closed()
    assert code == 1000
    assert first[-1]["contextId"] == "a"
    assert len(sound(second)) == 2 * WORD_SAMPLES  # at twice the speed
    assert {message["contextId"] for message in first + second} == {"a", "b"}
    await running.idle()


async def test_failed_context_does_not_end_the_others(start: Start) -> None:
    def script(request: Request) -> list[Step]:
        return [ErrorText("invalid request: text: expected words")] if b"bad" in request["text"] else speaks(request)

    running = await start(script)
    async with opened(running, "multi-stream-input") as writer:
        await writer.send({"text": "bad", "context_id": "a", "flush": True})
        error = await writer.next()
        assert (error["contextId"], error["code"]) == ("a", 1008)
        assert error["message"] == "text: expected words"
        assert error["error"]
        await writer.send({"text": "It is", "context_id": "b"}, {"context_id": "b", "close_context": True})
        assert sound(await writer.until_final("b"))
    async with opened(running) as writer:
        await writer.send(BEGIN, {"text": "bad", "flush": True})
        error, code = await writer.closed()
    assert error["message"] == "text: expected words"
    assert code == 1011
    await running.idle()


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"text": 5}, "text"),
        ({"text": " ", "pronunciation_dictionary_locators": [{}]}, "pronunciation_dictionary_locators"),
    ],
)
async def test_invalid_message_ends_the_session(start: Start, message: dict[str, Any], named: str) -> None:
    async with opened(await start(speaks)) as writer:
        await writer.send(message)
        error, code = await writer.closed()
    assert error["message"].startswith(f"{named}: expected") or error["message"].startswith(f"{named}: Input")
    assert code == 1011


async def test_session_ends_without_text_but_not_while_audio_is_due(start: Start) -> None:
    running = await start(speaks)
    async with opened(running, inactivity_timeout=0.2) as writer:
        await writer.send(BEGIN, {"text": "It is nine. Come"})
        error, code = await writer.closed()
    assert "0.2 s" in error["message"]
    assert code == 1000
    await running.idle()


async def test_contexts_of_a_connection_are_limited(start: Start) -> None:
    async with opened(await start(speaks), "multi-stream-input") as writer:
        await writer.send(*({"text": " ", "context_id": str(number)} for number in range(MAX_CONTEXTS + 1)))
        error, code = await writer.closed()
    assert error["message"].startswith(f"context_id: expected at most {MAX_CONTEXTS} contexts")
    assert code == 1011


async def test_key_is_in_the_header_or_in_the_first_message(start: Start) -> None:
    running = await start(speaks, PROFILE, keys=(KEY,))
    for headers, first in (({"xi-api-key": KEY}, {}), (None, {"xi_api_key": KEY}), (None, {"xi-api-key": KEY})):
        async with opened(running, headers=headers) as writer:
            await writer.send(BEGIN | first, {"text": "It is nine."}, END)
            assert sound(await writer.until_final())
    for first in ({}, {"xi_api_key": "sk-other"}):
        async with opened(running) as writer:
            await writer.send(BEGIN | first)
            error, code = await writer.closed()
        assert (error["error"], code) == ("invalid_api_key", 1011)
    with pytest.raises(InvalidStatus) as refused:
        async with opened(running, headers={"xi-api-key": "sk-other"}):
            pass
    assert refused.value.response.status_code == 401
    assert b'"invalid_api_key"' in (refused.value.response.body or b"")


async def test_strangers_take_no_session_of_callers_with_a_key(start: Start) -> None:
    running = await start(speaks, PROFILE, keys=(KEY,), limits=Limits(max_sessions=8, drain_s=1))
    way = "/v1/text-to-speech/slt/stream-input"
    async with open_socket(running, way):
        for number in range(1, 8):
            assert await status(running, way, local_addr=(f"127.0.0.{number}", 0)) == 429
        for _ in range(3):  # as many as a caller may have
            assert await status(running, "/v1/realtime", additional_headers={"authorization": f"Bearer {KEY}"}) == 101
    await running.idle()
    async with opened(running) as writer:
        await writer.send(BEGIN | {"xi_api_key": KEY}, {"text": "It is nine.", "flush": True})
        await writer.next()
        assert await status(running, way) == 101, "the caller is known now, so the place of strangers is free"


async def test_binary_first_message_has_an_error(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(await start(speaks, PROFILE, keys=(KEY,))) as writer:
        await writer.socket.send(b"\0")
        error, code = await writer.closed()
    assert (error["message"], code) == ("expected an event as text, got bytes", 1011)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_many_requests_to_close_make_one_task(start: Start) -> None:
    going_on = asyncio.Event()

    def script(request: Request) -> list[Step]:
        if b"bad" in request["text"]:
            return [ErrorText("invalid request: text: expected words")]
        return [*SPOKEN[:1], Until(going_on), *SPOKEN[1:]]

    running = await start(script)
    async with opened(running, "multi-stream-input") as writer:
        await writer.send({"text": "It is nine. ", "context_id": "a", "flush": True})
        await writer.next()
        num_before = len(asyncio.all_tasks())
        await writer.send(*[{"close_socket": True}] * 100, {"text": "bad", "context_id": "b", "flush": True})
        while "error" not in await writer.next():
            pass
        assert len(asyncio.all_tasks()) < num_before + 50
        going_on.set()
        await writer.until_final("a")
        _, code = await writer.closed()
    assert code == 1000


@pytest.mark.parametrize("is_flushed", [False, True])
async def test_text_that_waits_for_an_earlier_one_is_not_late(start: Start, is_flushed: bool) -> None:
    going_on = asyncio.Event()

    def script(request: Request) -> list[Step]:
        return [*SPOKEN[:1], Until(going_on), *SPOKEN[1:]] if b"nine" in request["text"] else SPOKEN

    running = await start(script, limits=Limits(writing_s=0.05, drain_s=1))
    async with opened(running) as writer:
        await writer.send({"text": "It is nine. ", "flush": True}, {"text": "Come in. ", "flush": is_flushed})
        if not is_flushed:
            await writer.send(END)
        await asyncio.sleep(0.2)  # the time limit of a text that is being spoken
        going_on.set()
        if is_flushed:
            await writer.send(END)
        messages = await writer.until_final()
    assert len(sound(messages)) == 2 * NUM_SAMPLES * 2


async def test_session_that_cannot_begin_is_refused_with_a_status(start: Start) -> None:
    running = await start(speaks, limits=Limits(max_sessions=1, drain_s=1))
    with pytest.raises(InvalidStatus) as invalid:
        async with opened(running, inactivity_timeout=900):
            pass
    async with opened(running):
        with pytest.raises(InvalidStatus) as full:
            async with opened(running):
                pass
    assert (invalid.value.response.status_code, full.value.response.status_code) == (422, 429)


async def test_shutdown_completes_the_text_so_far(start: Start) -> None:
    running = await start(speaks)
    async with opened(running) as writer:
        await writer.send(BEGIN, {"text": "It is nine. Come in."})
        await writer.next()
        running.server.should_exit = True
        messages = await writer.until_final()
    assert messages[-1]["isFinal"] is True
