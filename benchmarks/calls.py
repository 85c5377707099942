"""Compare realtime calls over the WebSocket, Twilio's media streams (G.711) and WebRTC (Opus).

    python -m benchmarks.calls --calls 1 8 --seconds 20

Behind the gateway is a full-duplex model that returns its input at once. Each caller sends frames of 20 ms at their
pace, with a tone of 0.1 s in each second, and measures the time until the tone returns. `latency_ms` is that time, and
`added_ms` the difference to the WebSocket's with equally many calls. `calls_per_core` is the duration of all calls,
divided by the processor time of the gateway. The callers run on the same cores, so a busy host delays both ends. The
caller's audio device and its buffer for late packets are not included.
"""

import argparse
import asyncio
import base64
import json
import os
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from fractions import Fraction
from multiprocessing import get_context
from typing import Any

import aiohttp
import av
import grpc
import numpy as np
import websockets
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.front_ends import gateway
from benchmarks.harness import append_result, command_line
from stretto_gateway import g711
from stretto_gateway.encoding import DEFAULT_RATE
from stretto_gateway.webrtc.playout import FRAME, RTP_FRAME, RTP_RATE, FramePacer, OpusEncoder

WAYS = ("websocket", "twilio", "webrtc")
# frames of 20 ms: a tone of 0.1 s in each second
TONE_HZ = 500
TONE_FRAMES = 5
PERIOD = 50
LOUD = 2000  # samples above this are the tone
QUIET_S = 0.3  # silence before an onset of the tone
LENGTH_BYTES = 4  # before the text of a tensor
PHONE_STEP = DEFAULT_RATE // g711.RATE
PROFILE = {
    "family": "echo",
    "sample_rate": DEFAULT_RATE,
    "voices": [],
    "max_text_chars": 100,
    "max_audio_s": 3600,
    "times_words": False,
    "reads_live_audio": True,
    "tasks": [
        {
            "name": "duplex",
            "needs": ["audio"],
            "also": [],
            "speaks": True,
            "answers": "user",
            "has_history": False,
            "system": [],
        }
    ],
}
Caller = Callable[[str, "Ear", asyncio.Event], Awaitable[None]]


class Echo(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Server whose model returns the audio of each session."""

    def __init__(self) -> None:
        self._sessions = defaultdict[str, asyncio.Queue[bytes | None]](asyncio.Queue)
        self._num_sessions = 0

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=True)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerMetadataResponse(name="echo")

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        answer = service_pb2.ModelConfigResponse()
        answer.config.parameters["profile"].string_value = json.dumps(PROFILE)
        return answer

    async def ModelStreamInfer(self, messages: Any, context: Any) -> Any:
        async for message in messages:
            inputs = dict(zip((tensor.name for tensor in message.inputs), message.raw_input_contents, strict=True))
            if "session" not in inputs:
                self._num_sessions += 1
                rate = json.loads(inputs["options"][LENGTH_BYTES:])["output"]["sample_rate"]
                async for answer in self._reply(f"s{self._num_sessions}", DEFAULT_RATE // rate):
                    answer.infer_response.id = message.id
                    yield answer
                continue
            record = json.loads(inputs["session"][LENGTH_BYTES:])
            heard = self._sessions[record["id"]]
            heard.put_nowait(inputs.get("pcm_in", b""))
            if record["is_last"]:
                heard.put_nowait(None)
            answer = response({"utterance": "u1", "part": record["part"]})
            answer.infer_response.id = message.id
            yield answer

    async def _reply(self, session: str, step: int) -> Any:
        event = {"utterance": "u1", "index": 0, "segment": "audio", "text": "", "words": [], "guidance_changes": []}
        event |= {"start_s": 0.0, "duration_s": 0.0, "sample_rate": DEFAULT_RATE, "is_final": False}
        yield response(event | {"segment": "text", "session": session})
        while (raw := await self._sessions[session].get()) is not None:
            pcm = np.rint(np.frombuffer(raw, np.float32)[::step] * 32767).astype(np.int16)
            if len(pcm):
                yield response(event, pcm)


def response(event: dict[str, Any], pcm: Any = None) -> Any:
    """Return a response of the server with an event, and samples int16 [n]; None for no samples."""
    message = service_pb2.ModelStreamInferResponse()
    reply = message.infer_response
    reply.model_name = "speech"
    if pcm is not None:
        reply.outputs.add(name="pcm16", datatype="INT16", shape=[len(pcm)])
        reply.raw_output_contents.append(pcm.tobytes())
    reply.outputs.add(name="event", datatype="BYTES", shape=[1])
    text = json.dumps(event).encode()
    reply.raw_output_contents.append(len(text).to_bytes(LENGTH_BYTES, "little") + text)
    return message


def serve_echo(ports: Any) -> None:
    """Serve until the process is terminated, and put the port into the queue `ports`."""

    async def serve() -> None:
        server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Echo(), server)
        ports.put(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(serve())


class Ear:
    """Both ends of a caller's audio: frames to send, and the times until their tones return."""

    def __init__(self) -> None:
        times = np.arange(TONE_FRAMES * FRAME) / DEFAULT_RATE
        tone = (8000 * np.sin(2 * np.pi * TONE_HZ * times)).astype(np.int16)
        self._tones = tone.reshape(TONE_FRAMES, FRAME)
        self._number = 0
        self._sent_s: float | None = None
        self._loud_s = -QUIET_S
        self.latencies_s: list[float] = []

    def next_frame(self) -> Any:
        """Return the next frame to send, int16 [480]."""
        frame = self._number % PERIOD
        self._number = self._number + 1
        if frame == PERIOD // 2:
            self._sent_s = time.monotonic()
        frame -= PERIOD // 2
        return self._tones[frame] if 0 <= frame < TONE_FRAMES else np.zeros(FRAME, np.int16)

    def hear(self, pcm: Any) -> None:
        """Take received samples, int16 [n]."""
        if not len(pcm) or np.abs(pcm.astype(np.int32)).max() < LOUD:
            return
        now_s = time.monotonic()
        if now_s - self._loud_s > QUIET_S and self._sent_s is not None:
            self.latencies_s.append(now_s - self._sent_s)
            self._sent_s = None
        self._loud_s = now_s


async def over_websocket(url: str, ear: Ear, is_over: asyncio.Event) -> None:
    """Hold a call over `WS /v1/realtime`."""
    async with websockets.connect(url.replace("http", "ws") + "/v1/realtime", max_size=None) as socket:

        async def listen() -> None:
            async for text in socket:
                event = json.loads(text)
                if event["type"] == "response.output_audio.delta":
                    ear.hear(np.frombuffer(base64.b64decode(event["delta"]), "<i2"))

        async def send(pcm: Any) -> None:
            audio = base64.b64encode(pcm.tobytes()).decode()
            await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))

        await hold(listen, send, ear, is_over)


async def over_twilio(url: str, ear: Ear, is_over: asyncio.Event) -> None:
    """Hold a call over `WS /v1/twilio`."""
    async with websockets.connect(url.replace("http", "ws") + "/v1/twilio", max_size=None) as socket:
        form = {"encoding": "audio/x-mulaw", "sampleRate": g711.RATE, "channels": 1}
        await socket.send(json.dumps({"event": "start", "streamSid": "MZ1", "start": {"mediaFormat": form}}))

        async def listen() -> None:
            async for text in socket:
                message = json.loads(text)
                if message["event"] == "media":
                    ear.hear(g711.decode("mulaw", base64.b64decode(message["media"]["payload"])))

        async def send(pcm: Any) -> None:
            payload = base64.b64encode(g711.encode("mulaw", pcm[::PHONE_STEP])).decode()
            media = {"payload": payload}
            await socket.send(json.dumps({"event": "media", "streamSid": "MZ1", "media": media}))

        await hold(listen, send, ear, is_over)


async def hold(
    listen: Callable[[], Awaitable[None]], send: Callable[[Any], Awaitable[None]], ear: Ear, is_over: asyncio.Event
) -> None:
    """Send frames at their pace, and listen, until the call is over."""
    listening = asyncio.ensure_future(listen())
    pacer = FramePacer()
    while not is_over.is_set():
        await pacer.turn()
        await send(ear.next_frame())
    listening.cancel()


class Microphone(MediaStreamTrack):
    """Track that sends the frames of a caller as Opus."""

    kind = "audio"

    def __init__(self, ear: Ear):
        super().__init__()
        self._ear = ear
        self._pacer = FramePacer()
        self._encoder = OpusEncoder()

    async def recv(self) -> Any:
        number = await self._pacer.turn()
        packet: Any = av.Packet(self._encoder.encode(self._ear.next_frame()))
        packet.pts = number * RTP_FRAME
        packet.time_base = Fraction(1, RTP_RATE)
        return packet


async def over_webrtc(url: str, ear: Ear, is_over: asyncio.Event) -> None:
    """Hold a call by `POST /v1/realtime/calls`; packets are decoded as they arrive, without a buffer for late ones."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    try:
        peer.addTrack(Microphone(ear))
        peer.createDataChannel("oai-events")
        await peer.setLocalDescription()
        headers = {"content-type": "application/sdp"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/v1/realtime/calls", data=peer.localDescription.sdp, headers=headers) as answer,
        ):
            assert answer.status == 201, await answer.text()
            sdp = await answer.text()
        decoder: Any = av.CodecContext.create("libopus", "r")
        decoder.layout = "mono"
        decoder.sample_rate = RTP_RATE

        async def receive(packet: Any, arrival_time_ms: int) -> None:
            for frame in decoder.decode(av.Packet(packet.payload)):
                samples = frame.to_ndarray().reshape(-1)
                ear.hear(samples if samples.dtype == np.int16 else (samples * 32767).astype(np.int16))

        receiver: Any = peer.getReceivers()[0]
        receiver._handle_rtp_packet = receive
        await peer.setRemoteDescription(RTCSessionDescription(sdp, "answer"))
        await is_over.wait()
    finally:
        await peer.close()


CALLERS: dict[str, Caller] = {"websocket": over_websocket, "twilio": over_twilio, "webrtc": over_webrtc}


async def measure(url: str, process: Any, way: str, num_calls: int, seconds: float) -> dict[str, Any]:
    """Hold calls, and return the figures of the last `seconds`, after a second in which they begin.

    Args:
        url: Address of the gateway.
        process: Process of the gateway.
        way: One of WAYS.
        num_calls: Number of calls at once.
        seconds: Duration of the measurement.
    """
    ears = [Ear() for _ in range(num_calls)]
    is_over = asyncio.Event()
    calls = []
    for ear in ears:
        calls.append(asyncio.ensure_future(CALLERS[way](url, ear, is_over)))
        await asyncio.sleep(1 / num_calls)  # so that their tones do not coincide
    await asyncio.sleep(1.0)
    for ear in ears:
        ear.latencies_s.clear()
    before = process.cpu_times()
    await asyncio.sleep(seconds)
    after = process.cpu_times()
    is_over.set()
    await asyncio.gather(*calls)
    cpu_s = after.user + after.system - before.user - before.system
    latencies = [latency_s for ear in ears for latency_s in ear.latencies_s]
    p50_ms, p95_ms = (1000 * float(np.percentile(latencies, q)) for q in (50, 95))
    return {
        "way": way,
        "calls": num_calls,
        "seconds": seconds,
        "tones": len(latencies),
        "latency_ms_p50": round(p50_ms, 1),
        "latency_ms_p95": round(p95_ms, 1),
        "gateway_cpu_s_per_call_s": round(cpu_s / (num_calls * seconds), 4),
        "calls_per_core": round(num_calls * seconds / cpu_s, 1),
        "gateway_rss_mb": round(process.memory_info().rss / 1e6, 1),
    }


def main(arguments: argparse.Namespace) -> None:
    """Measure all ways with each number of calls, and append a line for each."""
    os.environ["STRETTO_WEBRTC_ADDRESSES"] = "127.0.0.1"
    context = get_context("spawn")
    ports = context.Queue()
    server = context.Process(target=serve_echo, args=(ports,), daemon=True)
    server.start()
    try:
        with gateway(f"127.0.0.1:{ports.get()}") as (url, process):
            for num_calls in arguments.calls:
                first: dict[str, Any] = {}
                for way in WAYS:
                    figures = asyncio.run(measure(url, process, way, num_calls, arguments.seconds))
                    first = first or figures
                    for q in ("p50", "p95"):
                        figures[f"added_ms_{q}"] = round(figures[f"latency_ms_{q}"] - first[f"latency_ms_{q}"], 1)
                    append_result(arguments.out, "calls", figures)
    finally:
        server.terminate()


if __name__ == "__main__":
    calls = ([1, 8], "numbers of calls at once")
    main(command_line(__doc__, "calls", calls=calls, seconds=(20.0, "duration of each measurement")).parse_args())
