"""Recordings at URLs are fetched only from the hosts that the operator names, within the limits of a recording."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from functools import partial

import pytest
from aiohttp import web

from stretto_client.fair_threads import Turns
from stretto_gateway.admission import CALLER
from stretto_gateway.answers import ApiError
from stretto_gateway.audio_hosts import AudioHosts
from stretto_gateway.command import arguments, read_config
from stretto_gateway.config import Limits
from stretto_gateway.outgoing import PublicResolver, web_url
from tests.gateway.conftest import SPOKEN, Start
from tests.gateway.test_speech_stream import PATH, begin, open_socket
from tests.gateway.test_voices import CLONES, RECORDING

SPEECH = {"input": "A cat.", "response_format": "pcm"}
FETCHED = web.AppKey("FETCHED", list[str])
LIMITS = Limits(drain_s=1, max_voice_bytes=100_000)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def whole(request: web.Request) -> web.Response:
    assert request.headers["accept-encoding"] == "identity"
    assert not request.headers.keys() & {"Cookie", "Authorization", "Referer"}
    return web.Response(body=RECORDING)


async def once(request: web.Request) -> web.Response:
    assert request.raw_path == "/once?signed=%27%2B%2f%21"
    assert not request.app[FETCHED], "it is fetched again"
    request.app[FETCHED].append(request.raw_path)
    return web.Response(body=RECORDING)


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(bytes(10_000))


async def cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-length": "1000"})
    await response.prepare(request)
    await response.write(bytes(10))
    assert request.transport is not None
    request.transport.close()
    return response


async def silent(request: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


async def elsewhere(request: web.Request) -> web.Response:
    raise web.HTTPFound("/whole")


@asynccontextmanager
async def host() -> AsyncIterator[str]:
    """Serve the paths above on loopback, and yield the host and its port."""
    app = web.Application()
    app.add_routes([web.get(f"/{each.__name__}", each) for each in (whole, once, endless, cut, silent, elsewhere)])
    app[FETCHED] = []
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_recording_of_a_named_host_sets_the_voice(start: Start) -> None:
    async with host() as place:
        running = await start(SPOKEN, CLONES, audio_hosts=("other.example", place))
        async with running.http() as http:
            more = {"references": [{"audio_path": f"http://{place}/whole?of=me#here", "text": "It is me."}]}
            answer = await http.post("/v1/audio/speech", json=SPEECH | more)
    assert answer.status_code == 200, answer.text
    assert running.behind.requests[-1]["audio"] == RECORDING


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("endless", "expected at most 100000 bytes, got more"),
        ("cut", "got an error: the connection ended before the response was complete"),
        ("silent", "got an error: no answer, or no further part of it, for 0.5 s"),
        ("elsewhere", "got an error: status 302"),
        ("nowhere", "got an error: status 404"),
    ],
)
async def test_recording_that_cannot_be_fetched_is_an_error_of_its_field(start: Start, path: str, message: str) -> None:
    limits = replace(LIMITS, stall_s=0.5) if path == "silent" else LIMITS
    async with host() as place:
        running = await start(SPOKEN, CLONES, limits, audio_hosts=(place,))
        async with running.http() as http:
            answer = await http.post("/v1/audio/speech", json=SPEECH | {"ref_audio": f"http://{place}/{path}"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "ref_audio")
    assert message in error["message"]
    assert not running.behind.requests


async def test_slow_host_delays_only_a_share_of_the_fetches(start: Start) -> None:
    limits = Limits(drain_s=1, stall_s=60)
    async with host() as place:
        hosts = AudioHosts([place], limits)

        def fetch(path: str, caller: str) -> asyncio.Task[bytes]:
            CALLER.set(caller)
            return asyncio.create_task(hosts.fetch("ref_audio", f"http://{place}/{path}", lambda num_bytes: None))

        slow = [fetch("silent", "slow") for _ in range(20)]
        assert await fetch("whole", "other") == RECORDING
        assert not [each for each in slow if each.done()]
        for each in slow:
            each.cancel()
        await asyncio.wait(slow)
        assert await fetch("whole", "slow") == RECORDING


ADDRESSES = (
    "127.0.0.1 127.1 2130706433 0x7f000001 0177.0.0.1 0x7f.0.0.1 [::1] [::ffff:127.0.0.1] [64:ff9b::7f00:1] [::]"
)
REFUSED = [
    *(f"http://{address}/a.wav" for address in (*ADDRESSES.split(), "169.254.169.254", "10.0.0.1", "1.1.1.1")),
    *(f"http://{name}/a.wav" for name in ("localhost", "intranet", "a.example:8080", "a.example.", "a_b", "a.1")),
    "https://me:secret@a.example/a.wav",
    "http:///a.wav",
    "http://a.example\\@b.example/a.wav",
    "http://a.example/ a.wav",
    "http://a.example:99999/",
    f"http://{'a' * 64}.example/",
    "HTTP://127.0.0.1/",
]


@pytest.mark.parametrize("url", REFUSED)
async def test_any_host_means_names_on_the_standard_ports(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", None)  # nothing is looked up
    with pytest.raises(ApiError) as raised:
        await AudioHosts(["*"], LIMITS).fetch("ref_audio", url, lambda num_bytes: None)
    assert raised.value.message.startswith(("ref_audio: expected a URL", "ref_audio: expected an http"))


IN_IPV6 = ("fec0::1", "::a00:1", "::ffff:8.8.8.8", "64:ff9b::a00:1", "2002:7f00:1::", "2001:0:a00:1::")
INSIDE = "127.0.0.1 10.1.2.3 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 ::1 fe80::1%1 fd00::1 ::ffff:10.0.0.1"


@pytest.mark.parametrize("address", [*INSIDE.split(), *IN_IPV6])
async def test_name_with_an_address_that_is_not_public_is_refused(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 80)) for each in ("93.184.216.34", address)]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: found)
    with pytest.raises(ApiError, match="the host's address is not public"):
        await AudioHosts(["*"], LIMITS).fetch("ref_audio", "http://a.example/a.wav", lambda num_bytes: None)


async def test_connection_is_opened_to_the_checked_address(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))]]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: answers.pop())
    with closing(Turns(1, "test")) as threads:
        (found,) = await PublicResolver(threads).resolve("a.example", 80)
    assert (found["host"], found["port"], found["hostname"]) == ("93.184.216.34", 80, "a.example")
    assert found["flags"] == socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


async def test_host_without_an_address_is_an_error_of_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", partial(raising, socket.gaierror()))
    with pytest.raises(ApiError, match="got an error: the host has no address"):
        await AudioHosts(["*"], LIMITS).fetch("ref_audio", "http://a.example/a.wav", lambda num_bytes: None)


def raising(error: Exception, *_: object) -> None:
    raise error


async def test_long_urls_are_refused_before_they_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stretto_gateway.outgoing.URL", None)
    with pytest.raises(ApiError, match="ref_audio: expected a URL of at most 2048 characters"):
        await AudioHosts(["*"], LIMITS).fetch("ref_audio", "http://" + 2048 * "a", lambda num_bytes: None)


async def test_url_is_sent_unchanged_and_only_once_for_several_utterances(start: Start) -> None:
    async with host() as place:
        running = await start(SPOKEN, CLONES, audio_hosts=(place,))
        given = {"ref_audio": f"http://{place}/once?signed=%27%2B%2f%21"}
        async with open_socket(running, PATH) as opened:
            stream = await begin(opened, model="tts-1", response_format="pcm", **given)
            for _ in range(2):
                events, _ = await stream.utterance("A cat.")
                assert events[-1]["type"] == "session.done", events
    assert [request["audio"] for request in running.behind.requests] == 2 * [RECORDING]


async def test_port_of_a_named_host_is_the_given_or_a_standard_one() -> None:
    hosts = AudioHosts(["A.example", "b.example:8080", "[::1]:81"], LIMITS)
    for url in (
        "http://a.example:81/",
        "http://b.example/",
        "http://[::1]/",
        "http://c.example/",
        "http://xa.example/",
    ):
        with pytest.raises(ApiError, match="expected a URL whose host the gateway's --audio-host allows"):
            await hosts.fetch("ref_audio", url, lambda num_bytes: None)
    for url in ("http://a.example", "https://A.EXAMPLE/x", "http://b.example:8080/", "http://[::1]:81/"):
        assert hosts._resolver("ref_audio", web_url(url)) is None


def test_hosts_are_read_from_option_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRETTO_AUDIO_HOSTS", "a.example,b.example:8080")
    assert read_config(arguments().parse_args(["--port", "0"])).audio_hosts == ("a.example", "b.example:8080")
    options = ["--port", "0", "--audio-host", "*", "--audio-host=c.example"]
    assert read_config(arguments().parse_args(options)).audio_hosts == ("*", "c.example")
    for bad in ("", "https://a.example", "a.example/x", "a b", "me@a.example", "a.example:x", "*.example"):
        with pytest.raises(ValueError, match=r"--audio-host: expected HOST, HOST:PORT or \*"):
            read_config(arguments().parse_args(["--port", "0", f"--audio-host={bad}"]))
