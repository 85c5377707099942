"""A recogniser that fails in any way leaves speech unchecked; its transcript is compared with the text."""

import asyncio
import io
import json
import logging
import wave
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from stretto_client import SpeechClient, SpeechEvent
from stretto_client import word_check as module
from stretto_client.checked_speech import Attempt
from stretto_client.recognisers import KEY, Address
from stretto_client.transcript_errors import FAULT
from stretto_client.word_check import Listener, Verdict, WordCheck
from tests.client.fake_server import PROFILE, Abort, Chunk, FakeServer, Step, Until
from tests.patience import PATIENCE_S

TEXT = "The train leaves at noon"
TRANSCRIPT = "the train leaves at noon."
PCM = np.linspace(-1, 1, 4_000, dtype=np.float32)
RATE = 16_000
FAILED = Verdict(unchecked="checker")
BUSY = Verdict(unchecked="busy")


def never() -> list[Step]:
    return [Until(asyncio.Event())]


def transcript(text: str) -> list[Step]:
    return [Chunk(0, None, text=text[:5]), Chunk(1, None, text=text[5:], is_final=True, is_last=True)]


Answer = Callable[[web.Request], Any]


class Recognisers:
    """Listeners whose recognisers answer from a script, and what these have received."""

    def __init__(self) -> None:
        self.forms = list[dict[str, Any]]()
        self._open = list[Any]()

    async def grpc(self, steps: list[Step], query: str = "", **profile: Any) -> tuple[Listener, FakeServer]:
        server = FakeServer(lambda _: steps, profile=PROFILE | profile)
        address = await server.start()
        self._open.append(server.stop)
        return self.listener(f"grpc://{address}{query}"), server

    async def web(self, answer: Answer, query: str = "") -> Listener:
        async def transcribe(request: web.Request) -> web.StreamResponse:
            form = await request.post()
            content = form["file"].file.read()
            self.forms.append({**form, "file": content, "key": request.headers.get("authorization", "")})
            reply = answer(request)
            return await reply if asyncio.iscoroutine(reply) else reply

        app = web.Application()
        app.router.add_post("/v1/audio/transcriptions", transcribe)
        server = TestServer(app, host="127.0.0.1")
        await server.start_server()
        self._open.append(server.close)
        return self.listener(f"http://127.0.0.1:{server.port}/v1{query}")

    def listener(self, name: str) -> Listener:
        speaker = SpeechClient("127.0.0.1:1")
        listener = Listener(name, speaker, SpeechClient)
        self._open += [speaker.close, listener.close]
        return listener

    async def close(self) -> None:
        for close in reversed(self._open):
            await close()


@pytest.fixture
async def recognisers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Recognisers]:
    for limit in ("PLACE_S", "ANSWER_S", "PAUSE_S"):  # longer than any test takes
        monkeypatch.setattr(module, limit, 600.0)
    started = Recognisers()
    yield started
    await started.close()


async def heard(listener: Listener, text: str = TEXT, language: str = "", pcm: np.ndarray = PCM) -> Verdict:
    return await listener.verdict(text, pcm, RATE, language)


def as_json(record: Any) -> Answer:
    return lambda _: web.json_response(record)


async def test_server_hears(recognisers: Recognisers) -> None:
    listener, server = await recognisers.grpc(transcript(TRANSCRIPT))
    assert await heard(listener) == Verdict(0, TRANSCRIPT)
    (request,) = server.requests
    assert request["task"] == b"asr"
    np.testing.assert_array_equal(request["pcm_in"], PCM)
    wrong = await heard(listener, "The train leaves tomorrow at noon")
    assert wrong.size >= FAULT
    assert wrong.is_fault
    assert (wrong.transcript, wrong.unchecked) == (TRANSCRIPT, None)


async def test_web_server_hears(recognisers: Recognisers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "a-key-of-the-checker")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # which would receive the key
    monkeypatch.setenv("no_proxy", "")
    listener = await recognisers.web(as_json({"text": TRANSCRIPT, "usage": {}}), "?model=turbo")
    assert await heard(listener, language="english") == Verdict(0, TRANSCRIPT)
    assert (await heard(listener, "Something else is said")).is_fault
    form, second = recognisers.forms
    assert (form["model"], form["language"], form["key"]) == ("turbo", "en", "Bearer a-key-of-the-checker")
    assert "language" not in second
    assert (form["response_format"], form["temperature"]) == ("json", "0")
    with wave.open(io.BytesIO(form["file"])) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (RATE, 1, len(PCM))
    np.testing.assert_allclose(np.frombuffer(form["file"][44:], "<i2") / 32_767, PCM, atol=1e-4)


def stall(_: web.Request) -> Any:
    return asyncio.Event().wait()


async def drip(request: web.Request) -> web.StreamResponse:
    """Answer without an end."""
    reply = web.StreamResponse()
    await reply.prepare(request)
    while True:
        await reply.write(b'{"text": "' + 10_000 * b"a")


ANSWERS: dict[str, Answer] = {
    "refusal": lambda _: web.json_response({"error": {"message": "no"}}, status=400),
    "redirect": lambda _: web.Response(status=307, headers={"location": "/v1/audio/transcriptions"}),
    "no JSON": lambda _: web.Response(body=b"\xff{"),
    "nested": lambda _: web.Response(body=20_000 * b"["),
    "list": as_json([TRANSCRIPT]),
    "no text": as_json({"text": None}),
    "huge": as_json({"text": 70_000 * "a"}),
    "endless": drip,
    "compressed": lambda _: web.Response(body=b"\x1f\x8b", headers={"content-encoding": "gzip"}),
    "never": stall,
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_invalid_answers_of_a_web_server_are_not_waited_for_again(
    recognisers: Recognisers, answer: Answer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if answer is stall:
        monkeypatch.setattr(module, "ANSWER_S", 0.05)
    listener = await recognisers.web(answer)
    with caplog.at_level(logging.WARNING):
        assert [await heard(listener) for _ in range(3)] == 3 * [FAILED]
    assert len(recognisers.forms) == 1
    (warning,) = [record.message for record in caplog.records if record.name == module.__name__]
    assert warning.startswith("--check-with http://127.0.0.1:")
    assert warning.endswith("speech goes on unchecked")
    if answer is stall:
        assert "no transcript within 0.3 s" in warning  # 0.05 s, and the duration of the speech


@pytest.mark.parametrize(
    ("steps", "profile"),
    [
        (None, {}),
        ([Abort(grpc.StatusCode.UNAVAILABLE, "full")], {}),
        (transcript(70_000 * "a"), {}),
        (transcript(TRANSCRIPT), {"tasks": []}),
        (transcript(TRANSCRIPT), {"sample_rate": 0}),
    ],
    ids=["never", "unavailable", "huge", "no task", "no profile"],
)
async def test_failures_of_a_server_leave_speech_unchecked(
    recognisers: Recognisers, steps: list[Step] | None, profile: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if steps is None:
        monkeypatch.setattr(module, "ANSWER_S", 0.05)
        steps = never()
    listener, server = await recognisers.grpc(steps, **profile)
    assert [await heard(listener) for _ in range(3)] == 3 * [FAILED]
    assert len(server.requests) <= 1


async def test_recogniser_that_is_down_is_asked_again_later(
    recognisers: Recognisers, caplog: pytest.LogCaptureFixture
) -> None:
    replies = [{"text": TRANSCRIPT}, {}, {"text": TRANSCRIPT}, {}, {}]
    listener = await recognisers.web(lambda _: web.json_response(replies.pop()))
    results = []
    for _ in range(5):
        listener._asked_after_s = 0.0
        results.append(await heard(listener))
    assert results == [FAILED, FAILED, Verdict(0, TRANSCRIPT), FAILED, Verdict(0, TRANSCRIPT)]
    assert len(caplog.records) == 2
    assert await heard(recognisers.listener("http://127.0.0.1:1")) == FAILED


async def test_error_of_a_recogniser_is_one_line_of_the_log(
    recognisers: Recognisers, caplog: pytest.LogCaptureFixture
) -> None:
    message = "no\n\x1b[2JERROR: all is lost"
    listener, _ = await recognisers.grpc([Abort(grpc.StatusCode.UNAVAILABLE, message + 1_000 * "!")])
    await heard(listener)
    (record,) = caplog.records
    assert record.getMessage().isprintable()
    assert len(record.getMessage()) < 500


async def test_full_server_of_a_recogniser_is_asked_again_at_once(
    recognisers: Recognisers, caplog: pytest.LogCaptureFixture
) -> None:
    listener, server = await recognisers.grpc([Abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")])
    assert [await heard(listener) for _ in range(3)] == 3 * [BUSY]
    assert len(server.requests) == 3
    assert caplog.records == []


async def test_speech_that_waits_in_vain_for_a_place_does_not_stop_the_check(
    recognisers: Recognisers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    may_answer = asyncio.Event()
    listener, server = await recognisers.grpc([Until(may_answer), *transcript(TRANSCRIPT)])
    waiting = [asyncio.create_task(heard(listener)) for _ in range(module.MAX_AT_ONCE)]
    while len(server.requests) < module.MAX_AT_ONCE:
        await asyncio.sleep(0.01)
    monkeypatch.setattr(module, "PLACE_S", 0.0)
    assert await heard(listener) == BUSY
    may_answer.set()
    assert [*await asyncio.gather(*waiting), await heard(listener)] == [Verdict(0, TRANSCRIPT)] * (len(waiting) + 1)
    assert caplog.records == []


async def test_failure_counts_for_speech_that_waits_for_a_place(recognisers: Recognisers) -> None:
    may_answer = asyncio.Event()
    listener, server = await recognisers.grpc([Until(may_answer), Abort(grpc.StatusCode.UNAVAILABLE, "no")])
    waiting = [asyncio.create_task(heard(listener)) for _ in range(2 * module.MAX_AT_ONCE)]
    while len(server.requests) < module.MAX_AT_ONCE:
        await asyncio.sleep(0.01)
    may_answer.set()
    assert await asyncio.gather(*waiting) == [FAILED] * len(waiting)
    assert len(server.requests) == module.MAX_AT_ONCE


@pytest.mark.parametrize(
    ("languages", "language", "text", "unchecked"),
    [
        ("en", "english", TEXT, None),
        ("en,fr", "french", TEXT, None),
        ("en", "french", TEXT, "language"),
        ("en", "auto", TEXT, "language"),
        ("en", "", TEXT, None),
        ("en", "", "Поезд отправляется в полдень", "language"),
        ("", "french", TEXT, None),
        ("", "", "12:45", "digits"),
        ("", "", 200 * TEXT, "too_long"),
    ],
)
async def test_what_a_recogniser_does_not_understand_is_not_sent_to_it(
    recognisers: Recognisers, languages: str, language: str, text: str, unchecked: str | None
) -> None:
    listener = await recognisers.web(as_json({"text": text}), f"?languages={languages}" if languages else "")
    assert await heard(listener, text, language) == Verdict(0, "" if unchecked else text, unchecked)  # type: ignore[arg-type]
    assert len(recognisers.forms) == (unchecked is None)


async def test_languages_and_longest_recording_of_a_server_count(recognisers: Recognisers) -> None:
    listener, server = await recognisers.grpc(transcript(TRANSCRIPT), languages=["english", "en"], max_audio_s=1.0)
    assert (await heard(listener, language="german")).unchecked == "language"
    assert (await heard(listener, pcm=np.zeros(RATE + 1, np.float32))).unchecked == "too_long"
    assert server.requests == []
    assert await heard(listener, pcm=np.zeros(RATE, np.float32), language="english") == Verdict(0, TRANSCRIPT)


@pytest.mark.parametrize(
    ("languages", "language", "options"),
    [
        (["german", "en"], "english", {"language": "en"}),
        (["german", "en"], "", {}),
        ([], "english", {}),
    ],
    ids=["by the name of the model", "unknown", "model without languages"],
)
async def test_recogniser_is_told_the_language(
    recognisers: Recognisers, languages: list[str], language: str, options: dict[str, str]
) -> None:
    listener, server = await recognisers.grpc(transcript(TRANSCRIPT), languages=languages)
    assert await heard(listener, language=language) == Verdict(0, TRANSCRIPT)
    (request,) = server.requests
    assert json.loads(request.get("options", "{}")) == options


def attempt(pcm: np.ndarray, seconds: float = 1.0) -> Attempt:
    """Return an attempt to speak TEXT with these samples at RATE, in two events; `seconds` of silence come before."""
    spoken = Attempt(TEXT, is_judged=True)
    for samples in (np.zeros(round(seconds * RATE), pcm.dtype), pcm[:100], pcm[100:]):
        spoken.add(SpeechEvent(samples, "u", 0, "audio", sample_rate=RATE))
    return spoken


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
async def test_whole_speech_of_an_attempt_is_transcribed(recognisers: Recognisers, dtype: type) -> None:
    listener, server = await recognisers.grpc(transcript("the leaves at noon"))
    pcm = (PCM * 32_767).astype(np.int16) if dtype is np.int16 else PCM
    spoken = attempt(pcm, seconds=0.5)
    await WordCheck(listener, {}).measure(spoken, {})
    np.testing.assert_allclose(server.requests[0]["pcm_in"][RATE // 2 :], PCM, atol=1e-4)
    assert [fault.name for fault in spoken.faults if fault.name == "words"] == ["words"]
    assert spoken.report == {"transcripts": ["the leaves at noon"]}
    assert spoken.error_size >= FAULT


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("The Tgv leaves at noon", {"Tgv": "train"}),
        ("The Zug leaves at noon", {"zug": {"phonemes": "T R EY1 N"}}),
        ("The \ue000Zug leaves at noon", {}),
    ],
)
async def test_words_are_compared_as_the_model_reads_them(
    recognisers: Recognisers, text: str, entries: dict[str, Any]
) -> None:
    listener, _ = await recognisers.grpc(transcript("The Lokomotive leaves at noon" if "Zug" in text else TRANSCRIPT))
    for pronunciations, unusual in ((entries, []), ({"noon": "half past twelve"}, ["words"])):
        spoken = attempt(PCM)
        spoken.text = text
        await WordCheck(listener, {"pronunciations": pronunciations}).measure(spoken, {})
        assert [fault.name for fault in spoken.faults if fault.name == "words"] == unusual


@pytest.mark.parametrize("entries", [None, ["a"], {"": "a", 1: "b", "noon": 3}])
async def test_invalid_pronunciations_are_left_to_the_server(recognisers: Recognisers, entries: Any) -> None:
    listener, _ = await recognisers.grpc(transcript(TRANSCRIPT))
    spoken = attempt(PCM)
    await WordCheck(listener, {"pronunciations": entries}).measure(spoken, {})
    assert spoken.report == {}


@pytest.mark.parametrize(
    ("report", "seconds", "unchecked"),
    [({"finish_reason": "length"}, 1.0, "cut"), ({"num_pieces": 2}, 1.0, "too_long"), ({}, 40.0, "too_long")],
)
async def test_part_of_the_speech_is_not_compared(
    recognisers: Recognisers, report: dict[str, Any], seconds: float, unchecked: str
) -> None:
    listener, server = await recognisers.grpc(transcript(TRANSCRIPT))
    spoken = attempt(PCM, seconds)
    await WordCheck(listener, {}).measure(spoken, report)
    assert (spoken.report, server.requests) == ({"unchecked": [unchecked]}, [])


@pytest.mark.parametrize(
    ("of_request", "of_speaker", "unchecked"),
    [
        ("English", ["german"], None),
        ("de-DE", ["english"], ["language"]),
        ("Auto", ["english", "en"], None),
        (None, ["german"], ["language"]),
        (None, ["english", "german"], ["language"]),
        (None, [], None),
        (None, None, None),
    ],
)
async def test_language_is_that_of_the_request_or_the_only_one_of_the_speaker(
    recognisers: Recognisers, of_request: str | None, of_speaker: list[str] | None, unchecked: list[str] | None
) -> None:
    speaker, _ = await recognisers.grpc([], languages=of_speaker)
    listener = await recognisers.web(as_json({"text": TRANSCRIPT}), "?languages=en")
    listener.speaker = speaker._connected or listener.speaker
    spoken = attempt(PCM)
    await WordCheck(listener, {} if of_request is None else {"language": of_request}).measure(spoken, {})
    assert spoken.report.get("unchecked") == unchecked


async def test_few_hearings_at_once_and_none_after_their_request(recognisers: Recognisers) -> None:
    listener, server = await recognisers.grpc(never())
    waiting = [asyncio.create_task(heard(listener)) for _ in range(3 * module.MAX_AT_ONCE)]
    while len(server.requests) < module.MAX_AT_ONCE:
        await asyncio.sleep(0.01)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    while server.num_cancelled < module.MAX_AT_ONCE:
        await asyncio.sleep(0.01)
    assert len(server.requests) == module.MAX_AT_ONCE


@pytest.mark.parametrize(
    "name",
    ["", "me", "localhost:8001", "grpc://localhost", "grpc://localhost:8001/v1", "grpc://localhost:8001?model=a",
     "http://", "http://host/v1?voice=a", "http://user:word@host/v1", "ftp://host", "file:///v1", "unix:/v1",
     "http+unix://host/v1", "http://host:port/v1",
     "http://host/v1#a", "https://host/v1?model", json.dumps({})],
)  # fmt: skip
def test_invalid_names_of_recognisers_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^expected 'self', grpc://HOST:PORT or "):
        Address.from_text(name)


SENTENCES = [f"The {name} sentence of this text is about trains that leave at noon." for name in ("1st", "2nd", "3rd")]
WRONG = 1  # sentence of which a word is missing


class Speaker:
    """Server that speaks SENTENCES one by one, and transcribes them once `num_spoken` have been requested."""

    def __init__(self, num_spoken: int):
        self._num_spoken = num_spoken
        self.num_transcribed = 0
        self.all_spoken = asyncio.Event()
        self.server = FakeServer(self.steps, profile=PROFILE | {"max_text_chars": 80})

    def steps(self, request: dict[str, Any]) -> list[Step]:
        if "pcm_in" not in request:
            level = SENTENCES.index(request["text"].decode()) + 1
            if sum("text" in sent for sent in self.server.requests) == self._num_spoken:
                self.all_spoken.set()
            return [Chunk(0, 640, pcm=np.full(640, level / 10, np.float32), is_final=True, is_last=True)]
        self.num_transcribed += 1
        number = round(request["pcm_in"][-1] * 10) - 1
        heard_text = SENTENCES[number].replace("trains", "" if number == WRONG else "trains")
        return [Until(self.all_spoken), *transcript(heard_text)]


async def streamed() -> AsyncIterator[str]:
    for sentence in SENTENCES:
        yield f"{sentence} "


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_next_clauses_begin_while_those_that_were_sent_are_checked(is_streamed: bool) -> None:
    """Otherwise, no transcript would arrive. The report is that of an immediate check."""
    speaker = Speaker(num_spoken=3)
    text = streamed() if is_streamed else " ".join(SENTENCES)
    async with asyncio.timeout(PATIENCE_S), SpeechClient(await speaker.server.start()) as client:
        events = [event async for event in client.speak(text, check="words", check_with="self")]
    await speaker.server.stop()
    report = events[-1].report
    assert report is not None
    usual = ["too_fast", "abrupt_end"]
    assert [fault["fault"] for fault in report["faults"]] == [*usual, *usual, "words", *usual]
    assert report["faults"][4]["start_s"] == pytest.approx(0.04)
    assert report["transcripts"] == [SENTENCES[WRONG].replace("trains", "")]
    assert "unchecked" not in report
    assert [event.report for event in events[:-1]] == [None] * (len(events) - 1)


async def test_checks_of_sent_clauses_end_with_their_request() -> None:
    speaker = Speaker(num_spoken=4)
    async with asyncio.timeout(PATIENCE_S), SpeechClient(await speaker.server.start()) as client:
        async with client.speak(" ".join(SENTENCES), check="words", check_with="self") as stream:
            while speaker.num_transcribed < 2:
                await anext(stream)
        while speaker.server.num_cancelled < 2:
            await asyncio.sleep(0.01)
    await speaker.server.stop()
