"""Direct calls to the inner models: each forgery is answered once, and other streams are unaffected."""

import json
import random
from collections.abc import Iterator
from queue import Queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc

from stretto_client.client import key_headers
from tests.patience import PATIENCE_S
from tests.server.conftest import Server

pytestmark = [pytest.mark.server, pytest.mark.nightly]  # by day test_bad_input.py and test_closed.py

TYPES = {"u": "UINT8", "i": "INT32", "O": "BYTES", "f": "FP32"}
FORGERIES = 250  # per kind
SPOKEN = "The garden door is open, and the train leaves at nine."
OPTIONS = {"max_audio_s": 4.0}
TAG = 16


class Stranger:
    """A stream for each model. `answers` has all responses, with errors as messages."""

    def __init__(self, server: Server) -> None:
        self.answers: Queue[Any] = Queue()
        self._address = f"localhost:{server.grpc}"
        self._clients: dict[str, Any] = {}

    def _client(self, model: str) -> Any:
        if model not in self._clients:
            self._clients[model] = client = grpc.InferenceServerClient(self._address)
            client.start_stream(
                lambda result, error: self.answers.put(result if error is None else error.message()),
                headers=key_headers(self._address),  # so that the proxy lets it through
            )
        return self._clients[model]

    def ask(self, model: str, inputs: dict[str, np.ndarray], **how: Any) -> None:
        tensors = []
        for name, array in inputs.items():
            tensors.append(grpc.InferInput(name, list(array.shape), TYPES[array.dtype.kind]))
            tensors[-1].set_data_from_numpy(array)
        self._client(model).async_stream_infer(model, tensors, **how)

    def infer(self, model: str, inputs: dict[str, np.ndarray]) -> Any:
        self.ask(model, inputs)
        answer = self.answers.get(timeout=PATIENCE_S)
        assert not isinstance(answer, str), answer
        return answer

    def leave(self) -> None:
        for client in self._clients.values():
            client.stop_stream(cancel_requests=True)
            client.close()


@pytest.fixture
def stranger(server: Server) -> Iterator[Stranger]:
    made = Stranger(server)
    yield made
    made.leave()


def prompt_of(stranger: Stranger) -> dict[str, np.ndarray]:
    """Return a prompt, as any client can get one from the preprocessor."""
    options = np.array([json.dumps(OPTIONS | {"seed": 1}).encode()], object)
    written = stranger.infer("preprocessor", {"text": np.array([SPOKEN.encode()], object), "options": options})
    return {name: written.as_numpy(name) for name in ("rows", "prompt")}


def forged(record: bytes, random: random.Random) -> Iterator[bytes]:
    """Return variations of an authenticated record: without MAC, with a made-up MAC, and with changed bytes."""
    yield record[TAG:]
    yield b""
    while True:
        changed = bytearray(record)
        for _ in range(random.randint(1, 8)):
            changed[random.randrange(len(changed))] ^= random.randint(1, 255)
        if bytes(changed) != record:
            yield bytes(changed)
        yield random.randbytes(TAG) + record[TAG:]
        yield random.randbytes(random.randint(1, 2000))


def test_forged_requests_are_refused_and_running_streams_continue(server: Server) -> None:
    logged = len(server.log)
    alone = [server.ask(OPTIONS | {"seed": seed}, text=SPOKEN) for seed in range(4)]
    caller, attacker = Stranger(server), Stranger(server)
    prompt = prompt_of(caller)
    caller.ask("language_model", prompt)
    chunk = caller.answers.get(timeout=PATIENCE_S).as_numpy("chunk").tobytes()
    caller.leave()
    running = [server.stream(OPTIONS | {"seed": seed}, text=SPOKEN) for seed in range(4)]
    chances = random.Random(0)
    chunks, prompts = forged(chunk, chances), forged(prompt["prompt"].tobytes(), chances)
    for _ in range(FORGERIES):
        attacker.ask("acoustic_decoder", {"chunk": np.frombuffer(next(chunks), np.uint8)})
        codes = np.zeros((chances.randrange(9), chances.randrange(9)), np.int32)
        attacker.ask("acoustic_decoder", {"chunk": np.frombuffer(next(chunks), np.uint8), "codes": codes})
        attacker.ask("language_model", prompt | {"prompt": np.frombuffer(next(prompts), np.uint8)})
        attacker.ask("language_model", prompt | {"rows": prompt["rows"] + np.int32(chances.randint(1, 9))})
    answers = [attacker.answers.get(timeout=PATIENCE_S) for _ in range(4 * FORGERIES)]
    for stream, before in zip(running, alone, strict=True):
        answer = stream.listen()
        assert answer.error is None
        np.testing.assert_allclose(answer.pcm, before.pcm, atol=1e-4)
    attacker.ask("acoustic_decoder", {"chunk": np.frombuffer(b"last", np.uint8)})
    answers.append(attacker.answers.get(timeout=PATIENCE_S))
    assert attacker.answers.empty()
    assert set(answers) == {
        f"invalid request: {name}: expected a record authenticated by this server, got another record"
        for name in ("chunk", "prompt")
    }
    attacker.leave()
    server.until(lambda: server.metric("active_utterances") == 0)
    assert "Traceback" not in server.log[logged:]


def test_language_model_client_disconnect_frees_its_slot(server: Server, stranger: Stranger) -> None:
    prompt = prompt_of(stranger)
    caller = Stranger(server)
    caller.ask("language_model", prompt)
    assert not isinstance(caller.answers.get(timeout=PATIENCE_S), str)
    assert server.metric("active_utterances") == 1
    caller.leave()
    # The decoder answers none of its chunks: without a look at the caller, only the time-out ends it, as failed.
    server.until(lambda: server.metric("active_utterances") == 0, timeout_s=600)
    assert server.metric("failed_total") == 0


def test_manual_calls_of_the_ensemble_steps_are_served(server: Server, stranger: Stranger) -> None:
    stranger.ask("language_model", prompt_of(stranger), enable_empty_final_response=True)
    spoken, decoder = 0, Stranger(server)
    while True:
        answer = stranger.answers.get(timeout=PATIENCE_S)
        assert not isinstance(answer, str), answer
        if answer.get_response().parameters["triton_final_response"].bool_param:
            break
        inputs = {name: answer.as_numpy(name) for name in ("chunk", "codes")}
        decoder.ask("acoustic_decoder", {name: array for name, array in inputs.items() if array is not None})
        spoken += 1
    assert spoken > 1
    decoder.leave()
