"""Faults of speech are in the events, batches and metrics; a request may turn the check off."""

import asyncio
from typing import Any

import numpy as np
import pytest

from tests.client.fake_server import PROFILE, Chunk, Pause, Request, Step
from tests.gateway.conftest import Running, Start, sse_events
from tests.gateway.realtime.test_bounds import open_socket
from tests.gateway.test_speech_stream import begin
from tests.patience import until_async

BODY = {"model": "tts-1", "voice": "rms", "input": "A cat.", "response_format": "pcm"}
SILENT = 72_000  # samples: 3 s at the gateway's 24 kHz
PATH = "/v1/audio/speech"


def speech() -> list[Step]:
    """Return the events of a reply with 3 s of silence."""
    silence = Chunk(1, SILENT, is_16_bit=True, pcm=np.zeros(SILENT, np.int16), is_final=True, is_last=True)
    return [Chunk(0, 1920, is_16_bit=True), silence]


def good() -> list[Step]:
    """Return the events of a reply without a fault."""
    noise = np.random.default_rng(0).normal(size=24_000).cumsum()
    pcm = np.concatenate([10_000 * noise / np.abs(noise).max(), np.zeros(1000)]).astype(np.int16)
    return [Chunk(0, len(pcm), is_16_bit=True, pcm=pcm, is_final=True, is_last=True)]


def words(request: Request) -> list[Step]:
    """Return a second of noise for a text, and for a recording a transcript that lacks a word."""
    if "pcm_in" in request:
        return [Chunk(0, None, text="the leaves at noon.", is_final=True, is_last=True)]
    pcm = np.random.default_rng(0).integers(-5_000, 5_000, 24_000).astype(np.int16)
    pcm[-2_400:] = 0
    return [Chunk(0, len(pcm), is_16_bit=True, pcm=pcm, is_final=True, is_last=True)]


@pytest.mark.parametrize("hold_s", [0, 10])
async def test_wrong_words_are_in_events_batches_and_metrics(start: Start, hold_s: int) -> None:
    """Speech that is held back is generated again, and speech that has been sent is only marked."""
    running = await start(words, check_with="self")
    body = BODY | {"check": "words", "input": "The train leaves at noon.", "hold_s": hold_s}
    async with running.http() as http:
        events = await http.post(PATH, json=body | {"stream_format": "sse"})
        batch = await http.post(f"{PATH}/batch", json=body | {"items": [{"input": body.pop("input")}]})
        number = await http.post(PATH, json=body | {"input": "12:45", "stream_format": "sse"})
    last = sse_events(events.text)[-1]
    (result,) = batch.json()["results"]
    for answer, redrawn in ((last, int(hold_s > 0)), (result, 1)):
        assert answer["faults"] == [{"fault": "words", "start_s": 0.0}]
        assert answer["transcripts"] == ["the leaves at noon."]
        assert answer.get("redrawn", 0) == redrawn
        assert "unchecked" not in answer
    assert sse_events(number.text)[-1]["unchecked"] == ["digits"]
    assert await running.metric("audio_faults_total") == 2
    assert await running.metric("audio_unchecked_total") == 1
    texts = [request for request in running.behind.requests if "text" in request]
    assert len(texts) == 1 + (hold_s > 0) + 2 + 1


async def test_checker_that_is_down_leaves_speech_unchecked(start: Start) -> None:
    running = await start(words, check_with="http://127.0.0.1:1/v1")
    body = BODY | {"check": "words", "input": "The train leaves at noon.", "hold_s": 10, "stream_format": "sse"}
    async with running.http() as http:
        answers = [sse_events((await http.post(PATH, json=body)).text)[-1] for _ in range(2)]
    for answer in answers:
        assert answer["unchecked"] == ["checker"]
        assert "faults" not in answer
        assert "redrawn" not in answer
    assert await running.metric("audio_unchecked_total") == 2


async def test_model_that_does_not_transcribe_cannot_check_itself(start: Start) -> None:
    tasks = [task for task in PROFILE["tasks"] if task["name"] == "tts"]  # type: ignore[attr-defined]
    running = await start(words, profile=PROFILE | {"tasks": tasks}, check_with="self")
    async with running.http() as http:
        answer = await http.post(PATH, json=BODY | {"check": "words"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "check")
    assert "'tiny' does not transcribe" in error["message"]


@pytest.mark.parametrize(("change", "faults"), [({}, ["silence"]), ({"check": "off"}, [])], ids=["signals", "off"])
async def test_faults_are_in_events_batches_streams_and_metrics(
    start: Start, change: dict[str, Any], faults: list[str]
) -> None:
    running = await start(speech())
    body = BODY | change
    async with running.http() as http:
        events = await http.post(PATH, json=body | {"stream_format": "sse"})
        shared = {name: value for name, value in body.items() if name != "input"}
        batch = await http.post(f"{PATH}/batch", json=shared | {"items": [{"input": "A cat."}]})
    async with open_socket(running, f"{PATH}/stream") as opened:
        done, _ = await (await begin(opened, **change)).utterance("A cat.")
    last = sse_events(events.text)[-1]
    (result,) = batch.json()["results"]
    for answer in (last, result, done[-1]):
        assert [fault["fault"] for fault in answer.get("faults", ())] == faults
        assert [fault["start_s"] for fault in answer.get("faults", ())] == [pytest.approx(0.12, abs=0.06)] * len(faults)
    assert ("redrawn" in last, result.get("redrawn", 0)) == (False, len(faults))  # a batch is held back
    assert await running.metric("audio_faults_total") == 3 * len(faults)
    assert await running.metric("audio_redrawn_total") == len(faults)


def replies(running: Running, *steps: list[Step]) -> None:
    """Let the server answer each request with the next steps."""

    def script(_: Request) -> list[Step]:
        return steps[len(running.behind.requests) - 1]

    running.behind.script = script


@pytest.mark.parametrize("format_", ["audio", "sse"])
async def test_header_names_the_number_of_attempts(start: Start, format_: str) -> None:
    running = await start()
    replies(running, speech(), good(), speech(), good())
    async with running.http() as http:
        held = await http.post(PATH, json=BODY | {"hold_s": 10, "stream_format": format_})
        sent_at_once = await http.post(PATH, json=BODY | {"stream_format": format_})
        unchecked = await http.post(PATH, json=BODY | {"stream_format": format_, "check": "off"})
    assert [answer.headers.get("stretto-attempts") for answer in (held, sent_at_once, unchecked)] == ["2", "1", None]


async def test_file_that_is_sent_as_a_whole_is_held_back_until_it_is_checked(start: Start) -> None:
    running = await start()
    replies(running, speech(), good())
    async with running.http() as http:
        answer = await http.post(PATH, json=BODY | {"stream": False})
    assert answer.headers["stretto-attempts"] == "2"
    assert len(answer.content) == 2 * good()[0].num_samples


async def test_speech_that_was_given_up_counts_as_use_even_if_the_client_leaves(start: Start) -> None:
    running = await start()
    replies(running, speech(), [Pause(120)])
    async with running.http() as http:
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(http.post(PATH, json=BODY | {"hold_s": 10}))
            await until_async(lambda: len(running.behind.requests) == 2)
            reading.cancel()
        await until_async(lambda: running.behind.num_cancelled == 1)
        usage = (await http.get("/v1/usage")).json()
    assert usage["output_audio_s"] == (1920 + SILENT) / 16_000
    assert await running.metric("audio_redrawn_total") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attempts": 0}, "attempts: "),
        ({"attempts": 6}, "attempts: "),
        ({"attempts": "two"}, "attempts: "),
        ({"check": "words"}, "check: "),
        ({"hold_s": -0.1}, "hold_s: "),
        ({"hold_s": 60.1}, "hold_s: "),
    ],
    ids=str,
)
async def test_invalid_checks_are_refused(start: Start, change: dict[str, Any], message: str) -> None:
    running = await start(speech())
    async with running.http() as http:
        answer = await http.post(PATH, json=BODY | change)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, next(iter(change)))
    assert error["message"].startswith(message), error["message"]
    assert error["message"].endswith(f", got {next(iter(change.values()))!r}")
