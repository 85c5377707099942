"""Live sessions of the language model: parts in order and once each, receipts, and errors at the end."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stretto.errors import Closing, InvalidRequest, NoCapacity, StrettoError
from stretto.records.chunk import Chunk, LMChunk
from stretto.records.flow_address import FlowAddress
from stretto.records.prompt import AudioPart, Prompt, Resumption
from stretto.records.sampling import Delivery
from stretto.streams.chunking import ChunkPolicy, Pacer
from stretto.streams.layout import Segment
from stretto.testing.checkpoints import make_prompt
from stretto.triton_io import live_sessions
from stretto.triton_io.flow import FlowTable
from stretto.triton_io.live_sessions import MAX_AHEAD_S, LiveSession, LiveSessions, num_bytes
from stretto.triton_io.seal import Seal
from stretto.triton_io.tensors import session_slot
from tests.patience import until_async
from tests.triton_io.live_families import LISTENS

SEAL = Seal(bytes(32))
FLOW = FlowAddress("stretto_flow_1_" + "0" * 32, 1, 1)
WIDTH = len(LISTENS.track_streams)


class Model:
    """Fake model whose reply ends with the audio."""

    family = LISTENS

    def __init__(self) -> None:
        self.frames: list[list[int]] = []
        self.is_listening, self.max_ahead, self.refuses = False, 0, False
        self.is_complete = asyncio.Event()
        self.failure: StrettoError | None = None
        self.hosts: list[str] = []

    async def generate(
        self, prompt: Prompt, request_id: str, pacer: Pacer, host: str = ""
    ) -> AsyncGenerator[LMChunk, None]:
        assert host == self.hosts[-1], "its share of the engine is that of another host"
        if self.refuses:
            assert self.failure is not None
            raise self.failure
        self.is_listening = True
        yield LMChunk(Chunk(0, Segment.TEXT, "a"), None)
        await self.is_complete.wait()
        if self.failure is not None:
            raise self.failure
        yield LMChunk(Chunk(1, Segment.TEXT, " word", is_final=True), None)

    @contextmanager
    def session_place(self, host: str) -> Iterator[None]:
        if host in self.hosts:
            raise NoCapacity(f"{host} has a session")
        self.hosts.append(host)
        try:
            yield
        finally:
            self.hosts.remove(host)

    async def write_frames(
        self, request_id: str, frames: np.ndarray, is_last: bool, seconds: float, max_ahead: int
    ) -> tuple[int, int]:
        assert self.is_listening, "frames are written before the reply begins"
        assert request_id == "u", "the engine's request outlasts the first connection"
        self.frames += frames.tolist()
        self.max_ahead = max_ahead
        if is_last:
            self.is_complete.set()
        return len(self.frames), 3

    def end_session(self, request_id: str, failure: StrettoError) -> None:
        self.failure = failure
        self.is_complete.set()


class Session:
    """A session with a reader of its chunks."""

    def __init__(self, folder: Path) -> None:
        self.model = Model()
        self.table = FlowTable.create(1, 4, folder)
        self.sessions = LiveSessions(self.model, SEAL, self.table)
        self.chunks: list[Chunk] = []

    async def begin(self, resume_s: float = 0.0) -> None:
        prompt = replace(make_prompt(LISTENS, 1, "asr"), delivery=Delivery(resume_s=resume_s))
        self.stream = self.sessions.follow(prompt, "u", FLOW, Pacer(ChunkPolicy()), "host")
        self.chunks = [(await anext(self.stream)).chunk, (await anext(self.stream)).chunk]
        self.name = self.chunks[0].session

    async def rest(self) -> None:
        self.chunks += [item.chunk async for item in self.stream]

    def part(self, number: int, num_frames: int = 1, is_last: bool = False, lost: str = "") -> AudioPart:
        frames = np.full((num_frames, WIDTH), number, np.int32).tobytes()
        return AudioPart(self.name, number, frames, is_last, 0.08, lost)


@pytest.fixture
async def session(tmp_path: Path) -> Session:
    made = Session(tmp_path)
    await made.begin()
    return made


@pytest.fixture
async def resumable(tmp_path: Path) -> Session:
    made = Session(tmp_path)
    await made.begin(resume_s=60.0)
    return made


async def test_session_parts_are_ordered_and_acknowledged(session: Session) -> None:
    slot, generation = session_slot(session.name, SEAL)
    assert session.table.holds(FlowAddress(session.table.path.name, slot, generation))
    receipt = await session.sessions.write(session.part(0, 2))
    assert (receipt.receipt, receipt.frames, receipt.lag_frames) == (0, 2, 3)
    assert session.model.max_ahead == MAX_AHEAD_S * LISTENS.frame_rate
    early = asyncio.ensure_future(session.sessions.write(session.part(2, 1, is_last=True)))
    await asyncio.sleep(0)
    assert not early.done(), "a part that overtook another one waits"
    await session.sessions.write(session.part(1, 0))
    assert (await early).frames == 3
    assert session.model.frames == [[0] * WIDTH, [0] * WIDTH, [2] * WIDTH]
    await session.rest()
    assert [chunk.index for chunk in session.chunks] == [0, 1, 2]
    assert "".join(chunk.text for chunk in session.chunks) == "a word"
    with pytest.raises(InvalidRequest, match=r"session\.id: expected the id of an open session"):
        await session.sessions.write(session.part(3))


async def test_live_session_refuses_repeated_and_extra_parts(session: Session) -> None:
    await session.sessions.write(session.part(0))
    with pytest.raises(InvalidRequest, match=r"session\.part: expected 1, the number of the next part, got 0"):
        await session.sessions.write(session.part(0))
    await session.sessions.write(session.part(1, is_last=True))
    with pytest.raises(InvalidRequest, match="session: expected no further part, as the audio is complete, got part 2"):
        await session.sessions.write(session.part(2))
    with pytest.raises(InvalidRequest, match="no further part, as the audio is complete"):
        await session.sessions.write(session.part(3, lost="gone; try again"))
    await session.rest()


@pytest.mark.parametrize("is_first", [True, False])
async def test_session_with_lost_audio_ends(session: Session, is_first: bool) -> None:
    """If there are no earlier parts, or after the last one, nothing is lost."""
    with pytest.raises(InvalidRequest, match=r"session\.part: expected 0, the number of the next part, got 4"):
        await session.sessions.write(session.part(4, lost="gone; try again"))
    number = 0 if is_first else 4
    if not is_first:
        await session.sessions.write(session.part(0))
    with pytest.raises(Closing, match="gone; try again"):
        await session.sessions.write(session.part(number, lost="gone; try again"))
    with pytest.raises(Closing, match="gone; try again"):
        await session.rest()


async def test_host_over_its_session_limit_is_refused(session: Session) -> None:
    """The slot is free again once the session has ended."""
    prompt = make_prompt(LISTENS, 1, "asr")
    with pytest.raises(NoCapacity, match="host has a session"):
        await anext(session.sessions.follow(prompt, "v", FLOW, Pacer(ChunkPolicy()), "host"))
    assert list(session.sessions._open) == [session.name]
    await session.sessions.write(session.part(0, is_last=True))
    await session.rest()
    assert session.model.hosts == []
    assert not session.table.num_active()


async def test_non_resumable_session_ends_with_its_connection(session: Session) -> None:
    await session.stream.aclose()
    assert session.model.hosts == []
    assert not session.table.num_active()
    with pytest.raises(InvalidRequest, match=r"session\.id: expected the id of an open session"):
        await anext(session.sessions.resume(Resumption(session.name, 0), "v", FLOW))


async def test_session_cancelled_at_its_start_leaves_no_state(tmp_path: Path) -> None:
    session = Session(tmp_path)
    beginning = asyncio.ensure_future(session.begin())
    await asyncio.sleep(0)
    beginning.cancel()
    await asyncio.gather(beginning, return_exceptions=True)
    await until_async(lambda: not session.table.num_active())
    assert session.model.hosts == []


async def test_refused_live_session_gets_no_name(tmp_path: Path) -> None:
    session = Session(tmp_path)
    session.model.failure = NoCapacity("the model has enough")
    session.model.is_complete.set()
    session.model.refuses = True
    with pytest.raises(NoCapacity, match="the model has enough"):
        await session.begin()
    assert session.model.hosts == []
    assert not session.table.num_active()


OTHER = FlowAddress(FLOW.table, 2, 7)


async def test_live_session_resumes_after_a_lost_connection(resumable: Session) -> None:
    """The next connection gets the events that the client lacks; parts go on, and their receipts follow it."""
    session = resumable
    await session.sessions.write(session.part(0))
    await session.stream.aclose()
    assert session.model.hosts == ["host"]
    late = asyncio.ensure_future(session.sessions.write(session.part(1)))
    await late
    again = session.sessions.resume(Resumption(session.name, 0), "v", OTHER)
    named, first = (await anext(again)).chunk, (await anext(again)).chunk
    assert (named.session, named.index, first.text, first.index) == (session.name, 0, "a", 1)
    receipt = await session.sessions.write(session.part(2, is_last=True))
    assert (receipt.utterance, receipt.flow, receipt.receipt) == ("v", OTHER, 2)
    assert [(item.chunk.text, item.chunk.index) async for item in again] == [(" word", 2)]
    assert session.model.frames == [[number] * WIDTH for number in range(3)]
    assert session.model.hosts == []
    assert session.table.num_active() == 1, "the client may have lost the last events"


async def test_session_end_is_kept_for_resumption(resumable: Session) -> None:
    """A client that has some of the events gets only the others."""
    session = resumable
    await session.stream.aclose()
    await session.sessions.write(session.part(0, is_last=True))
    for _ in range(3):
        await asyncio.sleep(0)
    for wrong in (3, 99):
        with pytest.raises(InvalidRequest, match=r"session\.resume: expected a number of events in \[0, 2\], got"):
            await anext(session.sessions.resume(Resumption(session.name, wrong), "v", OTHER))
    for _ in range(2):
        again = session.sessions.resume(Resumption(session.name, 1), "v", OTHER)
        assert [item.chunk.text async for item in again] == ["", " word"]
    assert session.model.hosts == [], "the next session may begin"


async def test_error_of_a_resumable_session_is_raised_once(resumable: Session) -> None:
    """A client that resumes the session then learns that it is over."""
    resumable.model.failure = Closing("the process has ended; try again")
    await resumable.sessions.write(resumable.part(0, is_last=True))
    with pytest.raises(Closing, match="the process has ended"):
        await resumable.rest()
    assert not resumable.table.num_active()
    with pytest.raises(
        InvalidRequest, match=r"session\.id: expected the id of an open session \(it is kept for options\."
    ):
        await anext(resumable.sessions.resume(Resumption(resumable.name, 2), "v", OTHER))


async def test_receipts_of_a_lost_connection_wait_for_the_next_one(
    resumable: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit counts the events that the next connection has not read."""
    monkeypatch.setattr(live_sessions, "MAX_UNREAD_BYTES", 1000)
    session = resumable
    await session.stream.aclose()
    live = session.sessions._open[session.name]
    assert live._num_unread_bytes == 0
    live.add(SPEECH)
    writing = asyncio.ensure_future(session.sessions.write(session.part(0)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not writing.done()
    again = session.sessions.resume(Resumption(session.name, 0), "v", OTHER)
    assert [(await anext(again)).chunk.text for _ in range(2)] == ["", "a"]
    assert live._num_unread_bytes == num_bytes(SPEECH)
    assert not writing.done()
    assert (await anext(again)).chunk.text == " word"
    assert (await writing).receipt == 0
    await again.aclose()


async def test_newest_connection_takes_over_the_session(resumable: Session) -> None:
    """Also while the server has not noticed that the earlier one was lost."""
    session = resumable
    again = session.sessions.resume(Resumption(session.name, 1), "v", OTHER)
    await anext(again)
    with pytest.raises(Closing, match="another connection has continued the session"):
        await session.rest()
    await session.sessions.write(session.part(0, is_last=True))
    assert [item.chunk.text async for item in again] == [" word"]
    assert session.model.hosts == []


async def test_unresumed_session_ends_after_resume_s(tmp_path: Path) -> None:
    session = Session(tmp_path)
    await session.begin(resume_s=0.001)
    await session.stream.aclose()
    await until_async(lambda: not session.table.num_active())
    assert session.model.hosts == []
    with pytest.raises(InvalidRequest, match=r"session\.id"):
        await session.sessions.write(session.part(0))


async def test_only_resumable_sessions_can_be_resumed(session: Session) -> None:
    with pytest.raises(InvalidRequest, match=r"session\.resume: expected a session with options\.resume_s"):
        await anext(session.sessions.resume(Resumption(session.name, 0), "v", OTHER))
    await session.sessions.write(session.part(0, is_last=True))
    await session.rest()


@pytest.mark.parametrize("name", ["", "nobody", "A" * 43, "é", "A" * 43 + "="])
def test_unknown_session_ids_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"session\.id: expected the id of an open session"):
        session_slot(name, SEAL)


SPEECH = LMChunk(Chunk(0, Segment.AUDIO, " word"), np.zeros((8, 1), np.int32))


@pytest.mark.parametrize("resume_s", [0.0, 60.0])
async def test_unread_reply_is_bounded_in_bytes(resume_s: float) -> None:
    session, limit = LiveSession("u", Segment.AUDIO, resume_s), live_sessions.MAX_HELD_BYTES
    for _ in range(limit // num_bytes(SPEECH)):
        session.add(SPEECH)
    with pytest.raises(Closing, match="the client has left too much of the reply unread"):
        session.add(SPEECH)
    assert limit - num_bytes(SPEECH) <= session._num_bytes <= limit + num_bytes(SPEECH)
    assert session._num_bytes == sum(map(num_bytes, session._chunks))


async def test_reply_length_is_unlimited_while_client_keeps_reading(session: Session) -> None:
    """All chunks beyond the limits are delivered, because the client reads them."""
    for resume_s in (0.0, 60.0):
        live = LiveSession("u", Segment.AUDIO, resume_s)
        live.task = asyncio.ensure_future(asyncio.sleep(0))
        chunks = live.read("u", FLOW)
        await anext(chunks)
        for number in range(2 * (live_sessions.MAX_HELD_BYTES // num_bytes(SPEECH))):
            live.add(SPEECH)
            assert (await anext(chunks)).chunk.index == number + 1
        assert live._num_bytes == sum(map(num_bytes, live._chunks)) <= live_sessions.MAX_HELD_BYTES
        await chunks.aclose()


async def test_large_chunk_evicts_small_chunks_to_stay_within_limit(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_sessions, "MAX_HELD_BYTES", 20_000)
    large = LMChunk(Chunk(0, Segment.AUDIO), np.zeros((8, 450), np.int32))
    live = LiveSession("u", Segment.AUDIO, resume_s=60.0)
    live.task = asyncio.ensure_future(asyncio.sleep(0))
    chunks = live.read("u", FLOW)
    await anext(chunks)
    for chunk in (*[SPEECH] * 15, large):
        live.add(chunk)
        await anext(chunks)
        assert live._num_bytes == sum(map(num_bytes, live._chunks)) <= 20_000
    await chunks.aclose()


async def test_receipt_is_withheld_until_reply_is_read(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_sessions, "MAX_UNREAD_BYTES", 1000)
    live = session.sessions._open[session.name]
    live.add(SPEECH)
    writing = asyncio.ensure_future(session.sessions.write(session.part(0)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not writing.done()
    assert (await anext(session.stream)).chunk.text == " word"
    assert (await writing).receipt == 0
    live.add(SPEECH)
    last = asyncio.ensure_future(session.sessions.write(session.part(1, is_last=True)))
    await session.stream.aclose()
    assert (await last).receipt == 1, "the end of the session is not waited for"


async def test_session_with_unread_reply_closes_with_reason(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_sessions, "MAX_HELD_BYTES", 100)
    await session.sessions.write(session.part(0, is_last=True))
    with pytest.raises(Closing, match="left too much of the reply unread"):
        await session.rest()
    assert not session.sessions._open
