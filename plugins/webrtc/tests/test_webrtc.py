"""Calls over WebRTC: aiortc as the caller, with the events that OpenAI's package describes."""

import asyncio
import json
import logging
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

pytest.importorskip("aiortc", reason="the extra `webrtc` is not installed")

from aioice import stun
from aioice.ice import Connection as Ice
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcrtpreceiver import StreamStatistics
from aiortc.rtcsctptransport import DataChunk, SackChunk
from aiortc.rtp import RtcpRtpfbPacket, RtpPacket
from websockets.exceptions import InvalidStatus

from stretto_gateway.answers import ApiError
from stretto_gateway.command import arguments, read_config, with_fewer_connections
from stretto_gateway.config import GatewayConfig, Limits
from stretto_gateway.realtime.state import RealtimeState
from stretto_gateway.routes import RouteState
from stretto_gateway.socket_session import SessionEnd
from stretto_webrtc import peer as peers
from stretto_webrtc import playout as playouts
from stretto_webrtc.channel import TrackChannel
from stretto_webrtc.network import CallNetwork
from stretto_webrtc.offer import MAX_SDP_BYTES, MAX_SDP_LINES, read_offer
from stretto_webrtc.playout import FRAME, SILENT_PACKET, FramePacer, OpusEncoder, Playout
from stretto_webrtc.state import WebRtcOptions, WebRtcState
from tests.client.fake_server import Chunk, Until
from tests.gateway.conftest import Running, Start
from tests.gateway.realtime.caller import RATE, TALKS, Caller, by_task, silence, spoken
from tests.gateway.realtime.test_bounds import KEY
from tests.gateway.realtime.test_duplex import DUPLEX, Partner
from tests.patience import PATIENCE_S, until_async
from tests.ports import free_row

CALLS = "/v1/realtime/calls"
LOOPBACK: dict[str, Any] = {"routes": (WebRtcOptions(("127.0.0.1",)),)}
TURN = np.concatenate([silence(0.3), spoken()[: 2 * RATE], silence(0.8)])
TONE_HZ = 1000


def calls_of(running: Running) -> dict[str, Any]:
    """Return the calls in progress, by id."""
    calls = running.app.state.gateway.of_route(WebRtcState).calls
    assert calls is not None
    return calls._calls


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a busy machine end calls, and decode the audio that these callers send ten times as fast as others."""
    monkeypatch.setattr(peers, "CLOSE_S", PATIENCE_S)
    monkeypatch.setattr(peers, "MAX_DECODING", 10_000)


def tone(seconds: float) -> np.ndarray:
    """Return a tone, int16 [n] at 24 kHz."""
    times = np.arange(round(seconds * RATE)) / RATE
    return (8000 * np.sin(2 * np.pi * TONE_HZ * times)).astype(np.int16)


def says(pcm: np.ndarray, *before_last: Any) -> list[Any]:
    """Return the steps of a reply with these samples; `before_last` come before its last ones."""
    first = pcm[:-RATE]
    last = pcm[-RATE:]
    return [
        Chunk(0, len(first), text="so it", is_16_bit=True, pcm=first),
        *before_last,
        Chunk(1, len(last), text=" is", is_16_bit=True, pcm=last, is_final=True, is_last=True),
    ]


class Microphone(MediaStreamTrack):
    """Track that sends given samples at ten times the pace of a call, and nothing in between."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._frames: asyncio.Queue[np.ndarray] = asyncio.Queue()
        self._num_samples = 0

    def say(self, pcm: np.ndarray) -> None:
        """Send samples, int16 [n] at 24 kHz."""
        for begin in range(0, len(pcm) - FRAME + 1, FRAME):
            self._frames.put_nowait(pcm[begin : begin + FRAME])

    async def recv(self) -> av.AudioFrame:
        await asyncio.sleep(0.002)
        pcm = await self._frames.get()
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        frame.pts = self._num_samples
        self._num_samples += len(pcm)
        return frame


class Connection:
    """Caller's side of a call, with the methods of a WebSocket that `Caller` uses."""

    def __init__(self) -> None:
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.microphone = Microphone()
        self.peer.addTrack(self.microphone)
        self.channel = self.peer.createDataChannel("oai-events")
        self.events: asyncio.Queue[str] = asyncio.Queue()
        self.channel.on("message", self.events.put_nowait)
        self.is_closed = asyncio.Event()
        self.channel.on("close", self.is_closed.set)
        self.peer.on("connectionstatechange", self._check_state)
        self.peer.on("track", lambda track: setattr(self, "hearing", asyncio.ensure_future(self._hear(track))))
        self.heard: list[np.ndarray] = []  # frames at 48 kHz that are not silent
        self.call_id = ""

    def _check_state(self) -> None:
        if self.peer.connectionState in ("closed", "failed"):
            self.is_closed.set()

    async def _hear(self, track: Any) -> None:
        try:
            while True:
                pcm = (await track.recv()).to_ndarray()[0, ::2]
                if np.abs(pcm.astype(int)).max() > 1000:
                    self.heard.append(pcm)
        except MediaStreamError:
            pass

    async def offer(self) -> str:
        """Return the offer of this side."""
        await self.peer.setLocalDescription()
        return str(self.peer.localDescription.sdp)

    async def accept(self, sdp: str) -> None:
        """Connect with the answer of the gateway."""
        await self.peer.setRemoteDescription(RTCSessionDescription(sdp, "answer"))

    async def send(self, record: dict[str, Any]) -> None:
        """Send an event."""
        self.channel.send(json.dumps(record))

    async def recv_bytes(self) -> str:
        """Return the next event."""
        return await self.events.get()

    async def closed(self) -> None:
        """Wait for the end of the call."""
        async with asyncio.timeout(PATIENCE_S):
            await self.is_closed.wait()


@asynccontextmanager
async def dial(running: Running, client: Any = None, **options: Any) -> AsyncIterator[tuple[Caller, Connection]]:
    """Open a call with OpenAI's client, and yield its caller once the session has been created."""
    connection = Connection()
    try:
        calls = (client or running.openai()).realtime.calls.with_raw_response
        answered = await calls.create(sdp=await connection.offer(), **options)
        assert answered.status_code == 201
        connection.call_id = answered.headers["location"].rpartition("/")[2]
        await connection.accept(answered.content.decode())
        caller = Caller(connection)  # type: ignore[arg-type]
        assert (await caller.next()).type == "session.created"
        yield caller, connection
    finally:
        await connection.peer.close()


async def is_left_clean(running: Running) -> None:
    """Wait until nothing of the calls is left."""
    await running.until(gateway_sessions=0)
    assert not running.app.state.gateway.sessions.held.num_bytes
    await until_async(lambda: not calls_of(running))


def frequency(pcm: np.ndarray, rate: int) -> float:
    """Return the strongest frequency in samples, in Hz."""
    spectrum = np.abs(np.fft.rfft(pcm.astype(float) * np.hanning(len(pcm))))
    return float(np.argmax(spectrum) * rate / len(pcm))


async def test_conversing_model_answers_and_is_interrupted(start: Start) -> None:
    goes_on = asyncio.Event()
    replies = [says(tone(1.5)), says(tone(8), Until(goes_on))]
    running = await start(lambda _: replies.pop(0) if replies else says(tone(1.5)), TALKS, **LOOPBACK)
    async with dial(running, session={"type": "realtime", "instructions": "Be brief."}) as (caller, connection):
        connection.microphone.say(TURN)
        kinds = [event.type for event in await caller.until("output_audio_buffer.stopped")]
        assert kinds.index("response.content_part.added") < kinds.index("output_audio_buffer.started")
        assert kinds.index("response.done") < kinds.index("output_audio_buffer.stopped")
        assert "response.output_audio.delta" not in kinds
        heard = np.concatenate(connection.heard)
        assert abs(frequency(heard[4800:-4800], 48_000) - TONE_HZ) < 20
        connection.microphone.say(TURN)
        await caller.until("output_audio_buffer.started")
        connection.microphone.say(TURN)
        kinds = [event.type for event in await caller.until("output_audio_buffer.cleared")]
        assert "input_audio_buffer.speech_started" in kinds
        assert not next(iter(calls_of(running).values()))._peer.playout.num_queued
        await asyncio.wait_for(running.behind.cancelled.wait(), PATIENCE_S)
        goes_on.set()
        await caller.until("output_audio_buffer.started")  # of the answer to the third turn
        await caller.send("output_audio_buffer.clear")
        await caller.until("output_audio_buffer.cleared")
    options = json.loads(running.behind.requests[0]["options"])
    assert options["output"]["sample_rate"] == RATE
    assert json.loads(running.behind.requests[0]["messages"])[0] == {"role": "system", "text": "Be brief."}
    await is_left_clean(running)


async def test_full_duplex_model_hears_the_track(start: Start) -> None:
    partner = Partner()
    running = await start(partner, DUPLEX, **LOOPBACK)
    async with dial(running) as (caller, connection):
        connection.microphone.say(tone(1))
        await caller.until("output_audio_buffer.started")
        await until_async(lambda: len(partner.heard) > 0.8 * RATE)
        receiver: Any = next(iter(calls_of(running).values()))._peer._receiver
        assert receiver._RTCRtpReceiver__jitter_buffer.capacity == peers.REORDERED  # no longer delay than that
        assert abs(frequency(np.asarray(partner.heard)[RATE // 4 :], RATE) - TONE_HZ) < 20
        partner.is_over.set()
        connection.microphone.say(silence(0.5))
        await connection.closed()
    await is_left_clean(running)


async def test_client_secret_opens_a_call_that_its_owner_ends(start: Start) -> None:
    other = "sk-another-0123456789"
    running = await start(by_task(dialogue=says(tone(1.5))), TALKS, keys=(KEY, other), **LOOPBACK)
    owner = running.openai(api_key=KEY)
    secret = await owner.realtime.client_secrets.create(session={"type": "realtime", "instructions": "Be brief."})
    async with dial(running, running.openai(api_key=secret.value)) as (caller, connection):
        assert caller.seen[0].session.instructions == "Be brief."
        async with running.http() as http:
            path = f"{CALLS}/{connection.call_id}/hangup"
            refused = await http.post(path, headers={"authorization": f"Bearer {other}"})
            assert (refused.status_code, refused.json()["error"]["param"]) == (404, "call_id")
            assert (await http.post(path)).status_code == 401
        await owner.realtime.calls.hangup(connection.call_id)
        await connection.closed()
        await is_left_clean(running)


async def test_formats_and_lost_audio_are_errors_of_the_session_alone(start: Start) -> None:
    running = await start(by_task(dialogue=says(tone(1.5))), TALKS, Limits(drain_s=1, max_turn_s=0.5), **LOOPBACK)
    async with dial(running) as (caller, connection):
        phone = {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}
        error = await caller.ask("session.update", session={"type": "realtime"} | phone)
        assert (error.type, error.error.param) == ("error", "session.audio.input.format")
        await caller.say("Hello.")
        spoken = {"audio": {"output": {"format": {"type": "audio/pcmu"}}}}
        assert (await caller.ask("response.create", response=spoken)).error.param == "response.audio.output.format"
        assert (await caller.update()).type == "session.updated"  # without turn detection
        connection.microphone.say(silence(1.5))  # of which the buffer takes half a second
        assert (await caller.next()).error.code == "invalid_value"
        assert (await caller.ask("input_audio_buffer.clear")).type == "input_audio_buffer.cleared"  # one error, not 50
        connection.channel.send(b"\0")
        assert (await caller.next()).error.code == "invalid_event"


@pytest.mark.parametrize("limits", [{"stall_s": 0.2}, {"idle_s": 0.3}], ids=["never connects", "never sends"])
async def test_silent_callers_are_disconnected(start: Start, limits: dict[str, float]) -> None:
    running = await start(by_task(dialogue=says(tone(1.5))), TALKS, Limits(drain_s=1, **limits), **LOOPBACK)
    if "stall_s" in limits:
        connections = [Connection() for _ in range(4)]
        async with running.http() as http:
            for each in connections:
                answered = await http.post(
                    CALLS, content=await each.offer(), headers={"content-type": "application/sdp"}
                )
                assert answered.status_code == 201
                await each.peer.close()
    else:
        async with dial(running) as (caller, connection):
            assert (await caller.next()).error.code == "session_ended"
            await connection.closed()
    await is_left_clean(running)


async def test_calls_share_the_limit_of_sessions_and_of_ports(start: Start) -> None:
    port = free_row(1)
    running = await start(
        by_task(), TALKS, Limits(drain_s=1, max_sessions=3), routes=(WebRtcOptions(("127.0.0.1",), f"{port}-{port}"),)
    )
    connections = [Connection() for _ in range(3)]
    async with running.http() as http:
        answers = [
            await http.post(CALLS, content=await each.offer(), headers={"content-type": "application/sdp"})
            for each in connections
        ]
        assert [each.status_code for each in answers] == [201, 503, 503]
        assert f" 127.0.0.1 {port} typ host" in answers[0].text
        assert answers[1].json()["error"]["message"] == "no UDP port is free for the call; try again"
        assert await running.metric("gateway_sessions") == 1
        await http.post(f"{answers[0].headers['location']}/hangup")
        await is_left_clean(running)
    for each in connections:
        await each.peer.close()


async def offered() -> str:
    """Return the offer of a caller."""
    connection = Connection()
    try:
        return await connection.offer()
    finally:
        await connection.peer.close()


VIDEO = "m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=rtpmap:96 VP8/90000\r\na=mid:2\r\n"
BAD_OFFERS = {
    "1 MB": (lambda sdp: sdp + "a=x:" + "y" * 1_000_000, 413, f"at most {MAX_SDP_BYTES} bytes, got 100"),
    "lines": (lambda sdp: sdp + "a=x\r\n" * MAX_SDP_LINES, 400, f"at most {MAX_SDP_LINES} lines"),
    "text": (lambda sdp: "Hello.", 400, "begins with v=0"),
    "no line": (lambda sdp: sdp[: sdp.index("m=")], 400, "one audio line"),
    "video": (lambda sdp: sdp + VIDEO, 400, "got audio, application, video"),
    "invalid line": (lambda sdp: sdp.replace("a=rtpmap:96", "a=rtpmap:x"), 400, "with an invalid line"),
    "codec": (
        lambda sdp: sdp.replace("opus/48000", "speex/16000"),
        400,
        "opus/48000 in the audio line, got speex/16000",
    ),
    "rate": (lambda sdp: sdp.replace("opus/48000", "opus/24000"), 400, "got opus/24000"),
    "group": (lambda sdp: sdp.replace("a=group:BUNDLE 0 1", "a=group:BUNDLE 0"), 400, "a=group:BUNDLE 0 1"),
    "empty id": (lambda sdp: sdp.replace("a=mid:0", "a=mid"), 400, "a line a=mid:ID of its own in each part"),
    "same id": (lambda sdp: sdp.replace("a=mid:1", "a=mid:0"), 400, "a line a=mid:ID of its own in each part"),
    "group of one": (lambda sdp: sdp[: sdp.index("m=application")], 400, "a=group:BUNDLE 0"),
    "source": (lambda sdp: re.sub("a=ssrc:.*? ", "a=ssrc:4294967296 ", sdp), 400, "from 0 to 4294967295 in a=ssrc"),
    "extension": (lambda sdp: sdp.replace("a=extmap:1 ", "a=extmap:256 "), 400, "from 1 to 255 in a=extmap"),
    "large port": (lambda sdp: sdp.replace("a=sctp-port:5", "a=sctp-port:-5"), 400, "from 1 to 65535 in a=sctp-port"),
    "direction": (lambda sdp: sdp.replace("a=sendrecv", "a=inactive"), 400, "a=sendonly), got a=inactive"),
    "no direction": (lambda sdp: sdp.replace("a=sendrecv", "a=x"), 400, "got a line without a direction"),
    "password": (lambda sdp: sdp.replace("a=ice-pwd", "a=x-pwd"), 400, "a=ice-pwd"),
    "lite": (lambda sdp: sdp.replace("s=-", "s=-\r\na=ice-lite"), 400, "a=ice-lite"),
    "fingerprint": (lambda sdp: sdp.replace("a=fingerprint:sha-", "a=fingerprint:md"), 400, "sha-256"),
    "role": (lambda sdp: sdp.replace("a=setup", "a=x-setup"), 400, "a=setup"),
    "mux": (lambda sdp: sdp.replace("a=rtcp-mux", "a=x-mux"), 400, "a=rtcp-mux"),
    "port": (lambda sdp: sdp.replace("a=sctp-port", "a=x-port"), 400, "a=sctp-port"),
}


@pytest.mark.parametrize("name", BAD_OFFERS)
async def test_bad_offers_are_refused(name: str) -> None:
    change, status, message = BAD_OFFERS[name]
    sdp = (await offered()).replace("opus/48000/2\r\n", "opus/48000/2\r\na=fmtp:96 useinbandfec=1\r\n")
    with pytest.raises(ApiError, match="sdp: ") as caught:
        read_offer(change(sdp))
    assert (caught.value.status, caught.value.param) == (status, "sdp")
    assert message in caught.value.message


VALUES = ("", "-1", " ", "9" * 30, "٣", "x y z", "\0", ":", "/")


def damaged(lines: list[str]) -> Iterator[str]:
    """Yield offers with each line cut after each character, and with other values instead of the rest."""
    for number, line in enumerate(lines):
        for end in range(len(line)):
            values = VALUES if line[:end].endswith((":", " ", "/", "=")) else VALUES[:1]
            for value in values:
                yield "\r\n".join([*lines[:number], line[:end] + value, *lines[number + 1 :]]) + "\r\n"


async def test_damaged_offers_are_answered_or_refused() -> None:
    sdp = (await offered()).replace("opus/48000/2\r\n", "opus/48000/2\r\na=fmtp:96 useinbandfec=1\r\n")
    lines = [line for line in sdp.splitlines() if not line.startswith("a=candidate")]
    accepted = list[str]()
    for text in damaged(lines):
        with suppress(ApiError):
            accepted.append(read_offer(text))
    network = CallNetwork.from_texts(("127.0.0.1",), "")
    num_answered = 0
    refusals = set[tuple[int, str | None]]()
    for text in accepted[::60]:  # an answer takes several ms
        peer = peers.Peer(network, 1000)
        try:
            await peer.answer(text)
            num_answered += 1
        except ApiError as error:
            refusals.add((error.status, error.param))
        finally:
            await peer.close(1000, "")
    assert num_answered > 40
    assert refusals <= {(400, "sdp")}


async def test_candidates_of_the_caller_are_never_used(start: Start) -> None:
    sdp = await offered()
    named = "".join(f"a=candidate:{n} 1 udp 99 192.0.2.{n % 200} {n} typ host\r\n" for n in range(1, 1000))
    assert "candidate" in sdp
    assert len(sdp + named) < MAX_SDP_BYTES
    assert "candidate" not in read_offer(sdp + named)


BODIES = {
    "type": (
        {"content": "v=0", "headers": {"content-type": "text/plain"}},
        "Content-Type: application/sdp or multipart",
    ),
    "bytes": ({"content": b"\xff", "headers": {"content-type": "application/sdp"}}, "text in UTF-8"),
    "no offer": ({"files": {"session": (None, "{}")}}, "sdp: Field required"),
    "session": ({"files": {"sdp": (None, "OFFER"), "session": (None, "[]")}}, "session: expected a JSON object"),
    "values": ({"files": {"sdp": (None, "OFFER"), "session": (None, "[" * 9000)}}, "at most 8192 values"),
    "model": ({"files": {"sdp": (None, "OFFER"), "session": (None, '{"model": "x"}')}}, "session.model: "),
    "format": (
        {
            "files": {
                "sdp": (None, "OFFER"),
                "session": (None, '{"audio": {"output": {"format": {"type": "audio/pcmu"}}}}'),
            }
        },
        "session.audio.output.format: expected audio/pcm",
    ),
}


@pytest.mark.parametrize("name", BODIES)
async def test_bad_bodies_are_refused(start: Start, name: str) -> None:
    running = await start(by_task(), TALKS, **LOOPBACK)
    request, message = BODIES[name]
    parts = {
        key: (None, (await offered()) if text == "OFFER" else text)
        for key, (_, text) in request.get("files", {}).items()
    }
    async with running.http() as http:
        answered = await http.post(CALLS, **request | ({"files": parts} if parts else {}))
    status = 404 if name == "model" else 400
    assert (answered.status_code, message in answered.json()["error"]["message"]) == (status, True), answered.text


@pytest.mark.parametrize(("intent", "status"), [("", 400), ("?intent=transcription", 201)])
async def test_only_callers_that_hear_the_speech_converse(start: Start, intent: str, status: int) -> None:
    running = await start(by_task(), TALKS, **LOOPBACK)
    sdp = (await offered()).replace("a=sendrecv", "a=sendonly")
    async with running.http() as http:
        answered = await http.post(CALLS + intent, content=sdp, headers={"content-type": "application/sdp"})
        assert answered.status_code == status, answered.text
        if status == 201:
            await http.post(f"{answered.headers['location']}/hangup")
        else:
            assert answered.json()["error"]["message"].endswith("(a=sendrecv), got a=sendonly")
    await is_left_clean(running)


async def test_calls_are_not_joined_by_websocket(start: Start) -> None:
    running = await start(by_task(), TALKS, **LOOPBACK)
    with pytest.raises(InvalidStatus) as refused:
        async with running.openai().realtime.connect(call_id="rtc_1"):
            pass
    assert refused.value.response.status_code == 400
    assert b"call_id: expected no call" in refused.value.response.body


async def test_gateway_without_addresses_has_no_calls(start: Start) -> None:
    async with (await start()).http() as http:
        for path in (CALLS, f"{CALLS}/rtc_1/hangup"):
            answered = await http.post(path, content="v=0", headers={"content-type": "application/sdp"})
            assert (answered.status_code, answered.json()["error"]["code"]) == (404, "unsupported")


async def test_shutdown_ends_calls_and_the_log_has_no_addresses(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    running = await start(by_task(), TALKS, **LOOPBACK)
    async with dial(running) as (caller, connection):
        running.app.state.gateway.sessions.draining.set()
        assert "the gateway is shutting down" in (await caller.next()).error.message
        await connection.closed()
        await is_left_clean(running)
        async with running.http() as http:
            headers = {"content-type": "application/sdp"}
            assert (await http.post(CALLS, content=await offered(), headers=headers)).status_code == 503
    assert {record.name.partition(".")[0] for record in caplog.records} & {"aioice", "aiortc"} == set()


async def test_messages_without_end_end_their_call_alone(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    running = await start(by_task(dialogue=says(tone(1.5))), TALKS, **LOOPBACK)
    async with dial(running) as (other, _), dial(running) as (_, connection):
        sctp = connection.peer.sctp
        with suppress(ConnectionError):  # once the gateway has ended the call
            for n in range(1200):  # 1.2 MB: above what aiortc announces, and does not check
                chunk = DataChunk(flags=1 if n == 0 else 0)
                chunk.tsn = sctp._local_tsn + n
                chunk.stream_id = 1
                chunk.stream_seq = 5
                chunk.protocol = 51
                chunk.user_data = bytes(1000)
                await sctp._send_chunk(chunk)
                await asyncio.sleep(0)
        await connection.closed()
        assert "the messages of its data channel do not end" in caplog.text
        assert (await other.ask("session.update", session={"type": "realtime"})).type == "session.updated"
    await is_left_clean(running)


def gateways_peer(running: Running) -> Any:
    """Return the gateway's side of its only call."""
    (call,) = calls_of(running).values()
    return call._peer


async def send_from_many_sources(connection: Connection, _: Any) -> None:
    """Send audio from one source too many."""
    for n in range(peers.MAX_SOURCES + 1):
        packet = RtpPacket(payload_type=96, sequence_number=n, timestamp=960 * n)
        packet.ssrc = 1000 + n
        packet.payload = SILENT_PACKET
        await connection.peer.sctp.transport._send_rtp(packet.serialize())


async def send_far_times(_: Connection, peer: Any) -> None:
    """Set the statistics of a caller whose times are so far from the clock that they fit into no report."""
    statistics = StreamStatistics(48_000)
    statistics.add(RtpPacket(payload_type=96))
    statistics._jitter_q4 = 1 << 36
    peer._receiver._RTCRtpReceiver__remote_streams[1] = statistics
    if peer._receiver._RTCRtpReceiver__rtcp_ssrc is None:
        peer._receiver._RTCRtpReceiver__rtcp_ssrc = 2


async def confirm_what_was_not_sent(connection: Connection, _: Any) -> None:
    """Send a confirmation of 65,535 chunks."""
    sack = SackChunk()
    sack.cumulative_tsn = connection.peer.sctp._last_received_tsn
    sack.gaps = [(1, 65_535), (65_535, 0)]
    await connection.peer.sctp._send_chunk(sack)


async def name_at_length(connection: Connection, _: Any) -> None:
    """Open a data channel with a long label."""
    connection.peer.createDataChannel("x" * 2000)


HOSTILE = {
    "sources": (send_from_many_sources, "its packets have more than 8 sources"),
    "times": (send_far_times, "its audio cannot be reported on: error"),
    "label": (name_at_length, "the label of a data channel has more than 1000 characters"),
    "gaps": (confirm_what_was_not_sent, "its data channel is invalid: ValueError"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_packets_end_their_call_alone(start: Start, name: str, caplog: pytest.LogCaptureFixture) -> None:
    send, reason = HOSTILE[name]
    running = await start(by_task(dialogue=says(tone(1.5))), TALKS, **LOOPBACK)
    async with dial(running) as (_, connection):
        await send(connection, gateways_peer(running))
        await connection.closed()
    await is_left_clean(running)
    assert reason in caplog.text
    assert "not ended in order" not in caplog.text


async def test_calls_end_even_if_aiortc_does_not(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(peers, "CLOSE_S", 0.01)
    running = await start(by_task(dialogue=says(tone(1.5))), TALKS, **LOOPBACK)
    async with dial(running) as (_, connection):
        peer = gateways_peer(running)
        monkeypatch.setattr(peer._connection, "close", asyncio.Event().wait)
        peer.hang_up()
        await connection.closed()
    await is_left_clean(running)
    assert "a call's connection has not ended in order: TimeoutError" in caplog.text
    assert all(socket.is_closing() for socket in peer._sockets)
    assert len(peer._sockets) == 1


async def test_strangers_are_neither_heard_nor_answered(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked_again = list[int]()

    async def retransmit(_: Any, number: int) -> None:
        asked_again.append(number)

    monkeypatch.setattr(RTCRtpSender, "_retransmit", retransmit)
    running = await start(by_task(dialogue=says(tone(1.5))), TALKS, **LOOPBACK)
    async with dial(running) as (caller, connection):
        (gateways,) = gateways_peer(running)._sockets
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.setblocking(False)
            stranger.connect(gateways.get_extra_info("sockname"))
            check = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
            short = bytes.fromhex("000100052112a442") + bytes(12) + bytes.fromhex("0024000161")  # a priority of 1 byte
            for datagram in (b"", b"\x80", b"\x16", short, bytes(check)):
                stranger.send(datagram)
            nack = RtcpRtpfbPacket(fmt=1, ssrc=1, media_ssrc=gateways_peer(running)._parts[2]._ssrc, lost=[1, 2, 3])
            await connection.peer.sctp.transport._send_rtp(bytes(nack))
            await caller.ask("session.update", session={"type": "realtime"})
            with pytest.raises(BlockingIOError):  # the gateway reads in order, so it has read all of them
                stranger.recv(1000)
    await is_left_clean(running)
    assert not asked_again
    assert not [record for record in caplog.records if record.name == "asyncio"]


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute of a STUN message."""
    return struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)


def stun_message(attributes: bytes, kind: int = 1, cookie: int = stun.COOKIE) -> bytes:
    return struct.pack("!HHI12s", kind, len(attributes), cookie, b"transactions") + attributes


FINGERPRINTS = attribute(0x8028, b"1234")
PRIORITY = attribute(0x24, b"1234")
HOSTILE_DATAGRAMS = {
    "fingerprints": stun_message(FINGERPRINTS * 8000),
    "fingerprints in a short message": stun_message(attribute(6, b"NAME:x") + FINGERPRINTS * 20),
    "many attributes": stun_message(attribute(6, b"NAME:x") + PRIORITY * 40),
    "long name": stun_message(attribute(6, b"NAME:" + b"x" * 5000)),
    "attribute beyond the end": stun_message(attribute(6, b"NAME:x") + b"\0\x24\xff\xff"),
    "half an attribute": stun_message(attribute(6, b"NAME:x") + b"\0\x24"),
    "wrong length": stun_message(attribute(6, b"NAME:x")) + PRIORITY,
    "wrong cookie": stun_message(attribute(6, b"NAME:x"), cookie=1),
    "name of another call": stun_message(attribute(6, b"OTHER:x") + FINGERPRINTS),
    "no name": stun_message(PRIORITY),
    "answer to nothing": stun_message(PRIORITY, kind=0x101),
    "error of nothing": stun_message(attribute(9, b"\0\0\4\1no"), kind=0x111),
    "indication": stun_message(attribute(6, b"NAME:x"), kind=0x11),
    "header": stun_message(b"")[:19],
    "DTLS": b"\x16\xfe\xfd" + bytes(1200),
    "RTP": b"\x80\x60" + bytes(1200),
    "RTCP": b"\x80\xc8" + bytes(1200),
    "TURN": b"\x40\x00" + bytes(1200),
}


@pytest.mark.parametrize("name", HOSTILE_DATAGRAMS)
async def test_hostile_datagrams_are_dropped_unread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[bytes]()
    ice = Ice(ice_controlling=False, local_username="NAME")
    monkeypatch.setattr(stun, "parse_message", lambda data: read.append(data) or stun.Message(1, stun.Class.INDICATION))
    monkeypatch.setattr(ice, "data_received", lambda data, component: read.append(data))
    call = peers.CallSocket(ice)
    call.datagram_received(HOSTILE_DATAGRAMS[name], ("192.0.2.1", 9))
    assert not read
    check = stun_message(attribute(6, b"NAME:x") + PRIORITY + FINGERPRINTS)
    call.datagram_received(check, ("192.0.2.1", 9))
    assert read == [check]


async def test_events_wait_for_a_caller_that_reads(caplog: pytest.LogCaptureFixture) -> None:
    peer = peers.Peer(CallNetwork.from_texts(("127.0.0.1",), ""), 1000)
    sent = list[str]()
    peer._offers_channel = True
    peer._channel = SimpleNamespace(readyState="open", bufferedAmount=peers.MAX_UNREAD_BYTES + 1, send=sent.append)
    with pytest.raises(SessionEnd):
        await TrackChannel(peer, 0.01).send("error")  # the caller reads nothing
    sending = asyncio.ensure_future(peer.send_text("a"))
    await asyncio.sleep(0)
    assert not sent
    peer._channel.bufferedAmount = 0
    peer._has_room.set()
    await sending
    assert sent == ["a"]
    peer._receive_event("\N{GRINNING FACE}" * 100)
    assert (await peer.receive())["text"] == "\N{GRINNING FACE}" * 100
    for _ in range(4):
        peer._receive_event("")  # events wait while the session is busy, and each needs memory
    assert "more than 1000 bytes of its events wait" in caplog.text
    assert [(await peer.receive()).get("text") for _ in range(4)] == ["", "", "", None]
    assert not peer._num_event_bytes - peers.EVENT_BYTES
    await peer.stop()


async def test_packets_of_the_data_channel_are_handled_in_turns() -> None:
    peer = peers.Peer(CallNetwork.from_texts(("127.0.0.1",), ""), 1000)
    others = list[int]()
    await peer.answer(read_offer(await offered()))
    sctp: Any = peer._connection.sctp
    asyncio.get_running_loop().call_soon(others.append, 1)
    await sctp._handle_data(bytes(100))
    assert others
    await peer.stop()


def test_packets_that_wait_are_bounded() -> None:
    async def run() -> None:
        ice = Ice(ice_controlling=False)
        has_room = [True]
        peers.bound_ice(ice, lambda: has_room[0])
        ice.data_received(bytes(peers.MAX_DATAGRAM_BYTES + 1), 1)
        assert not ice._queue.qsize()
        for _ in range(2 * peers.MAX_DATAGRAMS):
            ice.data_received(b"\x80", 1)
        assert ice._queue.qsize() == peers.MAX_DATAGRAMS
        ice._queue.get_nowait()
        has_room[0] = False
        ice.data_received(b"\x80", 1)  # media, for which there is no room
        assert ice._queue.qsize() == peers.MAX_DATAGRAMS - 1
        ice.data_received(b"\x16", 1)
        assert ice._queue.qsize() == peers.MAX_DATAGRAMS

    asyncio.run(run())


async def test_audio_that_waits_is_bounded() -> None:
    frame = av.AudioFrame.from_ndarray(np.ones((1, 2 * 5760), np.int16), format="s16", layout="stereo")
    frame.sample_rate = 48_000  # 120 ms, the longest packet of Opus
    frames = [frame] * 100

    async def recv() -> av.AudioFrame:
        if not frames:
            raise MediaStreamError
        return frames.pop()

    peer = peers.Peer(CallNetwork.from_texts(("127.0.0.1",), ""), 1000)
    await peer._read(SimpleNamespace(recv=recv))
    sizes = [len((await peer.receive())["bytes"]) for _ in range(peer._inbox.qsize())]
    assert peers.MAX_HEARD_S <= sum(sizes) / 2 / RATE < peers.MAX_HEARD_S + 0.12
    assert not peer._num_audio_bytes
    peer._track = SimpleNamespace(_queue=asyncio.Queue())
    peer._receiver = SimpleNamespace(_RTCRtpReceiver__decoder_queue=asyncio.Queue())
    for _ in range(peers.MAX_DECODING):
        assert peer._has_frames_to_spare()
        peer._track._queue.put_nowait(frame)
    assert not peer._has_frames_to_spare()
    await peer.stop()


async def test_playout_cuts_frames_anywhere_and_waits_when_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playouts, "FULL", 2 * FRAME)
    queue = Playout()
    pcm = np.arange(1, 3 * FRAME, dtype="<i2")
    assert queue.next_frame() is None
    await queue.add("a", pcm[: FRAME - 1].tobytes())
    assert queue.next_frame() is None  # the rest of the frame may follow
    adding = asyncio.ensure_future(queue.add("a", pcm[FRAME - 1 :].tobytes()))
    await asyncio.sleep(0)
    assert not adding.done()
    frames = [queue.next_frame()]
    await adding
    queue.end("a")
    frames += [queue.next_frame(), queue.next_frame(), queue.next_frame()]
    assert frames[3] is None
    assert np.array_equal(np.concatenate(frames[:3]), [*pcm, 0])  # type: ignore[arg-type]
    assert (queue.finished.get_nowait(), queue.playing, queue.num_queued) == ("a", "", 0)
    adding = asyncio.ensure_future(queue.add("b", bytes(6 * FRAME)))
    await asyncio.sleep(0)
    assert (queue.clear(), queue.clear(), queue.num_queued) == ("b", "", 0)
    await adding
    queue.end("b")  # of a reply that was interrupted
    assert queue.next_frame() is None
    assert queue.finished.empty()


async def test_live_speech_catches_up_in_its_pauses() -> None:
    queue = Playout()
    pause = bytes(2 * FRAME)
    speech = tone(0.02).tobytes()
    await queue.add("a", speech + 6 * pause + speech)
    queue.is_live = True
    frames = [queue.next_frame() for _ in range(4)]
    assert [frame is not None and bool(frame.any()) for frame in frames] == [True, False, False, True]


async def test_frames_follow_the_clock_of_the_track() -> None:
    now_s = 5.0
    waited = list[float]()

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        waited.append(seconds)
        now_s += seconds

    pacer = FramePacer(lambda: now_s, sleep)
    assert [await pacer.turn() for _ in range(3)] == [0, 1, 2]
    assert waited == pytest.approx([0.02, 0.02])
    now_s += 0.11
    assert [await pacer.turn() for _ in range(5)] == [3, 4, 5, 6, 7]  # late frames are sent at once
    assert len(waited) == 2
    now_s += 1.0
    assert await pacer.turn() > 50  # a second is left out, as the caller has heard nothing in it
    assert len(waited) == 2


def test_speech_is_encoded_to_its_end() -> None:
    encoder = OpusEncoder()
    decoder = av.CodecContext.create("libopus", "r")
    decoder.layout = "mono"
    decoder.sample_rate = 48_000
    packets = [encoder.encode(None), *(encoder.encode(tone(0.02)) for _ in range(10)), encoder.encode(None)]
    assert packets[0] == SILENT_PACKET
    assert packets[-1] != SILENT_PACKET  # the encoder's look-ahead has the end of the speech
    assert encoder.encode(None) == SILENT_PACKET
    frames = [frame for packet in packets for frame in decoder.decode(av.Packet(packet))]
    assert {frame.samples for frame in frames} == {960}


@pytest.mark.parametrize(
    ("addresses", "ports", "message"),
    [
        (("localhost",), "", "--webrtc-address: expected an IP address"),
        (("0.0.0.0",), "", "--webrtc-address: expected an address to which callers can send"),
        (("192.0.2.1=::1",), "", "two of the same version"),
        (("127.0.0.1",), "5000", "--webrtc-ports: expected a range of UDP ports"),
        (("127.0.0.1",), "5001-5000", "--webrtc-ports: expected a range of UDP ports"),
        (("127.0.0.1",), "1-65536", "--webrtc-ports: expected a range of UDP ports"),
    ],
)
def test_invalid_networks_are_refused(addresses: tuple[str, ...], ports: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CallNetwork.from_texts(addresses, ports)


def test_missing_packages_of_calls_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stretto_webrtc.network.find_spec", lambda _: None)
    expected = r"--webrtc-address: calls need packages that are not installed: pip install 'stretto\[webrtc\]'"
    with pytest.raises(ValueError, match=expected):
        read_config(arguments().parse_args(["--port", "0", "--webrtc-address", "127.0.0.1"]))
    assert not read_config(arguments().parse_args(["--port", "0"])).of_route(WebRtcOptions).webrtc_addresses


def test_network_behind_a_nat() -> None:
    network = CallNetwork.from_texts(("192.0.2.1=0.0.0.0", "2001:db8::1"), "50000-50003")
    assert [(each.announced, each.bound) for each in network.addresses] == [
        ("192.0.2.1", "0.0.0.0"),
        ("2001:db8::1", "2001:db8::1"),
    ]
    assert sorted(network.shuffled_ports()) == [50000, 50001, 50002, 50003]


def test_calls_may_need_a_file_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (64, 2112))
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    config = GatewayConfig("host:1", routes=(WebRtcOptions(("127.0.0.1",)),))
    assert with_fewer_connections(config).limits.max_connections == 1024 - config.limits.max_sessions // 2


async def test_calls_end_before_the_realtime_state_that_they_use(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = list[str]()
    for state in (RealtimeState, WebRtcState):

        async def close(self: RouteState, close: Callable[[Any], Awaitable[None]] = state.close) -> None:
            await close(self)
            closed.append(type(self).__name__)

        monkeypatch.setattr(state, "close", close)
    running = await start()
    await running.app.state.gateway.close()
    assert closed == ["WebRtcState", "RealtimeState"]
