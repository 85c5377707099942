"""Texts of any length through a server that accepts 160 characters per request."""

import asyncio
import gc
import json
import threading
import weakref
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest

from stretto_client import (
    RecordedVoice,
    RequestCancelled,
    RequestRefused,
    ServerFull,
    ServerUnavailable,
    SpeechEvent,
    long_speech,
    speech_stream,
)
from stretto_client.joint import FADE_S
from stretto_client.long_speech import PARAGRAPH_PAUSE_S, split_with_pauses
from stretto_client.markup import Markup, Parts
from stretto_client.produced_speech import MAX_EVENTS_AHEAD
from stretto_client.tries import patiently
from stretto_contract.joins import Join
from stretto_contract.scripts import Transliteration, other_script
from tests.client.conftest import Serve
from tests.client.fake_server import PROFILE, REPORT, Abort, Chunk, ErrorText, FakeServer, Request, Step, Until
from tests.client.reading import written
from tests.patience import PATIENCE_S

SENTENCE = "This sentence has exactly fifty characters, I say."
LONG = " ".join([SENTENCE] * 7)
SPOKEN = [Chunk(0, 640, words=("a",)), Chunk(1, 640, is_final=True, is_last=True)]


def texts(server: FakeServer) -> list[str]:
    return [request["text"].decode() for request in server.requests]


async def test_long_text_is_split_into_requests_with_one_seed(serve: Serve) -> None:
    server, client = await serve(lambda _: SPOKEN)
    events = [event async for event in client.speak(LONG, voice="slt")]
    assert texts(server) == [" ".join([SENTENCE] * 3)] * 2 + [SENTENCE]
    options = [json.loads(request["options"]) for request in server.requests]
    assert {each["voice"] for each in options} == {"slt"}
    assert len({each["seed"] for each in options}) == 1
    assert [event.is_final for event in events] == [False] * 5 + [True]
    assert np.allclose([event.start_s for event in events[::2]], [0, 0.08, 0.16])
    assert sum(len(event.pcm) for event in events if event.pcm is not None) == 6 * 640


def spoken_piece(request: Request) -> list[Step]:
    """Return the reply of a server that speaks every text in three pieces."""
    assert json.loads(request["options"])["piece"] in range(3)
    return [Chunk(0, 640), Chunk(1, 640, is_final=True, is_last=True, more={"report": REPORT | {"num_pieces": 3}})]


def pieces(server: FakeServer) -> list[tuple[str, int]]:
    return [(request["text"].decode(), json.loads(request["options"])["piece"]) for request in server.requests]


async def test_pieces_that_the_server_cuts_are_requested_one_by_one(serve: Serve) -> None:
    """Each request has the whole text, or as much of it as fits a request."""
    server, client = await serve(spoken_piece)
    server.profile = PROFILE | {"options": ["piece"]}
    events = [event async for event in client.speak(LONG, voice="slt", seed=7)]
    parts = [" ".join([SENTENCE] * number) for number in (3, 3, 1)]
    assert pieces(server) == [(part, piece) for part in parts for piece in range(3)]
    assert {json.loads(request["options"])["seed"] for request in server.requests} == {7}
    assert [event.is_final for event in events] == [False] * 17 + [True]
    assert sum(len(event.pcm) for event in events if event.pcm is not None) == 18 * 640
    assert events[-1].report is not None
    assert events[-1].report["num_frames"] == 9 * REPORT["num_frames"]


async def test_pieces_of_streamed_text_are_requested_one_by_one(serve: Serve) -> None:
    server, client = await serve(spoken_piece)
    server.profile = PROFILE | {"options": ["piece"]}

    async def written() -> AsyncIterator[str]:
        yield f"{SENTENCE} "

    events = [event async for event in client.speak(written(), voice="slt")]
    assert pieces(server) == [(SENTENCE, piece) for piece in range(3)]
    assert [event.is_final for event in events] == [False] * 6 + [True]


async def test_only_the_requested_piece_is_spoken(serve: Serve) -> None:
    server, client = await serve(spoken_piece)
    events = [event async for event in client.speak(LONG, voice="slt", piece=1)]
    assert pieces(server) == [(LONG, 1)]
    assert events[-1].is_final


async def test_paragraphs_of_a_long_text_keep_their_pauses(serve: Serve) -> None:
    """Silence precedes a request that begins a paragraph; within a request, line ends remain."""
    server, client = await serve(lambda _: SPOKEN)
    paragraph = f"{SENTENCE} {SENTENCE}"
    events = [event async for event in client.speak(f"{paragraph}\n\n{SENTENCE}\n\n{paragraph}")]
    assert texts(server) == [f"{paragraph}\n\n{SENTENCE}", paragraph]
    silent = [event for event in events if event.pcm is not None and not event.pcm[round(FADE_S * 16_000) :].any()]
    assert [(event.start_s, event.duration_s) for event in silent] == [(pytest.approx(0.08), PARAGRAPH_PAUSE_S)]
    assert events[-1].start_s == pytest.approx(0.08 + PARAGRAPH_PAUSE_S + 0.04)


@pytest.mark.slow
@pytest.mark.parametrize("join", ["independent", "continued"])
async def test_memory_does_not_grow_with_the_text(serve: Serve, monkeypatch: pytest.MonkeyPatch, join: Join) -> None:
    """Only the samples and codes of events that are read ahead, and the codes of one clause, exist at once."""
    arrays = list[weakref.ref[np.ndarray]]()
    read = speech_stream.read_event

    def counted(*arguments: Any) -> SpeechEvent | None:
        event = read(*arguments)
        if event is not None:
            arrays.extend(weakref.ref(array) for array in (event.pcm, event.codes) if array is not None)
        return event

    monkeypatch.setattr(speech_stream, "read_event", counted)
    server, client = await serve(lambda _: [Chunk(0, codes=[[1]]), Chunk(1, codes=[[2]], is_final=True, is_last=True)])
    server.profile = PROFILE | {"tasks": [{"name": "tts", "needs": ["text"], "continues": "turns"}]}
    most = list[int]()
    for num_chars in (2_000, 20_000):
        server.requests.clear()
        alive = 0
        text = (f"{SENTENCE} " * 400)[:num_chars]
        async for _ in client.speak(text, join=join, check="off"):
            arrays[:] = [array for array in arrays if array() is not None]
            alive = max(alive, len(arrays))
        assert len(server.requests) == -(-num_chars // 153)
        most.append(alive)
    assert most[1] <= most[0] + 2 <= 2 * MAX_EVENTS_AHEAD + 8


async def test_very_long_texts_are_split_outside_the_event_loop(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    _, client = await serve(lambda _: SPOKEN)
    threads = []

    def seen(text: str, max_chars: int) -> Parts:
        threads.append(threading.current_thread().name)
        return split_with_pauses(text, max_chars)[:1]

    monkeypatch.setattr(long_speech, "split_with_pauses", seen)
    for number in (10, 100):
        _ = [event async for event in client.speak(" ".join([SENTENCE] * number), voice="slt")]
    assert threads == ["MainThread", "markup_0"]


async def test_profile_is_requested_once_and_only_for_long_texts(serve: Serve) -> None:
    server, client = await serve(lambda _: SPOKEN)
    server.profile = None
    assert [event.index async for event in client.speak("Good morning.")] == [0, 1]
    with pytest.raises(ValueError, match="does not describe"):
        await client.profile()
    server.profile = {"family": "x", "sample_rate": 8000, "voices": [], "max_text_chars": 60, "max_audio_s": 1.0}
    server.profile |= {"times_words": False, "tasks": []}
    assert (await client.profile()).max_text_chars == 60
    server.profile = None
    assert (await client.profile()).family == "x"
    assert len([event async for event in client.speak(LONG)]) == 14


FULL = ErrorText("full: 80 sequences are already in flight; try again")


async def test_only_a_text_in_progress_waits_for_capacity(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stretto_client.tries.PAUSES_S", (0.0, 0.0))
    server, client = await serve(lambda _: [FULL] if len(server.requests) in (2, 3, 5) else SPOKEN)
    events = [event async for event in client.speak(LONG)]
    assert [event.is_final for event in events] == [False] * 5 + [True]
    assert texts(server) == [*[" ".join([SENTENCE] * 3)] * 4, *[SENTENCE] * 2]
    refusing, other = await serve(lambda _: [FULL])
    with pytest.raises(ServerFull):
        await anext(other.speak(LONG))
    assert len(refusing.requests) == 1


async def test_retries_of_a_full_server_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stretto_client.tries.PAUSES_S", (0.0, 0.0))
    server, client = await serve(lambda _: SPOKEN if len(server.requests) == 1 else [FULL])
    with pytest.raises(ServerFull):
        [event async for event in client.speak(LONG)]
    assert len(server.requests) == 4


async def test_retries_of_a_full_server_become_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many clients that retry often would keep a full server busy with refusals."""
    pauses = list[float]()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("stretto_client.tries.asyncio.sleep", sleep)
    monkeypatch.setattr("stretto_client.tries.random.uniform", lambda low, high: (low + high) / 2)
    num_tries = [_ async for _ in patiently()]
    assert (pauses[:6], len(num_tries)) == ([0.25, 0.5, 1, 2, 4, 4], 19)
    assert sum(pauses) == 59.75


async def test_text_is_sent_unsplit_if_the_limit_is_unknown(serve: Serve) -> None:
    server, client = await serve(lambda _: SPOKEN)
    server.profile = None
    assert len([event async for event in client.speak(LONG)]) == 2
    assert texts(server) == [LONG]


async def test_text_too_long_once_written_out_is_halved_until_it_fits(serve: Serve) -> None:
    def script(request: Request) -> list[Step]:
        too_long = len(request["text"]) > 9
        refusal = "invalid request: text: expected at most 160 characters once written out in words, got 200 characters"
        return [ErrorText(refusal)] if too_long else SPOKEN

    server, client = await serve(script)
    events = [event async for event in client.speak("1234567 1234567 1234567")]
    assert texts(server)[-3:] == ["1234567"] * 3
    assert [event.is_final for event in events] == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (ErrorText("invalid request: text: expected text with a word that can be spoken, got '1'"), RequestRefused),
        (ErrorText("invalid request: text: expected at most 0 characters, got 1 characters"), RequestRefused),
        (Abort(grpc.StatusCode.UNAVAILABLE, "gone"), ServerUnavailable),
    ],
)
async def test_long_text_failure_is_raised_once(serve: Serve, step: Step, error: type[Exception]) -> None:
    _, client = await serve(lambda _: [step])
    stream = client.speak("1")
    with pytest.raises(error):
        await anext(stream)
    assert [event async for event in stream] == []


async def test_overlong_whitespace_is_refused_because_it_cannot_be_split(serve: Serve) -> None:
    refusal = ErrorText("invalid request: text: expected at most 160 characters, got 200")
    server, client = await serve(lambda _: [refusal])
    with pytest.raises(RequestRefused, match=r"^text: expected at most 160 characters, got 200$"):
        [event async for event in client.speak(" " * 200)]
    assert texts(server) == [" " * 200]


UNREADABLE = "invalid request: text: expected English in Latin script, got Chinese characters in '你好'"


def reads_latin_only(request: Request) -> list[Step]:
    text, options = request["text"].decode(), json.loads(request["options"])
    return [ErrorText(UNREADABLE)] if "你好" in text and not options.get("transliterate") else SPOKEN


@pytest.mark.parametrize("markup", ["none", "markdown"])
async def test_unreadable_letters_are_refused_before_any_audio(serve: Serve, markup: Markup) -> None:
    server, client = await serve(reads_latin_only)
    stream = client.speak(f"{LONG} *Then* he said 你好 to her. {'这是另一种语言。' * 40}", markup=markup)
    with pytest.raises(RequestRefused, match="got Chinese characters in '你好'"):
        await anext(stream)
    (asked,) = texts(server)
    assert "你好" in asked


async def test_words_of_other_scripts_in_a_latin_text_are_transliterated_and_listed(serve: Serve) -> None:
    def reads_mostly_latin(request: Request) -> list[Step]:
        is_foreign = other_script(request["text"].decode()) is not None
        transliterates = json.loads(request["options"]).get("transliterate", False)
        return [ErrorText(UNREADABLE)] if is_foreign and not transliterates else SPOKEN

    server, client = await serve(reads_mostly_latin)
    events = [event async for event in client.speak(f"{'A plain word or two. ' * 40}\n{'你好。' * 100}")]
    assert events[-1].is_final
    assert any(json.loads(request["options"]).get("transliterate") for request in server.requests)
    words = Transliteration("Ask Ελένη and 王.")
    assert not words.is_needed("Ask Ελένη and 王.")
    assert words.words == ["Ελένη", "王"]


async def test_only_possibly_unsupported_letters_are_probed_first(serve: Serve) -> None:
    server, client = await serve(reads_latin_only)
    latin = f"{LONG} At the café: Δt is 2 µs, and π is over 3, ａｓ ｈｅ ｓａｉｄ. 😀 ʻOkina…"
    server.profile = PROFILE | {"options": ["transliterate"]}
    plain = [event async for event in client.speak(latin)]
    asked = texts(server)
    assert "".join(asked).replace(" ", "") == latin.replace(" ", "")
    other = [event async for event in client.speak(f"{LONG} Say 你好.", transliterate=True)]
    assert texts(server)[len(asked) :][0] == " ".join([SENTENCE] * 3)
    reading = await serve(lambda _: SPOKEN)
    reading[0].profile = PROFILE | {"options": []}
    every = [event async for event in reading[1].speak(f"{LONG} Say 你好.")]
    assert texts(reading[0])[0] == " ".join([SENTENCE] * 3)
    assert [len(plain), len(other), len(every)] == [6, 6, 6]


async def test_probed_letters_the_server_accepts_are_spoken_once(serve: Serve) -> None:
    server, client = await serve(lambda _: SPOKEN)
    events = [event async for event in client.speak(f"{LONG} Say 你好.")]
    assert [event.is_final for event in events] == [False] * 5 + [True]
    assert [text for text in texts(server) if "你好" not in text] == [" ".join([SENTENCE] * 3)] * 2

    def too_long(request: Request) -> list[Step]:
        refusal = "invalid request: text: expected at most 160 characters once written out in words, got 200 characters"
        return [ErrorText(refusal)] if len(request["text"]) > 9 and "你好".encode() in request["text"] else SPOKEN

    server, client = await serve(too_long)
    assert [event async for event in client.speak(f"{LONG} 你好.")][-1].is_final


async def test_options_that_are_not_json_raise_a_type_error(serve: Serve) -> None:
    _, client = await serve(lambda _: SPOKEN)
    with pytest.raises(TypeError):
        await anext(client.speak(LONG, schedule=object()))


@pytest.mark.parametrize("how", ["cancelled", "closed", "dropped"])
async def test_abandoned_stream_is_cancelled_on_the_server(serve: Serve, how: str) -> None:
    server, client = await serve([SPOKEN[0], Until(asyncio.Event())])
    stream = client.speak(LONG)
    await anext(stream)
    if how == "cancelled":
        stream.cancel()
        with pytest.raises(RequestCancelled):
            await anext(stream)
    if how == "closed":
        await stream.aclose()
        assert [event async for event in stream] == []
    del stream
    await asyncio.wait_for(server.cancelled.wait(), PATIENCE_S)
    assert len(server.requests) == 1


async def test_slow_listeners_pause_further_requests(serve: Serve) -> None:
    server, client = await serve(lambda _: SPOKEN)
    stream = client.speak(" ".join([SENTENCE] * 60), check="off")
    await anext(stream)
    seen = 0
    while len(server.requests) != seen:  # until no more are asked for
        seen = len(server.requests)
        await asyncio.sleep(0.2)
    assert seen < 12, "of 20 clauses"
    async for _ in stream:
        pass
    assert len(server.requests) == 20


def in_a_voice(request: Request) -> list[Step]:
    """Script of a server with the voice in a system turn, which accepts 30 characters fewer than it reports."""
    _, turn = json.loads(request["messages"])
    if len(turn["text"]) > 130:
        return [ErrorText("invalid request: messages[1].text: expected at most 130 characters, got more")]
    return SPOKEN


async def test_recorded_voice_is_sent_with_every_clause(serve: Serve) -> None:
    server, client = await serve(in_a_voice)
    events = [event async for event in client.speak(LONG, voice=RecordedVoice(b"RIFF", "What is said."), seed=3)]
    assert events[-1].is_final
    assert len(server.requests) > 3
    said = []
    for request in server.requests:
        system, turn = json.loads(request["messages"])
        assert system == {"role": "system", "audio": "audio", "text": "What is said."}
        assert (request["audio"], request["task"]) == (b"RIFF", b"tts")
        assert "text" not in request
        assert json.loads(request["options"]) == {"seed": 3}
        said += [turn["text"]] if len(turn["text"]) <= 130 else []
    assert " ".join(said) == LONG


async def test_recorded_voice_may_have_no_transcript(serve: Serve) -> None:
    server, client = await serve(lambda _: SPOKEN)
    pcm = np.linspace(-1, 1, 100, dtype=np.float32)
    async for _ in client.speak("a", voice=RecordedVoice((pcm, 24_000)), check="off"):
        pass
    (request,) = server.requests
    assert json.loads(request["messages"])[0] == {"role": "system", "audio": "pcm_in"}
    assert np.array_equal(request["pcm_in"], pcm)
    assert request["sample_rate"] == 24_000
    assert "options" not in request


async def test_long_text_closed_before_its_start_sends_nothing(serve: Serve, recwarn: pytest.WarningsRecorder) -> None:
    server, client = await serve(lambda _: SPOKEN)
    await client.speak(LONG).aclose()
    gc.collect()
    assert not [each for each in recwarn if "never awaited" in str(each.message)]
    assert server.requests == []


READS_PHONEMES = PROFILE | {"phonemes": ["cmu"]}
TOMATO = """<speak>You say <phoneme alphabet="cmu" ph="EY1">tomato</phoneme>, <prosody rate="200%">I say
<phoneme alphabet="cmu" ph="AA1">tomato</phoneme></prosody> now</speak>"""


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("rates", [False, True])
async def test_phonemes_of_ssml_belong_to_one_word_and_rates_to_events(
    serve: Serve, is_streamed: bool, rates: bool
) -> None:
    aligned = (("You", 0.0, 0.01), ("\ue000tomato,", 0.01, 0.02))
    report = REPORT | {"untimed_words": ["\ue001tomato"]}
    more = {"aligned": aligned, "more": {"report": report}}
    server, client = await serve(
        [Chunk(0, 640), Chunk(1, 640, is_final=True, is_last=True, **more)], profile=READS_PHONEMES
    )
    speech = client.speak(written(*TOMATO) if is_streamed else TOMATO, markup="ssml", rates=rates)
    events = [event async for event in speech]
    sent = [(each["text"].decode(), json.loads(each["options"]).get("pronunciations")) for each in server.requests]
    first = {"\ue000tomato": {"phonemes": "EY1", "alphabet": "cmu"}}
    second = {"\ue001tomato": {"phonemes": "AA1", "alphabet": "cmu"}}
    if rates:
        assert sent == [("You say \ue000tomato,", first), ("I say\n\ue001tomato", second), ("now", None)]
        assert [event.speed for event in events if event.pcm is not None and len(event.pcm)] == [1, 1, 2, 2, 1, 1]
    else:
        assert sent == [("You say \ue000tomato, I say\n\ue001tomato now", first | second)]
        assert {event.speed for event in events} == {1}
        assert events[-1].report is not None
        assert events[-1].report["left_out"] == ["prosody.rate"]
    assert [word.word for event in events for word in event.words][:2] == ["You", "tomato,"]
    assert events[-1].report is not None
    assert set(events[-1].report["untimed_words"]) == {"tomato"}


async def test_phonemes_that_the_model_does_not_read_are_left_out(serve: Serve) -> None:
    server, client = await serve(SPOKEN)
    events = [event async for event in client.speak(TOMATO, markup="ssml")]
    assert [each["text"] for each in server.requests] == [b"You say tomato, I say\ntomato now"]
    assert events[-1].report is not None
    assert events[-1].report["left_out"] == ["phoneme", "prosody.rate"]
