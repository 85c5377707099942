"""Moshi through the real server: speech and text of a recording, whole or live, equal those of the engine alone."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from plugins.kyutai.tests.moshi_release import frames_of, make_checkpoint
from stretto.codecs.base import load_codec
from stretto.family.text import sentencepiece_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto_client import SpeechClient, SpeechEvent, live_speech
from stretto_client.errors import RequestRefused, ServerUnavailable
from stretto_client.speech_stream import strings
from stretto_kyutai.moshi.reader import PieceReader
from tests.engine.harness import Engine
from tests.gateway.realtime.caller import call_by
from tests.server.conftest import ServedCheckpoint, served_checkpoint
from tests.server.listening import Relay
from tests.server.openai_client import openai_client
from tests.server.published import check_sound

# By night: tests/engine/test_moshi.py compares the engine with the authors' frames; prompts have tests of their own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]
PCM = (np.sin(np.arange(60_000) ** 1.3 / 300) / 2).astype(np.float32)
RATE = {"sample_rate": np.array([24_000], np.int32)}
OPTIONS = {"seed": 5, "output": {"codes": True}, "chunking": {"first_frames": 2, "steady_frames": 5}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("moshi")
    checkpoint = make_checkpoint(folder)
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedCheckpoint(server, checkpoint)


@pytest.fixture(scope="module")
def expected(served: ServedCheckpoint) -> np.ndarray:
    """Return the frames of the engine alone, [T, 9]: text, then codes."""
    raw = RawRequest(pcm_in=PCM, sample_rate=24_000, options=json.dumps({"seed": 5}))
    prompt = Preprocessor(served.checkpoint).prepare(raw)
    with Engine(served.checkpoint, max_model_len=256) as engine:
        return frames_of(engine.run({"r": prompt})["r"].rows, served.checkpoint)


def text_of(served: ServedCheckpoint, frames: np.ndarray) -> str:
    reader = PieceReader(sentencepiece_at(served.checkpoint / "tokenizer.model").tokens)
    return "".join(map(reader.push, frames[:, 0].tolist())) + reader.end()


def test_a_recording_is_answered_with_speech_and_text(served: ServedCheckpoint, expected: np.ndarray) -> None:
    answer = served.server.ask(OPTIONS, pcm_in=PCM, **RATE)
    assert answer.error is None
    assert (answer.codes == expected.T).all()
    assert "".join(event["text"] for event in answer.events) == text_of(served, expected)
    check_sound(answer.pcm, answer.codes[1:], load_codec("mimi", served.checkpoint, num_codebooks=8))
    assert len(answer.pcm) == 1920 * len(expected) == 1920 * 32
    assert answer.report["finish_reason"] == "stop"
    assert answer.report["input_audio_s"] == pytest.approx(2.5)
    by_event = [(event["text"], event.get("num_frames", 0)) for event in answer.events]
    assert sum(bool(text) for text, _ in by_event) > 2, by_event


def test_invalid_input_error_names_its_field(served: ServedCheckpoint) -> None:
    for options, inputs, message in (
        ({}, {"pcm_in": PCM[:100], **RATE}, "pcm_in: expected at least 0.08 s"),
        ({"guidance_scale": 2.0}, {"pcm_in": PCM, **RATE}, "options.guidance_scale: expected 1.0"),
        ({"task": "tts"}, {"pcm_in": PCM, **RATE}, "options"),
    ):
        answer = served.server.ask(options, **inputs)
        assert answer.error is not None
        assert message in answer.error


async def spoken(sizes: Sequence[int], pause_s: float = 0.0) -> AsyncIterator[np.ndarray]:
    at = index = 0
    while at < len(PCM):
        size = sizes[index % len(sizes)]
        yield PCM[at : at + size]
        at, index = at + size, index + 1
        await asyncio.sleep(pause_s)


async def heard(events: AsyncIterator[SpeechEvent]) -> tuple[str, list[list[int]], np.ndarray]:
    """Return the text, the codes [9][T] and the samples of a reply."""
    received = [event async for event in events]
    codes = np.concatenate([event.codes for event in received if event.codes is not None], 1)
    pcm = np.concatenate([event.pcm for event in received if event.pcm is not None])
    return "".join(event.text for event in received), codes.tolist(), pcm


def options() -> dict[str, Any]:
    return {"seed": 5, "output": {"codes": True}}


async def test_live_sessions_at_any_pace_match_the_whole_recording(
    served: ServedCheckpoint, expected: np.ndarray
) -> None:
    """They run at the same time, one of them with another seed."""
    async with SpeechClient(f"localhost:{served.server.grpc}") as client:
        assert (await client.profile()).reads_live_audio
        whole = await heard(client.transcribe((PCM, 24_000), task="duplex", **options()))
        assert whole[:2] == (text_of(served, expected), expected.T.tolist())
        made = await asyncio.gather(
            heard(client.talk(spoken([1920], 0.01), 24_000, **options())),
            heard(client.talk(spoken([1, 5000, 333]), 24_000, **options())),
            heard(client.talk(spoken([len(PCM)]), 24_000, **options())),
            heard(client.talk(spoken([1920]), 24_000, **options() | {"seed": 6})),
        )
    assert made[3][1] != whole[1]
    for text, codes, pcm in made[:3]:
        assert (text, codes) == whole[:2]
        np.testing.assert_allclose(pcm, whole[2], atol=1e-4)


async def test_duplex_frame_is_answered_before_the_next_is_sent(served: ServedCheckpoint, expected: np.ndarray) -> None:
    """The user's next frame is sent only after the model's speech for the frame before has come."""
    num_answered, answered, frames = 0, asyncio.Condition(), list[int]()

    async def user() -> AsyncIterator[np.ndarray]:
        for frame in range(20):
            yield PCM[1920 * frame : 1920 * (frame + 1)]
            async with answered:
                await answered.wait_for(lambda number=frame: num_answered > number)

    async with SpeechClient(f"localhost:{served.server.grpc}") as client:
        codes = []
        async for event in client.talk(user(), 24_000, **options()):
            if event.pcm is None or not len(event.pcm):
                continue
            frames.append(len(event.pcm) // 1920)
            codes.append(np.array(event.codes))
            async with answered:
                num_answered += frames[-1]
                answered.notify_all()
    assert frames == [1] * 20
    assert (np.concatenate(codes, 1) == expected[:20].T).all()


async def test_gateway_answers_each_frame_of_a_realtime_session(served: ServedCheckpoint) -> None:
    """One frame of 80 ms is sent at a time, and the next one only after its answer."""
    async with openai_client(served.server.grpc) as client, call_by(client, "gpt-realtime") as caller:
        for frame in range(10):
            await caller.hear((PCM[1920 * frame : 1920 * (frame + 1)] * 32767).astype(np.int16))
            num_samples = 0
            while num_samples < 1920:
                delta = (await caller.until("response.output_audio.delta"))[-1].delta
                num_samples += len(base64.b64decode(delta)) // 2
            assert num_samples == 1920
        await caller.send("response.cancel")
        await caller.until("response.done")


async def test_invalid_part_is_refused_without_ending_the_session(
    served: ServedCheckpoint, expected: np.ndarray
) -> None:
    async with SpeechClient(f"localhost:{served.server.grpc}") as client:
        with pytest.raises(RequestRefused, match=r"options\.resume_s: expected no value \(only live sessions"):
            await heard(client.transcribe((PCM, 24_000), task="duplex", resume_s=5.0))
        has_ended = asyncio.Event()

        async def silent() -> AsyncIterator[np.ndarray]:
            await has_ended.wait()
            yield PCM

        events = client.talk(silent(), 24_000, **options())
        session = (await anext(events)).session
        async with client.parts() as parts:
            with pytest.raises(RequestRefused, match="pcm_in: expected finite samples"):
                await parts.write_audio(session, 0, (np.full(99, np.nan, np.float32), 24_000), False)
            await parts.write_audio(session, 0, (PCM, 24_000), True)
        text, codes, _ = await heard(events)
    assert (text, codes) == (text_of(served, expected), expected.T.tolist())


async def test_talk_that_loses_its_connection_three_times_misses_nothing(
    served: ServedCheckpoint, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections break within an event. Concurrent sessions are not disturbed; one is renewed (`MAX_BYTES`)."""
    monkeypatch.setattr(live_speech, "MAX_BYTES", 100_000)
    direct = f"localhost:{served.server.grpc}"
    relay = Relay(served.server.grpc, 30_000, 20_001, 45_678)
    async with SpeechClient(direct) as client, relay, SpeechClient(relay.address) as far:
        whole = await heard(client.talk(spoken([1920]), 24_000, **options()))

        async def interrupted() -> tuple[str, list[list[int]], np.ndarray]:
            talk = far.talk(spoken([1920], 0.02), 24_000, resume_s=60.0, **options())
            received = [event async for event in talk]
            assert not relay.cuts
            assert [event.index for event in received] == list(range(len(received)))
            assert [bool(event.session) for event in received] == [True] + [False] * (len(received) - 1)
            ends = np.cumsum([event.duration_s for event in received])
            np.testing.assert_allclose([event.start_s for event in received[1:]], ends[:-1], atol=1e-9)
            assert len({event.utterance for event in received}) == 1
            return await heard(replayed(received))

        made = await asyncio.gather(
            interrupted(),
            heard(client.talk(spoken([1920], 0.02), 24_000, **options())),
            heard(client.talk(spoken([1920], 0.02), 24_000, resume_s=60.0, **options())),
        )
    for text, codes, pcm in made:
        assert (text, codes) == whole[:2] == (text_of(served, expected), expected.T.tolist())
        np.testing.assert_allclose(pcm, whole[2], atol=1e-4)


async def replayed(events: list[SpeechEvent]) -> AsyncIterator[SpeechEvent]:
    for event in events:
        yield event


async def test_talk_that_is_not_resumed_in_time_ends(served: ServedCheckpoint) -> None:
    """The client's error and the server's name the option; the session's place is free again."""
    direct = f"localhost:{served.server.grpc}"
    async with SpeechClient(direct) as client, Relay(served.server.grpc) as relay, SpeechClient(relay.address) as far:
        talk = far.talk(spoken([1920], 0.02), 24_000, resume_s=0.5, **options())
        name = (await anext(talk)).session
        for _ in range(3):
            await anext(talk)
        relay.close()
        with pytest.raises(ServerUnavailable, match=r"; the session was not resumed within options.resume_s \(0.5 s\)"):
            await heard(talk)
        served.server.until(lambda: served.server.metric("live_sessions") == 0)
        await check_gone(client, name)


async def check_gone(client: SpeechClient, name: str) -> None:
    """Assert that a session cannot be resumed."""
    late = client.send(strings(session=json.dumps({"id": name, "part": 0, "is_last": False, "resume": 0})))
    with pytest.raises(
        RequestRefused, match=r"session.id: expected the id of an open session \(it is kept for options"
    ):
        await anext(late)


async def test_talk_that_its_client_closes_ends_immediately(served: ServedCheckpoint) -> None:
    async with SpeechClient(f"localhost:{served.server.grpc}") as client:
        async with client.talk(spoken([1920], 0.02), 24_000, resume_s=60.0, **options()) as talk:
            name = (await anext(talk)).session
        await check_gone(client, name)
        served.server.until(lambda: served.server.metric("live_sessions") == 0)
