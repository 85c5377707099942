"""Load of a soak test: requests, the clients that send them, and verdicts on the answers.

The requests cover every task of the bundled model. Their seeds are fixed, so that each has one correct answer: its
reference is the answer to the same request when no other request runs. Most requests go directly to the server over
gRPC; some of these receive samples through shared memory. The others go through the gateway.
"""

import asyncio
import io
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any, ClassVar, Literal

import httpx
import numpy as np
import soundfile

from benchmarks.chaos.files import FILES
from benchmarks.loads import NOISE_RATE, noise
from lab.texts import texts
from stretto_client import ClientError, RequestRefused, ServerFull, ServerUnavailable, SpeechClient, SpeechEvent
from stretto_client.errors import ServerFailed, TimedOut, Timeouts
from stretto_client.long_speech import Speech
from stretto_client.speech_stream import strings

Door = Literal["grpc", "gateway"]
REFUSALS: dict[int, type[ClientError]] = {400: RequestRefused, 429: ServerFull, 503: ServerUnavailable}
SAMPLE_BYTES = 2


@dataclass(frozen=True, slots=True)
class GrpcAsk:
    """Request over gRPC.

    Attributes:
        kind: Kind of request, under which its answers are counted.
        send: Function that sends the request through a client and returns the stream of events.
        is_near: True if samples arrive through shared memory when the server's address is local.
        resumes: True if the client continues the answer after its connection was reset.
    """

    name: str
    kind: str
    send: Callable[[SpeechClient], Speech]
    is_near: bool = False
    resumes: bool = False
    door: ClassVar[Door] = "grpc"

    @asynccontextmanager
    async def open(self, address: str, timeouts: Timeouts) -> AsyncIterator[AsyncIterator["Event"]]:
        """Send the request. The events of its answer end with a ClientError if it fails."""
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
    """Request for raw samples to the gateway, over OpenAI's speech API."""

    name: str
    kind: str
    body: dict[str, Any]
    door: ClassVar[Door] = "gateway"
    resumes: ClassVar[bool] = False

    @asynccontextmanager
    async def open(self, address: str, timeouts: Timeouts) -> AsyncIterator[AsyncIterator[Event]]:
        limits = httpx.Timeout(timeouts.between_s)
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=limits, trust_env=False) as client:
            yield self._parts(client)

    async def _parts(self, client: httpx.AsyncClient) -> AsyncIterator[Event]:
        try:
            async with client.stream("POST", "/v1/audio/speech", json=self.body) as answer:
                if answer.status_code != httpx.codes.OK:
                    error_type = REFUSALS.get(answer.status_code, ServerFailed)
                    raise error_type(f"{answer.status_code}: {(await answer.aread()).decode()}")
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
)  # not `adaptive`, because its codes depend on the load
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
    """Return requests for each task, large uploads and malformed requests. Equal seeds give equal requests."""
    draw = random.Random(seed)
    lines = texts()
    asks: list[Ask] = [_speaking(number, next(lines), draw) for number in range(speak)]
    asks += [_transcribing(number, draw) for number in range(transcribe)]
    asks += [_asking_the_gateway(number, next(lines), draw) for number in range(through_gateway)]
    asks += [_uploading(file_format) for file_format in UPLOADS]
    return asks + [_malformed(number, inputs) for number, inputs in enumerate(MALFORMED)]


def _speaking(number: int, line: str, draw: random.Random) -> Ask:
    text = _beginning(line, draw)
    options = _options(draw)
    if draw.random() < 0.3:
        options["encoding"] = "pcm_s16le"
    if draw.random() < 0.2:
        options["sample_rate"] = draw.choice((8_000, 24_000, 48_000))
    if draw.random() < 0.3:
        options["voice"] = "heart"
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


def _uploading(file_format: str) -> Ask:
    options: dict[str, Any] = {"seed": 1, "text": {"max_rows": 1}}
    return GrpcAsk(
        f"upload {file_format}", "upload", lambda client: client.transcribe(large_file(file_format), **options)
    )


@cache
def large_file(file_format: str) -> bytes:
    """Return a 19 MB file, which is built on first use."""
    return FILES[file_format]()


def _malformed(number: int, inputs: dict[str, str | bytes]) -> Ask:
    return GrpcAsk(f"malformed {number}", "malformed", lambda client: client.send(strings(**inputs)))


TOLERANCE = 1e-4  # for samples in [-1, 1], because windows of many utterances are decoded as one batch
FULL_SCALE = {np.dtype(np.float32): 1.0, np.dtype(np.int16): 32_768.0}


class Verdict(StrEnum):
    """Judgement of an answer. WRONG, INCOMPLETE and HUNG must never occur.

    RIGHT: the answer equals the complete reference, or was rejected as the reference was. LEFT: the client
    disconnected, and its part equals the beginning of the reference. ERROR: the answer ended with an error, and its
    part equals the beginning of the reference.
    """

    RIGHT = "right"
    LEFT = "left"
    ERROR = "error"
    WRONG = "wrong"
    INCOMPLETE = "incomplete"
    HUNG = "hung"


BAD = (Verdict.WRONG, Verdict.INCOMPLETE, Verdict.HUNG)


@dataclass(slots=True)
class Answer:
    """Part of one answer that has been read so far.

    Attributes:
        pcm: Samples of each event with samples.
        is_final: True if the last event has arrived.
        is_overdue: True if the answer did not end in time.
    """

    text: str = ""
    pcm: list[np.ndarray] = field(default_factory=list)
    error: str | None = None
    message: str = ""
    is_final: bool = False
    has_left: bool = False
    is_overdue: bool = False

    def samples(self) -> np.ndarray:
        """Return all samples so far [n], float32 or int16."""
        return np.concatenate(self.pcm) if self.pcm else np.zeros(0, np.float32)


def judge(reference: Answer, answer: Answer) -> Verdict:
    if answer.is_overdue:
        return Verdict.HUNG
    if reference.error is not None:
        if answer.error == reference.error or answer.has_left:
            return Verdict.RIGHT
        return Verdict.WRONG if answer.error is None else Verdict.ERROR
    if not begins(reference, answer) or answer.error == "RequestRefused":
        return Verdict.WRONG
    if answer.error is not None:
        return Verdict.ERROR
    if answer.has_left:
        return Verdict.LEFT
    is_whole = len(answer.samples()) == len(reference.samples()) and answer.text == reference.text
    return Verdict.RIGHT if answer.is_final and is_whole else Verdict.INCOMPLETE


def begins(reference: Answer, answer: Answer) -> bool:
    """Return True if the answer so far equals the beginning of the reference."""
    expected = reference.samples()
    got = answer.samples()
    if not reference.text.startswith(answer.text) or len(got) > len(expected):
        return False
    if not len(got):
        return True
    if got.dtype != expected.dtype:
        return False
    apart = np.abs(got.astype(np.float64) - expected[: len(got)].astype(np.float64))
    return bool(apart.max() <= TOLERANCE * FULL_SCALE[got.dtype])


@asynccontextmanager
async def relay(server: str) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """Yield a local address that forwards to `server`, and a function that resets all connections through it."""
    host, _, port = server.rpartition(":")
    writers: list[asyncio.StreamWriter] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while some := await reader.read(1 << 16):
                writer.write(some)
                await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection(host, int(port))
        except OSError:  # an effect of a fault
            writer.transport.abort()
            return
        writers.extend((writer, to_server))
        await asyncio.gather(copy(reader, to_server), copy(from_server, writer))

    def reset() -> None:
        for writer in writers:
            if not writer.is_closing():
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

    listener = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}", reset
    finally:
        listener.close()
        reset()


SILENT_S = 8.0  # for which a stopped reader reads nothing
CRAWL_S = 0.3  # between two events
MAX_BEFORE = 4  # events before a reader disconnects, stops or is reset

Reader = Callable[[Ask, str, random.Random, Answer, Timeouts], Awaitable[None]]


async def listen(ask: Ask, server: str, draw: random.Random, answer: Answer, timeouts: Timeouts) -> None:
    async with ask.open(server, timeouts) as stream:
        await take(stream, answer)


async def crawl(ask: Ask, server: str, draw: random.Random, answer: Answer, timeouts: Timeouts) -> None:
    async with ask.open(server, timeouts) as stream:
        await take(stream, answer, pause_s=CRAWL_S)


async def stop(ask: Ask, server: str, draw: random.Random, answer: Answer, timeouts: Timeouts) -> None:
    """Read some events, nothing for a while, then the rest."""
    async with ask.open(server, timeouts) as stream:
        await take(stream, answer, draw.randrange(MAX_BEFORE))
        await asyncio.sleep(SILENT_S)
        await take(stream, answer)


async def cancel(ask: Ask, server: str, draw: random.Random, answer: Answer, timeouts: Timeouts) -> None:
    """Read some events, then disconnect."""
    async with ask.open(server, timeouts) as stream:
        await take(stream, answer, draw.randrange(MAX_BEFORE))
        answer.has_left = not answer.is_final


async def reset(ask: Ask, server: str, draw: random.Random, answer: Answer, timeouts: Timeouts) -> None:
    """Read some events, then reset the connection, so that the client resumes the answer or sees an error."""
    async with relay(server) as (address, cut_off), ask.open(address, timeouts) as stream:
        await take(stream, answer, draw.randrange(MAX_BEFORE))
        if answer.is_final:
            return
        cut_off()
        if ask.resumes:
            await take(stream, answer)
            return
        answer.has_left = True
        with suppress(ClientError):
            await take(stream, answer)


READERS: dict[Reader, float] = {listen: 8, crawl: 2, stop: 1, cancel: 3, reset: 1}  # with relative frequencies


async def take(stream: AsyncIterator[Event], answer: Answer, events: int | None = None, pause_s: float = 0.0) -> None:
    """Read `events` events, or all, into `answer`; raise ClientError if the answer ends with one."""
    while events is None or events > 0:
        try:
            event = await anext(stream)
        except StopAsyncIteration:
            return
        answer.text += event.text
        if event.pcm is not None and event.pcm.size:
            answer.pcm.append(event.pcm.copy())
        answer.is_final = answer.is_final or event.is_final
        events = None if events is None else events - 1
        if pause_s:
            await asyncio.sleep(pause_s)


async def read(ask: Ask, server: str, reader: Reader, draw: random.Random, limit_s: float) -> Answer:
    """Return the answer to a request, overdue if any wait takes longer than `limit_s` seconds."""
    answer = Answer()
    try:
        async with asyncio.timeout(3 * limit_s):
            await reader(ask, server, draw, answer, Timeouts(limit_s, limit_s, 2 * limit_s))
    except (TimedOut, TimeoutError) as error:
        answer.is_overdue = True
        answer.message = str(error)
    except ClientError as error:
        answer.error = type(error).__name__
        answer.message = str(error)
    return answer


KINDS = {"speak": 10.0, "transcribe": 4.0, "gateway": 2.0, "upload": 0.2, "malformed": 2.0}  # relative frequencies
PAUSE_S = 0.5  # before a retry after an error
MAX_BAD = 20
Servers = Mapping[Door, str]  # addresses


@dataclass(slots=True)
class Outcomes:
    """Counts of answers.

    Attributes:
        verdicts: Number of answers by kind of request and verdict.
        bad: Descriptions of the first answers with a verdict that must never occur.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def add(self, ask: Ask, reader: str, answer: Answer, verdict: Verdict) -> None:
        self.verdicts[f"{ask.kind}: {verdict}"] += 1
        if verdict is Verdict.ERROR:
            self.errors[f"{answer.error}: {answer.message}"[:160]] += 1
        if verdict in BAD and len(self.bad) < MAX_BAD:
            self.bad.append(
                f"{ask.name}, {reader}: {verdict}; {len(answer.samples())} samples, {answer.message[:200]!r}"
            )

    def num(self, *verdicts: Verdict) -> int:
        """Return the number of answers with one of the given verdicts."""
        return sum(count for name, count in self.verdicts.items() if name.rpartition(": ")[2] in verdicts)


class Streams:
    """Closed loops that send random requests until they are stopped. `kinds` has the frequencies of their kinds."""

    def __init__(
        self,
        servers: Servers,
        asks: Sequence[Ask],
        references: Mapping[str, Answer],
        seed: int,
        limit_s: float,
        kinds: Mapping[str, float] = KINDS,
    ):
        self.outcomes = Outcomes()
        self._servers = servers
        self._references = references
        self._limit_s = limit_s
        self._by_kind = {kind: [ask for ask in asks if ask.kind == kind] for kind in kinds}
        self._kinds = kinds
        self._seed = seed
        self._is_over = False
        self._loops: list[asyncio.Task[None]] = []

    def start(self, number: int) -> None:
        self._loops = [
            asyncio.create_task(self._loop(random.Random(f"{self._seed} {number_of_loop}")))
            for number_of_loop in range(number)
        ]

    async def stop(self) -> None:
        """Let all requests in flight finish without starting new ones; re-raise the exception of a failed loop."""
        self._is_over = True
        await asyncio.gather(*self._loops)

    async def is_right(self, ask: Ask) -> bool:
        """Send one request and return True if its answer is correct."""
        answer = await read(ask, self._servers[ask.door], listen, random.Random(0), self._limit_s)
        return judge(self._references[ask.name], answer) is Verdict.RIGHT

    async def _loop(self, draw: random.Random) -> None:
        while not self._is_over:
            (chosen,) = draw.choices(list(self._kinds), list(self._kinds.values()))
            ask = draw.choice(self._by_kind[chosen])
            (reader,) = draw.choices(list(READERS), list(READERS.values()))
            answer = await read(ask, self._servers[ask.door], reader, draw, self._limit_s)
            verdict = judge(self._references[ask.name], answer)
            self.outcomes.add(ask, reader.__name__, answer, verdict)
            if verdict not in (Verdict.RIGHT, Verdict.LEFT):
                await asyncio.sleep(PAUSE_S)


async def take_references(servers: Servers, asks: Sequence[Ask], limit_s: float) -> dict[str, Answer]:
    """Send each request alone, twice; return the answers by name; raise RuntimeError if one is wrong or they differ."""
    references = {}
    for ask in asks:
        first, second = [await read(ask, servers[ask.door], listen, random.Random(0), limit_s) for _ in range(2)]
        is_refused = ask.kind == "malformed" or ask.name == "upload long"
        if (first.error == "RequestRefused") != is_refused or judge(first, second) is not Verdict.RIGHT:
            answers = f"{first.error} {first.message}; then {second.error} {second.message}"
            raise RuntimeError(f"{ask.name}: no reference: {answers}")
        references[ask.name] = first
    return references
