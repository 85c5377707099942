"""Live sessions of the language model: replies to audio that is still arriving."""

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import Protocol

import numpy as np

from stretto.errors import Closing, InvalidRequest, StrettoError
from stretto.family.base import Family
from stretto.records.chunk import MAX_KEPT_BYTES, Chunk, Envelope, Kept, LMChunk
from stretto.records.flow_address import FlowAddress
from stretto.records.prompt import AudioPart, Prompt, Resumption
from stretto.streams.chunking import Pacer
from stretto.streams.layout import Segment
from stretto.triton_io.flow import FlowTable
from stretto.triton_io.seal import Seal
from stretto.triton_io.tensors import session_name, unknown_session
from stretto_contract.limits import eviction_order

MAX_AHEAD_S = 2.0  # unread audio in seconds beyond which receipts are delayed
# Bytes of a reply that its client has not read: beyond the first limit, receipts wait; beyond the second, it fails.
MAX_UNREAD_BYTES = 1 << 19
MAX_HELD_BYTES = MAX_KEPT_BYTES
MAX_ENDED = 16  # sessions without a connection that are kept after their reply has ended; shared fairly among hosts
# memory of a chunk without content, and of a word or the codes of a frame
CHUNK_BYTES = 1024
ITEM_BYTES = 64
PART_S = 10.0  # maximum wait for earlier parts if parts are reordered between the models


class LiveModel(Protocol):
    """Interface of the engine (`engine.llm.SpeechLLM`), as used for live audio."""

    family: Family

    def generate(self, prompt: Prompt, request_id: str, pacer: Pacer, host: str) -> AsyncGenerator[LMChunk, None]:
        """Yield the chunks of one reply.

        For a prompt with open audio, `write_frames` is accepted once the first chunk has been requested.
        """
        ...

    async def write_frames(
        self, request_id: str, frames: np.ndarray, is_last: bool, seconds: float, max_ahead: int
    ) -> tuple[int, int]:
        """Append frames; once at most `max_ahead` are unread, return the numbers of frames written and unread."""
        ...

    def session_place(self, host: str) -> AbstractContextManager[None]:
        """Reserve a live session for `host` during the `with` block; raise NoCapacity if none is free."""
        ...

    def end_session(self, request_id: str, failure: StrettoError) -> None:
        """End a reply with an error."""
        ...


def num_bytes(chunk: LMChunk) -> int:
    """Return the approximate memory of a chunk in bytes."""
    record = chunk.chunk
    codes = chunk.codes
    num_items = len(record.marks) + len(record.pauses) + sum(map(len, record.output_codes))
    return CHUNK_BYTES + 4 * len(record.text) + ITEM_BYTES * num_items + (0 if codes is None else codes.nbytes)


class LiveSession:
    """Live session: the parts of its audio, and its reply, which one connection at a time reads.

    Args:
        resume_s: Time for which the session can be resumed after its connection has ended.
        speaks: True if the decoder decodes the reply. It then keeps its state if the session can be resumed.

    Attributes:
        name: Name of the session, which the client needs to send audio; empty until the session is open.
        slot: Slot of the session in the acknowledgement table; None until the session is open.
        utterance: Id of the utterance of the current connection, or of the whole reply if the decoder keeps its state.
        flow: Address of the connection's slot in the acknowledgement table; None before the first connection.
        is_connected: True while a connection reads the reply.
    """

    def __init__(
        self, request_id: str, segment: Segment, resume_s: float, speaks: bool = False, host: str = ""
    ) -> None:
        self.request_id = request_id
        self._segment = segment
        self.resume_s = resume_s
        self.host = host
        self._is_kept = speaks and resume_s > 0
        # Not the id of a connection: the decoder drops the utterance of that id when the connection is lost.
        self.name = ""
        self.utterance = uuid.uuid4().hex if self._is_kept else request_id
        self.slot: FlowAddress | None = None
        self.flow: FlowAddress | None = None
        self.is_connected = False
        self.task: asyncio.Task[None] | None = None
        self._next_part = 0
        self._is_complete = False
        self._moved = asyncio.Condition()
        self._chunks: deque[LMChunk] = deque()  # chunks that a connection has not read, or may read again
        self._num_chunks = self._reader = self._next_read = 0
        self._num_bytes = self._num_unread_bytes = 0
        self._has_ended = self._has_failed = False  # the reply has ended; its error has been raised
        self._failure: Exception | None = None
        # set when a chunk was added; set when one was read
        self._changed = asyncio.Event()
        self._moved_on = asyncio.Event()
        self._expiry: asyncio.TimerHandle | None = None

    @property
    def _oldest(self) -> int:
        """Number of the first chunk that can be read."""
        return self._num_chunks - len(self._chunks)

    def add(self, chunk: LMChunk) -> None:
        """Append a chunk of the reply; raise Closing if its client has left too much of it unread."""
        self._chunks.append(chunk)
        self._num_chunks += 1
        self._num_bytes += num_bytes(chunk)
        self._num_unread_bytes += num_bytes(chunk)
        while self._num_bytes > MAX_HELD_BYTES and self._oldest < self._next_read:
            self._pop()
        if self._num_unread_bytes > MAX_HELD_BYTES:
            raise Closing("the client has left too much of the reply unread; read its events, and try again")
        self._changed.set()

    def _pop(self) -> None:
        self._num_bytes -= num_bytes(self._chunks.popleft())

    async def wait_for_reader(self) -> None:
        """Wait until the client has read enough of the reply to send more audio, or the reply has ended."""
        while self._num_unread_bytes > MAX_UNREAD_BYTES and not self._has_ended:
            self._moved_on.clear()
            await self._moved_on.wait()

    def end(self, failure: Exception | None) -> None:
        """Mark the reply as ended, if it has not ended yet; `failure` is an error for the reader, None if complete."""
        if not self._has_ended:
            self._has_ended = True
            self._failure = failure
            self._changed.set()
            self._moved_on.set()

    def check_resumption(self, first: int) -> None:
        """Raise InvalidRequest if a connection cannot continue the session with chunk number `first`."""
        if not self.resume_s:
            raise InvalidRequest("session.resume", "a session with options.resume_s", "another session")
        if not self._oldest <= first <= self._num_chunks:
            expected = f"a number of events in [{self._oldest}, {self._num_chunks}]"
            raise InvalidRequest("session.resume", expected, first)

    async def read(self, utterance: str, flow: FlowAddress, first: int | None = None) -> AsyncGenerator[LMChunk, None]:
        """Yield the chunks of the reply to a new connection, after a chunk with the session's name.

        An earlier connection is closed, and raises Closing. The session ends with this connection if it cannot be
        resumed, or once the error of the reply has been raised. Otherwise it ends `resume_s` later, unless another
        connection continues it.

        Args:
            first: Number of the first chunk of a resumed session; None for the session's first connection.
        """
        self._reader = self._reader + 1
        self._next_read = first or 0
        self._num_unread_bytes = sum(
            num_bytes(chunk) for chunk in islice(self._chunks, self._next_read - self._oldest, None)
        )
        reader = self._reader
        self.flow = flow
        self.is_connected = True
        if not self._is_kept:
            self.utterance = utterance
        self._changed.set()
        if self._expiry is not None:
            self._expiry.cancel()
        try:
            index = 0
            if self._failure is None or self._num_chunks:
                named = Chunk(0, self._segment, session=self.name, kept=self._kept_at(first))
                yield LMChunk(named, None)
            while self._reader == reader:
                if self._next_read < self._num_chunks:
                    number = self._next_read
                    index = index + 1
                    next_chunk = self._read_next()
                    yield replace(next_chunk, chunk=replace(next_chunk.chunk, index=index, kept=self._kept_at(number)))
                elif self._has_ended:
                    if self._failure is not None:
                        self._has_failed = True
                        raise self._failure
                    return
                else:
                    self._changed.clear()
                    await self._changed.wait()
            raise Closing("another connection has continued the session")
        finally:
            if self._reader == reader:
                await self._leave()

    def _kept_at(self, number: int | None) -> Kept | None:
        """Return the session's identity for the decoder, with chunk `number`; None if the decoder keeps no state."""
        if not self._is_kept:
            return None
        assert self.slot is not None, "a session is read once it is open"
        return Kept(self.utterance, self.slot, number)

    def _read_next(self) -> LMChunk:
        """Return the next chunk to read, and drop it if the session cannot be resumed."""
        chunk = self._chunks[self._next_read - self._oldest]
        self._next_read += 1
        self._num_unread_bytes -= num_bytes(chunk)
        if not self.resume_s:
            self._pop()
        self._moved_on.set()
        return chunk

    async def _leave(self) -> None:
        """End the session or, if it can be resumed, keep it until another connection continues it."""
        assert self.task is not None, "a session is read while its reply is generated"
        self.is_connected = False
        if self.resume_s and not self._has_failed:
            self._expiry = asyncio.get_running_loop().call_later(self.resume_s, self.task.cancel)
            return
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def check(self, audio_part: AudioPart) -> None:
        """Raise InvalidRequest if the audio is complete, or if this is not part 0 and no part was accepted."""
        if self._is_complete:
            raise InvalidRequest("session", "no further part, as the audio is complete", f"part {audio_part.part}")
        if audio_part.part and not self._next_part:
            raise InvalidRequest("session.part", "0, the number of the next part", audio_part.part)

    async def take_turn(self, audio_part: AudioPart) -> None:
        """Wait until all earlier parts have been accepted, and accept this one.

        If it has already been accepted, an earlier part is missing, or the audio is complete, raise InvalidRequest.
        """
        async with self._moved:
            if self._is_complete:
                raise InvalidRequest("session", "no further part, as the audio is complete", f"part {audio_part.part}")
            try:
                async with asyncio.timeout(PART_S):
                    await self._moved.wait_for(lambda: audio_part.part <= self._next_part)
            except TimeoutError:
                pass
            if audio_part.part != self._next_part:
                raise InvalidRequest("session.part", f"{self._next_part}, the number of the next part", audio_part.part)
            self._next_part = audio_part.part + 1
            self._is_complete = audio_part.is_last
            self._moved.notify_all()


class LiveSessions:
    """Open live sessions, keyed by name."""

    def __init__(self, model: LiveModel, seal: Seal, table: FlowTable) -> None:
        self._model = model
        self._seal = seal
        self._table = table
        self._open: dict[str, LiveSession] = {}
        self._ended: deque[LiveSession] = deque()

    async def write(self, audio_part: AudioPart) -> Envelope:
        """Append a part; return its receipt once the reply is at most MAX_AHEAD_S behind.

        If the session does not accept the part, raise InvalidRequest. If it has lost its audio, or is too far behind,
        raise Closing.
        """
        session = self._open.get(audio_part.session)
        track = self._model.family.code_track
        if session is None or track is None:
            raise unknown_session(audio_part.session)
        if audio_part.lost:
            session.check(audio_part)
            failure = Closing(audio_part.lost)
            self._model.end_session(session.request_id, failure)
            raise failure
        await session.take_turn(audio_part)
        frames = np.frombuffer(audio_part.frames, np.int32).reshape(-1, len(track.streams))
        max_ahead = int(MAX_AHEAD_S * self._model.family.frame_rate)
        written = self._model.write_frames(
            session.request_id, frames, audio_part.is_last, audio_part.seconds, max_ahead
        )
        num_frames, lag_frames = await written
        await session.wait_for_reader()
        assert session.flow is not None, "parts come after the session's first connection"
        return Envelope(
            session.utterance, session.flow, None, receipt=audio_part.part, frames=num_frames, lag_frames=lag_frames
        )

    async def follow(
        self, prompt: Prompt, utterance: str, flow: FlowAddress, pacer: Pacer, host: str
    ) -> AsyncGenerator[LMChunk, None]:
        """Yield the chunks of a reply to live audio; raise NoCapacity if `host`, or all, have too many sessions.

        The first chunk contains only the session's name, which the client needs to send audio.
        """
        family = self._model.family
        segment = family.task(prompt.task).segments[0]
        speaks = bool(family.layout.codebook_streams)
        session = LiveSession(utterance, segment, prompt.delivery.resume_s, speaks, host)
        session.task = asyncio.ensure_future(self._generate(session, prompt, pacer, host))
        try:
            await asyncio.sleep(0)  # until the model accepts frames, or has refused the session
        except asyncio.CancelledError:
            session.task.cancel()
            raise
        async with aclosing(session.read(utterance, flow)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def resume(self, resumption: Resumption, utterance: str, flow: FlowAddress) -> AsyncGenerator[LMChunk, None]:
        """Yield a chunk with a session's name, then the chunks that the client has not received.

        If `resumption.ends` is True, end the session instead. If it has ended, cannot be resumed, or no longer has
        these chunks, raise InvalidRequest.
        """
        session = self._open.get(resumption.session)
        if session is None:
            raise unknown_session(resumption.session, is_resumed=True)
        if resumption.ends:
            assert session.task is not None, "an open session has a task"
            session.task.cancel()
            return
        session.check_resumption(resumption.num_events)
        async with aclosing(session.read(utterance, flow, resumption.num_events)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _generate(self, session: LiveSession, prompt: Prompt, pacer: Pacer, host: str) -> None:
        """Generate the reply for the session's reader; hold the session until no connection can read it."""
        try:
            with self._named(session):
                try:
                    with self._model.session_place(host):
                        async with aclosing(self._model.generate(prompt, session.request_id, pacer, host)) as chunks:
                            async for chunk in chunks:
                                session.add(chunk)
                    session.end(None)
                except Exception as error:
                    session.end(error)
                if session.resume_s:
                    self._keep(session)
                await asyncio.Event().wait()
        except Exception as error:
            session.end(error)
        finally:
            session.end(Closing("the session has ended"))
            with suppress(ValueError):
                self._ended.remove(session)

    def _keep(self, session: LiveSession) -> None:
        """Keep a session whose reply has ended, so that its client can still read it.

        At most MAX_ENDED such sessions are kept without a client. Beyond that, the oldest one of the host with the
        most of them is discarded.
        """
        unread = [session for session in self._ended if not session.is_connected]
        if len(unread) >= MAX_ENDED:
            oldest = next(eviction_order(unread, lambda ended: ended.host, unread.index))
            assert oldest.task is not None, "a session that has ended had a task"
            oldest.task.cancel()
        self._ended.append(session)

    @contextmanager
    def _named(self, session: LiveSession) -> Iterator[None]:
        """Give the session a name that the preprocessor can verify, during the `with` block."""
        slot = self._table.claim()
        session.slot = slot.address
        session.name = session_name(slot.address, self._seal)
        self._open[session.name] = session
        try:
            yield
        finally:
            del self._open[session.name]
            slot.release()
