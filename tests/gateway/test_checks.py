"""Faults of speech are in the events, batches and metrics; a request may turn the check off."""

from typing import Any

import numpy as np
import pytest

from tests.client.fake_server import Chunk
from tests.gateway.conftest import Start, sse_events

BODY = {"model": "tts-1", "voice": "rms", "input": "A cat.", "response_format": "pcm"}
SILENT = 72_000  # samples: 3 s at the gateway's 24 kHz
PATH = "/v1/audio/speech"


def speech() -> list[Chunk]:
    """Return the events of a reply with 3 s of silence."""
    silence = Chunk(1, SILENT, is_16_bit=True, pcm=np.zeros(SILENT, np.int16), is_final=True, is_last=True)
    return [Chunk(0, 1920, is_16_bit=True), silence]


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
        assert "redrawn" not in answer
    assert await running.metric("audio_faults_total") == 2 * len(faults)
    assert await running.metric("audio_redrawn_total") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attempts": 0}, "attempts: "),
        ({"attempts": 6}, "attempts: "),
        ({"attempts": "two"}, "attempts: "),
        ({"check": "words"}, "check: "),
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
