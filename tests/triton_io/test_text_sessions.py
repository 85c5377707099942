"""Streamed text: the model gets the words of the complete text, whatever else is sent."""

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto.errors import InvalidRequest
from stretto.family.input_tracks import TextTrack
from stretto.family.text import MAX_PENDING_CHARS, SubwordStream
from stretto.records.chunk import Alignment, Chunk, LMChunk, Report, Sound, WordMark
from stretto.records.flow_address import FlowAddress
from stretto.records.prompt import Prompt, SourceWord, TextPart
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.chunking import ChunkPolicy, Pacer
from stretto.streams.layout import Segment
from stretto.triton_io.speech_service import TextSession, TextSessions
from stretto_contract.pronunciation import Dictionary
from tests.families.test_text_stream import QWEN, TEXTS, tokenizer
from tests.small_vocabularies import TRACKED_CSM
from tests.speech_families import SEPARATE_TEXT

TOKENIZER = tokenizer(QWEN)
SUBWORDS = range(7, 7 + 10_000)
FLOW = FlowAddress("stretto_flow_1_" + "0" * 32, 1, 1)
TEXT_STREAM = TRACKED_CSM.text_track.stream
WIDTH = TRACKED_CSM.layout.num_input_streams
END = TRACKED_CSM.text_track.end_id


class Model:
    """Fake model that speaks a complete text in one chunk. `room` is the number of words accepted after the first."""

    family = TRACKED_CSM

    def __init__(self, room: int = 1000) -> None:
        self.prompt: Prompt | None = None
        self.words: list[int] = []
        self.room, self.is_complete = room, asyncio.Event()
        self.is_speaking = False

    def text_stream(self) -> SubwordStream:
        return SubwordStream(TOKENIZER, SUBWORDS)

    async def generate(
        self, prompt: Prompt, request_id: str, pacer: Pacer, host: str = ""
    ) -> AsyncGenerator[LMChunk, None]:
        self.prompt, self.is_speaking = prompt, True
        self.words = [int(prompt.rows[-1, TEXT_STREAM]), *prompt.track]
        if not prompt.is_open:
            assert self.words.pop() == END
            self.is_complete.set()
        yield LMChunk(Chunk(0, Segment.AUDIO), None)
        await self.is_complete.wait()
        yield LMChunk(Chunk(1, Segment.TAIL, is_final=True), None)

    async def begun(self) -> None:
        while self.prompt is None:
            await asyncio.sleep(0)

    def max_words(self, prompt: Prompt) -> int:
        return self.room

    async def write(self, request_id: str, ids: Sequence[int], is_last: bool = False) -> None:
        assert self.is_speaking, "it takes no words before it is asked to speak"
        assert request_id == "u"
        assert not self.is_complete.is_set()
        await asyncio.sleep(0)
        self.words += ids
        assert len(self.words) <= 1 + self.room
        if is_last:
            self.is_complete.set()


def prompt(opening: str = "") -> Prompt:
    sampling = SamplingConfig(SegmentSampling(0.0), SegmentSampling(0.0), seed=1)
    return Prompt("tts", np.zeros((3, WIDTH), np.int32), sampling, is_open=True, opening=opening)


class Reply:
    """The reply to streamed text, and the session name from its first chunk."""

    def __init__(self, model: Model, opening: str = "") -> None:
        self.sessions = TextSessions(model)
        self.chunks = self.sessions.speak(prompt(opening), "u", FLOW, Pacer(ChunkPolicy()))

    async def name(self) -> str:
        first = await anext(self.chunks)
        assert (first.chunk.index, first.codes) == (0, None)
        return first.chunk.session

    async def rest(self) -> list[LMChunk]:
        return [chunk async for chunk in self.chunks]


def expected(text: str) -> list[int]:
    return [SUBWORDS.start + token_id for token_id in TOKENIZER.encode(text)]


class WholeWords:
    """Token stream of a family that reports word times, for parts that consist of whole words: each is a token."""

    def __init__(self, num_chars: int = 0, sources: tuple[SourceWord, ...] = ()) -> None:
        self.num_chars, self.sources = num_chars, sources

    def after(self, text: str, is_last: bool) -> tuple[list[int], "WholeWords"]:
        start, found = self.num_chars, re.finditer(r"\S+", text)
        sources = tuple(SourceWord(each.group(), start + each.start(), start + each.end()) for each in found)
        return [9] * len(sources), WholeWords(start + len(text), sources)


class TimedModel(Model):
    """Fake model that speaks all words but the last, two of them in one chunk."""

    def text_stream(self) -> Any:
        return WholeWords()

    async def generate(
        self, prompt: Prompt, request_id: str, pacer: Pacer, host: str = ""
    ) -> AsyncGenerator[LMChunk, None]:
        async for item in super().generate(prompt, request_id, pacer):
            marks = (WordMark("it", 2), WordMark("s", 5)) if item.chunk.is_final else (WordMark("so", 1),)
            report = Report("stop", 1, 1, 1, 1, 1.0, 0, 0.0, None, 1.0) if item.chunk.is_final else None
            yield replace(item, chunk=replace(item.chunk, marks=marks, report=report))


def test_words_of_streamed_text_have_their_places() -> None:
    async def run() -> list[LMChunk]:
        reply = Reply(TimedModel(), "“So” ")
        name = await reply.name()
        speaking = asyncio.create_task(reply.rest())
        await reply.sessions.write(TextPart(name, 0, " it ’s ", False))
        await reply.sessions.write(TextPart(name, 1, "5", True))
        return await speaking

    first, last = asyncio.run(run())
    assert first.chunk.marks == (WordMark("“So”", 1, place=(0, 4)),)
    assert last.chunk.marks == (WordMark("it", 2, place=(6, 8)), WordMark("’s", 5, place=(9, 11)))
    assert last.chunk.report is not None
    assert last.chunk.report.untimed_words == ("5",)


def test_words_are_replaced_across_parts_and_keep_their_places() -> None:
    """A word of a dictionary may be split between parts; a word that is spoken as several has one time."""

    async def run() -> tuple[list[LMChunk], Any]:
        sessions = TextSessions(TimedModel(), dictionary=Dictionary({"SQL": "ess queue ell", "it": "that"}))
        given = replace(prompt("The S"), spellings={"it": "this"})
        chunks = sessions.speak(given, "u", FLOW, Pacer(ChunkPolicy()))
        name = (await anext(chunks)).chunk.session
        for number, part in enumerate(("QL", ", it ", "5")):
            await sessions.write(TextPart(name, number, part, number == 2))
        session = sessions._open[name]
        return [each async for each in chunks], session.sources

    chunks, sources = asyncio.run(run())
    sql, it = SourceWord("SQL,", 4, 8), SourceWord("it", 9, 11)
    assert sources == (SourceWord("The", 0, 3), sql, sql, sql, it, SourceWord("5", 12, 13))
    marks = [mark for each in chunks for mark in each.chunk.marks]
    assert marks == [WordMark("The", 1, place=(0, 3)), WordMark("SQL,", 2, place=(4, 8))]  # "queue" has no mark
    assert chunks[-1].chunk.report is not None
    assert chunks[-1].chunk.report.untimed_words == ("it", "5")


@pytest.mark.parametrize("cuts", [(), (1,), (3, 4), (5, 6, 7), (8,)])
def test_replaced_words_do_not_depend_on_the_parts(cuts: tuple[int, ...]) -> None:
    text = "My SQL's <a> SQL"

    async def run() -> list[int]:
        model = Model()
        sessions = TextSessions(model, dictionary=Dictionary({"SQL": "sequel", "a": "b"}))
        chunks = sessions.speak(prompt(), "u", FLOW, Pacer(ChunkPolicy()))
        name = (await anext(chunks)).chunk.session
        for number, (start, end) in enumerate(pairwise((0, *cuts, len(text)))):
            await sessions.write(TextPart(name, number, text[start:end], end == len(text)))
        _ = [each async for each in chunks]
        return model.words

    assert asyncio.run(run()) == expected("My sequel's <a> sequel")


def test_model_starts_at_the_first_word_and_gets_later_words_live() -> None:
    async def run() -> None:
        model = Model()
        reply = Reply(model, "He")
        name = await reply.name()
        speaking = asyncio.create_task(reply.rest())
        for _ in range(20):
            await asyncio.sleep(0)
        assert model.prompt is None, "there is no word yet"
        receipt = await reply.sessions.write(TextPart(name, 0, "llo, wor", False))
        assert (receipt.utterance, receipt.receipt, receipt.flow, receipt.chunk) == ("u", 0, FLOW, None)
        await model.begun()
        assert model.prompt is not None
        assert model.words == expected("Hello,")
        assert model.prompt.rows[:-1].tolist() == prompt().rows[:-1].tolist()
        await reply.sessions.write(TextPart(name, 1, "ld.", True))
        chunks = await speaking
        assert model.words == expected("Hello, world.")
        assert [each.chunk.index for each in chunks] == [1, 2]
        assert len(reply.sessions) == 0

    asyncio.run(run())


def test_text_completed_before_its_start_becomes_a_closed_prompt() -> None:
    async def run() -> None:
        text = "Hello, world, and all that comes"
        model = Model(room=len(expected(text)) - 1)  # none is left
        reply = Reply(model)
        name = await reply.name()
        await reply.sessions.write(TextPart(name, 0, text, True))
        assert [each.chunk.is_final for each in await reply.rest()] == [False, True]
        assert model.words == expected(text)
        assert model.prompt is not None
        assert not model.prompt.is_open
        assert model.prompt.sampling.audio.min_rows == len(model.prompt.track) == len(expected(text))

    asyncio.run(run())


@pytest.mark.parametrize("alignment", [Alignment(), None])
def test_last_chunk_has_the_text_if_words_are_aligned(alignment: Alignment | None) -> None:
    async def run() -> None:
        sessions = TextSessions(Model())
        chunks = sessions.speak(replace(prompt("He"), alignment=alignment), "u", FLOW, Pacer(ChunkPolicy()))
        name = (await anext(chunks)).chunk.session
        for part, text in enumerate(("llo, ", "wor", "ld.")):
            await sessions.write(TextPart(name, part, text, part == 2))
        written = [each.chunk.written async for each in chunks]
        assert written == ["", "Hello, world." if alignment else ""]

    asyncio.run(run())


def test_first_chunk_selects_the_voice() -> None:
    """The decoder accepts a recorded voice only in the first chunk."""

    async def run() -> None:
        sound = Sound.from_arrays(np.arange(2, dtype=np.int32), np.ones((4, 3), np.float32), np.ones(5, np.float32))
        model = Model()
        sessions = TextSessions(model)
        given = replace(prompt("Hello, wor"), sound=sound, voice=3)
        chunks = sessions.speak(given, "u", FLOW, Pacer(ChunkPolicy()))
        first = (await anext(chunks)).chunk
        assert (first.index, first.sound, first.voice) == (0, sound, 3)
        await sessions.write(TextPart(first.session, 0, "ld.", True))
        _ = [each async for each in chunks]
        assert model.prompt is not None
        assert model.prompt.sound is None

    asyncio.run(run())


SEPARATE = replace(TRACKED_CSM, track=replace(SEPARATE_TEXT.track, stream=TEXT_STREAM, pad_id=54, end_id=END))


def test_text_in_separate_rows_follows_the_recording_text() -> None:
    """The prompt's last row has no word, and the minimum reply length does not depend on the text."""

    async def run() -> None:
        model = Model()
        model.family = SEPARATE
        sessions = TextSessions(model)
        begun = replace(prompt("Hello, wor"), track=(50, 3, 4))
        chunks = sessions.speak(begun, "u", FLOW, Pacer(ChunkPolicy()))
        name = (await anext(chunks)).chunk.session
        await sessions.write(TextPart(name, 0, "ld.", True))
        _ = [each async for each in chunks]
        assert model.prompt is not None
        np.testing.assert_array_equal(model.prompt.rows, begun.rows)
        assert model.prompt.track == (50, 3, 4, *expected("Hello, world."), END)
        assert (model.prompt.is_open, model.prompt.sampling.audio.min_rows) == (False, 0)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (TextPart("", 1, "a ", False), "session.part: expected 0, the number of the next part, got 1"),
        (TextPart("", 0, "", True), "text: expected at least one character in all, got none"),
        (
            TextPart("", 0, "a" * (MAX_PENDING_CHARS + 1), False),
            "text: expected a word that ends within 4096 characters",
        ),
        (TextPart("nobody's", 0, "a ", False), "session.id: expected the id of an open streamed text, got"),
    ],
)
def test_refused_text_part_leaves_the_text_unchanged(part: TextPart, message: str) -> None:
    async def run() -> None:
        model = Model()
        reply = Reply(model)
        name = await reply.name()
        with pytest.raises(InvalidRequest) as refusal:
            await reply.sessions.write(TextPart(part.session or name, part.part, part.text, part.is_last))
        assert str(refusal.value).startswith(message)
        await reply.sessions.write(TextPart(name, 0, "Hello", True))
        await reply.rest()
        assert model.words == expected("Hello")

    asyncio.run(run())


@pytest.mark.parametrize("has_begun", [False, True])
def test_overlong_text_parts_are_refused_and_can_be_replaced(has_begun: bool) -> None:
    async def run() -> None:
        opening = "Well, "
        model = Model(room=6)
        reply = Reply(model, opening if has_begun else "")
        name, speaking = await reply.name(), asyncio.create_task(reply.rest())
        if has_begun:
            await model.begun()
        room = 7 - len(SubwordStream(TOKENIZER, SUBWORDS).after(opening, False)[0]) * has_begun
        with pytest.raises(
            InvalidRequest, match=f"text: expected at most {room} more tokens, because each frame reads one"
        ):
            await reply.sessions.write(TextPart(name, 0, "this is much more than there is room for", False))
        await reply.sessions.write(TextPart(name, 0, "a", True))
        await speaking
        assert model.words == expected(opening * has_begun + "a")
        with pytest.raises(InvalidRequest, match=r"session\.id"):
            await reply.sessions.write(TextPart(name, 1, "b", False))

    asyncio.run(run())


def test_repeated_and_trailing_text_parts_are_refused() -> None:
    async def run() -> None:
        session = TextSession(Model(), "u", FLOW, prompt())
        await session.write(TextPart(session.id, 0, "a ", False))
        with pytest.raises(InvalidRequest, match=r"session\.part: expected 1, the number of the next part, got 0"):
            await session.write(TextPart(session.id, 0, "a ", False))
        await session.write(TextPart(session.id, 1, "b", True))
        with pytest.raises(
            InvalidRequest, match="session: expected no further part, because the text is complete, got part 2"
        ):
            await session.write(TextPart(session.id, 2, "c", False))
        assert await session.begin() == expected("a b")

    asyncio.run(run())


class ThreeAhead(TextTrack):
    num_prompt_ids = 3


class ThreeFirst(Model):
    """Fake model whose prompts contain three ids, in rows with other ids on stream 0."""

    family = replace(TRACKED_CSM, track=ThreeAhead(TEXT_STREAM, pad_id=54, end_id=END))


@pytest.mark.parametrize(
    ("parts", "kept"),
    [
        (["a b ", "c ", "d e", ""], [1, 2, 3, 4]),
        (["a b c d e"], [1, 2, 3, 4]),
        (["a ", "b"], [1, 3, 4]),
        (["a"], [1, 4]),
    ],
    ids=["more follow", "at once", "two", "one"],
)
def test_ids_before_the_first_frame_are_in_the_last_rows_of_the_prompt(parts: list[str], kept: list[int]) -> None:
    """A shorter text has fewer rows, the last of which is that before the first frame."""

    async def run() -> None:
        model, text = ThreeFirst(), "".join(parts)
        rows = np.repeat(np.arange(1, 5, dtype=np.int32)[:, None], WIDTH, 1)
        sessions = TextSessions(model)
        chunks = sessions.speak(replace(prompt(), rows=rows), "u", FLOW, Pacer(ChunkPolicy()))
        name = (await anext(chunks)).chunk.session
        speaking = asyncio.ensure_future(_all(chunks))
        for at, part in enumerate(parts):
            await sessions.write(TextPart(name, at, part, at + 1 == len(parts)))
        await speaking
        assert model.prompt is not None
        ids, num_first = expected(text), len(kept) - 1
        assert model.prompt.rows[:, 0].tolist() == kept
        assert model.prompt.rows[:, TEXT_STREAM].tolist() == [1, *ids[:num_first]]
        assert model.words[1:] == ids[num_first:]

    asyncio.run(run())


async def _all(chunks: AsyncGenerator[LMChunk, None]) -> list[LMChunk]:
    return [chunk async for chunk in chunks]


@pytest.mark.parametrize(
    ("model", "opening", "message"),
    [
        (Model, "wor", r"text: expected a first word within 0\.01 s, got none"),
        (ThreeFirst, "a b ", r"expected 3 tokens or the end of the text within 0\.01 s"),
    ],
)
def test_text_without_enough_tokens_times_out(model: type[Model], opening: str, message: str) -> None:
    async def run() -> None:
        session = TextSession(model(), "u", FLOW, prompt(opening), first_word_s=0.01)
        with pytest.raises(InvalidRequest, match=message):
            await session.begin()

    asyncio.run(run())


def test_closed_reply_removes_its_text_session() -> None:
    async def run() -> None:
        sessions = TextSessions(Model())
        left = sessions.speak(prompt(), "u", FLOW, Pacer(ChunkPolicy()))
        name = (await anext(left)).chunk.session
        await left.aclose()
        assert len(sessions) == 0
        with pytest.raises(InvalidRequest, match=r"session\.id"):
            await sessions.write(TextPart(name, 0, "a", True))

    asyncio.run(run())


def test_session_ids_are_unpredictable() -> None:
    names = {TextSession(Model(), "u", FLOW, prompt()).id for _ in range(100)}
    assert len(names) == 100
    assert {len(name) for name in names} == {22}  # of 128 random bits


@pytest.mark.slow
@given(data=st.data(), text=st.sampled_from([text for text in TEXTS if text.strip()]), opening=st.integers(0, 9))
def test_invalid_parts_do_not_affect_the_streamed_text(data: Any, text: str, opening: int) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(opening, len(text)), max_size=6)))
    bounds = [min(opening, len(text)), *cuts, len(text)]
    pieces = [text[start:stop] for start, stop in pairwise(bounds)]

    async def run() -> None:
        model = Model()
        reply = Reply(model, text[:opening])
        name = await reply.name()
        speaking = asyncio.create_task(reply.rest())
        for number, piece in enumerate(pieces):
            for wrong in data.draw(st.lists(st.integers(0, 9), max_size=2)):
                bad = TextPart(name, wrong, "x", False) if wrong != number else TextPart("n", number, "x", True)
                with pytest.raises(InvalidRequest):
                    await reply.sessions.write(bad)
            if data.draw(st.booleans()):
                await asyncio.sleep(0)
            await reply.sessions.write(TextPart(name, number, piece, number == len(pieces) - 1))
        await speaking
        assert model.words == expected(text)

    asyncio.run(run())
