"""Faults of speech are in the events, batches and metrics; a request may turn the check off."""

import asyncio
from typing import Any

import numpy as np
import pytest

from tests.client.fake_server import Chunk, Pause, Request, Step
from tests.gateway.conftest import Running, Start, sse_events
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


@pytest.mark.parametrize(("change", "faults"), [({}, ["silence"]), ({"check": "off"}, [])], ids=["signals", "off"])
async def test_faults_are_in_events_batches_and_metrics(
    start: Start, change: dict[str, Any], faults: list[str]
) -> None:
    running = await start(speech())
    body = BODY | change
    async with running.http() as http:
        events = await http.post(PATH, json=body | {"stream_format": "sse"})
        shared = {name: value for name, value in body.items() if name != "input"}
        batch = await http.post(f"{PATH}/batch", json=shared | {"items": [{"input": "A cat."}]})
    last = sse_events(events.text)[-1]
    (result,) = batch.json()["results"]
    for answer in (last, result):
        assert [fault["fault"] for fault in answer.get("faults", ())] == faults
        assert [fault["start_s"] for fault in answer.get("faults", ())] == [pytest.approx(0.12, abs=0.06)] * len(faults)
    assert ("redrawn" in last, result.get("redrawn", 0)) == (False, len(faults))  # a batch is held back
    assert await running.metric("audio_faults_total") == 2 * len(faults)
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
