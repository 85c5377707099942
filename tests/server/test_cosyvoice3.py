"""CosyVoice 3 through the real server: release, converter, repository, server, client."""

import asyncio
import base64
import json
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from websockets.asyncio.client import connect

from benchmarks.checkpoints.random_cosyvoice3 import convert, recording
from stretto.codecs.cosyvoice3 import load
from stretto.decoder.sessions import faded_out
from stretto.families.cosyvoice3.voices import FOLDER, RecordingEncoder, latest_chunks, sound_of
from stretto_client import RecordedVoice, SpeechClient
from stretto_gateway.command import make_server
from stretto_gateway.config import GatewayConfig
from tests.gateway.test_speech_stream import begin
from tests.server.conftest import ServedCheckpoint, served_checkpoint
from tests.server.listening import Response
from tests.server.test_qwen3_tts import wav

# By night: tests/engine/test_cosyvoice3.py holds the same release to the authors' replies; its prompts and its codec
# have tests of their own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]
NUM_CODES = 6561


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("cosyvoice3")
    checkpoint = convert(folder)
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedCheckpoint(server, checkpoint)


def inputs(pcm: np.ndarray, text: str, words: str = "") -> dict[str, Any]:
    """Return the inputs of a request in the voice of a recording, float32 [n] at 24 kHz."""
    system = {"role": "system", "audio": "pcm_in"} | ({"text": words} if words else {})
    turns = [system, {"role": "user", "text": text}]
    return {"messages": json.dumps(turns), "pcm_in": pcm, "sample_rate": np.array([24_000], np.int32)}


@pytest.mark.parametrize(("words", "instruct"), [("one two", ""), ("", ""), ("one two", "Softly.")])
def test_served_cosyvoice3_streams_in_a_recorded_voice(served: ServedCheckpoint, words: str, instruct: str) -> None:
    """The samples of all chunks equal a one-shot decode with the chunk mask."""
    options = {"seed": 3, "instruct": instruct, "audio": {"min_rows": 90}, "output": {"codes": True}}
    answer = served.server.ask(options, **inputs(recording(), "hello [laughter] you", words))
    assert answer.error is None
    codes = np.concatenate([np.array(event["codes"]) for event in answer.events if "codes" in event], axis=1)
    assert codes.shape[1] >= 90
    assert codes.max() < NUM_CODES
    parts = [response.pcm for response in answer.responses if response.pcm is not None and len(response.pcm)]
    assert len(parts) > 1
    codec = load(served.checkpoint)
    encoded = RecordingEncoder(served.checkpoint / FOLDER, NUM_CODES).encode(recording())
    number = codec.add_voice(*latest_chunks(sound_of(encoded)).arrays())
    mel = codec.mel(torch.from_numpy(codes[0]), codec._recorded.voices[number])
    spoken, _ = codec.speak(mel, 0, 0, 2 * codes.shape[1], 0.0)
    is_cut = answer.events[-1]["report"]["finish_reason"] == "length"
    whole = faded_out(spoken.numpy(), 24_000) if is_cut else spoken.numpy()
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-3)
    assert np.abs(whole).max() > 0.01


STREAMED: dict[str, Any] = {"seed": 5, "audio": {"max_rows": 400}, "output": {"codes": True}}
WRITTEN = "hello [laughter] you are the one who 好 knows it all so well"


def codes_and_samples(responses: list[Response]) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes [1, T] and the samples of responses."""
    events = [each.event for each in responses if each.event and "codes" in each.event]
    pcm = np.concatenate([each.pcm for each in responses if each.pcm is not None])
    return np.concatenate([np.array(event["codes"]) for event in events], axis=1), pcm


@pytest.mark.parametrize("words", ["one two", ""])
def test_open_streamed_text_gives_the_speech_of_the_complete_text(served: ServedCheckpoint, words: str) -> None:
    """Codes and samples equal those of the complete text."""
    server, pcm = served.server, recording()
    at_once = server.ask(STREAMED | {"text_mode": "streaming"}, **inputs(pcm, WRITTEN, words))
    assert at_once.error is None
    stream = server.stream(STREAMED | {"text_mode": "open"}, **inputs(pcm, WRITTEN[:2], words))
    responses = [stream.next()]
    assert responses[0].event is not None
    session, pieces = responses[0].event["session"], [WRITTEN[at : at + 9] for at in range(2, len(WRITTEN), 9)]
    for part, piece in enumerate(pieces):
        if is_last := part == len(pieces) - 1:
            server.until(lambda: server.metric("replies_without_words") == 1)
        record = json.dumps({"id": session, "part": part, "is_last": is_last})
        assert server.ask(text=piece, session=record).error is None
    answer = stream.listen()
    assert answer.error is None
    assert answer.report["held_s"] > 0
    expected, heard = codes_and_samples(at_once.responses), codes_and_samples([*responses, *answer.responses])
    np.testing.assert_array_equal(heard[0], expected[0])
    np.testing.assert_allclose(heard[1], expected[1], atol=1e-4)
    assert heard[0].shape[1] > 20
    assert heard[0].max() < NUM_CODES


async def test_streamed_text_is_spoken_through_the_gateway(served: ServedCheckpoint) -> None:
    """The samples equal those of a complete text that is read during the reply."""
    client_options: dict[str, Any] = {"seed": 5, "audio": {"max_rows": 300}, "text_mode": "streaming"}
    sent = wav(recording(), 24_000)
    async with SpeechClient(f"localhost:{served.server.grpc}") as client:
        profile = await client.profile()
        assert profile is not None
        assert profile.reads_live_text
        spoken = client.speak(
            WRITTEN, voice=RecordedVoice(sent), encoding="pcm_s16le", sample_rate=24_000, **client_options
        )
        expected = np.concatenate([event.pcm async for event in spoken if event.pcm is not None])
    listener = socket.create_server(("127.0.0.1", 0))
    gateway = make_server(GatewayConfig(f"localhost:{served.server.grpc}"), listener)
    serving = asyncio.ensure_future(gateway.serve([listener]))
    while not gateway.started:
        await asyncio.sleep(0.01)
    url = f"ws://127.0.0.1:{listener.getsockname()[1]}/v1/audio/speech/stream"
    async with connect(url, max_size=None) as opened:
        writer = await begin(opened, ref_audio=base64.b64encode(sent).decode(), seed=5, audio={"max_rows": 300})
        _, sound = await writer.utterance(*(WRITTEN[at : at + 7] for at in range(0, len(WRITTEN), 7)))
    gateway.should_exit = True
    await serving
    heard = np.frombuffer(sound, np.int16)
    np.testing.assert_allclose(heard, expected, atol=4)


def test_invalid_input_error_names_its_field(served: ServedCheckpoint) -> None:
    for given, message in (
        ({"text": "hello"}, "messages: expected a system turn with audio"),
        (inputs(recording(0.9), "a"), "messages[0].audio: expected at least 1 s, got 0.9000 s"),
        (inputs(recording(), "a<|endofprompt|>"), "messages[1].text: expected none of the model's markers"),
    ):
        served.server.refuses(given, message)
