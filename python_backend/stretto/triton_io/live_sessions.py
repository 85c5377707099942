"""Live sessions of the language model: replies that follow audio while it arrives."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace
from typing import Protocol

import numpy as np

from stretto.errors import Closing, InvalidRequest, StrettoError
from stretto.families.base import Family
from stretto.records.chunk import Chunk, Envelope, FlowAddress, LMChunk
from stretto.records.prompt import AudioPart, Prompt
from stretto.streams.chunking import Pacer
from stretto.triton_io.tensors import Seal, session_name, unknown_session

MAX_AHEAD_S = 2.0  # of audio that the reply has not read; beyond it, receipts wait
PART_S = 10.0  # for the parts before one that was overtaken between the models


class LiveModel(Protocol):
    """Interface of the engine (`engine.llm.SpeechLLM`), as used for live audio."""

    family: Family

    def generate(self, prompt: Prompt, request_id: str, pacer: Pacer) -> AsyncGenerator[LMChunk, None]:
        """Yield the chunks of one reply.

        For a prompt with open audio, `write_frames` is accepted once the first chunk has been requested.
        """
        ...

    async def write_frames(
        self, request_id: str, frames: np.ndarray, is_last: bool, seconds: float, max_ahead: int
    ) -> tuple[int, int]:
        """Append frames, and wait until at most `max_ahead` are unread; return the number of all, and of the unread."""
        ...

    def session_place(self, host: str) -> AbstractContextManager[None]:
        """Reserve a live session for `host` for the duration of the `with` block; raise NoCapacity if none is free."""
        ...

    def end_session(self, request_id: str, failure: StrettoError) -> None:
        """End a reply with an error."""
        ...


class LiveSession:
    """Live audio of one utterance.

    Args:
        name: Name by which the client sends audio.
        utterance: Id of the utterance.
        flow: Address of the utterance's flow-control slot.
    """

    def __init__(self, name: str, utterance: str, flow: FlowAddress) -> None:
        self.name, self.utterance, self.flow = name, utterance, flow
        self._next_part, self._is_complete = 0, False
        self._moved = asyncio.Condition()

    def check(self, part: AudioPart) -> None:
        """Raise InvalidRequest if no process can have had the audio before `part`."""
        if self._is_complete:
            raise InvalidRequest("session", "no further part, as the audio is complete", f"part {part.part}")
        if part.part and not self._next_part:
            raise InvalidRequest("session.part", "0, the number of the next part", part.part)

    async def take_turn(self, part: AudioPart) -> None:
        """Wait until all parts before `part` have been accepted, and accept it.

        Raises:
            InvalidRequest: It was accepted before, is missing predecessors, or the audio is complete.
        """
        async with self._moved:
            if self._is_complete:
                raise InvalidRequest("session", "no further part, as the audio is complete", f"part {part.part}")
            try:
                async with asyncio.timeout(PART_S):
                    await self._moved.wait_for(lambda: part.part <= self._next_part)
            except TimeoutError:
                pass
            if part.part != self._next_part:
                raise InvalidRequest("session.part", f"{self._next_part}, the number of the next part", part.part)
            self._next_part, self._is_complete = part.part + 1, part.is_last
            self._moved.notify_all()


class LiveSessions:
    """Open live sessions by name.

    Args:
        model: The engine.
        seal: MAC of the sessions' names.
    """

    def __init__(self, model: LiveModel, seal: Seal) -> None:
        self._model, self._seal = model, seal
        self._open: dict[str, LiveSession] = {}

    async def write(self, part: AudioPart) -> Envelope:
        """Append a part and return its receipt, once the reply is at most MAX_AHEAD_S behind.

        Raises:
            InvalidRequest: The session does not exist, or rejects the part.
            Closing: The session has lost its audio, or is too far behind.
        """
        session, track = self._open.get(part.session), self._model.family.code_track
        if session is None or track is None:
            raise unknown_session(part.session)
        if part.lost:
            session.check(part)
            failure = Closing(part.lost)
            self._model.end_session(session.utterance, failure)
            raise failure
        await session.take_turn(part)
        frames = np.frombuffer(part.frames, np.int32).reshape(-1, len(track.streams))
        max_ahead = int(MAX_AHEAD_S * self._model.family.frame_rate)
        written = self._model.write_frames(session.utterance, frames, part.is_last, part.seconds, max_ahead)
        num_frames, lag_frames = await written
        return Envelope(
            session.utterance, session.flow, None, receipt=part.part, frames=num_frames, lag_frames=lag_frames
        )

    async def follow(
        self, prompt: Prompt, utterance: str, flow: FlowAddress, pacer: Pacer, host: str
    ) -> AsyncGenerator[LMChunk, None]:
        """Yield the chunks of a reply to live audio.

        The first chunk contains only the session's name, which the client needs to send audio.

        Args:
            prompt: Prompt with open audio.
            utterance: Id of the utterance.
            flow: Address of the utterance's flow-control slot.
            pacer: Decides when frames are sent.
            host: Host of the client.

        Raises:
            NoCapacity: If too many sessions are open, in total or from `host`.
        """
        session = LiveSession(session_name(flow, self._seal), utterance, flow)
        segment = self._model.family.task(prompt.task).segments[0]
        with self._model.session_place(host):
            self._open[session.name] = session
            try:
                yield LMChunk(Chunk(0, segment, session=session.name), None)
                # No other coroutine runs from here until the model accepts frames, so none are lost.
                async with aclosing(self._model.generate(prompt, utterance, pacer)) as chunks:
                    async for each in chunks:
                        yield replace(each, chunk=replace(each.chunk, index=each.chunk.index + 1))
            finally:
                del self._open[session.name]
