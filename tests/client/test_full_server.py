"""What the server says for want of room is told apart from what it says when it takes no work at all."""

import ast
import re
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import InferenceServerException

from stretto.serving.proxy.grpc_proxy import CROWDED
from stretto.serving.proxy.infer_request import BadRequest
from stretto.serving.proxy.pace import LARGE_BYTES, Pace
from stretto.serving.proxy.uploads import ENDED
from stretto_client import ServerFull, ServerUnavailable
from stretto_client.errors import from_exception, from_rpc, from_text

PACKAGE = Path(__file__).parents[2] / "python_backend" / "stretto"
OVERLOADED = re.compile(r"\b(?:Overloaded|NoPlace)\(\s*(f?\"[^\"]*\"(?:\s+f?\"[^\"]*\")*)")
NOT_FULL = ("server is draining", "server is stopping", "the decoder is stopping")


def texts() -> set[str]:
    """All that the server's models say as `Overloaded` or `NoPlace`, with a figure in the place of each expression."""
    found = (text for path in PACKAGE.rglob("*.py") for text in OVERLOADED.findall(path.read_text()))
    return {ast.literal_eval("(" + re.sub(r"\bf\"", '"', re.sub(r"\{[^}]*\}", "7", text)) + ")") for text in found}


def test_every_limit_of_the_models_is_known_as_one() -> None:
    known = texts()
    assert set(NOT_FULL) < known
    for text in known:
        error = from_text(f"in ensemble 'speech', unavailable: {text}")
        assert type(error) is (ServerUnavailable if text in NOT_FULL else ServerFull), text
        assert str(error) == text


@pytest.mark.parametrize("text", [CROWDED, ENDED])
def test_so_are_those_of_the_proxy(text: str) -> None:
    call = grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), grpc.aio.Metadata(), text)
    assert isinstance(from_rpc(call, "host:8001"), ServerFull)


async def test_so_is_its_queue_of_large_requests() -> None:
    with pytest.raises(BadRequest) as refused:
        await Pace(max_waiting_bytes=0).wait(LARGE_BYTES + 1)
    assert isinstance(from_text(refused.value.told), ServerFull)


def test_a_server_that_starts_or_is_not_there_is_not_full() -> None:
    call = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "no connect")
    assert type(from_rpc(call, "host:8001")) is ServerUnavailable
    assert type(from_text("unavailable: the server is starting")) is ServerUnavailable


def test_a_model_that_is_started_again_is_unavailable_however_that_is_told() -> None:
    text = "Request for unknown model: 'speech' has no available versions"
    call = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata(), text)
    assert type(from_rpc(call, "host:8001")) is ServerUnavailable
    wrapped = InferenceServerException(text, "StatusCode.NOT_FOUND")
    assert type(from_exception(wrapped, "host:8001")) is ServerUnavailable
    assert type(from_text(text)) is ServerUnavailable
