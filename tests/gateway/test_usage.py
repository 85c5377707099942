"""The use of each key is counted, and limited by the operator's ceilings."""

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from stretto_gateway.admission import CALLER
from stretto_gateway.answers import ApiError
from stretto_gateway.command import arguments, read_config
from stretto_gateway.usage import Ceiling, Usage
from tests.gateway.conftest import HEARD, NUM_SAMPLES, SPOKEN, Start
from tests.gateway.realtime.caller import TALKS, answer, by_task, call_by
from tests.gateway.test_speech_stream import PATH, begin, open_socket

KEYS = ("the-first-key-of-all", "the-second-key-of-all")
SPEECH = {"input": "A cat.", "response_format": "pcm"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_use_of_each_key_is_counted(start: Start) -> None:
    running = await start(by_task(asr=HEARD, tts=SPOKEN), keys=KEYS)
    async with running.http() as http:

        async def usage(key: str) -> dict[str, Any]:
            return (await http.get("/v1/usage", headers=bearer(key))).json()

        assert (await http.get("/v1/usage")).status_code == 401
        for _ in range(2):
            assert (await http.post("/v1/audio/speech", json=SPEECH, headers=bearer(KEYS[0]))).status_code == 200
        files = {"file": ("a.wav", b"RIFF"), "model": (None, "tiny")}
        heard = await http.post("/v1/audio/transcriptions", files=files, headers=bearer(KEYS[0]))
        assert heard.status_code == 200, heard.text
        first, second = await usage(KEYS[0]), await usage(KEYS[1])
        metrics = (await http.get("/metrics", headers=bearer(KEYS[1]))).text
    seconds = round(2 * NUM_SAMPLES / 16_000, 3)
    expected = {"requests": 3, "characters": 12, "output_audio_s": seconds, "refused": 0, "ceilings": []}
    assert first.items() >= expected.items()
    assert first["input_audio_s"] == 3 * 1.25  # of each report of the scripted server
    assert second.items() >= {"requests": 0, "characters": 0, "output_audio_s": 0.0}.items()
    assert first["key"] != second["key"]
    assert f'key_characters_total{{key="{first["key"]}"}} 12.0' in metrics
    assert f'key_requests_total{{key="{second["key"]}"}} 0.0' in metrics
    assert not any(key in metrics for key in KEYS)


async def test_streamed_text_is_counted(start: Start) -> None:
    running = await start()
    async with open_socket(running, PATH) as opened:
        await (await begin(opened, model="tts-1", voice="rms", response_format="pcm")).utterance("A cat ", "sat.")
    async with running.http() as http:
        found = (await http.get("/v1/usage")).json()
    assert found.items() >= {"key": "everybody", "requests": 1, "characters": 10}.items()
    assert found["output_audio_s"] > 0


async def test_replies_of_a_session_count_for_the_key_of_its_secret(start: Start) -> None:
    running = await start(by_task(dialogue=answer()), TALKS, keys=KEYS)
    async with running.http() as http:
        form = {"session": {"type": "realtime", "audio": {"output": {"voice": "slt"}}}}
        made = await http.post("/v1/realtime/client_secrets", json=form, headers=bearer(KEYS[1]))
        async with call_by(running.openai(api_key=made.json()["value"]), "tiny") as caller:
            await caller.say("hello")
            await caller.send("response.create")
            await caller.until("response.done")
        found = (await http.get("/v1/usage", headers=bearer(KEYS[1]))).json()
    assert found["requests"] == 1
    assert found["output_audio_s"] > 0


async def test_request_beyond_a_ceiling_is_refused_with_its_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stretto_gateway.usage.time", SimpleNamespace(time=lambda: 1_000_000_010.0))
    running = await start(answer(), keys=KEYS, ceilings=("requests=2/day", "characters=1000000/minute"))
    async with running.http() as http:
        for status in (200, 200, 429, 429):
            response = await http.post("/v1/audio/speech", json=SPEECH, headers=bearer(KEYS[0]))
            assert response.status_code == status
        other = await http.post("/v1/audio/speech", json=SPEECH, headers=bearer(KEYS[1]))
        found = (await http.get("/v1/usage", headers=bearer(KEYS[0]))).json()
    assert other.status_code == 200
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert error["message"].startswith("requests: at most 2 in a day for a key; try again in ")
    assert response.headers["retry-after"] == str(86_400 - 1_000_000_010 % 86_400)
    assert (found["requests"], found["refused"]) == (2, 2)
    of_requests, of_characters = found["ceilings"]
    assert of_requests.items() >= {"measure": "requests", "period": "day", "amount": 2, "used": 2.0}.items()
    assert of_characters["used"] == 12.0
    assert of_characters["resets_in_s"] == 60 - 1_000_000_010 % 60


def begun(usage: Usage) -> None:
    usage.current.check()
    usage.current.add("requests", 1)


def test_periods_begin_with_the_minutes_of_the_clock() -> None:
    now = [119.5]
    ceilings = [Ceiling.from_text("output_audio_s=10/minute"), Ceiling.from_text("requests=4/day")]
    usage = Usage(["a", "b"], ceilings, CollectorRegistry(), lambda: now[0])
    CALLER.set("a")
    begun(usage)
    usage.current.add("output_audio_s", 9.5)
    begun(usage)
    usage.current.add("output_audio_s", 30.0)
    with pytest.raises(ApiError, match="output_audio_s: at most 10 in a minute for a key; try again in 1 s") as raised:
        begun(usage)
    assert raised.value.response().headers["retry-after"] == "1"
    CALLER.set("b")
    begun(usage)
    CALLER.set("of a signed call, without a key")
    begun(usage)
    assert (usage.current.name, usage.current.record()["requests"]) == ("none", 1)
    CALLER.set("a")
    now[0] = 120.0
    begun(usage)
    begun(usage)
    with pytest.raises(ApiError, match="requests: at most 4 in a day for a key; try again in 86280 s"):
        begun(usage)
    now[0] = 86_400.0
    begun(usage)
    assert usage.current.record()["output_audio_s"] == 39.5


def test_ceilings_are_read_from_the_command_line() -> None:
    options = ["--port", "0", "--ceiling", "requests=60/minute", "--ceiling=input_audio_s=3600/day"]
    assert read_config(arguments().parse_args(options)).ceilings == ("requests=60/minute", "input_audio_s=3600/day")
    bad = ["", "requests", "requests=0/day", "requests=1.5/day", "calls=1/day", "requests=1/hour", "requests=9e9/day"]
    for text in bad:
        with pytest.raises(SystemExit):
            arguments().parse_args(["--ceiling", text])
