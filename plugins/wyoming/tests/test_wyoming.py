"""Speech and transcripts over Wyoming: events in order, live text, live audio, errors, and clients that leave."""

import asyncio
import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.wyoming.tests.conftest import Begin, port_of
from plugins.wyoming.tests.line import FORM, Line, audio, connected, events_in, types
from stretto_wyoming.session import MAX_WAITING
from stretto_wyoming.state import WyomingOptions
from tests.client.fake_server import PROFILE, Chunk, Request, Step, Until
from tests.gateway.conftest import HEARD, NUM_SAMPLES, SPOKEN
from tests.gateway.realtime.test_live_transcripts import CONTINUES, LISTENS, Growing, Listening
from tests.gateway.test_model_servers import Begin as BeginSeveral
from tests.gateway.test_voices import CLONES, RECORDING, added_voice, told
from tests.patience import PATIENCE_S, until_async

TEXT = "It is twenty past nine."
LANGUAGES = PROFILE | {"languages": ["english", "german"], "options": ["language"]}
# The last event of the answer to an event, for which clients wait.
ANSWERS = {
    "describe": ["info"],
    "synthesize": ["audio-stop", "error"],
    "synthesize-stop": ["synthesize-stopped"],
    "audio-stop": ["transcript"],
    "ping": ["pong"],
}
WRITTEN = ("synthesize-start", "synthesize-chunk")  # events of a text that is not complete
TRANSCRIPT = ["transcript-start", "transcript-chunk", "transcript", "transcript-stop"]


async def usable(line: Line) -> bool:
    """Return True if the connection still answers, with nothing else before the answer."""
    await line.send("ping", text="a")
    return await line.read() == {"type": "pong", "text": "a"}


async def test_text_is_spoken_as_over_http(begin: Begin) -> None:
    running, line = await begin()
    await line.send("synthesize", text=TEXT, voice={"name": "rms"})
    events = await line.until("audio-stop")
    assert types(events) == ["audio-start", "audio-chunk", "audio-stop"]
    form = {"rate": 24_000, "width": 2, "channels": 1}
    assert events[0] == {"type": "audio-start", "timestamp": 0} | form
    assert all(event.items() >= form.items() for event in events[1:-1])
    async with running.http() as http:
        request = {"input": TEXT, "voice": "rms", "response_format": "pcm"}
        assert audio(events) == (await http.post("/v1/audio/speech", json=request)).content
    assert len(audio(events)) == 2 * NUM_SAMPLES
    assert [event["timestamp"] for event in events[1:]] == [0, 160, 480, 560]
    assert running.behind.requests[0]["text"] == running.behind.requests[1]["text"] == TEXT.encode()
    assert await running.metric("audio_ttfp_seconds_count") == 2
    assert await running.metric("key_characters_total") == 2 * len(TEXT)
    assert await usable(line)
    line.close()
    await running.idle()


@pytest.mark.parametrize(
    ("voice", "options"),
    [
        ({}, {}),
        ({"name": "tiny"}, {}),
        ({"name": "rms"}, {"voice": "rms"}),
        ({"name": "alloy"}, {"voice": "slt"}),
        ({"name": "tiny", "speaker": "rms"}, {"voice": "rms"}),
        ({"language": "de-AT"}, {"language": "german"}),
        ({"name": "rms", "language": "en"}, {"voice": "rms", "language": "english"}),
    ],
)
async def test_voice_has_a_name_a_speaker_or_a_language(
    begin: Begin, voice: dict[str, str], options: dict[str, str]
) -> None:
    running, line = await begin(SPOKEN, LANGUAGES)
    await line.send("synthesize", text=TEXT, voice=voice)
    await line.until("audio-stop")
    sent = json.loads(running.behind.requests[0]["options"])
    assert {name: sent[name] for name in ("voice", "language") if name in sent} == options


async def test_first_sentence_is_spoken_while_the_next_is_written(begin: Begin) -> None:
    running, line = await begin()
    await line.send("synthesize-start", voice={"name": "rms"})
    await line.send("synthesize-chunk", text=f"{TEXT} And ")
    events = await line.until("audio-chunk")
    await line.send("synthesize-chunk", text="now it is ten.")
    await line.send("synthesize", text="ignored, because it repeats the text", voice={"name": "slt"})
    await line.send("synthesize-stop")
    events += await line.until("synthesize-stopped")
    assert types(events) == ["audio-start", "audio-chunk", "audio-stop", "synthesize-stopped"]
    assert [request["text"] for request in running.behind.requests] == [TEXT.encode(), b"And now it is ten."]
    assert all(json.loads(request["options"])["voice"] == "rms" for request in running.behind.requests)
    await line.send("synthesize-start")
    await line.send("synthesize-stop")
    assert types(await line.until("synthesize-stopped")) == ["synthesize-stopped"], "there is nothing to speak"
    line.close()
    await running.idle()


async def test_requests_are_answered_one_after_the_other(begin: Begin) -> None:
    may_speak = asyncio.Event()
    running, line = await begin(lambda _: [Until(may_speak), *SPOKEN])
    for number in range(2 + MAX_WAITING):
        await line.send("synthesize", text=f"Number {number}.")
    refused = await line.read()
    assert refused["text"] == f"expected at most {MAX_WAITING} texts and recordings that wait, got another one"
    assert len(running.behind.requests) <= 1
    may_speak.set()
    for number in range(1 + MAX_WAITING):
        assert types(await line.until("audio-stop")) == ["audio-start", "audio-chunk", "audio-stop"]
        assert running.behind.requests[number]["text"] == f"Number {number}.".encode()
    line.close()
    await running.idle()


async def test_refused_recording_is_ignored_until_its_end(begin: Begin) -> None:
    may_speak = asyncio.Event()
    running, line = await begin(lambda request: HEARD if "audio" in request else [Until(may_speak), *SPOKEN])
    for _ in range(1 + MAX_WAITING):
        await line.send("synthesize", text=TEXT)
    await line.send("audio-start", **FORM)
    assert (await line.read())["text"].startswith(f"expected at most {MAX_WAITING} texts and recordings that wait")
    await line.send("audio-chunk", bytes(200), **FORM)
    may_speak.set()
    for _ in range(1 + MAX_WAITING):
        assert types(await line.until("audio-stop")) == ["audio-start", "audio-chunk", "audio-stop"]
    await line.send("audio-chunk", bytes(200), **FORM)
    await line.send("audio-stop")
    assert await usable(line)
    await line.send("audio-start", **FORM)
    await line.send("audio-stop")
    assert types(await line.until("transcript-stop")) == TRANSCRIPT
    line.close()
    await running.idle()


@pytest.mark.parametrize("form", [FORM, {"rate": 44_100, "width": 3, "channels": 2}])
@pytest.mark.parametrize("is_named", [True, False])
async def test_recording_is_transcribed(begin: Begin, form: dict[str, int], is_named: bool) -> None:
    running, line = await begin(HEARD)
    if is_named:
        await line.send("transcribe", name="tiny", language="en", vad_sensitivity="default")
        await line.send("audio-start", **form)
    samples = bytes(range(240))
    for begun in (0, 100, 200):
        await line.send("audio-chunk", samples[begun : begun + 100], **form)
    await line.send("audio-stop", timestamp=1)
    events = await line.until("transcript-stop")
    assert types(events) == TRANSCRIPT
    assert [event["text"] for event in events[1:3]] == ["a cat", "a cat"]
    with wave.open(io.BytesIO(running.behind.requests[0]["audio"])) as file:
        sent = {"rate": file.getframerate(), "width": file.getsampwidth(), "channels": file.getnchannels()}
        assert (sent, file.readframes(1000)) == (form, samples)
    assert await usable(line)
    line.close()
    await running.idle()


async def test_live_audio_is_transcribed_while_it_is_sent(begin: Begin) -> None:
    listening = Listening()
    running, line = await begin(listening, LISTENS)
    samples = (np.arange(12_000) % 1000).astype("<i2").tobytes()
    await line.send("audio-start", **FORM)
    await line.send("audio-chunk", samples[:10_001], **FORM)
    await line.send("audio-chunk", samples[10_001:], **FORM)
    events = await line.until("transcript-chunk")
    assert types(events) == TRANSCRIPT[:2]
    await line.send("audio-stop")
    events += await line.until("transcript-stop")
    assert (types(events), events[-2]["text"]) == (TRANSCRIPT, "fine then")
    assert len(listening.heard[0]) * 16_000 == pytest.approx(12_000 * PROFILE["sample_rate"], rel=0.1)
    line.close()
    await running.idle()


async def test_audio_that_a_live_transcript_keeps_counts_until_its_end(begin: Begin) -> None:
    growing = Growing()
    running, line = await begin(growing, CONTINUES)
    held = running.app.state.gateway.sessions.held
    await line.send("audio-start", **FORM)
    for _ in range(4):
        await line.send("audio-chunk", bytes(32_000), **FORM)
    events = await line.until("transcript-chunk")
    await until_async(lambda: held.num_bytes == 4 * 32_000)
    await line.send("audio-stop")
    events += await line.until("transcript-stop")
    assert events[-2]["text"].startswith(events[1]["text"])
    assert not held.num_bytes
    line.close()
    await running.idle()


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (("synthesize", {}), "text: missing"),
        (("synthesize", {"text": 1}), "text: Input should be a valid string, got 1"),
        (("synthesize", {"text": TEXT, "voice": {"name": "x"}}), "voice: expected one of slt, rms"),
        (("synthesize", {"text": TEXT, "voice": {"language": "fr"}}), "voice.language: expected one of en, de, got"),
        (("synthesize", {"text": TEXT, "text_format": "x"}), "text_format: Input should be 'text' or 'ssml', got 'x'"),
        (("synthesize-chunk", {"text": TEXT}), "type: expected synthesize-start before the text, got none"),
        (("audio-start", FORM | {"width": 5}), "width: Input should be less than or equal to 4, got 5"),
        (("transcribe", {"language": 1}), "language: Input should be a valid string, got 1"),
    ],
)
async def test_invalid_fields_are_named_and_the_session_continues(
    begin: Begin, event: tuple[str, dict[str, Any]], message: str
) -> None:
    running, line = await begin(SPOKEN, LANGUAGES)
    await line.send(event[0], **event[1])
    answer = await line.read()
    assert answer["type"] == "error"
    assert answer["text"].startswith(message)
    await line.send("run-pipeline", of="an unknown type")
    assert await usable(line)
    assert not running.behind.requests


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_failed_speech_ends_and_the_session_continues(begin: Begin, is_streamed: bool) -> None:
    def script(request: Request) -> list[Step]:
        return SPOKEN[:1] if b"twenty" in request["text"] else SPOKEN

    running, line = await begin(script)
    name = "synthesize-chunk" if is_streamed else "synthesize"
    if is_streamed:
        await line.send("synthesize-start")
    await line.send(name, text=f"{TEXT} Now it is ten.")
    events = await line.until("audio-stop")
    assert types(events) == ["audio-start", "audio-chunk", "error", "audio-stop"]
    if is_streamed:
        await line.send("synthesize-chunk", text="Not spoken any more.")
        await line.send("synthesize-stop")
        assert types(await line.until("synthesize-stopped")) == ["synthesize-stopped"]
    assert await usable(line)
    await line.send("synthesize", text="A cat.")
    assert types(await line.until("audio-stop")) == ["audio-start", "audio-chunk", "audio-stop"]
    line.close()
    await running.idle()


async def test_client_that_leaves_ends_its_speech(begin: Begin) -> None:
    running, line = await begin([SPOKEN[0], Until(asyncio.Event())])
    await line.send("synthesize", text=TEXT)
    await line.until("audio-chunk")
    line.close()
    await asyncio.wait_for(running.behind.cancelled.wait(), PATIENCE_S)
    await running.idle()
    assert await running.metric("audio_left_total") == 1


async def test_uploaded_voice_is_offered_and_spoken(begin: Begin, tmp_path: Path) -> None:
    running, line = await begin(SPOKEN, CLONES, voices=tmp_path)
    voice_id = await added_voice(running, name="Mine", description="calm")
    await line.send("describe")
    (program,) = (await line.read())["tts"]
    assert {voice["name"]: voice["description"] for voice in program["voices"]}[voice_id] == "Mine, calm"
    await line.send("synthesize", text=TEXT, voice={"name": voice_id})
    await line.until("audio-stop")
    assert told(running.behind.requests[-1])[1] == RECORDING
    line.close()
    await running.idle()


async def test_each_of_several_models_is_a_program(several: BeginSeveral) -> None:
    gateway = await several("piper-en", "scribe", "second-voice", routes=(WyomingOptions("127.0.0.1"),))
    line = await connected(port_of(gateway.running))
    await line.send("describe")
    info = await line.read()
    assert [program["name"] for program in info["tts"]] == ["piper-en", "second-voice"]
    assert [program["name"] for program in info["asr"]] == ["scribe"]
    await line.send("synthesize", text=TEXT, voice={"name": "joe"})
    await line.until("audio-stop")
    await line.send("select-program", name="second-voice")
    await line.send("synthesize", text=TEXT, voice={"name": "rms"})
    await line.until("audio-stop")
    await line.send("transcribe", name="scribe")
    await line.send("audio-chunk", bytes(200), rate=16_000, width=1, channels=1)
    await line.send("audio-stop")
    assert (await line.until("transcript"))[-1]["text"] == "a cat"
    assert gateway.asked() == {"piper-en": 1, "second-voice": 1, "scribe": 1}
    await line.send("synthesize", text=TEXT, voice={"name": "second-voice"})
    await line.until("audio-stop")
    await line.send("select-program", name="x")
    await line.send("synthesize", text=TEXT)
    assert (await line.read())["text"] == "model: expected one of 'piper-en', 'scribe', 'second-voice', got 'x'"
    line.close()


async def test_speech_in_progress_completes_before_shutdown(begin: Begin) -> None:
    may_end = asyncio.Event()
    running, line = await begin([SPOKEN[0], Until(may_end), *SPOKEN[1:]])
    await line.send("synthesize", text=TEXT)
    await line.until("audio-chunk")
    gateway = running.app.state.gateway
    gateway.sessions.draining.set()
    later = await connected(port_of(running))
    assert (await later.read())["text"] == "the gateway accepts no new sessions; try again"
    assert await later.is_closed()
    may_end.set()
    assert types(await line.until("audio-stop")) == ["audio-chunk", "audio-stop"]
    assert (await line.read())["text"] == "the session is over: the gateway is shutting down"
    assert await line.is_closed()


def recorded(name: str) -> list[tuple[str, list[str]]]:
    """Return what a client has sent on each of its connections, and the types of events that it got."""
    lines = (Path(__file__).parent / "data" / f"{name}.jsonl").read_text().splitlines()
    return [(record["sent"], record["got"]) for record in map(json.loads, lines)]  # of test_real_clients.py


@pytest.mark.parametrize("client", ["wyoming", "home_assistant"])
async def test_recorded_sessions_of_real_clients_are_answered(begin: Begin, client: str) -> None:
    chunk = Chunk(0, None, text="a cat", is_final=True, is_last=True)
    profile = PROFILE | {"voices": ["heart"]}  # as the bundled model's
    running, first = await begin(lambda request: [chunk] if "audio" in request else SPOKEN, profile)
    first.close()
    for sent, expected in recorded(client):
        line = await connected(port_of(running))
        got = list[dict[str, Any]]()
        is_written = False
        for name, data in events_in(sent.encode("latin-1")):
            await line.write(data)
            is_written = name in WRITTEN or (is_written and name == "synthesize")
            if name in ANSWERS and not is_written:
                got += await line.until(*ANSWERS[name])
        assert types(got) == expected
        line.close()
    await running.idle()
