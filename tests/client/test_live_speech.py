"""Streamed text, with servers that support it and servers that do not."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto_client import (
    RecordedVoice,
    RequestRefused,
    ServerFailed,
    ServerFull,
    ServerUnavailable,
    SpeechClient,
    TimedOut,
    Timeouts,
    live_speech,
)
from stretto_client.live_speech import clauses_of
from stretto_client.long_speech import first_sentences
from stretto_client.unread import MAX_WAITING_CHARS, UnreadText
from tests.client.conftest import Serve
from tests.client.fake_server import (
    PROFILE,
    Abort,
    Chunk,
    EmptyFinal,
    ErrorText,
    FakeServer,
    Pause,
    Request,
    Step,
    Taken,
    Until,
)
from tests.client.reading import written
from tests.patience import PATIENCE_S, until_async

LIVE = PROFILE | {"reads_live_text": True}
END = Chunk(1, 640, is_final=True, is_last=True)
FULL = ErrorText("full: 80 sequences are already in flight; try again")


class Live:
    """Server that speaks a streamed text when it is complete, and keeps its parts."""

    def __init__(self) -> None:
        self.text, self.parts, self.complete = "", list[dict[str, Any]](), asyncio.Event()
        self.instead: dict[int, Step] = {}
        self.server = FakeServer(self._script, profile=LIVE)

    def _script(self, request: Request) -> list[Step]:
        if "session" not in request:
            self.text += request["text"].decode()
            return [Chunk(0, None, session="s1"), Until(self.complete), END]
        record = json.loads(request["session"])
        self.parts.append(record)
        if record["part"] in self.instead:
            return [self.instead[record["part"]]]
        self.text += request["text"].decode()
        if record["is_last"]:
            self.complete.set()
        return [Taken(record["part"])]


@pytest.fixture
async def live() -> AsyncIterator[Live]:
    made = Live()
    yield made
    await made.server.stop()


async def test_client_streams_text_as_it_is_written(live: Live) -> None:
    async with SpeechClient(await live.server.start()) as client:
        events = [event async for event in client.speak(written("He", "llo ", "wor", "ld."), voice="slt", seed=7)]
    assert live.text == "Hello world."
    options = json.loads(live.server.requests[0]["options"])
    assert options == {"voice": "slt", "seed": 7, "text_mode": "open"}
    assert {part["id"] for part in live.parts} == {"s1"}
    assert [part["part"] for part in live.parts] == list(range(len(live.parts)))
    assert [part["is_last"] for part in live.parts] == [False] * (len(live.parts) - 1) + [True]
    assert [event.session for event in events] == ["s1", ""]
    assert events[-1].is_final


async def test_streamed_text_is_sent_before_more_is_available(live: Live) -> None:
    came = asyncio.Event()

    async def slowly() -> AsyncIterator[str]:
        yield "One "
        yield "two "
        await came.wait()
        yield "three"

    async with SpeechClient(await live.server.start()) as client, client.speak(slowly()) as stream:
        assert (await anext(stream)).session == "s1"
        while "two" not in live.text:
            await asyncio.sleep(0.001)
        came.set()
        assert (await anext(stream)).is_final
    assert live.text == "One two three"


async def test_refused_text_part_fails_the_reply(live: Live) -> None:
    live.instead[0] = ErrorText("invalid request: text: expected at most 3 more tokens, got 4")
    async with SpeechClient(await live.server.start()) as client:
        with pytest.raises(RequestRefused, match="at most 3 more tokens"):
            _ = [event async for event in client.speak(written("One ", "two"))]
        await asyncio.wait_for(live.server.cancelled.wait(), PATIENCE_S)


async def test_a_reply_may_end_before_its_text(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_speech, "STILL_THERE_S", 0.05)  # the delay of the refused part after "two"
    refusal = "invalid request: session.id: expected the id of an open streamed text, got 's1'"
    live.instead[0] = ErrorText(refusal)

    async def slowly() -> AsyncIterator[str]:
        yield "One "
        yield "two"
        await asyncio.Event().wait()

    async def finish() -> None:
        while live.server.num_played < 2:  # the first event, and the refusal
            await asyncio.sleep(0.001)
        live.complete.set()

    async with SpeechClient(await live.server.start()) as client:
        finishing = asyncio.create_task(finish())
        events = [event async for event in client.speak(slowly())]
        await finishing
    assert [event.is_final for event in events] == [False, True]


async def test_unanswered_text_part_times_out(live: Live) -> None:
    live.instead[0] = Pause(60)
    timeouts = Timeouts(between_s=0.2)
    async with SpeechClient(await live.server.start(), timeouts) as client:
        with pytest.raises(TimedOut, match=r"no answer to a part within 0\.2 s"):
            _ = [event async for event in client.speak(written("One ", "two"))]


async def test_text_source_error_ends_the_reply(live: Live) -> None:
    async with SpeechClient(await live.server.start()) as client:
        with pytest.raises(KeyError, match="boom"):
            _ = [event async for event in client.speak(written("One ", error=KeyError("boom")))]
        await asyncio.wait_for(live.server.cancelled.wait(), PATIENCE_S)
    assert not any(part["is_last"] for part in live.parts), "half a text is not passed off as a whole one"


async def test_closing_the_stream_stops_reading_live_text(live: Live) -> None:
    is_closed = asyncio.Event()

    async def endless() -> AsyncIterator[str]:
        try:
            while True:
                yield "more "
                await asyncio.sleep(0.001)
        finally:
            is_closed.set()

    async with SpeechClient(await live.server.start()) as client:
        async with client.speak(endless()) as stream:
            await anext(stream)
        await asyncio.wait_for(is_closed.wait(), PATIENCE_S)
        await asyncio.wait_for(live.server.cancelled.wait(), PATIENCE_S)


@pytest.mark.parametrize("profile", [LIVE, PROFILE])
async def test_empty_streamed_text_is_refused_before_any_request(serve: Serve, profile: dict[str, Any]) -> None:
    server, client = await serve([END], profile=profile)
    with pytest.raises(RequestRefused, match="text: expected at least one character, got none"):
        _ = [event async for event in client.speak(written("", ""))]
    assert server.requests == []


async def test_live_text_is_sent_as_sentences_to_whole_text_models(serve: Serve) -> None:
    server, client = await serve([Chunk(0, 640, words=("a",)), Chunk(1, 640, is_final=True, is_last=True)])
    heard_first, heard_second = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[str]:
        yield "Good mor"
        yield "ning. How are"
        await heard_first.wait()
        yield " you? Well. I"
        await heard_second.wait()
        yield " am."

    async with client.speak(slowly()) as stream:
        heard = [await anext(stream) for _ in range(2)]
        heard_first.set()
        heard += [await anext(stream) for _ in range(2)]
        assert [request["text"].decode() for request in server.requests] == ["Good morning.", "How are you? Well."]
        heard_second.set()
        heard += [event async for event in stream]
    assert server.requests[2]["text"].decode() == "I am."
    assert len({json.loads(request["options"])["seed"] for request in server.requests}) == 1
    assert [event.is_final for event in heard] == [False] * 6 + [True]
    assert [event.index for event in heard] == list(range(7))
    assert heard[-1].report is not None
    assert heard[-1].report["num_frames"] == 12


async def test_only_live_text_in_progress_waits_for_capacity(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stretto_client.tries.PAUSES_S", (0.0, 0.0))
    server, client = await serve(lambda _: [FULL] if len(server.requests) in (2, 3) else [END])
    events = [event async for event in client.speak(written(*(f"Say number {number}. " for number in range(40))))]
    assert events[-1].is_final
    asked = [request["text"] for request in server.requests]
    assert asked[1] == asked[2] == asked[3] != asked[0]
    refusing, client = await serve([FULL])
    async with client.speak(written("Hello.")) as stream:
        with pytest.raises(ServerFull):
            await anext(stream)
    assert len(refusing.requests) == 1


@pytest.mark.parametrize("options", [["transliterate"], []])
async def test_live_clause_of_another_script_is_transliterated_if_the_model_can(
    serve: Serve, options: list[str]
) -> None:
    server, client = await serve([END], profile=PROFILE | {"options": options})
    _ = [event async for event in client.speak(written("A plain word or two. " * 40, "你好。" * 100))]
    sent = [json.loads(request["options"]) for request in server.requests]
    assert ["transliterate" in sent[0], "transliterate" in sent[-1]] == [False, bool(options)]


async def test_prematurely_ended_part_stream_is_a_server_failure(live: Live) -> None:
    from stretto_client.live_speech import PartStream

    async with SpeechClient(await live.server.start()) as client:
        parts = PartStream(client._client, "speech", "there", 60.0)
        parts._responses = written()
        with pytest.raises(ServerFailed, match="the stream ended before its last part"):
            await parts.write("s", 0, "a", False)


@pytest.mark.slow
@given(st.lists(st.text(alphabet="ab .,;!?\n", max_size=60) | st.just(" " * 200), max_size=8))
async def test_live_clauses_keep_all_words_despite_whitespace(pieces: list[str]) -> None:
    async with UnreadText(written(*pieces)) as unread:
        clauses = [clause async for clause in clauses_of(unread, 60)]
    assert all(0 < len(clause) <= 60 for clause in clauses)
    assert "".join(filter(str.isalnum, "".join(clauses))) == "".join(filter(str.isalnum, "".join(pieces)))


async def test_words_of_a_long_sentence_stay_separate() -> None:
    words = ["word"] * 100
    async with UnreadText(written(" ".join(words))) as unread:
        assert " ".join([clause async for clause in clauses_of(unread, 40)]).split() == words


def test_sentences_end_only_when_the_next_begins() -> None:
    assert first_sentences("Yes. No", 60) == ("Yes. ", "No")
    assert first_sentences("Yes.", 60) == ("", "Yes.")
    assert first_sentences("", 60) == ("", "")


async def test_text_source_far_ahead_is_paused() -> None:
    num_read = 0

    async def endless() -> AsyncIterator[str]:
        nonlocal num_read
        while True:
            num_read += 1
            yield "x" * 1000

    async with UnreadText(endless()) as unread:
        assert len(await unread.pop(4096)) > 0
        for _ in range(1000):
            await asyncio.sleep(0)
        assert num_read <= MAX_WAITING_CHARS // 1000 + 6


async def test_waiting_for_text_times_out_with_an_empty_result() -> None:
    async def silent() -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield ""

    async with UnreadText(silent()) as unread:
        assert await unread.pop(10, 0.01) == ""
        assert not unread.is_complete


@pytest.mark.parametrize(("profile", "task"), [(None, "tts"), (PROFILE, "dialogue")], ids=["no profile", "text first"])
async def test_server_that_reads_no_sentences_gets_the_whole_text(
    serve: Serve, profile: dict[str, Any] | None, task: str
) -> None:
    server, client = await serve([END], profile=profile)
    events = [event async for event in client.speak(written("Hello. ", "World. ", "Bye."), task=task)]
    assert [request["text"] for request in server.requests] == [b"Hello. World. Bye."]
    assert [event.is_final for event in events] == [True]


class Listener:
    """Server that transcribes live audio when it is complete, and keeps its parts."""

    def __init__(self) -> None:
        self.pcm, self.parts, self.complete = list[float](), list[dict[str, Any]](), asyncio.Event()
        self.refusal: str | None = None
        self.server = FakeServer(self._script, profile=PROFILE | {"reads_live_audio": True})

    def _script(self, request: Request) -> list[Step]:
        if "session" not in request:
            return [
                Chunk(0, None, session="s1"),
                Until(self.complete),
                Chunk(1, None, "a word", is_final=True, is_last=True),
            ]
        record = json.loads(request["session"])
        self.parts.append(record)
        if self.refusal is not None:
            return [ErrorText(self.refusal)]
        self.pcm += np.atleast_1d(request.get("pcm_in", np.zeros(0))).tolist()
        if record["is_last"]:
            self.complete.set()
        return [Taken(record["part"])]


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    made = Listener()
    yield made
    await made.server.stop()


async def recorded(*pieces: np.ndarray, error: Exception | None = None) -> AsyncIterator[np.ndarray]:
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece
    if error is not None:
        raise error


async def test_live_audio_is_sent_as_it_is_recorded(listener: Listener) -> None:
    """Pieces of 80 ms and more are sent as they come, int16 as float32; the end may have no samples."""
    pieces = [np.full(size, value, np.int16) for size, value in ((100, 16384), (3000, -16384), (7, 8192))]
    async with SpeechClient(await listener.server.start()) as client:
        events = [event async for event in client.transcribe_live(recorded(*pieces), 24_000, seed=7)]
    assert events[-1].text == "a word"
    assert listener.pcm == [0.5] * 100 + [-0.5] * 3000 + [0.25] * 7
    assert json.loads(listener.server.requests[0]["options"]) == {"seed": 7, "live": True}
    assert [part["part"] for part in listener.parts] == list(range(len(listener.parts)))
    assert [part["is_last"] for part in listener.parts] == [False] * (len(listener.parts) - 1) + [True]


async def test_talk_opens_session_with_role_and_recorded_voice(listener: Listener) -> None:
    voice = RecordedVoice((np.full(9, 0.5, np.float32), 24_000))
    async with SpeechClient(await listener.server.start()) as client:
        talk = client.talk(recorded(np.zeros(100)), 24_000, system="You teach.", voice=voice, seed=7)
        assert [event async for event in talk][-1].text == "a word"
    opening = listener.server.requests[0]
    assert json.loads(opening["messages"]) == [{"role": "system", "text": "You teach.", "audio": "pcm_in"}]
    assert (opening["pcm_in"].tolist(), opening["sample_rate"]) == ([0.5] * 9, 24_000)
    assert (opening["task"], json.loads(opening["options"])) == (b"duplex", {"seed": 7, "live": True})


class Interrupted(Listener):
    """Server whose connections end after a word, and that knows which events a client has."""

    def __init__(self, not_resumed: str | None = None) -> None:
        super().__init__()
        self.not_resumed, self.resumed, self.has_word, self.lost_part = not_resumed, list[int](), asyncio.Event(), 1

    def _script(self, request: Request) -> list[Step]:
        record = json.loads(request.get("session", "{}"))
        if "session" not in request:
            return [Chunk(0, None, session="s1"), Chunk(1, None, "one"), Until(self.has_word), AWAY]
        if "resume" in record:
            self.resumed.append(record["resume"])
            if self.not_resumed is not None:
                return [ErrorText(self.not_resumed)]
            if len(self.resumed) == 1:
                return [AWAY]
            end = Chunk(2, None, " three", is_final=True, is_last=True)
            return [Chunk(0, None, session="s1"), Chunk(1, None, " two"), Until(self.complete), end]
        if record["part"] == self.lost_part:  # accepted, but the acknowledgement is lost
            self.lost_part = -1
            self.pcm += request["pcm_in"].tolist()
            self.has_word.set()
            return [AWAY]
        if record["part"] == 1:
            return [ErrorText("invalid request: session.part: expected 2, the number of the next part, got 1")]
        return super()._script(request)


AWAY = Abort(grpc.StatusCode.UNAVAILABLE, "the connection was lost")


@pytest.mark.parametrize("method", ["transcribe_live", "talk"])
async def test_client_resumes_a_lost_connection(method: str) -> None:
    """The client gets each event once, and the server each sample."""
    interrupted = Interrupted()
    async with SpeechClient(await interrupted.server.start()) as client:
        sent = [np.full(2000, value, np.float32) for value in (0.25, 0.5, 0.75)]
        live = getattr(client, method)(paced(interrupted, *sent), 24_000, resume_s=60.0)
        events = [event async for event in live]
    assert "".join(event.text for event in events) == "one two three"
    assert [event.index for event in events] == [0, 1, 2, 3]
    assert [event.session for event in events] == ["s1", "", "", ""]
    assert interrupted.resumed == [1, 1]
    assert interrupted.pcm == [0.25] * 2000 + [0.5] * 2000 + [0.75] * 2000
    await interrupted.server.stop()


class Renewed(Listener):
    """Server with a reply of ten events, and a record of the connections and of the end of the session."""

    def __init__(self) -> None:
        super().__init__()
        self.resumed, self.has_ended = list[int](), asyncio.Event()

    def _script(self, request: Request) -> list[Step]:
        record = json.loads(request.get("session", "{}"))
        if "session" in request and "resume" not in record:
            if record["part"] < len(self.parts):  # its acknowledgement was lost
                next_part = f"expected {len(self.parts)}, the number of the next part, got {record['part']}"
                return [ErrorText(f"invalid request: session.part: {next_part}")]
            return super()._script(request)
        if record.get("is_last"):
            self.has_ended.set()
            return [EmptyFinal()]
        first = record.get("resume", 0)
        self.resumed.append(first)
        last = Chunk(10, None, is_final=True, is_last=True)
        chunks = [Chunk(1 + at - first, 100, f" {at}") for at in range(first, 9)]
        return [Chunk(0, None, session="s1"), *chunks, Until(self.complete), last]


async def test_long_resumable_session_continues_with_another_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton keeps the responses to a request. The first event of a connection counts, too, and so do samples."""
    monkeypatch.setattr(live_speech, "MAX_BYTES", 4 * (live_speech.EVENT_BYTES + 300))
    renewed = Renewed()
    async with SpeechClient(await renewed.server.start()) as client:
        pieces = recorded(np.full(5000, 0.25, np.float32))
        events = [event async for event in client.talk(pieces, 24_000, resume_s=30.0)]
    assert "".join(event.text for event in events) == " 0 1 2 3 4 5 6 7 8"
    assert [event.index for event in events] == list(range(11))
    assert renewed.resumed == [0, 3, 6, 9]
    assert renewed.pcm == [0.25] * 5000
    assert not renewed.has_ended.is_set()
    await renewed.server.stop()


@pytest.mark.parametrize("resume_s", [0.0, 30.0])
async def test_client_that_leaves_ends_its_resumable_session(resume_s: float) -> None:
    """Otherwise the server would wait for it."""
    renewed = Renewed()
    async with SpeechClient(await renewed.server.start()) as client:
        talk = client.talk(paced(renewed, np.zeros(2000), np.zeros(2000)), 24_000, resume_s=resume_s)
        assert (await anext(talk)).session == "s1"
        await talk.aclose()
    assert renewed.has_ended.is_set() == (resume_s > 0)
    await renewed.server.stop()


class Complete(Listener):
    """Server whose connection ends after the audio, and that refuses any further part."""

    def __init__(self) -> None:
        super().__init__()
        self.written = [asyncio.Event(), asyncio.Event()]  # the client has sent its parts, in each connection

    def _script(self, request: Request) -> list[Step]:
        if "session" not in request:
            return [Chunk(0, None, session="s1"), Until(self.written[0]), AWAY]
        if "resume" in json.loads(request["session"]):
            last = Chunk(1, None, "a word", is_final=True, is_last=True)
            return [Chunk(0, None, session="s1"), Until(self.written[1]), last]
        if self.complete.is_set():
            return [
                ErrorText("invalid request: session: expected no further part, as the audio is complete, got part 1")
            ]
        return super()._script(request)


async def test_session_lost_after_its_audio_sends_no_further_part(monkeypatch: pytest.MonkeyPatch) -> None:
    complete, write = Complete(), live_speech.LiveAudio._write
    written = iter(complete.written)

    async def write_all(session: live_speech.LiveAudio, parts: live_speech.PartStream, name: str) -> None:
        try:
            await write(session, parts, name)
        finally:
            next(written).set()

    monkeypatch.setattr(live_speech.LiveAudio, "_write", write_all)
    async with SpeechClient(await complete.server.start()) as client:
        pieces = recorded(np.zeros(2000, np.float32))
        events = [event async for event in client.talk(pieces, 24_000, resume_s=60.0)]
    assert [event.text for event in events] == ["", "a word"]
    await complete.server.stop()


async def paced(listener: Listener, *pieces: np.ndarray) -> AsyncIterator[np.ndarray]:
    """Yield each piece once the server has those before it."""
    for number, piece in enumerate(pieces):
        while len(listener.pcm) < sum(map(len, pieces[:number])):
            await asyncio.sleep(0.01)
        yield piece


@pytest.mark.parametrize("resume_s", [0.0, 60.0])
async def test_ended_live_session_is_not_resumed(resume_s: float) -> None:
    """The error is that of the lost connection, and names the option."""
    interrupted = Interrupted("invalid request: session.id: expected the id of an open session, got 's1'")
    late = r"; the session was not resumed within options\.resume_s \(60 s\)" if resume_s else ""
    async with SpeechClient(await interrupted.server.start()) as client:
        pieces = paced(interrupted, np.ones(2000), np.ones(2000), np.ones(2000))
        with pytest.raises(ServerUnavailable, match=rf"the connection was lost\){late}$"):
            [event async for event in client.transcribe_live(pieces, 24_000, resume_s=resume_s)]
    assert interrupted.resumed == ([1] if resume_s else [])
    await interrupted.server.stop()


async def test_session_whose_speech_is_lost_is_a_failure_of_the_server() -> None:
    """The decoder was restarted: the session is ended, and nothing is wrong with the request."""
    refusal = (
        "session.resume: expected a session whose speech is still in the decoder; begin another one, got a session"
    )
    interrupted = Interrupted(f"invalid request: {refusal}")
    async with SpeechClient(await interrupted.server.start()) as client:
        live = client.talk(paced(interrupted, np.zeros(2000), np.zeros(2000)), 24_000, resume_s=60.0)
        with pytest.raises(ServerUnavailable, match=rf"the connection was lost\); {refusal}"):
            [event async for event in live]
    assert interrupted.resumed == [1, 0]  # the second one ends the session
    await interrupted.server.stop()


async def test_missing_live_samples_are_filled_with_silence(listener: Listener) -> None:
    """A part that is not complete is filled; without the option, the session waits."""
    may_end = asyncio.Event()

    async def pieces() -> AsyncIterator[np.ndarray]:
        yield np.full(100, 0.5)
        await may_end.wait()
        yield np.full(7, 0.25)

    async with SpeechClient(await listener.server.start()) as client:
        speech = client.transcribe_live(pieces(), 24_000, fill_after_s=0.01)
        reading = asyncio.ensure_future(anext(speech))
        await until_async(lambda: len(listener.parts) >= 2)
        assert listener.pcm[: 2 * 1920] == [0.5] * 100 + [0.0] * (2 * 1920 - 100)
        may_end.set()
        await reading
        async for _ in speech:
            pass
    assert listener.pcm[-7:] == [0.25] * 7
    assert len(listener.pcm) % 1920 == 7


async def test_microphone_or_part_error_ends_the_live_session(listener: Listener) -> None:
    async with SpeechClient(await listener.server.start()) as client:
        with pytest.raises(OSError, match="unplugged"):
            [event async for event in client.transcribe_live(recorded(np.ones(9), error=OSError("unplugged")), 24_000)]
        listener.refusal = "invalid request: pcm_in: expected finite samples, got NaN or infinity"
        with pytest.raises(RequestRefused, match="pcm_in: expected finite samples"):
            [event async for event in client.transcribe_live(recorded(np.ones(9)), 24_000)]


async def test_closed_part_stream_leaves_no_task() -> None:
    """After a failed call, gRPC would wait for the next part for ever."""
    server = FakeServer(lambda request: [Abort(grpc.StatusCode.UNAVAILABLE, "gone")])
    address, before = await server.start(), asyncio.all_tasks()
    try:
        async with SpeechClient(address) as client:
            async with client.parts() as parts:
                with pytest.raises(ServerUnavailable):
                    await parts.write("s1", 0, "A cat", False)
            await until_async(lambda: not any("request_iterator" in str(task) for task in asyncio.all_tasks() - before))
    finally:
        await server.stop()
