"""Live transcription with a model that transcribes whole recordings.

After every STEP_S seconds of new audio, all audio so far is transcribed anew. From the third request on, the
transcript so far, without its last tokens, is the beginning of the next transcript:

    0 to 2 s    ─► The cat sad            nothing is kept
    0 to 4 s    ─► The cat sat on the     kept: The cat
    0 to 6 s    The cat ─► sat on the mat and slept

The requests depend only on the audio, not on when it arrives, and none is skipped. New audio waits during a request.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Literal, Protocol, Unpack

import numpy as np
from numpy.typing import NDArray

from stretto_client.errors import ClientError, RequestRefused, TimedOut, Timeouts
from stretto_client.model_profile import ModelProfile, known_profile
from stretto_client.produced_speech import Items
from stretto_client.signals import FULL_SCALE, as_floats
from stretto_client.speech_stream import SpeechEvent, SpeechStream, TranscriptionOptions
from stretto_client.tries import Tries, events_in_turn, once
from stretto_client.unread import UnreadAudio
from stretto_client.voices import Audio

STEP_S = 2.0
NUM_FREE_STEPS = 2  # the first requests, whose transcripts are not continued
SESSION_OPTIONS: set[Literal["resume_s", "progress"]] = {"resume_s", "progress"}  # unknown to requests
SAMPLE_BYTES = 2  # bytes of an int16 sample in the recording that a live transcript keeps
SESSION = "growing"  # session id of the first event, as in the server's sessions; nothing can be sent to it

Transcribe = Callable[[NDArray[np.float32], str], SpeechStream]
"""Function that transcribes samples [n], given the beginning of the transcript."""


class GrowingTranscript:
    """Transcript of live audio, by requests that each read the whole recording so far.

    Until the audio ends, its events contain only text that later requests do not change.

    Args:
        tries: Tries of the requests after the first one, while the server is full.
    """

    def __init__(self, transcribe: Transcribe, tries: Tries, unread: UnreadAudio, items: Items):
        self._transcribe = transcribe
        self._tries = tries
        self._unread = unread
        self._items = items
        self._recording = bytearray()  # int16, all audio that has arrived
        self._num_read = 0  # samples that have been transcribed
        self._num_steps = 0
        self._num_events = 0
        self._beginning = ""  # beginning of the next transcript
        self._transcript = ""
        self._num_sent = 0  # characters of the transcript that have been sent
        self._last: SpeechEvent | None = None  # last event of the newest request

    @property
    def _num_samples(self) -> int:
        return len(self._recording) // SAMPLE_BYTES

    @property
    def _read_s(self) -> float:
        return self._num_read / self._unread.sample_rate

    async def follow(self) -> None:
        """Put all events into the queue. If a request fails, put the transcript so far before the error is raised."""
        await self._put(SpeechEvent(None, "", 0, "text", session=SESSION))
        try:
            await self._read_all()
        except ClientError:
            await self._put_text(len(self._transcript))
            raise
        assert self._last is not None
        await self._put_text(len(self._transcript), self._read_s, self._last)

    async def _read_all(self) -> None:
        step = round(STEP_S * self._unread.sample_rate)
        is_complete = False
        async with self._unread:
            while not is_complete:
                pcm, is_complete = await self._unread.pop()
                self._recording += sixteen_bit(pcm).tobytes()
                while self._num_samples - self._num_read >= step:
                    self._num_read += step
                    await self._read(is_complete and self._num_read == self._num_samples)
        if self._num_read < self._num_samples or self._last is None:
            self._num_read = self._num_samples
            await self._read(is_end=True)

    async def _read(self, is_end: bool) -> None:
        """Transcribe the first `_num_read` samples, and put the text that later requests keep; at the end, all text."""
        recording = as_floats(np.frombuffer(self._recording, np.int16, self._num_read))
        begin = partial(self._transcribe, recording, self._beginning)
        transcript = ""
        async with aclosing(events_in_turn(begin, self._tries if self._num_steps else once)) as events:
            async for event in events:
                transcript += event.text
                self._last = event
                if is_end and not event.is_final:
                    self._transcript = transcript
                    await self._put_text(len(transcript))
        self._transcript = transcript
        self._num_steps += 1
        if self._num_steps >= NUM_FREE_STEPS and not is_end:
            assert self._last is not None
            assert self._last.report is not None
            continuation = self._last.report["continuation"]
            self._beginning = continuation["beginning"]
            await self._put_text(continuation["num_chars"], self._read_s)

    async def _put_text(self, stop: int, transcribed_s: float | None = None, last: SpeechEvent | None = None) -> None:
        """Put the unsent text before character `stop`, in a copy of the event `last` if there is one.

        No text is missing before `transcribed_s` seconds, unless that is None.
        """
        text = self._transcript[self._num_sent : stop]
        self._num_sent = max(self._num_sent, stop)
        event = last or SpeechEvent(None, "", 0, "text")
        if text or last is not None:
            await self._put(replace(event, index=self._num_events, text=text, transcribed_s=transcribed_s))

    async def _put(self, event: SpeechEvent) -> None:
        self._num_events += 1
        await self._items.put(event)


def sixteen_bit(pcm: NDArray[np.float32]) -> NDArray[np.int16]:
    """Return samples [n] as int16; those outside [-1, 1] are clipped."""
    if not np.isfinite(pcm).all():
        raise RequestRefused("pcm_in: expected finite samples, got NaN or infinity")
    scaled: NDArray[np.float32] = np.rint(np.clip(pcm, -1, 1) * FULL_SCALE)
    return np.minimum(scaled, FULL_SCALE - 1).astype(np.int16)


class Client(Protocol):
    """Subset of SpeechClient that this module uses."""

    server: str
    timeouts: Timeouts
    tries: Tries

    async def profile(self) -> ModelProfile: ...

    def transcribe(self, audio: Audio, /, **options: Unpack[TranscriptionOptions]) -> SpeechStream: ...


async def transcribe_growing(
    client: Client,
    options: TranscriptionOptions,
    unread: UnreadAudio,
    total_s: float | None,
    transcribe_live: Callable[[Items], Awaitable[None]],
    items: Items,
) -> None:
    """Put the events of a live transcript into a queue.

    Args:
        total_s: Maximum duration in seconds; None for the client's.
        transcribe_live: Function that does the same with a model that reads live audio.
    """
    profile = await known_profile(client.profile)
    if profile is None or not profile.continues_transcripts:
        await transcribe_live(items)
        return

    def transcribe(pcm: NDArray[np.float32], beginning: str) -> SpeechStream:
        request: TranscriptionOptions = {**options, "beginning": beginning}
        for name in SESSION_OPTIONS & request.keys():
            del request[name]
        return client.transcribe((pcm, unread.sample_rate), **request)

    total_s = total_s or client.timeouts.total_s
    try:
        async with asyncio.timeout(total_s):
            await GrowingTranscript(transcribe, client.tries, unread, items).follow()
    except TimeoutError:
        raise TimedOut(f"{client.server}: the session was not complete after {total_s:g} s") from None
