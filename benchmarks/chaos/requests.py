"""Requests of a soak test, over gRPC or through the gateway.

They cover every task of the bundled model with fixed seeds, so that each has one correct answer. Most go to the server
directly. Some receive samples through shared memory, and some go through the gateway.
"""

import io
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import httpx
import numpy as np
import soundfile

from benchmarks.large_audio import FILES
from benchmarks.loads import NOISE_RATE, noise, texts
from stretto_client import ClientError, RequestRefused, ServerFull, ServerUnavailable, SpeechClient, SpeechEvent
from stretto_client.errors import ServerFailed, TimedOut, Timeouts
from stretto_client.long_speech import Speech
from stretto_client.speech_stream import strings

Door = Literal["grpc", "gateway"]
REFUSALS: dict[int, type[ClientError]] = {400: RequestRefused, 429: ServerFull, 503: ServerUnavailable}
SAMPLE_BYTES = 2


@dataclass(frozen=True, slots=True)
class GrpcAsk:
    """A request over gRPC. is_near: samples arrive through shared memory if the address is local."""

    name: str
    kind: str
    send: Callable[[SpeechClient], Speech]
    is_near: bool = False
    door: ClassVar[Door] = "grpc"

    @asynccontextmanager
    async def open(self, address: str, timeouts: Timeouts) -> AsyncIterator[AsyncIterator["Event"]]:
        """Send the request; the events of its answer end with a ClientError if it fails."""
        memory: Literal["system"] | None = "system" if self.is_near and address.startswith("localhost:") else None
        async with SpeechClient(address, timeouts, shared_memory=memory) as client, self.send(client) as stream:
            yield stream


@dataclass(frozen=True, slots=True)
class Part:
    """Samples as the gateway sends them."""

    pcm: np.ndarray | None = None
    is_final: bool = False
    text: ClassVar[str] = ""


Event = SpeechEvent | Part


@dataclass(frozen=True, slots=True)
class GatewayAsk:
    """A request to the gateway: OpenAI's speech API, raw samples."""

    name: str
    kind: str
    body: dict[str, Any]
    door: ClassVar[Door] = "gateway"

    @asynccontextmanager
    async def open(self, address: str, timeouts: Timeouts) -> AsyncIterator[AsyncIterator[Event]]:
        """Send the request; the events of its answer end with a ClientError if it fails."""
        limits = httpx.Timeout(timeouts.between_s)
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=limits) as client:
            yield self._parts(client)

    async def _parts(self, client: httpx.AsyncClient) -> AsyncIterator[Event]:
        try:
            async with client.stream("POST", "/v1/audio/speech", json=self.body) as answer:
                if answer.status_code != httpx.codes.OK:
                    kind = REFUSALS.get(answer.status_code, ServerFailed)
                    raise kind(f"{answer.status_code}: {(await answer.aread()).decode()}")
                left = b""
                async for data in answer.aiter_bytes():
                    left += data
                    whole = len(left) - len(left) % SAMPLE_BYTES
                    yield Part(np.frombuffer(left[:whole], np.int16))
                    left = left[whole:]
        except httpx.TimeoutException as error:
            raise TimedOut(type(error).__name__) from None
        except httpx.TransportError as error:
            raise ServerUnavailable(f"{type(error).__name__}: {error}") from None
        yield Part(is_final=True)


Ask = GrpcAsk | GatewayAsk

FIXED_GUIDANCE: tuple[dict[str, Any], ...] = (
    {"guidance_scale": 1.0},
    {"guidance_scale": 1.5},
    {"guidance_scale": 3.0},
    {"guidance": {"scale": 2.0, "policy": "until_s", "until_s": 1.0}},
)  # not `adaptive`, whose codes depend on the load
MALFORMED: tuple[dict[str, str | bytes], ...] = (
    {},
    {"text": "hello", "task": "sing"},
    {"text": "hello", "options": "{"},
    {"text": "hello", "options": json.dumps({"guidance_scale": "loud"})},
    {"text": "hello", "options": json.dumps({"audio": {"max_rows": 10**9}})},
    {"text": b"\xff\xfe", "task": "tts"},
    {"text": "", "task": "tts"},
    {"audio": b"RIFF\0\0\0\0WAVE", "task": "asr"},
    {"text": "hello " * 4000, "task": "tts"},
)
UPLOADS = ("prepared", "long", "corrupt")


def make_asks(seed: int, speak: int = 24, transcribe: int = 8, through_gateway: int = 4) -> list[Ask]:
    """Return requests of each task, large uploads and malformed requests; the same for the same seed."""
    draw, lines = random.Random(seed), texts()
    asks: list[Ask] = [_speaking(number, next(lines), draw) for number in range(speak)]
    asks += [_transcribing(number, draw) for number in range(transcribe)]
    asks += [_asking_the_gateway(number, next(lines), draw) for number in range(through_gateway)]
    asks += [_uploading(kind) for kind in UPLOADS]
    return asks + [_malformed(number, inputs) for number, inputs in enumerate(MALFORMED)]


def _speaking(number: int, line: str, draw: random.Random) -> Ask:
    text, options = _beginning(line, draw), _options(draw)
    if draw.random() < 0.3:
        options["encoding"] = "pcm_s16le"
    if draw.random() < 0.2:
        options["sample_rate"] = draw.choice((8_000, 24_000, 48_000))
    if draw.random() < 0.3:
        options["voice"] = draw.choice(("slt", "rms"))
    if draw.random() < 0.2:
        options["chunking"] = {"first_frames": draw.randrange(1, 9), "playout_s": draw.choice((0.0, 0.2))}
    is_near = draw.random() < 0.2
    return GrpcAsk(f"speak {number}", "speak", lambda client: client.speak(text, **options), is_near)


def _asking_the_gateway(number: int, line: str, draw: random.Random) -> Ask:
    body = {"model": "tts-1", "voice": "alloy", "input": _beginning(line, draw), "response_format": "pcm"}
    return GatewayAsk(f"gateway {number}", "gateway", body | _options(draw))


def _beginning(line: str, draw: random.Random) -> str:
    words = line.split()
    return " ".join(words[: draw.randrange(3, len(words) + 1)])


def _options(draw: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {"seed": draw.randrange(1 << 40), "max_audio_s": draw.uniform(0.6, 6.0)}
    return options | draw.choice(FIXED_GUIDANCE)


def _transcribing(number: int, draw: random.Random) -> Ask:
    seed = draw.randrange(1 << 30)
    pcm = noise(draw.uniform(0.25, 6.0), seed)
    if number % 2:
        file = io.BytesIO()
        soundfile.write(file, pcm, NOISE_RATE, format="FLAC" if number % 4 == 1 else "WAV")
        data = file.getvalue()
        return GrpcAsk(f"transcribe {number}", "transcribe", lambda client: client.transcribe(data, seed=seed))
    return GrpcAsk(f"transcribe {number}", "transcribe", lambda client: client.transcribe((pcm, NOISE_RATE), seed=seed))


def _uploading(kind: str) -> Ask:
    options: dict[str, Any] = {"seed": 1, "text": {"max_rows": 1}}
    return GrpcAsk(f"upload {kind}", "upload", lambda client: client.transcribe(large_file(kind), **options))


@cache
def large_file(kind: str) -> bytes:
    """Return a file of 19 MB, built at first use."""
    return FILES[kind]()


def _malformed(number: int, inputs: dict[str, str | bytes]) -> Ask:
    return GrpcAsk(f"malformed {number}", "malformed", lambda client: client.send(strings(**inputs)))
