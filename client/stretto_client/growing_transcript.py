"""Live transcription with a model that reads whole recordings.

Every STEP_S of new audio, all audio so far is transcribed anew. From the third request on, the transcript so far,
without its last tokens, is the beginning of the next one:

    0 to 2 s    ─► The cat sad            nothing is kept
    0 to 4 s    ─► The cat sat on the     kept: The cat
    0 to 6 s    The cat ─► sat on the mat and slept

The requests depend on the audio only, not on how it arrives, and none is left out. Audio waits while one is running.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Literal, Protocol, Unpack

import numpy as np
from numpy.typing import NDArray

from stretto_client.errors import ClientError, TimedOut, Timeouts
from stretto_client.model_profile import ModelProfile, known_profile
from stretto_client.produced_speech import Items
from stretto_client.speech_stream import SpeechEvent, SpeechStream, TranscriptionOptions
from stretto_client.tries import Tries, events_in_turn, once
from stretto_client.unread import SAMPLE_BYTES, UnreadAudio
from stretto_client.voices import Audio

STEP_S = 2.0
NUM_FREE_STEPS = 2  # the first requests, whose transcripts are not continued
SESSION_OPTIONS: set[Literal["resume_s", "progress"]] = {"resume_s", "progress"}  # that requests do not have
SESSION = "growing"  # of the first event, as in sessions of the server; nothing can be sent to it

Transcribe = Callable[[NDArray[np.float32], str], SpeechStream]
"""Function that transcribes samples [n], given the beginning of the transcript."""


class GrowingTranscript:
    """Transcript of live audio, by requests that each read the whole recording so far.

    Its events have only text that later requests keep, and the rest once the audio has ended.

    Args:
        tries: Tries of the requests after the first one, while the server is full.
        items: Queue for the events.
    """

    def __init__(self, transcribe: Transcribe, tries: Tries, unread: UnreadAudio, items: Items):
        self._transcribe = transcribe
        self._tries = tries
        self._unread = unread
        self._items = items
        self._recording = bytearray()  # float32, all audio that has arrived
        self._num_read = 0  # samples of it that have been transcribed
        self._num_steps = 0
        self._num_events = 0
        self._beginning = ""  # of the next transcript
        self._transcript = ""
        self._num_sent = 0  # characters of the transcript
        self._last: SpeechEvent | None = None  # last event of the newest request

    @property
    def _num_samples(self) -> int:
        return len(self._recording) // SAMPLE_BYTES

    async def follow(self) -> None:
        """Put all events into the queue. If a request fails, put the transcript so far before the error is raised."""
        await self._put(SpeechEvent(None, "", 0, "text", session=SESSION))
        try:
            await self._read_all()
        except ClientError:
            await self._put_text(len(self._transcript))
            raise
        await self._put_text(len(self._transcript), self._last)

    async def _read_all(self) -> None:
        step = round(STEP_S * self._unread.sample_rate)
        is_complete = False
        async with self._unread:
            while not is_complete:
                pcm, is_complete = await self._unread.pop()
                self._recording += pcm.tobytes()
                while self._num_samples - self._num_read >= step:
                    self._num_read += step
                    await self._read(is_complete and self._num_read == self._num_samples)
        if self._num_read < self._num_samples or self._last is None:
            self._num_read = self._num_samples
            await self._read(is_end=True)

    async def _read(self, is_end: bool) -> None:
        """Transcribe the first `_num_read` samples, and put the text that is fixed; at the end, put all as it comes."""
        recording = np.frombuffer(self._recording, np.float32, self._num_read).copy()
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
            await self._put_text(continuation["num_chars"])

    async def _put_text(self, stop: int, last: SpeechEvent | None = None) -> None:
        """Put the text before character `stop` that has not been sent, with the report of the last event, if it is."""
        text = self._transcript[self._num_sent : stop]
        self._num_sent = max(self._num_sent, stop)
        seconds = self._num_read / self._unread.sample_rate
        event = SpeechEvent(None, "", self._num_events, "text", text, transcribed_s=seconds)
        if last is not None:
            event = replace(last, index=self._num_events, text=text, transcribed_s=seconds)
        if text or last is not None:
            await self._put(event)

    async def _put(self, event: SpeechEvent) -> None:
        self._num_events += 1
        await self._items.put(event)


class Client(Protocol):
    """Subset of SpeechClient that this module uses."""

    server: str
    timeouts: Timeouts
    tries: Tries

    async def profile(self) -> ModelProfile:
        """Return the model profile."""
        ...

    def transcribe(self, audio: Audio, /, **options: Unpack[TranscriptionOptions]) -> SpeechStream:
        """Return the events of a transcript."""
        ...


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
        transcribe_live: Function that does so with a model that reads live audio.
    """
    profile = await known_profile(client.profile)
    task = None if profile is None or profile.reads_live_audio else profile.task(options.get("task", "asr"))
    if task is None or not task.reads_beginning:
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
