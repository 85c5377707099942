"""Kyutai TTS through the real server: codes, samples and word times, whole or word by word, over each API."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
import soundfile
from websockets.asyncio.client import connect

from plugins.kyutai.tests.kyutai_tts.test_kyutai_tts_convert import write_wav
from plugins.kyutai.tests.kyutai_tts_release import TEXTS, make_checkpoint, vocabulary
from stretto.codecs.base import load_codec
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto_client import SpeechClient, SpeechEvent
from tests.engine.harness import Engine
from tests.server.conftest import ServedCheckpoint, served_checkpoint
from tests.server.openai_client import gateway_port, openai_client
from tests.server.published import check_sound

# By night: tests/engine/test_kyutai_tts.py compares the engine with the authors' rows; prompts have tests of their own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]
PCM = (np.sin(np.arange(24_001) ** 1.3 / 300) / 2).astype(np.float32)
OPTIONS = {"seed": 5, "output": {"codes": True}, "chunking": {"first_frames": 2, "steady_frames": 5}}
TURNS = json.dumps([{"role": "system", "audio": "pcm_in"}, {"role": "user", "text": TEXTS[0]}])
RATE = {"sample_rate": np.array([24_000], np.int32)}
SPOKEN = [word for word in TEXTS[0].split() if not word.startswith("<")]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("kyutai_tts")
    (folder / "release").mkdir()
    write_wav(folder / "release" / "voices" / "alba.wav")
    checkpoint = make_checkpoint(folder)
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedCheckpoint(server, checkpoint)


def frames(served: ServedCheckpoint, raw: RawRequest) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes of the recording and of the engine's reply, [K, n] each."""
    prompt, known = Preprocessor(served.checkpoint).prepare(raw), vocabulary(served.checkpoint)
    with Engine(served.checkpoint, max_model_len=256) as engine:
        rows = np.array(engine.run({"r": prompt})["r"].rows)[:-1, 1:]
    assert prompt.delayed_tail is not None
    whole = np.concatenate([prompt.rows[:, 1:-1], rows]) - np.array(known.first_codes)
    num_frames, first = len(rows) - max(known.row_delays), prompt.num_reference_rows
    starts = [1 + delay for delay in known.row_delays]
    codes = np.stack([whole[start : start + first + num_frames, k] for k, start in enumerate(starts)])
    return codes[:, :first], codes[:, first:]


@pytest.fixture(scope="module")
def expected(served: ServedCheckpoint) -> np.ndarray:
    """Return the codes of the voice alba's reply, guided by the default."""
    return frames(served, RawRequest(text=TEXTS[0], options=json.dumps({"seed": 5})))[1]


def test_served_reply_continues_reference_recording(served: ServedCheckpoint) -> None:
    raw = RawRequest(messages=TURNS, pcm_in=PCM, sample_rate=24_000, options=json.dumps({"seed": 5}))
    recorded, codes = frames(served, raw)
    answer = served.server.ask(OPTIONS, messages=TURNS, pcm_in=PCM, **RATE)
    assert answer.error is None
    assert (answer.codes[1:] == codes).all()
    codec = load_codec("mimi", served.checkpoint, num_codebooks=8)
    check_sound(answer.pcm, np.concatenate([recorded, codes], 1), codec, recorded.shape[1])
    assert answer.report["finish_reason"] == "stop"
    assert answer.report["guidance_scale"] == 2.0
    assert answer.report["guided_frames"] == answer.report["num_frames"]
    assert [word["word"] for event in answer.events for word in event["words"]] == SPOKEN


def test_bad_input_is_refused_by_its_field(served: ServedCheckpoint) -> None:
    for options, inputs, message in (
        ({}, {"text": " "}, "text: expected text with a word that can be spoken"),
        ({}, {"text": 'a <break time="99s"/>'}, "text: expected breaks of at most 60 s"),
        ({"voice": "none"}, {"text": "it is"}, "options.voice: expected one of alba"),
        ({}, {"messages": TURNS, "pcm_in": PCM[:100], **RATE}, "pcm_in: expected at least 0.08 s"),
    ):
        answer = served.server.ask(options, **inputs)
        assert answer.error is not None
        assert message in answer.error


async def heard(events: AsyncIterator[SpeechEvent]) -> tuple[list[list[int]], list[tuple[str, float]]]:
    """Return the codes [K][T] and the words of a reply."""
    received = [event async for event in events]
    codes = np.concatenate([event.codes for event in received if event.codes is not None], 1)
    return codes.tolist()[1:], [(word.word, word.start_s) for event in received for word in event.words]


async def written(pieces: list[str], pause_s: float) -> AsyncIterator[str]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(pause_s)


async def test_word_by_word_text_yields_same_speech_as_whole_text(
    served: ServedCheckpoint, expected: np.ndarray
) -> None:
    pieces = [f"{word} " for word in TEXTS[0].split(" ")]
    async with SpeechClient(f"localhost:{served.server.grpc}") as client:
        assert (await client.profile()).reads_live_text
        whole = await heard(client.speak(TEXTS[0], seed=5, output={"codes": True}))
        assert whole[0] == expected.tolist()
        assert [word for word, _ in whole[1]] == SPOKEN
        made = await asyncio.gather(
            heard(client.speak(written(pieces, 0.05), seed=5, output={"codes": True})),
            heard(client.speak(written(list(TEXTS[0]), 0.01), seed=5, output={"codes": True})),
            heard(client.speak(written(pieces, 0), seed=6, output={"codes": True})),
        )
    assert made[0] == made[1] == whole
    assert made[2] != whole


async def test_gateway_speech_over_http_and_websocket(served: ServedCheckpoint, expected: np.ndarray) -> None:
    """HTTP, and the WebSocket for text that is still being written."""
    num_samples = 1920 * expected.shape[1]
    async with openai_client(served.server.grpc) as client:
        made = await client.audio.speech.create(
            model="tts-1", voice="alba", input=TEXTS[0], response_format="wav", extra_body={"seed": 5}
        )
        pcm, rate = soundfile.read(io.BytesIO(made.content), dtype="int16")
        assert (len(pcm), rate) == (num_samples, 24_000)
    async with (
        gateway_port(served.server.grpc) as port,
        connect(f"ws://127.0.0.1:{port}/v1/audio/speech/stream") as socket,
    ):
        config = {"voice": "alba", "seed": 5, "response_format": "pcm"}
        await socket.send(json.dumps({"type": "session.config", **config}))
        for word in TEXTS[0].split(" "):
            await socket.send(json.dumps({"type": "input.text", "text": f"{word} "}))
        await socket.send(json.dumps({"type": "input.done"}))
        written = b""
        async for message in socket:
            if isinstance(message, bytes):
                written += message
            elif json.loads(message)["type"] in ("error", "session.done"):
                break
    assert len(written) == 2 * num_samples
