"""Marks in a text select the voices of its clauses."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stretto_client import RecordedVoice, RequestRefused, SpeechClient, SpeechEvent
from stretto_client.markup import Markup, find_voices, open_reader, read_text
from stretto_client.ssml import VoiceChange
from stretto_client.tags import MAX_VOICE_CHARS
from stretto_client.voices import MAX_MARKED_VOICES, MarkedVoices, models_voice
from tests.client.fake_server import PROFILE, REPORT, Chunk, FakeServer, Request, Step, Taken, Until
from tests.client.reading import cut, written
from tests.client.test_model_profile import read as read_profile

SPOKEN = [Chunk(0, 640, words=("a",)), Chunk(1, 640, is_final=True, is_last=True)]
TEXT = "One. [voice:SLT]Two.[voice: rms ] Three. [/voice]Four."
VOICED = [("One.", None), ("Two.", "slt"), ("Three.", "rms"), ("Four.", None)]


def voices_of(server: FakeServer) -> list[tuple[str, Any]]:
    """Return the text and the voice of each request."""
    sent = server.requests
    return [(each["text"].decode(), json.loads(each.get("options", "{}")).get("voice")) for each in sent]


async def spoken(
    text: Any, served: dict[str, Any] = PROFILE, script: Any = lambda _: SPOKEN, **options: Any
) -> tuple[FakeServer, list[SpeechEvent]]:
    """Speak a text, and return the server with the requests, and the events."""
    server = FakeServer(script, profile=served)
    try:
        async with SpeechClient(await server.start()) as client:
            arguments = {"markup": "auto", "check": "off"} | options
            return server, [event async for event in client.speak(text, **arguments)]
    finally:
        await server.stop()


SSML = "<speak>One. <voice name='slt'>Two. <voice name='rms'>Three.</voice> Four.</voice></speak>"
NESTED = [("One.", None), ("Two.", "slt"), ("Three.", "rms"), ("Four.", "slt")]


@pytest.mark.parametrize("sizes", [None, (1,), (7, 2)], ids=["whole", "letters", "pieces"])
@pytest.mark.parametrize(("text", "expected"), [(TEXT, VOICED), (SSML, NESTED)], ids=["marks", "ssml"])
async def test_each_clause_has_the_voice_of_its_mark(
    text: str, expected: list[tuple[str, str | None]], sizes: tuple[int, ...] | None
) -> None:
    server, events = await spoken(text if sizes is None else written(*cut(text, sizes)), seed=7)
    assert voices_of(server) == expected
    assert {json.loads(each["options"])["seed"] for each in server.requests} == {7}
    assert [event.start_s for event in events if event.words] == [0.0, 0.08, 0.16, 0.24]
    assert events[-1].is_final


async def test_without_marks_the_requests_are_those_of_a_text_that_is_not_read() -> None:
    for text in ("It is [sic] so, [voice] and [voices:slt].", f"[voice:{'x' * (MAX_VOICE_CHARS + 1)}] Hi."):
        plain, _ = await spoken(text, markup="none", seed=7)
        marked, _ = await spoken(text, seed=7)
        assert marked.requests == plain.requests
        assert len(plain.requests) == 1 or len(text) > 160


@pytest.mark.parametrize(
    ("text", "markup"),
    [("`[voice:slt]` Hi.", "auto"), (r"\[voice:slt] Hi.", "auto"), ("[voice:slt] Hi.", "none")],
    ids=["code", "escaped", "none"],
)
async def test_literal_marks_are_read(text: str, markup: Markup) -> None:
    server, _ = await spoken(text, markup=markup)
    assert voices_of(server) == [("[voice:slt] Hi.", None)]


async def test_marks_in_reasoning_have_no_effect() -> None:
    server, _ = await spoken("<think>[voice:nobody] Hm.</think>[voice:slt]Hi.")
    assert voices_of(server) == [("Hi.", "slt")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("One. [voice:nobody]Two.", "text.voice: expected one of slt, rms, got 'nobody'"),
        ("<speak>One. <voice gender='female'>Two.</voice></speak>", "text.voice: expected one of slt, rms, got ''"),
        (
            "".join(f"One. [voice:{'slt,' * n}]" for n in range(MAX_MARKED_VOICES + 2)),
            f"text.voice: expected at most {MAX_MARKED_VOICES} different voices, got more",
        ),
    ],
    ids=["unknown", "without a name", "many"],
)
async def test_voices_that_a_text_may_not_use_are_refused_before_it_is_spoken(text: str, message: str) -> None:
    several = PROFILE | {"max_voices": 100} if "slt," in text else PROFILE
    server = FakeServer(lambda _: SPOKEN, profile=several)
    try:
        async with SpeechClient(await server.start()) as client:
            with pytest.raises(RequestRefused) as refusal:
                _ = [event async for event in client.speak(text, markup="auto")]
    finally:
        await server.stop()
    assert str(refusal.value).startswith(message) or "of these" in str(refusal.value)
    assert not server.requests


def test_names_of_voices_are_found_in_any_letter_case_and_in_groups() -> None:
    assert models_voice(read_profile(PROFILE), "SLT") == "slt"
    assert models_voice(read_profile(PROFILE | {"max_voices": 2}), "rms, Slt") == "rms,slt"
    with pytest.raises(RequestRefused, match=r"expected no voice \(it has none\), got 'a'"):
        models_voice(read_profile(PROFILE | {"voices": []}), "a")


async def test_a_marked_recording_is_sent_with_its_clauses_only() -> None:
    async def find(name: str) -> RecordedVoice:
        return RecordedVoice(b"RIFF", name)

    server, _ = await spoken("One. [voice:me]Two. [voice:]Three.", voice="slt", voices=MarkedVoices(find))
    assert [each.get("audio") for each in server.requests] == [None, b"RIFF", None]
    assert json.loads(server.requests[1]["messages"])[0] == {"role": "system", "text": "me", "audio": "audio"}
    assert "voice" not in json.loads(server.requests[1]["options"])
    assert [json.loads(server.requests[number]["options"])["voice"] for number in (0, 2)] == ["slt", "slt"]


def coded(request: Request) -> list[Step]:
    """Return a reply whose codes are the number of its clause."""
    turns = json.loads(request["messages"]) if "messages" in request else [{"text": request["text"].decode()}]
    number = int(turns[-1]["text"].strip("."))
    return [Chunk(0, codes=[[number], [number]], is_final=True, is_last=True)]


async def test_a_clause_continues_the_one_before_in_its_own_voice() -> None:
    tts = {"name": "tts", "needs": ["text"], "speaks": True, "continues": "turns"}
    served = PROFILE | {"tasks": [tts]}
    server, _ = await spoken("1. [voice:slt]2. [voice:rms]3. [voice:slt]4. [/voice]5.", served, coded, join="continued")
    earlier = [json.loads(each["messages"])[:-1] if "messages" in each else [] for each in server.requests]
    before = [turns[-1]["codes"][0][0] if turns else None for turns in earlier]
    assert before == [None, None, None, 2, 1]


class Passages:
    """Server that reads text word by word, and speaks each streamed text when it is complete."""

    def __init__(self) -> None:
        self.passages = list[tuple[str, dict[str, Any]]]()
        self._complete = list[asyncio.Event]()

    def __call__(self, request: Request) -> list[Step]:
        if "session" not in request:
            self.passages.append((request["text"].decode(), json.loads(request["options"])))
            self._complete.append(asyncio.Event())
            begin = Chunk(0, None, session=f"s{len(self.passages)}")
            end = Chunk(1, 640, words=("a",), is_final=True, is_last=True, more={"report": REPORT | {"seed": 5}})
            return [begin, Until(self._complete[-1]), end]
        record = json.loads(request["session"])
        number = int(record["id"][1:]) - 1
        text, options = self.passages[number]
        self.passages[number] = (text + request["text"].decode(), options)
        if record["is_last"]:
            self._complete[number].set()
        return [Taken(record["part"])]


@pytest.mark.parametrize("sizes", [(1,), (1000,)], ids=["letters", "whole"])
async def test_a_text_that_is_read_word_by_word_has_a_request_for_each_passage(sizes: tuple[int, ...]) -> None:
    script = Passages()
    _, events = await spoken(written(*cut(TEXT, sizes)), PROFILE | {"reads_live_text": True}, script)
    assert [(text.strip(), options.get("voice")) for text, options in script.passages] == VOICED
    assert [options.get("seed") for _, options in script.passages] == [None, 5, 5, 5]
    assert [event.is_final for event in events] == [False] * 7 + [True]
    assert [event.start_s for event in events if event.words] == pytest.approx([0.04, 0.08, 0.12, 0.16])


async def test_a_passage_without_text_is_not_spoken() -> None:
    script = Passages()
    _, events = await spoken(written("[voice:slt] ", "Hi.", " [/voice]\n"), PROFILE | {"reads_live_text": True}, script)
    assert [(text.strip(), options["voice"]) for text, options in script.passages] == [("Hi.", "slt")]
    assert events[-1].is_final
    assert events[-1].report is not None
    with pytest.raises(RequestRefused, match="text: expected at least one character, got none"):
        await spoken(written("[voice:slt] ", "[/voice]"), PROFILE | {"reads_live_text": True}, Passages())


MARKS = ("[voice:a]", "[VOICE: b ]", "[/voice]", "[voice:]", "[voice")
BITS = (*MARKS, "`", "\\", "x ", "y.\n", "*z* ", "<think>", "</think>")


@given(st.lists(st.sampled_from(BITS), max_size=20).map("".join), st.lists(st.integers(1, 9), min_size=1, max_size=9))
@example("a\x1cb [voice:a]c", [1])
def test_marks_do_not_depend_on_the_division_into_pieces(text: str, sizes: list[int]) -> None:
    def parts(pieces: list[str]) -> tuple[str, list[object]]:
        reader = open_reader("auto")
        return "".join(map(reader.add, pieces)) + reader.end(), list(reader.pauses)

    read = parts([text])
    assert parts(cut(text, sizes)) == read
    assert read[0].count("\x1c") == len(read[1])


async def test_marks_are_found_without_speaking() -> None:
    assert await find_voices(TEXT + "[voice:SLT]Five.", "auto") == ["SLT", "rms"]
    assert await find_voices(SSML, "ssml") == ["slt", "rms"]
    assert await find_voices("[vo\u200bice:slt]One.", "auto") == ["slt"]  # invisible characters are not read
    thought = "<thinking>[voice:slt]One.</thinking>Two."  # a tag of the model, or reasoning, which is not spoken
    assert [await find_voices(thought, "auto", tags) for tags in (["<thinking>"], [])] == [["slt"], []]
    assert await find_voices(TEXT, "none") == await find_voices("<speak><voice>", "ssml") == []
    assert (await read_text("[voice:a]Hi.", "markdown"))[0] == VoiceChange("a")
