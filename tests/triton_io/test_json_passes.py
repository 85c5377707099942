"""Number of times that a text request and its chunks are serialised or parsed as JSON."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from pydantic import TypeAdapter
from tritonclient.grpc import InferResult, service_pb2

from stretto.engine.protocol import read_extra_args, to_extra_args
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.chunk import EVENT, Chunk, Envelope, Event
from stretto.records.flow_address import FlowAddress
from stretto.records.prompt import Prompt
from stretto.streams.layout import Segment
from stretto.triton_io.callers import Caller
from stretto.triton_io.tensors import read_prompt
from stretto_client.speech_stream import options_json, read_event
from stretto_gateway.fields import held_bytes
from stretto_gateway.speech_request import SpeechRequest
from tests.fakes import FrameCounter
from tests.fakes_triton import Request
from tests.triton_io.sealing import SEAL, prompt_inputs

BODY = {"input": "A cat.", "seed": 1, "temperature": 0.7, "chunking": {"playout_s": 0.2}, "voice": "heart"}
EMPTY_EVENT: Event = {
    "utterance": "u",
    "index": 0,
    "segment": "audio",
    "text": "",
    "words": [],
    "guidance_changes": [],
    "start_s": 0.0,
    "duration_s": 0.0,
    "sample_rate": 24_000,
    "is_final": False,
}


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the name of the function for each call that writes or reads JSON."""
    calls: list[str] = []
    for owner, name in ((json, "loads"), (json, "dumps"), (TypeAdapter, "dump_json"), (TypeAdapter, "validate_json")):
        genuine = getattr(owner, name)

        def counted(*given: Any, genuine: Any = genuine, name: str = name, **options: Any) -> Any:
            calls.append(name)
            return genuine(*given, **options)

        monkeypatch.setattr(owner, name, counted)
    return calls


def with_parameters(inputs: dict[str, np.ndarray]) -> Request:
    """Return a request with the proxy's parameters, whose JSON the stub would parse."""

    class FromTriton(Request):
        def parameters(self) -> str:
            return '{"stretto_host":"192.0.2.1","stretto_stream":"7","note":"\\"stretto_host\\":\\"none\\""}'

    return FromTriton(inputs)


def test_text_request_is_serialized_as_json_only_for_its_options(tmp_path: Path, passes: list[str]) -> None:
    (tmp_path / "config.json").write_text('{"speech_family": "tiny"}')
    preprocessor = Preprocessor(tmp_path, codec=FrameCounter())
    passes.clear()
    body = SpeechRequest(**BODY)
    held_bytes(body.options)
    assert passes == [], "the gateway reads the body, and writes nothing to learn its size"
    options = options_json({**body.options, "voice": body.voice_name})
    prompt = preprocessor.prepare(RawRequest(text=body.input, options=options))
    request = with_parameters(prompt_inputs(prompt))
    read, caller = read_prompt(request, SEAL), Caller(request)
    args = msgspec.msgpack.decode(msgspec.msgpack.encode(to_extra_args(prompt)))
    assert read_extra_args(args, prompt.rows.shape[1])[0].sampling == prompt.sampling
    assert isinstance(read, Prompt)
    assert (read.sampling, caller.host) == (prompt.sampling, "192.0.2.1")
    assert passes == ["dumps", "loads"], "the client's options; the prompt travels as MessagePack"


def test_chunk_is_serialized_as_json_only_for_the_client_event(passes: list[str]) -> None:
    envelope = Envelope("u", FlowAddress(f"stretto_flow_1_{'0' * 32}", 1, 1), Chunk(0, Segment.AUDIO))
    assert Envelope.from_bytes("chunk", envelope.to_bytes()) == envelope
    assert Caller(with_parameters({})).host == "192.0.2.1"
    text = EVENT.write(EMPTY_EVENT)
    response = service_pb2.ModelInferResponse(raw_output_contents=[len(text).to_bytes(4, "little") + text])
    response.outputs.add(name="event", datatype="BYTES", shape=[1])
    assert read_event(InferResult(response)) is not None
    assert passes == ["dump_json", "loads"], "the client's event; the envelope travels as MessagePack"
