"""Hostile clients: endless lines, huge lengths, endless sessions and many connections; the port's address and keys."""

import asyncio
import logging
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.wyoming.tests.conftest import Begin, port_of
from plugins.wyoming.tests.line import FORM, Line, connected, types
from plugins.wyoming.tests.test_wyoming import TEXT, usable
from stretto_gateway import admission, socket_session
from stretto_gateway.admission import EventPace
from stretto_gateway.answers import ApiError
from stretto_gateway.command import arguments, main, read_config
from stretto_gateway.config import Limits
from stretto_gateway.socket_session import SessionEnd
from stretto_wyoming.events import MAX_LINE_BYTES, Event, read_event
from stretto_wyoming.state import WyomingOptions
from tests.gateway.conftest import HEARD, SPOKEN
from tests.tiers import by_night

KEY = "sk-0123456789abcdef"
LARGE = 1 << 33
AT_MOST = "expected a number of at most 1048576 bytes"
BROKEN = {
    "line": (b"{" + b" " * MAX_LINE_BYTES, f"line: expected at most {MAX_LINE_BYTES} bytes, got more"),
    "data": (b'{"type": "a", "data_length": %d}\n' % LARGE, f"data_length: {AT_MOST}, got {LARGE}"),
    "payload": (b'{"type": "a", "payload_length": %d}\n' % LARGE, f"payload_length: {AT_MOST}, got {LARGE}"),
    "negative": (b'{"type": "a", "data_length": -1}\n', f"data_length: {AT_MOST}, got -1"),
    "text": (b'{"type": "a", "data_length": "1"}\n', f"data_length: {AT_MOST}, got '1'"),
    "no JSON": (b"GET / HTTP/1.1\n", "expected an event as JSON, got 'GET / HTTP/1.1\\n'"),
    "deep": (b"[" * 60_000 + b"\n", "expected an event of at most 8192 values, got 60000"),
    "no object": (b"[]\n", "expected an event as a JSON object, got []"),
    "no UTF-8": (b'{"type": "\xff"}\n', "expected an event in UTF-8, got other bytes"),
}
INVALID = {
    "no type": (b"{}\n", "type: expected the name of an event, got None"),
    "no fields": (b'{"type": "ping", "data": [1]}\n', "data: expected an object, got [1]"),
    "data is no JSON": (b'{"type": "ping", "data_length": 2}\n{]', "expected an event as JSON, got '{]'"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_event_without_a_near_end_or_a_json_object_closes_the_connection(begin: Begin, name: str) -> None:
    data, message = BROKEN[name]
    running, line = await begin()
    await line.write(data)
    assert (await line.read())["text"] == message
    assert await line.is_closed()
    line.close()
    await running.idle()


@pytest.mark.parametrize("name", INVALID)
async def test_invalid_event_is_refused_and_the_connection_stays(begin: Begin, name: str) -> None:
    data, message = INVALID[name]
    _, line = await begin()
    await line.write(data)
    assert (await line.read())["text"] == message
    assert await usable(line)


async def test_web_page_cannot_send_events(begin: Begin) -> None:
    """A browser sends a page's request to any port, with any text as its body."""
    running, line = await begin()
    body = Event("synthesize", {"text": TEXT}).to_bytes()
    head = f"POST / HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: {len(body) + 1}\r\n\r\n"
    await line.write(head.encode() + b"\n" + body)
    assert (await line.read())["type"] == "error"
    assert await line.is_closed()
    line.close()
    await running.idle()
    assert not running.behind.requests


async def test_many_invalid_events_end_the_session(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_session, "MAX_ERRORS", 2)
    _, line = await begin()
    await line.write(b"{}\n" * 20_000)
    answered = await line.reader.read()
    assert 2 * len(b"{}\n") < len(answered) < 20_000 * 50


@given(
    name=st.text(),
    fields=st.dictionaries(st.text(), st.none() | st.integers() | st.text()),
    payload=st.binary(),
    size=st.integers(1, 50),
)
@settings(max_examples=50, deadline=None)
def test_written_event_is_read_from_any_pieces(name: str, fields: dict[str, object], payload: bytes, size: int) -> None:
    event = Event(name, fields, payload)

    async def read() -> Event:
        reader = asyncio.StreamReader(MAX_LINE_BYTES)
        data = event.to_bytes()
        for begun in range(0, len(data), size):
            reader.feed_data(data[begun : begun + size])
        return await read_event(reader, 1 << 20, EventPace())

    assert asyncio.run(read()) == event


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_an_event_or_refused(data: bytes) -> None:
    async def read() -> None:
        reader = asyncio.StreamReader(64)
        reader.feed_data(data)
        reader.feed_eof()
        while True:
            with suppress(ApiError):
                await read_event(reader, 16, EventPace())

    with pytest.raises((SessionEnd, asyncio.IncompleteReadError)):
        asyncio.run(read())


async def test_too_long_text_and_recording_are_refused_once(begin: Begin) -> None:
    limits = Limits(max_input_chars=20, max_body_bytes=100, drain_s=1)
    running, line = await begin(HEARD, limits=limits)
    await line.send("synthesize", text="a" * 21)
    assert (await line.read())["text"] == "input: expected at most 20 characters, got 21 characters"
    await line.send("synthesize-start")
    await line.send("synthesize-chunk", text="a" * 21)
    assert (await line.read())["text"].startswith("text: expected at most 20 characters in an utterance, got 21")
    await line.send("synthesize-chunk", text="b")
    await line.send("synthesize-stop")
    assert types(await line.until("synthesize-stopped")) == ["synthesize-stopped"]
    for _ in range(3):
        await line.send("audio-chunk", bytes(60), **FORM)
    assert (await line.read())["text"] == "audio: expected at most 100 bytes, got 120 bytes"
    await line.send("audio-stop")
    await line.send("audio-start", **FORM)
    await line.send("audio-chunk", bytes(60), **FORM | {"rate": 8000})
    assert (await line.read())["text"] == (
        "audio-chunk: expected the format of audio-start (16000 Hz, 2 bytes, 1 channels), "
        "got 8000 Hz, 2 bytes, 1 channels"
    )
    await line.send("audio-stop")
    assert await usable(line)
    assert not running.behind.requests
    line.close()
    await running.idle()


@pytest.mark.parametrize(
    ("limits", "event", "message"),
    [
        (Limits(session_s=0.2, drain_s=1), None, "the session has reached its maximum duration of 0.2 s"),
        (Limits(idle_s=0.2, drain_s=1), None, "nothing was received for 0.2 s"),
        (Limits(stall_s=0.2, drain_s=1), "audio-start", "nothing was received for 0.2 s"),
    ],
)
async def test_endless_session_ends(begin: Begin, limits: Limits, event: str | None, message: str) -> None:
    running, line = await begin(limits=limits)
    if event is not None:
        await line.send(event, **FORM)
    assert (await line.read())["text"] == f"the session is over: {message}"
    assert await line.is_closed()
    line.close()
    await running.idle()


async def test_sessions_of_a_host_share_the_pace_of_its_events(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_EVENT_WORK", 1e-3)  # in effect, a host has one event
    running, _ = await begin()
    port = port_of(running)
    first, second = [await connected(port) for _ in range(2)]
    neighbour = Line(*await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0)))
    await first.write(INVALID["no type"][0])
    assert (await first.read())["type"] == "error"
    await second.write(INVALID["no type"][0])
    await neighbour.write(INVALID["no type"][0])
    assert (await neighbour.read())["type"] == "error"
    async with running.http() as http:
        await http.get("/health/live")
    assert not second.reader._buffer  # type: ignore[attr-defined]
    for line in (first, second, neighbour):
        line.close()


@pytest.mark.parametrize("number", [20, *by_night(1000)])
async def test_one_host_gets_half_of_the_sessions(begin: Begin, number: int) -> None:
    running, line = await begin(limits=Limits(max_sessions=4, drain_s=1))
    lines = [await connected(port_of(running)) for _ in range(number)]
    refused = [await other.read() for other in lines[1:]]
    assert {event["text"] for event in refused} == {"2 sessions are open already, 2 of them yours; try again"}
    assert all([await other.is_closed() for other in lines[1:]])
    assert await usable(line)
    assert await usable(lines[0])
    for other in lines:
        other.close()
    await running.until(gateway_sessions=1)
    assert await usable(await connected(port_of(running)))


async def test_port_is_closed_by_default(begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    config = read_config(arguments().parse_args([]))
    assert config.of_route(WyomingOptions) == WyomingOptions()
    assert not WyomingOptions().files_per_session
    with caplog.at_level(logging.INFO, "stretto_gateway"):
        running, _ = await begin()
    place = f"tcp://127.0.0.1:{port_of(running)}"
    assert f"Wyoming at {place}; it has no authentication, so everyone who can reach it may use it" in caplog.text


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [("0", "127.0.0.1", 0), ("localhost:0", "127.0.0.1", 0), ("0.0.0.0:0", "0.0.0.0", 0), ("[::1]:0", "::1", 0)],
)
def test_place_is_read(text: str, address: str, port: int) -> None:
    options = read_config(arguments().parse_args(["--wyoming", text])).of_route(WyomingOptions)
    assert options == WyomingOptions(address, port)
    assert options.files_per_session == 1


@pytest.mark.parametrize("text", ["", "host", "65536", "1.2.3.4:", ":::x", "example.com:1"])
def test_invalid_place_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--wyoming", text])
    assert "--wyoming: expected" in capsys.readouterr().err


def test_port_that_another_program_has_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"--wyoming: cannot listen at 127.0.0.1:{port}: Address already in use"):
            read_config(arguments().parse_args(["--wyoming", str(port)]))


def test_gateway_with_keys_is_open_to_this_host_only(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)
    words = ["--keys", str(tmp_path / "keys"), "--wyoming"]
    assert read_config(arguments().parse_args([*words, "127.0.0.1:0"])).keys == (KEY,)
    message = (
        "--wyoming: expected the address 127.0.0.1, because the gateway has keys and Wyoming's clients cannot send one"
        ", got 0.0.0.0"
    )
    with pytest.raises(ValueError, match=message):
        read_config(arguments().parse_args([*words, "0.0.0.0:0"]))


async def test_session_needs_no_key_and_is_counted_without_one(begin: Begin) -> None:
    running, line = await begin(SPOKEN, keys=(KEY,))
    await line.send("synthesize", text=TEXT)
    await line.until("audio-stop")
    async with running.http() as http:
        figures = (await http.get("/metrics", headers={"authorization": f"Bearer {KEY}"})).text.splitlines()
    assert f'key_characters_total{{key="none"}} {len(TEXT)}.0' in figures
