"""Telephone calls: a scripted peer that sends and reads the messages in Twilio's documentation of media streams."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
import websockets
from starlette.websockets import WebSocket, WebSocketState

from stretto_gateway import g711
from stretto_gateway.command import arguments, read_config
from stretto_gateway.config import Limits
from stretto_gateway.realtime.wire_audio import WireReader
from stretto_gateway.socket_session import SessionEnd
from stretto_telephone import endpoints
from stretto_telephone.channel import MAX_LOGGED, CallChannel
from stretto_telephone.endpoints import TelephoneOptions
from stretto_telephone.messages import PHONE
from stretto_telephone.webhook_session import MAX_EVENTS
from tests.client.fake_server import FakeServer, Until
from tests.gateway.conftest import HEARD, SPOKEN, Running, Start
from tests.gateway.realtime.caller import RATE, TALKS, answer, by_task, silence, spoken
from tests.gateway.realtime.test_bounds import KEY, closed, open_socket, status
from tests.gateway.realtime.test_duplex import DUPLEX, Partner
from tests.gateway.realtime.test_end_of_turn import graph, no_decision_is_late, outcomes
from tests.gateway.test_model_servers import VOICES, Begin
from tests.gateway.test_voices_in_conversations import TALKS as CLONES_AND_TALKS
from tests.patience import PATIENCE_S, until_async

__all__ = ["no_decision_is_late"]
PATH = "/v1/twilio"
SID = "MZ18ad3ab5a668481ce02b83e7395059f0"
FRAME = 160
TURN = np.concatenate([silence(0.5), spoken()[: 2 * RATE], silence(1.0)])


def mulaw(pcm: np.ndarray) -> bytes:
    """Return samples at 24 kHz, int16 [n], as a telephone network carries them."""
    return g711.encode("mulaw", soxr.resample(pcm, RATE, g711.RATE))


class Peer:
    """Twilio's side of a call."""

    def __init__(self, opened: Any):
        self.opened = opened
        self.num_sent = 0
        self.num_chunks = 0

    async def send(self, event: str, **fields: Any) -> None:
        """Send a message, with the sequence number and the stream that Twilio adds to all but the first one."""
        self.num_sent += 1
        own = {} if event == "connected" else {"sequenceNumber": str(self.num_sent), "streamSid": SID}
        await self.opened.send(json.dumps({"event": event} | own | fields))

    async def start(self, parameters: dict[str, str] | None = None, **changes: Any) -> None:
        """Send the first two messages of a stream."""
        await self.send("connected", protocol="Call", version="1.0.0")
        form = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
        start = {"accountSid": "AC1", "callSid": "CA1", "tracks": ["inbound"], "mediaFormat": form, "streamSid": SID}
        await self.send("start", start=start | {"customParameters": parameters or {}} | changes)

    async def media(self, data: bytes, **changes: Any) -> None:
        """Send a frame."""
        self.num_chunks += 1
        place = {"track": "inbound", "chunk": str(self.num_chunks), "timestamp": str(20 * self.num_chunks)}
        await self.send("media", media=place | {"payload": base64.b64encode(data).decode()} | changes)

    async def talk(self, pcm: np.ndarray) -> None:
        """Send samples at 24 kHz, int16 [n], in frames of 20 ms."""
        data = mulaw(pcm)
        for begin in range(0, len(data), FRAME):
            await self.media(data[begin : begin + FRAME])

    async def next(self) -> dict[str, Any]:
        """Return the next message."""
        async with asyncio.timeout(PATIENCE_S):
            message = json.loads(await self.opened.recv())
        assert message["streamSid"] == SID
        return message

    async def until(self, event: str) -> list[dict[str, Any]]:
        """Return the messages up to the next of this kind."""
        messages = [await self.next()]
        while messages[-1]["event"] != event:
            messages.append(await self.next())
        return messages

    async def play(self, message: dict[str, Any]) -> None:
        """Return a mark, as Twilio does once the audio before it has been played."""
        await self.send("mark", mark=message["mark"])


@asynccontextmanager
async def dial(running: Running, parameters: dict[str, str] | None = None, **options: Any) -> AsyncIterator[Peer]:
    """Open a call and start its stream."""
    async with open_socket(running, PATH, **options) as opened:
        peer = Peer(opened)
        await peer.start(parameters)
        yield peer


def sound(messages: Sequence[dict[str, Any]]) -> bytes:
    """Return the audio of the messages, and check that all frames but the last have 20 ms."""
    frames = [base64.b64decode(each["media"]["payload"]) for each in messages if each["event"] == "media"]
    assert {len(frame) for frame in frames[:-1]} <= {FRAME}
    return b"".join(frames)


REPLY = g711.encode("mulaw", np.full(2 * RATE // 5, 8192, np.int16))


async def test_conversing_model_answers_and_is_interrupted(start: Start) -> None:
    running = await start(by_task(dialogue=answer()), TALKS)
    async with dial(running, {"voice": "rms", "instructions": "Be brief.", "speed": "1"}) as peer:
        await peer.talk(TURN)
        first = await peer.until("mark")
        assert sound(first) == REPLY
        await peer.play(first[-1])
        await peer.talk(TURN)  # nothing is unplayed, so there is nothing to clear
        second = await peer.until("mark")
        assert [each["event"] for each in second if each["event"] != "media"] == ["mark"]
        await peer.talk(TURN)
        assert [each["event"] for each in await peer.until("clear")] == ["clear"]
        await peer.play(second[-1])
        assert [each["event"] for each in await peer.until("mark") if each["event"] != "media"] == ["mark"]
        await peer.send("stop", stop={"accountSid": "AC1", "callSid": "CA1"})
        assert (await closed(peer.opened))[0] == 1000
    options = json.loads(running.behind.requests[0]["options"])
    assert (options["voice"], options["output"]["sample_rate"]) == ("rms", 8000)
    assert json.loads(running.behind.requests[0]["messages"])[0] == {"role": "system", "text": "Be brief."}
    await running.until(gateway_sessions=0)
    assert not running.app.state.gateway.sessions.held.num_bytes


async def test_speech_during_a_reply_stops_it_before_its_end(start: Start) -> None:
    goes_on = asyncio.Event()
    running = await start(by_task(dialogue=answer(Until(goes_on))), TALKS)
    async with dial(running) as peer:
        await peer.talk(TURN)
        await peer.until("media")
        await peer.talk(TURN)
        messages = await peer.until("clear")
        assert len(sound(messages)) < len(REPLY) / 2
        await asyncio.wait_for(running.behind.cancelled.wait(), PATIENCE_S)
        goes_on.set()
        await peer.until("mark")  # of the answer to the second turn


async def test_full_duplex_model_speaks_while_it_listens(start: Start) -> None:
    partner = Partner()
    async with dial(await start(partner, DUPLEX)) as peer:
        await peer.talk(spoken()[:RATE])
        assert sound(await peer.until("media")) == g711.encode("mulaw", np.full(FRAME, 8192, np.int16))
        await until_async(lambda: len(partner.heard) > 0.9 * RATE)
        partner.is_over.set()
        await peer.until("mark")
        await peer.talk(silence(0.1))
        assert await closed(peer.opened) == (1000, "the response has ended; open another session")


class Hook:
    """Webhook of the operator: records events, and answers with the bytes that `script` returns."""

    def __init__(self, script: Callable[[dict[str, Any]], Sequence[bytes | asyncio.Event]]):
        self._script = script
        self.events = list[dict[str, Any]]()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"POST /calls?of=%27me%2f HTTP/1.1\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        self.events.append(json.loads(await reader.readexactly(length)))
        for part in self._script(self.events[-1]):
            if isinstance(part, bytes):
                writer.write(part)
                await writer.drain()
            else:
                await part.wait()
        writer.close()


def chunked(*texts: str) -> list[bytes]:
    """Return a response in chunks, one for each text."""
    chunks = [b"%x\r\n%b\r\n" % (len(text.encode()), text.encode()) for text in texts]
    return [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n"]


NOTHING = [b"HTTP/1.1 204 No Content\r\n\r\n"]


@asynccontextmanager
async def hooked(hook: Hook) -> AsyncIterator[str]:
    """Serve a webhook and yield its address."""
    async with await asyncio.start_server(hook.serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/calls?of=%27me%2f"


async def test_webhook_gives_the_text_of_a_speech_model(start: Start) -> None:
    answers = {"start": chunked("Good ", "morning."), "turn": chunked("A c", "at."), "dtmf": chunked("Two.")}
    hook = Hook(lambda event: answers.get(event["event"], NOTHING))
    async with hooked(hook) as url:
        running = await start(by_task(tts=SPOKEN, asr=HEARD), routes=(TelephoneOptions(url),))
        async with dial(running, {"voice": "rms", "customer": "Ada"}) as peer:
            greeting = await peer.until("mark")
            assert len(sound(greeting)) == 13_440
            await peer.play(greeting[-1])
            await peer.talk(TURN)
            await peer.play((await peer.until("mark"))[-1])
            await peer.send("dtmf", dtmf={"track": "inbound_track", "digit": "2"})
            await peer.play((await peer.until("mark"))[-1])
            await peer.send("stop", stop={"accountSid": "AC1", "callSid": "CA1"})
            assert (await closed(peer.opened))[0] == 1000
    call = {"call_sid": "CA1", "stream_sid": SID, "parameters": {"customer": "Ada"}}
    more = [{"event": "start"}, {"event": "turn", "text": "a cat"}, {"event": "dtmf", "digit": "2"}, {"event": "stop"}]
    assert hook.events == [call | each for each in more]
    texts = [each["text"].decode() for each in running.behind.requests if each["task"] == b"tts"]
    assert texts == ["Good morning.", "A cat.", "Two."]
    assert json.loads(running.behind.requests[0]["options"])["voice"] == "rms"


async def test_webhook_receives_the_transcripts_in_order(start: Start) -> None:
    late = asyncio.Event()
    hook = Hook(lambda event: [late, *chunked("Not spoken.")] if event["event"] == "start" else NOTHING)
    async with hooked(hook) as url:
        running = await start(by_task(asr=HEARD), routes=(TelephoneOptions(url),))
        async with dial(running, {"mode": "transcription"}) as peer:
            await peer.talk(np.concatenate([TURN, spoken()[: 2 * RATE]]))  # the second turn ends with the call
            late.set()
            await peer.send("stop", stop={"accountSid": "AC1", "callSid": "CA1"})
            with pytest.raises(websockets.ConnectionClosedOK):
                await peer.next()
    assert [(each["event"], each.get("text")) for each in hook.events] == [
        ("start", None),
        ("turn", "a cat"),
        ("turn", "a cat"),
        ("stop", None),
    ]


@pytest.mark.parametrize("mode", ["transcription", "conversation"])
async def test_events_that_wait_for_the_webhook_are_bounded(start: Start, mode: str) -> None:
    """A flood of key tones ends its call; more of them than fit are neither sent nor kept."""
    answered = asyncio.Event()
    hook = Hook(lambda event: [answered, *NOTHING])
    async with hooked(hook) as url:
        running = await start(by_task(asr=HEARD, tts=SPOKEN), routes=(TelephoneOptions(url),))
        async with dial(running, {"mode": mode}) as peer:
            await until_async(lambda: hook.events)
            with suppress(websockets.ConnectionClosed):
                for _ in range(MAX_EVENTS + 500):
                    await peer.send("dtmf", dtmf={"digit": "1"})
            if mode == "transcription":  # a later event replaces an earlier one in a conversation
                assert (await closed(peer.opened))[0] == 1008
            assert len([task for task in asyncio.all_tasks() if "_answer" in repr(task.get_coro())]) <= MAX_EVENTS
            answered.set()
    assert len(hook.events) <= 2 * MAX_EVENTS


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ([b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n"], "status 500"),
        ([b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n"], "status 302"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nA cat"], "ended before the response was complete"),
        ([b"SSH-2.0-OpenSSH\r\n"], "not valid HTTP"),
        ([], "ended before the response was complete"),
        (chunked("A" * 101), "more than 100 characters"),
        ([b"HTTP/1.1 200 OK\r\n\r\n\xff"], "expected UTF-8"),
    ],
)
async def test_failed_webhook_leaves_the_call_open(
    start: Start, caplog: pytest.LogCaptureFixture, response: list[bytes], reason: str
) -> None:
    hook = Hook(lambda event: response if event["event"] == "start" else chunked("A cat."))
    async with hooked(hook) as url:
        running = await start(
            by_task(tts=SPOKEN), routes=(TelephoneOptions(url),), limits=Limits(max_input_chars=100, drain_s=1)
        )
        async with dial(running) as peer:
            await until_async(lambda: reason in caplog.text)
            await peer.send("dtmf", dtmf={"digit": "1"})
            await until_async(lambda: any(each["text"] == b"A cat." for each in running.behind.requests))
            await peer.until("mark")


async def test_late_and_repeated_audio_is_dropped(start: Start) -> None:
    partner = Partner()
    async with dial(await start(partner, DUPLEX)) as peer:
        data = mulaw(spoken()[:RATE])
        frames = [data[begin : begin + FRAME] for begin in range(0, len(data), FRAME)]
        order = [*range(10), 11, 10, 11, *range(12, len(frames))]  # the eleventh comes late, the twelfth twice
        for index in order:
            await peer.media(frames[index], chunk=str(index + 1))
        await peer.media(frames[0], track="outbound", chunk="1000")
        await peer.media(frames[0], chunk="1000")
        for chunk in range(1001, 1006):  # less than a part of 80 ms may wait for more
            await peer.media(frames[0], chunk=str(chunk))
        reader = WireReader(PHONE)
        kept = [*range(10), *range(11, len(frames)), *[0] * 6]
        expected = np.frombuffer(b"".join(reader.read(frames[index]) for index in kept), "<i2")
        await until_async(lambda: len(partner.heard) >= 3 * FRAME * len(frames))
        heard = np.rint(np.array(partner.heard) * 32768)
        assert (heard == expected[: len(heard)]).all()
        partner.is_over.set()
        await peer.until("mark")


BAD: list[tuple[str | bytes, str]] = [
    (b"\0", "expected an event as text"),
    ("{", "expected an event as JSON"),
    ("[]", "expected an event as a JSON object"),
    ('{"event": "speech"}', "event: expected one of connected, start, media"),
    ('{"event": ["media"]}', "event: expected one of"),
    ('{"event": "media"}', "media: missing"),
    ('{"event": "media", "media": {"payload": "?"}}', "media.payload: expected base64"),
    ('{"event": "media", "media": {"payload": 3}}', "media.payload: "),
    ('{"event": "media", "media": {"payload": "", "chunk": "first"}}', "media.chunk: "),
    ('{"event": "media", "media": {"payload": "", "track": "both"}}', "media.track: "),
    (json.dumps({"event": "media", "media": {"payload": "A" * 12_000}}), "expected at most 8000 bytes, got 9000 bytes"),
    ('{"event": "dtmf", "dtmf": {"digit": "12"}}', "dtmf.digit: "),
    ('{"event": "mark", "mark": {}}', "mark.name: missing"),
    ('{"event": "start", "start": {"streamSid": "MZ2"}}', "start.mediaFormat: missing"),
]


async def test_invalid_messages_are_logged_and_the_call_goes_on(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stretto_telephone.channel.MAX_LOGGED", len(BAD))
    async with dial(await start(by_task(dialogue=answer()), TALKS)) as peer:
        for message, _ in BAD:
            await peer.opened.send(message)
        await peer.send("mark", mark={"name": "unknown"})
        await peer.send("dtmf", dtmf={"digit": "#"})
        await peer.talk(TURN)
        assert sound(await peer.until("mark")) == REPLY
    logged = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(logged) == len(BAD)
    for text, (_, expected) in zip(logged, BAD, strict=True):
        assert expected in text


async def test_many_invalid_messages_end_the_call_but_do_not_fill_the_log(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async with dial(await start(by_task(dialogue=answer()), TALKS)) as peer:
        for _ in range(200):
            await peer.opened.send("{")
        assert (await closed(peer.opened))[0] == 1008
    assert 0 < len([record for record in caplog.records if "expected an event" in record.getMessage()]) <= MAX_LOGGED


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 16_000, "channels": 1}}, "mediaFormat.sampleRate"),
        ({"mediaFormat": {"encoding": "audio/x-alaw", "sampleRate": 8000, "channels": 1}}, "mediaFormat.encoding"),
        ({"streamSid": None}, "start.streamSid"),
        ({"streamSid": "M" * 1000}, "start.streamSid"),
        ({"customParameters": {str(number): "" for number in range(100)}}, "start.customParameters"),
        ({"customParameters": {"voice": "nobody"}}, "voice"),
        ({"customParameters": {"speed": "fast"}}, "speed"),
        ({"customParameters": {"eagerness": "none"}}, "audio.input.turn_detection.eagerness"),
        ({"customParameters": {"mode": "fax"}}, "mode: expected one of conversation, transcription"),
        ({"customParameters": {"mode": "transcription"}}, "--call-webhook"),
        ({"customParameters": {"model": "parrot"}}, "model"),
    ],
)
async def test_invalid_start_ends_the_call(
    start: Start, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], reason: str
) -> None:
    running = await start(by_task(dialogue=answer()), TALKS)
    async with open_socket(running, PATH) as opened:
        await Peer(opened).start(**changes)
        assert (await closed(opened))[0] == 1011
    assert reason in caplog.text
    await running.until(gateway_sessions=0)


async def test_speech_model_without_a_webhook_cannot_hold_a_call(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async with dial(await start()) as peer:
        assert await closed(peer.opened) == (1011, "unsupported")
    assert "call: expected --call-webhook URL" in caplog.text


async def test_silent_peers_end_without_harm_to_other_calls(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await start(by_task(dialogue=answer()), TALKS)
    async with dial(running) as other:
        await other.talk(TURN)
        await other.play((await other.until("mark"))[-1])
        with monkeypatch.context() as patch:
            patch.setattr(endpoints, "START_S", 0.2)
            async with open_socket(running, PATH) as opened:
                assert await closed(opened) == (1011, "timeout")
            async with open_socket(running, PATH) as opened:
                await Peer(opened).media(b"")
                assert (await closed(opened))[0] == 1011
        await running.until(gateway_sessions=1)
        await other.talk(TURN)
        assert sound(await other.until("mark")) == REPLY
    silent = await start(by_task(dialogue=answer()), TALKS, limits=Limits(stall_s=0.3, drain_s=1))
    async with dial(silent) as peer:
        assert await closed(peer.opened) == (1000, "nothing was received for 0.3 s")
    await silent.until(gateway_sessions=0)


async def test_peer_that_never_reads_ends_the_call() -> None:
    async def send(message: Any) -> None:
        await asyncio.Event().wait()

    socket = WebSocket({"type": "websocket", "path": PATH, "headers": [], "query_string": b""}, send, send)
    socket.client_state = socket.application_state = WebSocketState.CONNECTED
    with pytest.raises(SessionEnd):
        await CallChannel(socket, 0.05).send("response.output_audio.delta", delta="AAAA" * FRAME)


async def access(running: Running, parameters: dict[str, str], **headers: str) -> int:
    """Return the close code of a call that ends after its start, or the status of a refused handshake."""
    if (refused := await status(running, PATH, additional_headers=headers)) != 101:
        return refused
    async with dial(running, parameters, additional_headers=headers) as peer:
        await peer.send("stop", stop={})
        return (await closed(peer.opened))[0]


async def test_key_is_in_a_header_or_a_parameter(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    running = await start(by_task(dialogue=answer()), TALKS, keys=(KEY,))
    assert await access(running, {}, authorization=f"Bearer {KEY}") == 1000
    assert await access(running, {}, authorization=f"Bearer {KEY}x") == 401
    assert await access(running, {"key": KEY}) == 1000
    for parameters in ({}, {"key": ""}, {"key": f"{KEY}x"}, {"key": "ek_unknown"}):
        assert await access(running, parameters) == 1011
    assert caplog.text.count("start.customParameters.key") == 0, "no key is repeated"
    assert caplog.text.count("expected the header Authorization: Bearer KEY, Twilio's signature") == 4
    session: Any = {"type": "realtime", "audio": {"output": {"voice": "rms"}}}
    secret = await running.openai(api_key=KEY).realtime.client_secrets.create(session=session)
    async with dial(running, {"key": secret.value}) as peer:
        await peer.talk(TURN)
        await peer.until("mark")
    assert json.loads(running.behind.requests[0]["options"])["voice"] == "rms"


@pytest.mark.parametrize("keys", [(), (KEY,)])
async def test_client_secret_opens_a_call_also_without_keys(
    start: Start, keys: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running = await start(by_task(dialogue=answer()), CLONES_AND_TALKS, keys=keys, voices=tmp_path / "voices")
    session: Any = {"type": "realtime", "audio": {"output": {"voice": "rms"}}}
    secret = await running.openai(api_key=KEY).realtime.client_secrets.create(session=session)
    async with dial(running, {"key": secret.value}) as peer:
        await peer.talk(TURN)
        assert sound(await peer.until("mark")) == REPLY
    async with dial(running, {"key": secret.value, "voice": "nobody"}) as peer:
        await closed(peer.opened)
    assert "voice: expected one of slt, rms" in caplog.text, "the voices of the owner were looked at"
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("keys", [(), (KEY,)])
async def test_signature_is_that_of_the_url_with_the_token(start: Start, keys: tuple[str, ...]) -> None:
    token = "0123456789abcdef0123456789abcdef"
    running = await start(by_task(dialogue=answer()), TALKS, keys=keys, routes=(TelephoneOptions(twilio_token=token),))
    host = running.url.removeprefix("http://")

    def signature(url: str, secret: str = token) -> dict[str, str]:
        digest = hmac.new(secret.encode(), url.encode(), hashlib.sha1).digest()
        return {"x-twilio-signature": base64.b64encode(digest).decode()}

    for good in (f"wss://{host}{PATH}", f"wss://127.0.0.1{PATH}"):
        assert await access(running, {}, **signature(good)) == 1000
    async with dial(running, {}, additional_headers=signature(f"wss://{host}{PATH}")) as peer:
        await peer.talk(TURN)
        assert sound(await peer.until("mark"))
    for headers in ({}, signature(f"wss://{host}/"), signature(f"wss://{host}{PATH}", token[::-1])):
        assert await access(running, {"key": KEY}, **headers) == 403
    if keys:
        assert await access(running, {}, authorization=f"Bearer {KEY}") == 1000


async def test_strangers_share_the_sessions_of_their_network_only(start: Start) -> None:
    running = await start(by_task(dialogue=answer()), TALKS, keys=(KEY,), limits=Limits(max_sessions=8, drain_s=1))
    async with open_socket(running, PATH):
        for number in range(1, 8):
            assert await status(running, PATH, local_addr=(f"127.0.0.{number}", 0)) == 429
        assert await status(running, PATH, additional_headers={"authorization": f"Bearer {KEY}"}) == 101


async def test_call_is_heard_by_one_server_and_answered_by_another(several: Begin) -> None:
    hook = Hook(lambda event: chunked("A dog.") if event["event"] == "turn" else chunked(""))
    async with hooked(hook) as url:
        gateway = await several("piper-en", "scribe", routes=(TelephoneOptions(url),))
        async with dial(gateway.running, {"voice": "amy"}) as peer:
            await peer.talk(TURN)
            await peer.until("media")
    assert [each.get("text") for each in hook.events[:2]] == [None, "a cat"]
    assert set(gateway.asked()) == {"piper-en", "scribe"}


async def test_call_does_not_need_a_server_that_never_answered(start: Start) -> None:
    behind = FakeServer(lambda _: SPOKEN, profile=VOICES)
    hook = Hook(lambda event: chunked("A dog."))
    async with hooked(hook) as url:
        named = {"piper-en": await behind.start(), "scribe": "127.0.0.1:9"}
        running = await start(named_servers=named, routes=(TelephoneOptions(url),))
        async with dial(running, {"voice": "amy", "model": "piper-en"}) as peer:
            await peer.until("media")
    await behind.stop()


async def test_call_has_the_eagerness_of_its_parameter(start: Start) -> None:
    running = await start(answer(), TALKS, turn_model=graph(values=(0.9,)))
    async with dial(running, {"eagerness": "low"}) as peer:
        await peer.talk(TURN[: -RATE // 2])
        await peer.until("mark")
    assert await outcomes(running) == {"complete": 1}


def test_call_webhook_is_a_url_and_the_token_is_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRETTO_TWILIO_TOKEN", " token\n")
    monkeypatch.setenv("STRETTO_CALL_WEBHOOK", "http://127.0.0.1:9/calls?a=b")
    config = read_config(arguments().parse_args(["--port", "0"]))
    calls = config.of_route(TelephoneOptions)
    assert (calls.call_webhook, calls.twilio_token) == ("http://127.0.0.1:9/calls?a=b", "token")
    assert "token" not in repr(config)
    for bad in ("calls", "ftp://a/b", "http://", "http://a:b/", "http://me:secret@a/", "http://a/\r\nx: y"):
        with pytest.raises(SystemExit):
            arguments().parse_args(["--call-webhook", bad])
