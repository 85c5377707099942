"""The soak's requests: the bundled model's tasks, from clients some of which cancel, break off, stop reading or err."""

import asyncio
import io
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
import soundfile

from benchmarks.speech_load import texts
from stretto_client import ClientError, RequestRefused, Speech, SpeechClient
from stretto_client.inputs import strings

RATE = 16_000
AGAIN = "The harbour lights were out before anybody had noticed the rain."
SILENT_S = 8.0  # a reader that stops comes back after that, or leaves
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


class NotRefused(Exception):
    """An answer that should not have been one."""


class SoakLoad:
    """One client's requests of all kinds; `outcomes` counts how they ended."""

    def __init__(self, seed: int = 0):
        self.outcomes: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._noise = np.random.default_rng(seed)
        self._lines = self._endless_texts()
        self._kinds: dict[Callable[[SpeechClient], Awaitable[None]], float] = {
            self._speak: 8,
            self._speak_again: 2,
            self._speak_shared: 1,
            self._transcribe: 4,
            self._transcribe_file: 1,
            self._cancel: 3,
            self._reset: 1,
            self._stop_reading: 1,
            self._malformed: 2,
        }

    async def one(self, client: SpeechClient) -> None:
        """One request of a kind drawn at random, to its end."""
        (kind,) = self._random.choices(list(self._kinds), list(self._kinds.values()))
        name = kind.__name__.lstrip("_")
        try:
            await kind(client)
        except (ClientError, NotRefused, OSError) as error:
            self.outcomes[f"{name}: {type(error).__name__}"] += 1
            return
        self.outcomes[name] += 1

    async def every_kind(self, client: SpeechClient) -> None:
        """One request of each kind, one after the other."""
        for kind in self._kinds:
            with suppress(ClientError, OSError):
                await kind(client)

    @staticmethod
    def _endless_texts() -> Iterator[str]:
        while True:
            yield from texts()

    def _options(self) -> dict[str, Any]:
        draw = self._random
        options: dict[str, Any] = {"seed": draw.randrange(1 << 40), "max_audio_s": draw.uniform(0.6, 6.0)}
        guidance = draw.choice((1.0, 1.0, 1.5, 2.0, 3.0, "adaptive", "until_s"))
        if isinstance(guidance, float):
            options["guidance_scale"] = guidance
        else:
            limit = {"until_s": 1.0} if guidance == "until_s" else {}
            options["guidance"] = {"scale": 2.0, "policy": guidance} | limit
        if draw.random() < 0.3:
            options["encoding"] = "pcm_s16le"
        if draw.random() < 0.2:
            options["sample_rate"] = draw.choice((8_000, 24_000, 48_000))
        if draw.random() < 0.2:
            options["chunking"] = {"first_frames": draw.randrange(1, 9), "playout_s": draw.choice((0.0, 0.2))}
        if draw.random() < 0.3:
            options["voice"] = draw.choice(("slt", "rms"))
        return options

    def _text(self) -> str:
        words = next(self._lines).split()
        return " ".join(words[: self._random.randrange(3, len(words) + 1)])

    def _pcm(self) -> np.ndarray:
        num_samples = self._random.randrange(RATE // 4, 6 * RATE)
        return (0.05 * self._noise.standard_normal(num_samples)).astype(np.float32)

    async def _speak(self, client: SpeechClient) -> None:
        await _read(client.speak(self._text(), **self._options()))

    async def _speak_again(self, client: SpeechClient) -> None:
        """A text of which the prefix cache has all but the last block."""
        await _read(client.speak(AGAIN, seed=3, guidance_scale=2.0))

    async def _speak_shared(self, client: SpeechClient) -> None:
        async with SpeechClient(client.server, shared_memory="system") as near:
            await _read(near.speak(self._text(), **self._options()))

    async def _transcribe(self, client: SpeechClient) -> None:
        await _read(client.transcribe((self._pcm(), RATE)))

    async def _transcribe_file(self, client: SpeechClient) -> None:
        rate = self._random.choice((8_000, 16_000, 44_100))
        file = io.BytesIO()
        soundfile.write(file, self._pcm(), rate, format=self._random.choice(("WAV", "FLAC")))
        await _read(client.transcribe(file.getvalue()))

    async def _cancel(self, client: SpeechClient) -> None:
        async with client.speak(self._text(), **self._options()) as stream:
            await self._some(stream)

    async def _reset(self, client: SpeechClient) -> None:
        """A connection of its own that is reset while the server speaks."""
        async with relay(client.server) as (address, reset), SpeechClient(address) as relayed:
            stream = relayed.speak(self._text(), **self._options())
            with suppress(ClientError):
                await self._some(stream)
                reset()
                await _read(stream)

    async def _stop_reading(self, client: SpeechClient) -> None:
        async with client.speak(self._text(), **self._options()) as stream:
            await self._some(stream)
            await asyncio.sleep(SILENT_S)
            if self._random.random() < 0.5:
                async for _event in stream:
                    pass

    async def _malformed(self, client: SpeechClient) -> None:
        inputs = self._random.choice(MALFORMED)
        try:
            await _read(client.send(strings(**inputs)))
        except RequestRefused:
            return
        raise NotRefused(str(inputs)[:60])

    async def _some(self, stream: Speech) -> None:
        for _ in range(self._random.randrange(4)):
            with suppress(StopAsyncIteration):
                await anext(stream)


async def _read(stream: Speech) -> None:
    async for _event in stream:
        pass


@asynccontextmanager
async def relay(server: str) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """A port of this host that leads to `server`, and how to reset every connection through it."""
    host, _, port = server.rpartition(":")
    writers: list[asyncio.StreamWriter] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while some := await reader.read(1 << 16):
                writer.write(some)
                await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(host, int(port))
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
