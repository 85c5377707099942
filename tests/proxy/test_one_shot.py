"""One-shot replies of the models for clients that clone voices, over gRPC and as JSON over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest

from stretto.disconnects import HOST, STREAM
from stretto.proxy import http_infer, one_shot, pages
from stretto.proxy.http_infer import HttpInfer
from stretto.proxy.pages import Page, PageServer
from stretto.proxy.triton_stream import Uploads
from tests.client.fake_server import Abort, EmptyFinal, ErrorText, Samples, Until
from tests.patience import PATIENCE_S, until_async
from tests.proxy.conftest import Proxied, proxied
from tests.proxy.test_grpc_proxy import answers, call, request

MODEL = "f5_tts"
TEXT = b"\x03\0\0\0you"


def asking(**parameters: str) -> Any:
    made = request(MODEL, (1, 1), TEXT)
    made.inputs[0].name = "target_text"
    for name, value in parameters.items():
        made.outputs.add(name="waveform").parameters[name].string_param = value
    return made


@pytest.fixture
async def cloning() -> AsyncIterator[Proxied]:
    async for each in proxied(cloning_models=(MODEL,)):
        each.triton.script = lambda _: [Samples((0.5, -0.25)), Samples((0.125,)), EmptyFinal()]
        yield each


async def test_unary_call_returns_all_samples_of_the_stream(cloning: Proxied) -> None:
    reply = await call(cloning.address, "ModelInfer", asking())
    (output,) = reply.outputs
    assert (reply.id, reply.model_name, output.name, list(output.shape)) == ("[1, 1]", MODEL, "waveform", [1, 3])
    assert np.frombuffer(reply.raw_output_contents[0], np.float32).tolist() == [0.5, -0.25, 0.125]
    (parameters,) = cloning.triton.parameters
    assert parameters[HOST] == "127.0.0.1"
    assert int(parameters[STREAM]) > 0
    assert [len(each.infer_response.outputs) for each in await answers(cloning.address, asking())] == [1, 1, 0]


@pytest.mark.parametrize(
    ("step", "code", "text"),
    [
        (ErrorText("in ensemble 'f5_tts', invalid request: target_text: expected text, got none"),
         "INVALID_ARGUMENT", "invalid request: target_text: expected text, got none"),
        (ErrorText("[request id: 7] in ensemble 'f5_tts', full: 8 sequences; try again"),
         "RESOURCE_EXHAUSTED", "full: 8 sequences; try again"),
        (ErrorText("unavailable: server is stopping"), "UNAVAILABLE", "unavailable: server is stopping"),
        (ErrorText("other words"), "INTERNAL", "failed: other words"),
        (EmptyFinal(), "INTERNAL", "failed: the reply has no samples"),
        (Abort(grpc.StatusCode.NOT_FOUND, "gone"), "NOT_FOUND", "gone"),
    ],
)  # fmt: skip
async def test_failed_stream_fails_the_unary_call(cloning: Proxied, step: Any, code: str, text: str) -> None:
    cloning.triton.script = lambda _: [Samples((0.5,)), step] if isinstance(step, ErrorText) else [step]
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(cloning.address, "ModelInfer", asking())
    assert (failed.value.code().name, failed.value.details()) == (code, text)


async def test_limits_of_held_samples(cloning: Proxied, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream ends, and its samples no longer count."""
    with pytest.raises(grpc.aio.AioRpcError, match=r"expected no shared memory outside a stream"):
        await call(cloning.address, "ModelInfer", asking(shared_memory_region="r"))
    monkeypatch.setattr(one_shot, "MAX_REPLY_BYTES", 8)
    with pytest.raises(grpc.aio.AioRpcError, match=r"waveform: expected at most 8 bytes in one response"):
        await call(cloning.address, "ModelInfer", asking())
    await until_async(lambda: cloning.triton.num_ended == 1)
    monkeypatch.setattr(one_shot, "MAX_REPLY_BYTES", 1 << 20)
    monkeypatch.setattr(cloning.handler._one_shots, "limit", 16)
    with pytest.raises(grpc.aio.AioRpcError, match=r"full: 8 bytes of unfinished replies are held \(limit 16\)"):
        await call(cloning.address, "ModelInfer", asking())
    await until_async(lambda: cloning.handler._one_shots.held == 0)


async def test_disconnect_is_reported_to_the_models_and_the_stream_is_drained(cloning: Proxied) -> None:
    may_end = asyncio.Event()
    cloning.triton.script = lambda _: [Samples((0.5,)), Until(may_end), EmptyFinal()]
    calling = asyncio.ensure_future(call(cloning.address, "ModelInfer", asking()))
    await until_async(lambda: cloning.triton.num_played == 1)
    calling.cancel()
    number = int(cloning.triton.parameters[0][STREAM])
    await until_async(lambda: cloning.disconnects.has(number))
    assert cloning.handler._shares.held == 1
    may_end.set()
    await until_async(lambda: cloning.handler._shares.held == 0)
    assert (cloning.triton.num_ended, cloning.triton.num_cancelled) == (1, 0)


@pytest.mark.parametrize("spares_answered", [True, False])
async def test_restart_of_the_first_model_spares_a_reply_that_has_begun(
    cloning: Proxied, spares_answered: bool
) -> None:
    may_end, handler = asyncio.Event(), cloning.handler
    cloning.triton.script = lambda _: [Samples((0.5,)), Until(may_end), EmptyFinal()]
    calling = asyncio.ensure_future(call(cloning.address, "ModelInfer", asking()))
    await until_async(lambda: handler._one_shots.held > 0)
    handler._gate.close(spares_answered)
    may_end.set()
    if spares_answered:
        assert len((await calling).raw_output_contents) == 1
    else:
        with pytest.raises(grpc.aio.AioRpcError, match="being restarted; try again"):
            await calling


@dataclass
class Http:
    """HTTP port of a proxy."""

    port: int
    proxied: Proxied
    posts: HttpInfer

    async def post(self, body: bytes, path: str = f"/v2/models/{MODEL}/infer", **headers: str) -> tuple[int, Any]:
        """Return the status and the JSON of the response; an empty header is left out."""
        given = {"Content_Type": "application/json", "Content_Length": str(len(body))} | headers
        head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items() if value)
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(f"POST {path}?request_id=0 HTTP/1.1\r\n{head}\r\n".encode() + body)
            answer = await reader.read()
            writer.close()
        status, _, page = answer.partition(b"\r\n\r\n")
        return int(status.split()[1]), json.loads(page)


@pytest.fixture
async def web(cloning: Proxied) -> AsyncIterator[Http]:
    async def no_page(path: str) -> Page:
        return Page(HTTPStatus.NOT_FOUND)

    posts = HttpInfer(cloning.handler.infer, Uploads(), lambda _: None)
    server = PageServer(no_page, posts=posts)
    listener = await asyncio.start_server(server, "127.0.0.1", 0, limit=pages.MAX_HEAD_BYTES)
    yield Http(listener.sockets[0].getsockname()[1], cloning, posts)
    listener.close()


def body(*inputs: tuple[str, str, list[int], Any]) -> bytes:
    names = ("name", "datatype", "shape", "data")
    return json.dumps({"inputs": [dict(zip(names, each, strict=True)) for each in inputs]}).encode()


WAV = ("reference_wav", "FP32", [1, 3], [[0.5, 0, -0.25]])
LENGTH = ("reference_wav_len", "INT32", [1, 1], [[2]])
WORDS = ("reference_text", "BYTES", [1, 1], ["é"])
ASKED = ("target_text", "BYTES", [1, 1], ["you"])


async def test_json_request_and_reply_are_those_of_grpc(web: Http) -> None:
    status, reply = await web.post(body(WAV, LENGTH, WORDS, ASKED))
    output = {"name": "waveform", "datatype": "FP32", "shape": [1, 3], "data": [0.5, -0.25, 0.125]}
    assert (status, reply) == (200, {"model_name": MODEL, "model_version": "1", "outputs": [output]})
    (sent,) = web.proxied.triton.requests
    assert sent.pop("reference_wav").tolist() == [[0.5, 0, -0.25]]
    assert sent == {"model": MODEL, "reference_wav_len": 2, "reference_text": "é".encode(), "target_text": b"you"}


@pytest.mark.parametrize("number", [1, 1.5e9, -0.1])
async def test_samples_of_long_replies_are_exact(web: Http, monkeypatch: pytest.MonkeyPatch, number: float) -> None:
    monkeypatch.setattr(http_infer, "PIECE", 2)
    samples = np.linspace(0, number, 7, dtype=np.float32)
    web.proxied.triton.script = lambda _: [Samples(tuple(samples)), EmptyFinal()]
    _, reply = await web.post(body(ASKED))
    np.testing.assert_array_equal(np.array(reply["outputs"][0]["data"], np.float32), samples)


@pytest.mark.parametrize(
    ("given", "headers", "text"),
    [
        (b"{", {}, "request: expected JSON with a list of inputs"),
        (b"[" * 1024, {}, "request: expected JSON with a list of inputs"),
        (body(("target_text", "BYTES", [1, 1], [[["you"]]])), {}, "request: expected JSON with a list of inputs"),
        (body(("target_text", "BYTES", [1, 1], [1])), {}, "inputs.target_text: expected strings for BYTES"),
        (body(("target_text", "BYTES", [1, 2], ["you"])), {}, "inputs.target_text: expected 2 strings"),
        (body(("target_text", "BYTES", [-1], ["you"])), {}, "expected JSON with a list of inputs"),
        (body(("target_text", "BYTES", [1 << 70], ["you"])), {}, "expected JSON with a list of inputs"),
        (body(("reference_wav", "FP32", [1, 1], ["a"])), {}, "inputs.reference_wav: expected numbers for FP32"),
        (body(("reference_wav", "FP32", [1, 2], [[0.5]])), {}, "inputs.reference_wav: expected 8 bytes"),
        (body(("reference_wav", "FP16", [1, 1], [0])), {}, "inputs.reference_wav: expected FP32, INT32 or BYTES"),
        (body(("reference_wav_len", "INT32", [1, 1], [0.5])), {}, "inputs.reference_wav_len: expected integers"),
        (body(("reference_wav_len", "INT32", [1, 1], [1 << 40])), {}, "inputs.reference_wav_len: expected integers"),
        (b"[" + b"{" * 1024, {}, "request: expected JSON with at most 1024 brackets and quotes, got more"),
        (b"0," * ((1 << 20) + 1), {}, "request: expected JSON with at most 1048576 elements, got more"),
        (b"", {"Content_Length": ""}, "content-length: expected one number of bytes"),
        (b"", {"Content_Length": "-1"}, "content-length: expected one number of bytes"),
        (b"", {"Content_Length": str(1 << 40)}, "content-length: expected at most 16777216 bytes"),
        (b"{}", {"Content_Type": "text/plain"}, "content-type: expected application/json"),
        (b"{}", {"Inference_Header_Content_Length": "2"}, "content-type: expected application/json"),
        (b"{}", {"Origin": "http://localhost"}, "origin: expected none, because this port is not for browsers"),
    ],
    ids=range(20),
)
async def test_invalid_http_request_is_refused_by_name(
    web: Http, given: bytes, headers: dict[str, str], text: str
) -> None:
    status, reply = await web.post(given, **headers)
    assert status == 400
    assert text in reply["error"]
    assert not web.proxied.triton.requests


@pytest.mark.parametrize(
    "number", ["1.1e308", "1.5e300", "5e-324", "1e23", "1" * 308, "1." + "0" * 1000, "1e-999"], ids=range(7)
)
async def test_numbers_are_not_parsed_by_msgspec(web: Http, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    """It takes up to a thousand times as long for such a number as for a sample, and meanwhile no call is forwarded."""
    for parser in ("decode", "Decoder"):
        monkeypatch.setattr(msgspec.json, parser, None)
    status, _ = await web.post(body(WAV, ASKED).replace(b"-0.25", number.encode()))
    assert status == 200
    (sent,) = web.proxied.triton.requests
    with np.errstate(over="ignore"):
        assert sent["reference_wav"].tolist() == [[0.5, 0, np.float64(number).astype(np.float32)]]


@pytest.mark.parametrize(
    ("number", "count", "counted"), [("0.00000000", 100, 0), ("0", 100, 100), ("0", (1 << 20) + 99, 1 << 20)]
)
async def test_short_elements_count_as_more_bytes(
    web: Http, monkeypatch: pytest.MonkeyPatch, number: str, count: int, counted: int
) -> None:
    waits: list[int] = []

    async def wait(num_bytes: int) -> None:
        waits.append(num_bytes)

    monkeypatch.setattr(web.posts._pace, "wait", wait)
    given = f"[{','.join([number] * count)}]".encode()
    await web.post(given)
    assert waits == [max(len(given), http_infer.ELEMENT_BYTES * min(count - 1, counted))]


@pytest.mark.parametrize("model", ["speech", "preprocessor", "other"])
async def test_other_models_are_closed_over_http(web: Http, model: str) -> None:
    status, reply = await web.post(body(ASKED), f"/v2/models/{model}/infer")
    assert status == 400
    assert "model_name: expected" in reply["error"] or "the models API is closed" in reply["error"]
    assert not web.proxied.triton.requests


async def test_requests_of_one_host_over_http_are_limited(web: Http) -> None:
    web.posts._posts.acquire("127.0.0.1", http_infer.MAX_POSTS // 2)
    status, reply = await web.post(body(ASKED))
    assert (status, reply["error"]) == (503, "full: this host has reached its share of requests over HTTP")
    web.posts._posts.release("127.0.0.1")
    assert (await web.post(body(ASKED)))[0] == 200


async def test_http_client_that_disconnects_ends_its_reply(web: Http) -> None:
    """Its slot is free once the stream has been drained."""
    proxied, may_end = web.proxied, asyncio.Event()
    proxied.triton.script = lambda _: [Samples((0.5,)), Until(may_end), EmptyFinal()]
    _, writer = await asyncio.open_connection("127.0.0.1", web.port)
    sent, path = body(ASKED), f"/v2/models/{MODEL}/infer"
    head = f"POST {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
    writer.write(head.encode() + sent)
    await until_async(lambda: proxied.triton.num_played == 1)
    writer.close()
    await until_async(lambda: proxied.disconnects.has(int(proxied.triton.parameters[0][STREAM])))
    may_end.set()
    await until_async(lambda: proxied.handler._shares.held == 0)
