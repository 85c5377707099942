"""gRPC requests of every task and shape to all four models, mutated as messages and as bytes."""

import asyncio
import io
import json
import struct
from random import Random
from typing import Any

import grpc
import numpy as np
import soundfile
from google.protobuf.message import DecodeError
from tritonclient.grpc.service_pb2 import (
    InferParameter,
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)

from stretto.proxy.apis import APIS, MODEL_INFER, MODEL_STREAM_INFER
from stretto.records.chunk import EVENT
from tests.server.fuzzing.doors import ANSWER_S, Doors, Sent, wrong_words
from tests.server.fuzzing.mutations import NUMBERS, TEXTS, as_json, flipped, varied

RATE = 16_000
SHORT: dict[str, Any] = {"seed": 1, "max_audio_s": 0.24}  # most requests are answered at once
BRIEF: dict[str, Any] = {"seed": 1, "text": {"max_rows": 4}}
OPTIONS: tuple[dict[str, Any], ...] = (
    SHORT,
    SHORT | {"guidance_scale": 2.0, "voice": "heart"},
    SHORT | {"guidance": {"scale": 2.0, "policy": "until_s", "until_s": 0.2}, "temperature": 0.7},
    SHORT | {"output": {"encoding": "pcm_s16le", "sample_rate": 24_000, "codes": True}},
    SHORT | {"chunking": {"first_frames": 2, "steady_frames": 4, "playout_s": 0.1, "deterministic": True}},
    SHORT | {"text": {"temperature": 0.5, "top_k": 3, "top_p": 0.9}, "audio": {"ras_window": 7, "ras_max_repeats": 2}},
    SHORT | {"output": {"ring": {"name": "stretto_ring_0", "slots": 4}}, "script_temperature": 0.5},
)
TYPES = ("BYTES", "FP32", "INT32", "UINT8", "INT64", "FP16", "BOOL", "", "FP31", "bytes")
SIZES = (0, 1, 2, 7, -1, 2**31, 2**62, -(2**63))
NAMES = ("text", "audio", "pcm_in", "sample_rate", "messages", "task", "options", "session", "rows", "prompt", "codes")
PARAMETERS = (
    "sequence_id",
    "sequence_start",
    "sequence_end",
    "priority",
    "timeout",
    "binary_data",
    "shared_memory_region",
    "shared_memory_byte_size",
    "shared_memory_offset",
    "classification",
    "triton_enable_empty_final_response",
    "triton_final_response",
    "stretto_host",
    "",
    "unknown",
)
MODELS = ("speech", "preprocessor", "language_model", "acoustic_decoder", "nothing", "", "..", "a" * 3000)
ANSWERED = {  # the statuses of a call that was not to be answered otherwise
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
}
Tensor = tuple[str, str, list[int], bytes]


def make_call(draw: Random) -> Sent:
    """Return a mutated call: usually an inference, streamed or unary, sometimes another call."""
    if draw.random() < 0.12:
        return other_call(draw)
    model = draw.choices(MODELS[:4], (10, 3, 2, 2))[0]
    request, what = infer_request(model, draw), [model]
    for _ in range(draw.choices((0, 1, 2, 3), (4, 10, 3, 1))[0]):
        mutate = draw.choice(MUTATIONS)
        what.append(mutate.__name__.lstrip("_"))
        mutate(request, draw)
    data = request.SerializeToString()
    if draw.random() < 0.12:
        data, what = flipped(data, draw), [*what, "bytes"]
    is_alone = draw.random() < (0.5 if model == "preprocessor" else 0.1)
    method = MODEL_INFER if is_alone else MODEL_STREAM_INFER
    has_key = model != "speech" and draw.random() < 0.8
    # A sealed prompt belongs to this server, so that only its own caller can insert it.
    return Sent(" ".join(["gRPC", *what]), lambda doors: _ask(doors, method, _sealed(data, doors), has_key))


def other_call(draw: Random) -> Sent:
    """Return a call other than inference, with arbitrary bytes or a name as its message."""
    method = draw.choice(sorted(APIS))
    name = draw.choice((*MODELS, *TEXTS)).encode(errors="surrogatepass")
    data = b"\x0a" + bytes([len(name) & 0x7F]) + name
    if draw.random() < 0.5:
        data = flipped(data, draw)
    return Sent(f"gRPC {method}", lambda doors: _ask(doors, method, data, has_key=False))


def infer_request(model: str, draw: Random) -> ModelInferRequest:
    """Return a valid request of any task and shape."""
    request = ModelInferRequest(model_name=model, id=draw.choice(("", "a", "7f")))
    for name, datatype, shape, raw in _tensors(model, draw):
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    return request


def _tensors(model: str, draw: Random) -> list[Tensor]:
    if model == "language_model":
        return [("rows", "INT32", [0, 0], SEALED_ROWS), ("prompt", "UINT8", [0], SEALED_PROMPT)]
    if model == "acoustic_decoder":
        codes = np.zeros((7, draw.randrange(1, 9)), np.int32)
        return [("codes", "INT32", list(codes.shape), codes.tobytes()), ("chunk", "UINT8", [40], draw.randbytes(40))]
    return draw.choice(SHAPES)(draw)


def _speech(draw: Random) -> list[Tensor]:
    tensors = [_string("text", b"a cat"), _string("options", _options(draw.choice(OPTIONS), draw))]
    return tensors + [_string("task", b"tts")] * (draw.random() < 0.5)


def _file(draw: Random) -> list[Tensor]:
    held = io.BytesIO()
    soundfile.write(held, _tone(), RATE, format=draw.choice(("WAV", "FLAC")))
    data = held.getvalue()
    return [_string("audio", flipped(data, draw) if draw.random() < 0.3 else data), _brief(draw)]


def _samples(draw: Random) -> list[Tensor]:
    pcm = _tone()
    if draw.random() < 0.2:
        pcm[draw.randrange(len(pcm))] = draw.choice((np.nan, np.inf, 1e30))
    rate = struct.pack("<i", draw.choice((RATE, 8000, 44_100, 0, -1, 2**31 - 1)))
    return [("pcm_in", "FP32", [len(pcm)], pcm.tobytes()), ("sample_rate", "INT32", [1], rate), _brief(draw)]


def _conversation(draw: Random) -> list[Tensor]:
    turns: list[dict[str, Any]] = [{"role": "user", "text": "a cat"}]
    if draw.random() < 0.5:
        turns = [{"role": "system", "text": "be brief"}, *turns, {"role": "assistant", "codes": [[1, 2]] * 7}]
    record = varied(turns, draw) if draw.random() < 0.5 else turns
    return [_string("messages", as_json(record, draw)), _string("options", _options(SHORT, draw))]


def _part(draw: Random) -> list[Tensor]:
    part = {"id": "0123456789abcdef", "part": 1, "is_last": False}
    record = varied(part, draw) if draw.random() < 0.7 else part
    return [_string("session", as_json(record, draw)), _string("text", b" and sat")]


SHAPES = (_speech, _speech, _file, _samples, _conversation, _part)


def _options(options: dict[str, Any], draw: Random) -> bytes:
    return as_json(varied(options, draw) if draw.random() < 0.4 else options, draw)


def _brief(draw: Random) -> Tensor:
    return _string("options", _options(BRIEF, draw))


def _tone() -> np.ndarray:
    return (np.sin(np.arange(RATE // 4) / 20) / 2).astype(np.float32)


def _string(name: str, value: bytes) -> Tensor:
    return name, "BYTES", [1], struct.pack("<I", len(value)) + value


def _drop(request: ModelInferRequest, draw: Random) -> None:
    if request.inputs:
        place = draw.randrange(len(request.inputs))
        del request.inputs[place]
        if draw.random() < 0.8 and place < len(request.raw_input_contents):
            del request.raw_input_contents[place]


def _repeat(request: ModelInferRequest, draw: Random) -> None:
    if request.inputs and request.raw_input_contents:
        place = draw.randrange(min(len(request.inputs), len(request.raw_input_contents)))
        request.inputs.add().CopyFrom(request.inputs[place])
        request.raw_input_contents.append(request.raw_input_contents[place])


def _rename(request: ModelInferRequest, draw: Random) -> None:
    if request.inputs:
        draw.choice(request.inputs).name = _utf8(draw.choice((*NAMES, *TEXTS)))


def _retype(request: ModelInferRequest, draw: Random) -> None:
    if request.inputs:
        draw.choice(request.inputs).datatype = draw.choice(TYPES)


def _reshape(request: ModelInferRequest, draw: Random) -> None:
    if request.inputs:
        tensor = draw.choice(request.inputs)
        del tensor.shape[draw.randrange(len(tensor.shape) + 1) :]
        tensor.shape.extend(draw.choices(SIZES, k=draw.choice((0, 1, 1, 2, 20))))


def _spoil(request: ModelInferRequest, draw: Random) -> None:
    if request.raw_input_contents:
        place = draw.randrange(len(request.raw_input_contents))
        request.raw_input_contents[place] = flipped(request.raw_input_contents[place], draw)


def _retell(request: ModelInferRequest, draw: Random) -> None:
    """Return another string of the right length."""
    strings = [place for place, tensor in enumerate(request.inputs) if tensor.datatype == "BYTES"]
    if strings and (place := draw.choice(strings)) < len(request.raw_input_contents):
        value = draw.choice((*TEXTS, *map(str, NUMBERS), json.dumps(list(TEXTS)))).encode(errors="surrogatepass")
        request.raw_input_contents[place] = struct.pack("<I", len(value)) + value


def _swap(request: ModelInferRequest, draw: Random) -> None:
    contents = list(request.raw_input_contents)
    draw.shuffle(contents)
    request.raw_input_contents[:] = contents


def _type_contents(request: ModelInferRequest, draw: Random) -> None:
    """Put the elements in the message's typed fields, as some clients do."""
    if request.inputs and request.raw_input_contents:
        contents = request.inputs[0].contents
        if draw.random() < 0.5:
            contents.bytes_contents.append(request.raw_input_contents[0][4:])
        else:
            contents.fp32_contents.extend(draw.choices((0.0, float("nan"), 1e38), k=draw.randrange(4)))
        if draw.random() < 0.7:
            del request.raw_input_contents[0]


def _readdress(request: ModelInferRequest, draw: Random) -> None:
    if draw.random() < 0.5:
        request.model_name = draw.choice(MODELS)
    else:
        request.model_version = _utf8(draw.choice((*TEXTS, "1", "-1", "99999999999999999999")))


def _reidentify(request: ModelInferRequest, draw: Random) -> None:
    request.id = _utf8(draw.choice(TEXTS))


def _parametrise(request: ModelInferRequest, draw: Random) -> None:
    tensors = [*request.inputs, *request.outputs]
    _set(draw.choice([request, *tensors]).parameters[draw.choice(PARAMETERS)], draw)


def _ask_for(request: ModelInferRequest, draw: Random) -> None:
    output = request.outputs.add(name=_utf8(draw.choice(("pcm", "event", "pcm16", "rows", *TEXTS))))
    if draw.random() < 0.3:
        _set(output.parameters[draw.choice(PARAMETERS)], draw)


MUTATIONS = (
    _drop,
    _repeat,
    _rename,
    _retype,
    _reshape,
    _spoil,
    _retell,
    _retell,
    _swap,
    _type_contents,
    _readdress,
    _reidentify,
    _parametrise,
    _ask_for,
)


def _set(parameter: InferParameter, draw: Random) -> None:
    match draw.randrange(4):
        case 0:
            parameter.bool_param = draw.random() < 0.5
        case 1:
            parameter.int64_param = draw.choice((0, 1, -1, 2**31, 2**63 - 1, -(2**63)))
        case 2:
            parameter.string_param = _utf8(draw.choice(TEXTS))
        case 3:
            parameter.double_param = draw.choice((0.0, -1.0, 1e308, float("nan")))


def _utf8(text: str) -> str:
    return text.encode(errors="replace").decode()


SEALED_ROWS, SEALED_PROMPT = b"sealed rows", b"sealed prompt"  # until a server's own are inserted


def _sealed(data: bytes, doors: Doors) -> bytes:
    """Replace the prompt in a message with the server's own prompt, if the message still has one."""
    try:
        request = ModelInferRequest.FromString(data)
    except DecodeError:
        return data
    if SEALED_PROMPT not in request.raw_input_contents:
        return data
    width = int(np.frombuffer(doors.prompt["width"], np.int64)[0])
    own = {SEALED_ROWS: doors.prompt["rows"], SEALED_PROMPT: doors.prompt["prompt"]}
    request.raw_input_contents[:] = [own.get(raw, raw) for raw in request.raw_input_contents]
    for tensor in request.inputs:
        if list(tensor.shape) == [0, 0]:
            tensor.shape[:] = [len(doors.prompt["rows"]) // 4 // width, width]
        elif list(tensor.shape) == [0]:
            tensor.shape[:] = [len(doors.prompt["prompt"])]
    return request.SerializeToString()


async def _ask(doors: Doors, method: str, data: bytes, has_key: bool) -> list[str]:
    metadata = doors.key if has_key else ()
    try:
        async with asyncio.timeout(ANSWER_S):
            if method == MODEL_STREAM_INFER:
                answers = await _answers(doors.channel.stream_stream(method)(iter([data]), metadata=metadata))
                return _heard(doors, answers)
            await doors.channel.unary_unary(method)(data, metadata=metadata)
    except TimeoutError:
        return [f"no answer within {ANSWER_S:g} s"]
    except grpc.aio.AioRpcError as error:
        doors.answers["gRPC refused"] += 1
        wrong = [] if error.code() in ANSWERED else [f"status {error.code().name}: {error.details()!r}"]
        return wrong + wrong_words(error.details() or "")
    doors.answers["gRPC answered"] += 1
    return []


async def _answers(call: Any) -> list[ModelStreamInferResponse]:
    """Return all responses; for the language model only the first, because its chunks are not decoded here."""
    answers = []
    async for data in call:
        answers.append(ModelStreamInferResponse.FromString(data))
        if answers[0].infer_response.model_name == "language_model":
            call.cancel()
            break
    return answers


def _heard(doors: Doors, answers: list[ModelStreamInferResponse]) -> list[str]:
    """Return the problems of all responses to a request on a stream."""
    said = [answer.error_message for answer in answers if answer.error_message]
    doors.answers["gRPC refused" if said else "gRPC answered"] += 1
    if said:
        return [wrong for words in said for wrong in wrong_words(words)]
    if not answers:
        return ["neither an answer nor an error"]
    if answers[0].infer_response.model_name != "speech":
        return []
    return _wrong_sound([answer.infer_response for answer in answers])


def _wrong_sound(answers: list[ModelInferResponse]) -> list[str]:
    """Return the problems of an accepted utterance's events and samples."""
    events, wrong = [], []
    for answer in answers:
        tensors = dict(zip((output.name for output in answer.outputs), answer.raw_output_contents, strict=True))
        if "event" in tensors:
            events.append(EVENT.read("event", tensors["event"][4:]))
        if "pcm" in tensors and not np.isfinite(np.frombuffer(tensors["pcm"], np.float32)).all():
            wrong.append("samples that are no numbers")
    asked = {output.name for answer in answers for output in answer.outputs}
    if "event" not in asked:  # it was not asked for
        return wrong
    if not events[-1]["is_final"] or [event["index"] for event in events] != list(range(len(events))):
        wrong.append(f"events {[(event['index'], event['is_final']) for event in events]}")
    return wrong
