"""Qwen3-Omni through the real server (release, converter, repository, server, clients): both models in one reply."""

import base64
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugins.qwen3_omni.tests.published_qwen3_omni_thinker import Processor, convert, sights, speech
from plugins.qwen3_omni.tests.published_qwen3_omni_whole import Whole
from plugins.qwen3_omni.tests.server.test_qwen3_omni import png, wav
from stretto.codecs.base import load_codec
from stretto.family.prompting import Piece
from stretto.family.served import speaking_folder
from stretto.launcher.processes import descendants, read_process
from stretto.testing.codec_streams import stream
from stretto_gateway.encoding import wav_header
from tests.gateway.realtime.caller import RATE, call_by
from tests.server.conftest import ServedCheckpoint, Server, serves
from tests.server.listening import Answer
from tests.server.openai_client import openai_client

pytestmark = [pytest.mark.server, pytest.mark.nightly]  # by day plugins/qwen3_omni/tests/engine/test_spoken_llm.py
NUM_WORDS, NUM_FRAMES = 20, 28
TEXT = "what is ass tant? hello user"
GREEDY: dict[str, Any] = {
    "text": {"max_rows": NUM_WORDS},
    "audio": {"temperature": 0, "max_rows": NUM_FRAMES},
    "depth": {"temperature": 0},
    "seed": 0,
}
served = serves(convert)


@pytest.fixture(scope="module")
def whole(served: ServedCheckpoint) -> Whole:
    return Whole(served.checkpoint.parent / "release")


def ask(server: Server, task: str = "dialogue", options: dict[str, Any] | None = None, **inputs: Any) -> Answer:
    """Return the greedy reply to a request."""
    spoken = {"output": {"codes": True}} | GREEDY if task == "dialogue" else {"text": GREEDY["text"], "seed": 0}
    return server.ask(spoken | (options or {}), task=task, **inputs)


def sound_of(checkpoint: Path, codes: np.ndarray) -> np.ndarray:
    """Return the samples [n] of codes [K, T], decoded in one pass."""
    codec = load_codec("qwen3_omni", speaking_folder(checkpoint))
    return stream(codec, torch.from_numpy(codes)[None], [codes.shape[1]])[0].numpy()


@pytest.mark.parametrize(("voice", "heard"), [("ethan", False), ("chelsie", True)], ids=["text", "audio"])
def test_text_and_speech_match_transformers(served: ServedCheckpoint, whole: Whole, voice: str, heard: bool) -> None:
    """The first text comes before the first samples, and the same request has the same text without speech."""
    pcm = speech(1.2345, 2)
    pieces = (Piece("user", "audio", pcm=pcm),) if heard else (Piece("user", "text", text=TEXT),)
    turn = {"role": "user"} | ({"audio": "pcm_in"} if heard else {"text": TEXT})
    inputs: dict[str, Any] = {"messages": json.dumps([turn])}
    inputs |= {"pcm_in": pcm, "sample_rate": np.array([16_000], np.int32)} if heard else {}
    answer = ask(served.server, options={"voice": voice}, **inputs)
    assert answer.error is None, answer.error
    words, codes = whole.reply(Processor(served.checkpoint).inputs(pieces), voice, NUM_WORDS, NUM_FRAMES)
    assert np.array_equal(answer.codes, codes)
    assert answer.report["num_text_tokens"] == len(words)
    assert answer.report["num_frames"] == codes.shape[1] == NUM_FRAMES
    expected = sound_of(served.checkpoint, codes)
    faded = len(expected) // 4  # a limit ends the speech, which is faded out
    assert len(answer.pcm) == len(expected)
    np.testing.assert_allclose(answer.pcm[:-faded], expected[:-faded], atol=1e-4)
    first_text = next(index for index, event in enumerate(answer.events) if event["text"])
    first_sound = next(index for index, each in enumerate(answer.responses) if each.pcm is not None and len(each.pcm))
    assert first_text < first_sound
    written = ask(served.server, "chat", **inputs)
    assert (written.error, written.text) == (None, answer.text)
    assert not len(written.pcm)


def test_replies_at_once_equal_those_alone(served: ServedCheckpoint) -> None:
    drawn = {"text": {"max_rows": NUM_WORDS, "temperature": 0.9}, "audio": {"max_rows": NUM_FRAMES}, "depth": {}}
    requests = [{"options": drawn | {"seed": seed}, "text": TEXT * (1 + seed % 3)} for seed in range(6)]
    alone = [ask(served.server, **request) for request in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        at_once = list(pool.map(lambda request: ask(served.server, **request), requests))
    for first, second in zip(alone, at_once, strict=True):
        assert (first.error, second.error) == (None, None)
        assert (first.text, first.codes.tolist()) == (second.text, second.codes.tolist())


def test_invalid_options_are_refused(served: ServedCheckpoint) -> None:
    for options, message in (
        ({"voice": "nobody"}, "options.voice: expected one of ethan, chelsie"),
        ({"audio": {"max_rows": 600}}, "options.audio.max_rows: expected at most 512 rows, got 600 rows"),
        ({"text_mode": "open"}, "options.text_mode"),
    ):
        error = ask(served.server, options=options, text=TEXT).error
        assert error is not None
        assert message in error
    error = ask(served.server, "chat", options={"voice": "ethan"}, text=TEXT).error
    assert error is not None
    assert "options.voice: expected no value (task 'chat' does not speak)" in error


def test_cancelled_reply_frees_both_models(served: ServedCheckpoint) -> None:
    server = served.server
    stream = server.stream(GREEDY | {"text": {"max_rows": 400}, "audio": {"max_rows": 400}}, task="dialogue", text=TEXT)
    while stream.next().pcm is None:  # until the speech has begun
        pass
    stream.cancel()
    server.until(lambda: server.metric("active_utterances") == 0)
    server.until(lambda: server.metric("running_requests") == 0)


async def test_chat_completions_speak(served: ServedCheckpoint) -> None:
    """The transcript of a spoken completion is its text; the audio is that of the server."""
    plain = ask(served.server, text=TEXT)
    file = wav_header(16_000) + np.rint(speech(1.2345, 2) * 32767).astype(np.int16).tobytes()
    heard = {"type": "input_audio", "input_audio": {"data": base64.b64encode(file).decode(), "format": "wav"}}
    async with openai_client(served.server.grpc) as client:
        for content in (TEXT, [heard]):
            answer = await client.chat.completions.create(
                model="gpt-audio",
                modalities=["text", "audio"],
                audio={"voice": "ethan", "format": "wav"},
                messages=[{"role": "user", "content": content}],  # type: ignore[list-item, misc]
                seed=0,
            )
            audio = answer.choices[0].message.audio
            assert audio is not None
            assert len(base64.b64decode(audio.data)) > 10_000
            assert audio.transcript
        parts = await client.chat.completions.create(
            model="gpt-audio", messages=[{"role": "user", "content": TEXT}], stream=True, seed=0
        )
        text = "".join([part.choices[0].delta.content or "" async for part in parts if part.choices])
    assert text.startswith(plain.text.strip()[:8])


async def test_images_are_spoken_about(served: ServedCheckpoint, whole: Whole) -> None:
    """In a realtime session, and in a chat completion, whose text is longer, because it has no such options."""
    heard, seen, asked = sights()["audio, image"]
    assert heard.pcm is not None
    assert seen.pixels is not None
    processor, url = (
        Processor(served.checkpoint),
        f"data:image/png;base64,{base64.b64encode(png(seen.pixels)).decode()}",
    )
    sound = base64.b64encode(wav(heard.pcm)).decode()
    parts: list[Any] = [
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": asked.text},
    ]
    shown = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": asked.text}]
    async with openai_client(served.server.grpc) as client:
        async with call_by(client, "gpt-realtime") as caller:
            await caller.put({"type": "message", "role": "user", "content": shown})
            options = {name: GREEDY[name] for name in ("text", "audio", "depth", "seed")}
            await caller.send("response.create", response={"options": options})
            events = await caller.until("response.done")
        answer = await client.chat.completions.create(
            model="gpt-audio",
            modalities=["text", "audio"],
            audio={"voice": "ethan", "format": "wav"},
            messages=[{"role": "user", "content": parts}],
        )
    words, codes = whole.reply(processor.inputs((seen, asked)), "ethan", NUM_WORDS, NUM_FRAMES)
    assert events[-1].response.output[0].content[0].transcript == processor.decode(words)
    deltas = b"".join(base64.b64decode(each.delta) for each in events if each.type == "response.output_audio.delta")
    expected = np.rint(sound_of(served.checkpoint, codes) * 32767)
    faded = len(expected) // 4  # a limit ends the speech, which is faded out
    np.testing.assert_allclose(np.frombuffer(deltas, "<i2")[:-faded], expected[:-faded], atol=4)
    words, _ = whole.reply(processor.inputs((heard, seen, asked)), "ethan", NUM_WORDS, NUM_FRAMES)
    audio = answer.choices[0].message.audio
    assert audio is not None
    assert audio.transcript.startswith(processor.decode(words).strip())
    assert len(base64.b64decode(audio.data)) > 10_000


async def test_realtime_turns_speak(served: ServedCheckpoint) -> None:
    """The second turn follows a spoken reply, of which the thinker reads the text, and the third one that was cut."""
    options = {name: GREEDY[name] for name in ("text", "audio", "depth", "seed")}
    async with openai_client(served.server.grpc) as client, call_by(client, "gpt-realtime") as caller:
        for text in (TEXT, "hello", "user"):
            if text == "user":
                item_id = caller.seen[-1].response.output[0].id
                await caller.ask("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=200)
            await caller.say(text)
            await caller.send("response.create", response={"options": options})
            events = await caller.until("response.done")
            assert events[-1].response.status in ("completed", "incomplete"), events[-1]
            kinds = [event.type for event in events]
            assert "response.output_audio_transcript.delta" in kinds
            sounds = [base64.b64decode(each.delta) for each in events if each.type == "response.output_audio.delta"]
            seconds = sum(map(len, sounds)) / 2 / RATE
            assert seconds == pytest.approx(NUM_FRAMES / 12.5, abs=0.1)
            transcript = events[-1].response.output[0].content[0].transcript
            assert transcript == "".join(
                each.delta for each in events if each.type == "response.output_audio_transcript.delta"
            )


@pytest.mark.parametrize("index", [0, 1])
def test_killed_engine_of_either_model_is_restarted(served: ServedCheckpoint, index: int) -> None:
    """Both are restarted, because they are one model of the server."""
    server = served.server

    def engines() -> list[int]:
        found = descendants(server.pid)
        return sorted(process.pid for process in found if process.command.startswith("VLLM::EngineCore"))

    before, num_ready = engines(), server.said.count("ready after")
    assert len(before) == 2
    expected = ask(server, text=TEXT)
    os.kill(before[index], signal.SIGKILL)
    server.until(lambda: server.said.count("ready after") > num_ready)
    server.until_ready()
    assert len(engines()) == 2
    assert not {*before} & {*engines()}
    assert all(read_process(pid) is None for pid in before)
    again = ask(server, text=TEXT)
    assert (again.error, again.text) == (None, expected.text)
    assert np.array_equal(again.codes, expected.codes)
