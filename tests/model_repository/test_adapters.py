"""Each adapter, with a fake Triton module and a fake of the object that it drives."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stretto.engine.adapter_table import AdapterTable
from stretto.errors import InvalidRequest
from stretto.families.tiny.family import TINY
from stretto.records.chunk import Chunk, LMChunk
from stretto.records.prompt import Prompt
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.chunking import Pacer
from stretto.streams.layout import Segment
from stretto.triton_io.stub import DRAIN_FILE
from stretto.triton_io.tensors import read_prompt, write_prompt
from tests.fakes_triton import Logger, Request, TritonError
from tests.model_repository.pbtxt import ROOT, read_config
from tests.patience import until
from tests.triton_io.answering import AnsweringSender
from tests.triton_io.sealing import envelope_in

SAMPLING = SamplingConfig(SegmentSampling(0.0), SegmentSampling(0.7), seed=3)
ROWS = np.arange(6, dtype=np.int32).reshape(3, 2)


def load(model: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"adapter_of_{model}", ROOT / model / "1" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("model", ["preprocessor", "language_model", "acoustic_decoder"])
def test_no_slow_imports_before_a_model_initializes(model: str) -> None:
    path = ROOT / model / "1" / "model.py"
    code = f"import runpy, sys; runpy.run_path({str(path)!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    ours = {"stretto.errors", "stretto.triton_io", "stretto.triton_io.stub"}
    assert {name for name in modules if name.startswith("stretto.")} == ours
    assert not modules & {"numpy", "torch", "vllm", "pydantic", "multiprocessing"}


@pytest.mark.parametrize("model", ["preprocessor", "language_model", "acoustic_decoder"])
def test_a_model_switches_threads_often_and_keeps_what_it_has_loaded(model: str) -> None:
    """The first before it imports anything, the last once everything is loaded."""
    tree = ast.parse((ROOT / model / "1" / "model.py").read_text())
    (initialize,) = (node for node in ast.walk(tree) if getattr(node, "name", "") == "initialize")
    assert isinstance(initialize, ast.FunctionDef)
    lines = [ast.unparse(statement) for statement in initialize.body]
    assert "stub.switch_threads_often()" in lines[:3]
    assert lines[-1] == "stub.keep_loaded_objects()"


def arguments(model: str, **changed: str) -> dict[str, str]:
    parameters = {
        entry["key"][0]: {"string_value": entry["value"][0]["string_value"][0]}
        for entry in read_config(model)["parameters"]
    } | {name: {"string_value": text} for name, text in changed.items()}
    instance = {"model_instance_kind": "CPU", "model_instance_device_id": "0"}
    return instance | {"model_repository": str(ROOT / model), "model_config": json.dumps({"parameters": parameters})}


def wait(condition: Callable[[], bool]) -> None:
    until(lambda: condition())


class Preparing:
    """Fake preprocessor that records its checkpoint, device, default chunk sizes and requests."""

    family = TINY

    def __init__(
        self,
        checkpoint: Path,
        codec: None,
        device: str,
        has_aligner: bool,
        encodings: None,
        chunking: Any,
        pronunciations: None,
    ) -> None:
        self.checkpoint, self.device, self.has_aligner, self.chunking = checkpoint, device, has_aligner, chunking
        self.asked: list[Any] = []

    def prepare(self, raw: Any, read: Any = None) -> Prompt:
        self.asked.append(raw)
        if raw.text == b"":
            raise InvalidRequest("text", "1 to 200 characters", 0)
        if raw.text == b"bug":
            raise RuntimeError("boom")
        if raw.text == b"odd":
            return Prompt("tts", ROWS.astype(np.int64), SAMPLING)
        return Prompt("tts", ROWS, SAMPLING, ("hello",))


@pytest.fixture
def preprocessor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.setenv(DRAIN_FILE, str(tmp_path / "draining"))
    module = load("preprocessor")
    monkeypatch.setattr("stretto.preprocessing.request.Preprocessor", Preparing)
    model = module.TritonPythonModel()
    model.initialize(arguments("preprocessor", chunking='{"playout_s": 0.5}'))
    yield model
    model.finalize()


def test_preprocessor_passes_all_inputs_unchanged(preprocessor: Any) -> None:
    inputs = {name: np.array([name.encode()], object) for name in ("text", "audio", "messages", "task", "options")}
    inputs |= {"pcm_in": np.ones(4, np.float32), "sample_rate": np.array([8000], np.int32)}
    request = Request(inputs)
    assert preprocessor.execute([request]) == [None]
    wait(lambda: request.sender.is_final)
    (response,), (raw,) = request.sender.responses, preprocessor.preprocessor.asked
    assert (raw.text, raw.audio, raw.messages, raw.task, raw.options) == (
        b"text",
        (b"audio",),
        b"messages",
        b"task",
        b"options",
    )
    assert (raw.pcm_in.tolist(), raw.sample_rate) == ([1, 1, 1, 1], 8000)
    np.testing.assert_array_equal(response.array("rows"), ROWS)
    prompt = read_prompt(Request({name: response.array(name) for name in ("rows", "prompt")}), preprocessor.key.seal)
    assert (prompt.task, prompt.sampling, prompt.words) == ("tts", SAMPLING, ("hello",))
    assert preprocessor.preprocessor.checkpoint == ROOT / "language_model" / "1" / "checkpoint"
    assert preprocessor.preprocessor.device == "cpu"
    assert preprocessor.preprocessor.chunking == {"playout_s": 0.5}


def cloning(**changes: np.ndarray) -> Request:
    """Return a request of a client that clones voices, whose tensors have a batch dimension."""
    inputs = {"reference_wav": np.ones((1, 4), np.float32), "reference_wav_len": np.array([[3]], np.int32)}
    inputs |= {name: np.array([[name.encode()]], object) for name in ("reference_text", "target_text")}
    return Request(inputs | changes)


def test_preprocessor_maps_the_inputs_of_clients_that_clone_voices(preprocessor: Any) -> None:
    tts = replace(TINY.task("tts"), system=("audio", "text"))
    preprocessor.preprocessor.family = replace(TINY, tasks=(tts,))
    request = cloning()
    assert preprocessor.execute([request]) == [None]
    wait(lambda: request.sender.is_final)
    (raw,) = preprocessor.preprocessor.asked
    assert (raw.pcm_in.tolist(), raw.sample_rate, raw.text) == ([1, 1, 1], 16_000, None)
    assert json.loads(raw.messages) == [
        {"role": "system", "audio": "pcm_in", "text": "reference_text"},
        {"role": "user", "text": "target_text"},
    ]


def test_cloning_inputs_of_another_shape_or_family_are_refused(preprocessor: Any) -> None:
    wrong = {"reference_wav_len": np.array([3], np.int32)}, {"target_text": np.array([b"a"], object)}
    asked = [cloning(), *(cloning(**each) for each in wrong)]
    messages = [response.error.message() for response in preprocessor.execute(asked)]
    assert messages == [
        "invalid request: reference_wav: expected no value (this model does not clone voices), got a value",
        "invalid request: reference_wav_len: expected INT32 [1, 1], got int32 [1]",
        "invalid request: target_text: expected STRING [1, 1], got object [1]",
    ]


def test_preprocessor_requests_fail_independently(preprocessor: Any) -> None:
    texts = [b"", b"hello", b"bug", b"odd"]
    refused, served, *failed = preprocessor.execute([Request({"text": np.array([text], object)}) for text in texts])
    assert refused.error.message() == "invalid request: text: expected 1 to 200 characters, got 0"
    assert refused.error.code() == TritonError.INVALID_ARG
    assert served.error is None
    for response in failed:
        assert response.error.code() == TritonError.INTERNAL
        assert re.fullmatch("failed: preprocessor: internal error [0-9a-f]{8}", response.error.message())
    assert len(Logger.errors) == 2


def test_preprocessor_refuses_requests_while_the_server_drains(preprocessor: Any, tmp_path: Path) -> None:
    (tmp_path / "draining").touch()
    (response,) = preprocessor.execute([Request({"text": np.array([b"hello"], object)})])
    assert (response.error.code(), response.error.message()) == (
        TritonError.UNAVAILABLE,
        "unavailable: server is draining",
    )


class Speaking:
    """Fake engine that answers every prompt with one chunk."""

    is_shut_down, family = False, TINY

    def __init__(self, config: Any) -> None:
        self.config, self.engine_pids, self.parts = config, [os.getpid()], (self,)
        self.adapters = AdapterTable(config, None)

    async def generate(self, prompt: Prompt, request_id: str, pacer: Pacer, host: str) -> AsyncGenerator[LMChunk, None]:
        yield LMChunk(Chunk(0, Segment.AUDIO, is_final=True), prompt.rows)

    def stats(self) -> dict[str, float]:
        return {"pairs": 1.0}

    def has_work(self) -> bool:
        return False

    def shutdown(self) -> None:
        self.is_shut_down = True


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("stretto.engine.llm")
    module.launch = Speaking
    monkeypatch.setitem(sys.modules, "stretto.engine.llm", module)


def test_language_model_streams_and_shuts_down(engine: None) -> None:
    module = load("language_model")
    model = module.TritonPythonModel()
    model.initialize(arguments("language_model"))
    inputs = {each.name(): each.as_numpy() for each in write_prompt(Prompt("tts", ROWS, SAMPLING), model.key.seal)}
    request = Request(inputs, AnsweringSender(model.service.table))
    assert model.execute([request]) is None
    wait(lambda: request.sender.is_final)
    np.testing.assert_array_equal(request.sender.responses[0].array("codes"), ROWS)
    assert envelope_in(request.sender.responses[0]).chunk.is_final
    assert model.model.config.checkpoint == ROOT / "language_model" / "1" / "checkpoint"
    made = model.model
    model.finalize()
    assert made.is_shut_down


def test_decoder_model_runs_one_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = load("acoustic_decoder")
    made: list[Any] = []
    waits: list[bool] = []
    monkeypatch.setattr("stretto.decoder.worker.open_codec", lambda config, where: (config.codec, where))

    def worker(codec: Any, config: Any, aligner: None) -> SimpleNamespace:
        made.append((codec, config))
        wait = partial(waits.append, True)
        figures = {"stats": lambda: defaultdict(float), "has_died": False}
        figures |= {"thread_id": threading.get_native_id(), "has_work": lambda: False}
        return SimpleNamespace(stop=made.clear, wait_until_warm=wait, **figures)

    monkeypatch.setattr("stretto.decoder.worker.DecoderWorker", worker)
    family = SimpleNamespace(
        codec="tiny",
        num_codebooks=5,
        first_chunk_frames=2,
        steady_chunk_frames=12,
        mechanism=SimpleNamespace(speaker=None),
    )
    monkeypatch.setattr("stretto.family.plugin.family_at", lambda checkpoint: family)
    model = module.TritonPythonModel()
    model.initialize(arguments("acoustic_decoder"))
    ((codec, config),) = made
    assert waits == [True]
    assert codec == ("tiny", ROOT / "language_model" / "1" / "checkpoint")
    assert (config.codec, config.num_codebooks, config.device) == ("tiny", 5, "cpu")
    assert (config.first_frames, config.steady_frames) == (2, 12)
    profiled = module.TritonPythonModel()
    profiled.initialize(arguments("acoustic_decoder", first_frames="8", steady_frames="24"))
    assert (made[1][1].first_frames, made[1][1].steady_frames) == (8, 24)
    profiled.finalize()
    broken = Request({"chunk": np.frombuffer(b"{}", np.uint8)})
    assert model.execute([broken]) is None
    assert broken.sender.is_final
    model.finalize()
    assert made == []
