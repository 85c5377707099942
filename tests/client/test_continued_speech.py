"""Clauses of a long text continue the speech before them: requests equal those written by hand with `messages`."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from stretto_client import RecordedVoice, RequestRefused, SpeechClient, TaskProfile
from stretto_client.continued_speech import CLAUSE_UNITS, MAX_BEFORE_S, ContinuedSpeech, clause_chars
from stretto_client.live_speech import clauses_of
from stretto_client.model_profile import ModelProfile
from stretto_client.speech_stream import Earlier, SpeechEvent
from stretto_client.unread import UnreadText
from stretto_contract.joins import Join
from tests.client.fake_server import PROFILE, REPORT, Chunk, FakeServer, Request, Step

CLAUSES = [f"The {name} sentence of this text has some words." for name in ("first", "second", "third")]
TEXT = " ".join(CLAUSES)
VOICE = RecordedVoice(b"RIFF", "What is said.")
RECORDED = {"role": "system", "text": "What is said.", "audio": "audio"}


def profile(**fields: Any) -> dict[str, Any]:
    """Return the profile of a model that reads about one of CLAUSES at once."""
    tts = {"name": "tts", "needs": ["text"], "speaks": True} | fields
    return PROFILE | {"max_text_chars": 60, "tasks": [{"name": "asr", "needs": ["audio"]}, tts]}


def spoken(request: Request) -> list[Step]:
    """Return a reply in two events, whose codes are the number of the clause."""
    text = json.loads(request["messages"])[-1]["text"] if "messages" in request else request["text"].decode()
    number = CLAUSES.index(text)
    return [Chunk(0, codes=[[number, 5], [number, 6]]), Chunk(1, codes=[[7], [8]], is_final=True, is_last=True)]


def codes(number: int) -> dict[str, Any]:
    return {"codes": [[number, 5, 7], [number, 6, 8]]}


async def requests(served: dict[str, Any], text: Any = TEXT, **options: Any) -> tuple[list[Any], list[SpeechEvent]]:
    """Return the text or turns of each request, and the events."""
    server = FakeServer(spoken)
    server.profile = served
    arguments = {"join": "continued", "check": "off"} | options
    try:
        async with SpeechClient(await server.start()) as client:
            events = [event async for event in client.speak(text, **arguments)]
    finally:
        await server.stop()
    sent = [json.loads(each["messages"]) if "messages" in each else each["text"].decode() for each in server.requests]
    return [(each["task"].decode(), turns) for each, turns in zip(server.requests, sent, strict=True)], events


TURNS = [
    [{"role": "user", "text": before}, {"role": "assistant"} | codes(number), {"role": "user", "text": clause}]
    for number, (before, clause) in enumerate(pairwise(CLAUSES))
]
ASSISTANT = [
    [{"role": "assistant", "text": before} | codes(number), {"role": "assistant", "text": clause}]
    for number, (before, clause) in enumerate(pairwise(CLAUSES))
]
AS_VOICE = [
    [{"role": "system"} | codes(number), {"role": "user", "text": clause}] for number, clause in enumerate(CLAUSES[1:])
]
AS_VOICE_WITH_TEXT = [
    [{"role": "system", "text": before} | codes(number), {"role": "user", "text": clause}]
    for number, (before, clause) in enumerate(pairwise(CLAUSES))
]
FORMS = {
    "turns": (profile(continues="turns"), "tts", TURNS),
    "assistant": (profile(continues="turns", name="speak", answers="assistant"), "speak", ASSISTANT),
    "voice": (profile(continues="voice", system=["audio"]), "tts", AS_VOICE),
    "voice with text": (profile(continues="voice", system=["audio", "text"]), "tts", AS_VOICE_WITH_TEXT),
}


@pytest.mark.parametrize("form", FORMS)
async def test_later_clauses_have_the_text_and_codes_of_the_one_before(form: str) -> None:
    served, task, expected = FORMS[form]
    sent, events = await requests(served, seed=7)
    assert sent == [("tts", CLAUSES[0]), *((task, turns) for turns in expected)]
    assert all(event.codes is None for event in events)
    assert [event.is_final for event in events] == [False] * 5 + [True]


async def test_recorded_voice_is_kept_and_not_replaced() -> None:
    sent, _ = await requests(FORMS["turns"][0], voice=VOICE)
    first = [RECORDED, {"role": "user", "text": CLAUSES[0]}]
    assert [turns for _, turns in sent] == [first, *([RECORDED, *turns] for turns in TURNS)]
    for voice in (VOICE, "slt"):
        sent, _ = await requests(FORMS["voice"][0], voice=voice)
        alone, _ = await requests(FORMS["voice"][0], voice=voice, join="independent")
        assert sent == alone


async def test_independent_clauses_ask_for_no_codes() -> None:
    sent, events = await requests(FORMS["turns"][0], join="independent")
    assert [text for _, text in sent] == CLAUSES
    _, events = await requests(FORMS["turns"][0], output={"codes": True})
    assert [event.codes is None for event in events] == [False] * 6


async def test_streamed_clauses_continue_as_well() -> None:
    async def written() -> AsyncIterator[str]:
        yield f"{CLAUSES[0]} {CLAUSES[1]} "
        yield CLAUSES[2]

    sent, events = await requests(FORMS["turns"][0], written())
    assert [turns for _, turns in sent] == [CLAUSES[0], *TURNS]
    assert events[-1].is_final


async def test_models_that_cannot_continue_speech_refuse() -> None:
    for served in (profile(), PROFILE):
        with pytest.raises(RequestRefused, match=r"^join: expected independent \('tiny' cannot continue speech\), got"):
            await requests(served)
    with pytest.raises(ValueError, match="join: expected one of independent, continued, got 'smooth'"):
        await requests(profile(), join="smooth")


class Replies:
    """Function that speaks clauses, with an event of these seconds and reports, and records the speech before them."""

    def __init__(self, *replies: tuple[float, dict[str, Any]]):
        self._replies = [*replies]
        self.earlier = list[Earlier]()

    @asynccontextmanager
    async def speak(self, text: str, earlier: Earlier) -> AsyncIterator[AsyncIterator[SpeechEvent]]:
        self.earlier.append(earlier)
        yield self._events(*self._replies[len(self.earlier) - 1])

    async def _events(self, seconds: float, report: dict[str, Any]) -> AsyncIterator[SpeechEvent]:
        array = np.full((1, 1), len(self.earlier), np.int32)
        times = {"duration_s": seconds, "is_final": True, "report": REPORT | report}
        yield SpeechEvent(None, "u", 0, "audio", codes=array, **times)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "report"),
    [
        (MAX_BEFORE_S + 0.01, {}),
        (1.0, {"finish_reason": "length"}),
        (1.0, {"finish_reason": "repetition"}),
        (1.0, {"faults": [{"fault": "hum", "start_s": 0.0}]}),
        (1.0, {"num_pieces": 2}),
    ],
    ids=["too long", "length", "repetition", "faulty", "piece"],
)
async def test_long_cut_and_faulty_clauses_are_not_continued(seconds: float, report: dict[str, Any]) -> None:
    """The last good clause is continued instead."""
    replies = Replies((MAX_BEFORE_S, {"faults": []}), (seconds, report), (1.0, {}), (1.0, {}))
    task = TaskProfile("tts", continues="turns")

    async def known() -> ModelProfile:
        return ModelProfile("x", 8_000, 100, tasks=(task,))

    speak = ContinuedSpeech(replies.speak, known, {})
    for text in "abcd":
        async with speak(text) as events:
            assert [event async for event in events]
    before = [earlier.turns and (earlier.turns[0]["text"], earlier.turns[1]["codes"]) for earlier in replies.earlier]
    assert before == [(), ("a", [[1]]), ("a", [[1]]), ("c", [[3]])]


@pytest.mark.parametrize("text", ["a cat sat on the mat. ", "猫坐在垫子上。", "12 CATS! ", "\n"])
def test_clauses_are_short_enough_to_be_continued(text: str) -> None:
    assert 0 < clause_chars(text * 50, 4000, "continued") * 0.07 <= CLAUSE_UNITS * 0.07 < MAX_BEFORE_S
    assert clause_chars(text * 50, 4000, "independent") == 4000


@pytest.mark.parametrize("join", ["continued", "independent"])
async def test_streamed_text_in_large_pieces_has_clauses_that_can_be_continued(join: Join) -> None:
    async def written() -> AsyncIterator[str]:
        yield "a cat sat on the mat. " * 70

    async with UnreadText(written()) as unread:
        lengths = [len(clause) async for clause in clauses_of(unread, 4000, join)]
    assert sum(lengths) > 1500
    assert (max(lengths) <= CLAUSE_UNITS) == (join == "continued")
