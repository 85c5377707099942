"""Test clients that request speech by seed and compare it with the expected audio."""

import asyncio
import base64
import hashlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import aiohttp

TEXT = "It is twenty past nine and the garden door is open. Nobody is there but a cat, and it rains."
SENTENCE = "Set a timer for 12 minutes."
PATIENCE_S = 120.0  # time limit of a request


@dataclass
class Tally:
    """Results of requests.

    Attributes:
        right: Number of complete replies with the expected samples.
        wrong: Number of complete replies with other samples.
        ended: Error of each failed reply.
        first_audio_s: Times to the first audio.
        latest_s: Longest duration of a request.
    """

    right: int = 0
    wrong: int = 0
    ended: list[str] = field(default_factory=list)
    first_audio_s: list[float] = field(default_factory=list)
    latest_s: float = 0.0

    def record(self) -> dict[str, Any]:
        """Return the results as a JSON object."""
        counts = {"right": self.right, "wrong": self.wrong, "errors": Counter(self.ended)}
        if self.first_audio_s:
            counts |= {"first_sound_s": {"median": median(self.first_audio_s), "last": max(self.first_audio_s)}}
        return counts | {"longest_s": self.latest_s}


class Failed(Exception):
    """A response that is an error or ends with one."""


class Callers:
    """Test clients of the ingress.

    Attributes:
        streams: Number of concurrent streams.
        digests: Digest of the audio of each text and seed.
    """

    def __init__(self, session: aiohttp.ClientSession, streams: int) -> None:
        self._session = session
        self.streams = streams
        self.digests: dict[tuple[str, int], str] = {}

    async def say(self, seed: int, tally: Tally, text: str = TEXT) -> None:
        """Request one utterance and count its result in `tally`; odd seeds use server-sent events."""
        begun = time.monotonic()
        digest = hashlib.sha256()
        error = ""
        is_heard = False
        try:
            async with asyncio.timeout(PATIENCE_S):
                async for audio in self._parts(seed, text):
                    digest.update(audio)
                    if audio and not is_heard:
                        is_heard = True
                        tally.first_audio_s.append(round(time.monotonic() - begun, 2))
        except aiohttp.ClientPayloadError:
            error = "broken off"
        except (aiohttp.ClientError, TimeoutError) as failure:
            error = f"no answer: {type(failure).__name__}"
        except Failed as failure:
            error = str(failure)
        tally.latest_s = max(tally.latest_s, round(time.monotonic() - begun, 2))
        if error:
            tally.ended.append(error)
        elif self.digests.setdefault((text, seed), digest.hexdigest()) == digest.hexdigest():
            tally.right += 1
        else:
            tally.wrong += 1

    async def _parts(self, seed: int, text: str) -> AsyncIterator[bytes]:
        """Yield the audio of a seed as it arrives; raise Failed if the response reports an error."""
        is_sse = seed % 2 == 1
        body = {"model": "tts-1", "input": text, "seed": seed, "response_format": "pcm"}
        body |= {"stream_format": "sse" if is_sse else "audio", "chunking": {"deterministic": True}}
        async with self._session.post("/v1/audio/speech", json=body) as answer:
            if answer.status != 200:
                raise Failed(f"{answer.status} {(await answer.text())[:90]}")
            if not is_sse:
                async for audio in answer.content.iter_any():
                    yield audio
                return
            event = {"type": ""}
            async for line in answer.content:
                if line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    if event["type"] == "error":
                        raise Failed(event["error"]["message"])
                    if "audio" in event:
                        yield base64.b64decode(event["audio"])
            if event["type"] != "speech.audio.done":
                raise Failed("ended without an error")

    async def keep_asking(self, streams: int, until: asyncio.Event, tally: Tally) -> None:
        """Keep `streams` requests in flight until `until` is set, and wait for the last ones."""

        async def one(number: int) -> None:
            while not until.is_set():
                await self.say(number, tally)
                await asyncio.sleep(0.05)

        await asyncio.gather(*(one(number) for number in range(streams)))
