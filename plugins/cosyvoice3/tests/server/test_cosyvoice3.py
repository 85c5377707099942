"""CosyVoice 3 through the real server: release, converter, repository, server, client."""

import asyncio
import base64
import json
import queue
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype
from websockets.asyncio.client import connect

from plugins.cosyvoice3.lab.random_cosyvoice3 import convert, recording
from stretto_client import RecordedVoice, SpeechClient
from stretto_contract.finish_reasons import limit_of
from stretto_cosyvoice3.codec import load
from stretto_cosyvoice3.voices import FOLDER, RecordingEncoder, latest_chunks, sound_of
from stretto_gateway.command import make_server
from stretto_gateway.config import GatewayConfig
from tests.gateway.test_speech_stream import begin
from tests.patience import PATIENCE_S
from tests.recordings import speech
from tests.server.conftest import ServedCheckpoint, Server, served_checkpoint
from tests.server.listening import Response
from tests.server.published import cut
from tests.server.test_qwen3_tts import wav

# By night: test_cosyvoice3.py of this plug-in compares the same release with the authors' replies, and its codec has
# tests of its own.
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
    mel = codec.mel(torch.from_numpy(codes[0]), codec.recorded.voices[number])
    spoken, _ = codec.speak(mel, 0, 0, 2 * codes.shape[1], 0.0)
    whole = cut(spoken.numpy(), codec.spec) if limit_of(answer.report) else spoken.numpy()
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


def published_inputs(text: str = "hello you", length: int = 32_000) -> dict[str, np.ndarray]:
    """Return the inputs of the authors' clients (runtime/triton_trtllm): samples at 16 kHz, padded with zeros."""
    samples = np.zeros((1, 160_000), np.float32)
    samples[0, :32_000] = speech(32_000, 16_000)
    return {
        "reference_wav": samples,
        "reference_wav_len": np.array([[length]], np.int32),
        "reference_text": np.array([["one two"]], object),
        "target_text": np.array([[text]], object),
    }


def published_request(**changes: Any) -> list[grpc.InferInput]:
    """Return `published_inputs` as tensors of gRPC."""
    inputs = []
    for name, array in published_inputs(**changes).items():
        inputs.append(grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def published_stream(server: Server, model: str, **changes: Any) -> list[Any]:
    """Return the results of a request on a stream, up to the empty one with the final flag, or to an error."""
    came: queue.Queue[Any] = queue.Queue()
    with grpc.InferenceServerClient(f"localhost:{server.grpc}") as client:
        client.start_stream(lambda result, error: came.put(error or result))
        asked = {"outputs": [grpc.InferRequestedOutput("waveform")], "enable_empty_final_response": True}
        client.async_stream_infer(model, published_request(**changes), request_id="7", **asked)
        results = [came.get(timeout=PATIENCE_S)]
        while not isinstance(results[-1], InferenceServerException):
            if results[-1].get_response().parameters["triton_final_response"].bool_param:
                break
            results.append(came.get(timeout=PATIENCE_S))
    return results


@pytest.mark.parametrize("model", ["cosyvoice3", "f5_tts", "cosyvoice2", "cosyvoice2_dit"])
def test_published_clients_stream_and_get_whole_replies(served: ServedCheckpoint, model: str) -> None:
    """The messages are those of the authors' gRPC and HTTP clients, which are not on a package index."""
    # A reply of random length, but of at least two codes per token: 48 codes, of which the first chunk has 22.
    *chunks, final = published_stream(served.server, model, text="hello you " * 12)
    assert not final.get_response().outputs
    assert len(chunks) > 1
    for chunk in chunks:
        assert chunk.get_response().id == "7"
        assert len(chunk.as_numpy("waveform")) > 0
    with grpc.InferenceServerClient(f"localhost:{served.server.grpc}") as client:
        whole = client.infer(model, published_request(), request_id="8").as_numpy("waveform")
        assert client.get_model_config(model).config.name == model
    asked = [
        {"name": name, "datatype": np_to_triton_dtype(array.dtype), "shape": array.shape, "data": array.tolist()}
        for name, array in published_inputs().items()
    ]
    url = f"http://localhost:{served.server.http}/v2/models/{model}/infer"
    (output,) = httpx.post(url, json={"inputs": asked}, timeout=PATIENCE_S).json()["outputs"]
    for samples in (whole[0], np.array(output["data"])):
        assert samples.shape[0] >= 24_000 * 2 / 25
        assert np.abs(samples).max() > 0.01


def test_published_client_that_disconnects_ends_its_reply(served: ServedCheckpoint) -> None:
    """A reply that ends before it is seen to run cannot be cancelled, so another one is asked for."""
    server, before = served.server, served.server.metric("cancelled_total")
    with grpc.InferenceServerClient(f"localhost:{server.grpc}") as client:

        def cancel_a_reply() -> bool:
            answers = list[object]()
            call = client.async_infer(
                "cosyvoice3",
                published_request(text="hello " * 80),
                lambda result, error: answers.append(error),
            )
            server.until(lambda: bool(answers) or server.metric("running_requests") == 1)
            call.cancel()
            server.until(lambda: server.metric("running_requests") == 0)
            return server.metric("cancelled_total") > before

        server.until(cancel_a_reply)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": ""}, "target_text: expected"),
        ({"text": "a<|endofprompt|>"}, "target_text: expected none of the model's markers"),
        ({"length": 0}, "reference_wav_len: expected a number of samples in [1, 160000]"),
        ({"length": 15_000}, "reference_wav: expected at least 1 s, got 0.9375 s"),
    ],
    ids=["empty", "marker", "no_samples", "short"],
)
def test_published_clients_get_errors_by_the_names_of_their_fields(
    served: ServedCheckpoint, changes: dict[str, Any], message: str
) -> None:
    (error,) = published_stream(served.server, "cosyvoice3", **changes)
    assert f"invalid request: {message}" in str(error)
    client = grpc.InferenceServerClient(f"localhost:{served.server.grpc}")
    with client, pytest.raises(InferenceServerException, match="INVALID_ARGUMENT") as refused:
        client.infer("cosyvoice3", published_request(**changes))
    assert f"invalid request: {message}" in str(refused.value)
