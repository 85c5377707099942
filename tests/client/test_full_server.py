"""The error's kind or status distinguishes a full server from one that accepts no work."""

import grpc
import pytest
from tritonclient.grpc import InferenceServerException

from stretto.errors import Closing, NoCapacity, Overloaded
from stretto.proxy.grpc_proxy import CROWDED
from stretto.proxy.infer_request import BadRequest
from stretto.proxy.triton_stream import ENDED, LARGE_BYTES, Pace
from stretto.triton_io.callers import failed_response
from stretto_client import ServerFull, ServerUnavailable
from stretto_client.errors import from_exception, from_rpc, from_text


@pytest.mark.parametrize(
    ("error", "kind"), [(Overloaded, ServerFull), (NoCapacity, ServerFull), (Closing, ServerUnavailable)]
)
def test_refusals_are_classified_by_kind_not_message(error: type[Exception], kind: type[Exception]) -> None:
    told = failed_response(error("unavailable: words of no meaning"), "speech").error.message()
    for text in (told, f"in ensemble 'speech', {told}"):
        read = from_text(text)
        assert type(read) is kind
        assert str(read) == "unavailable: words of no meaning"


@pytest.mark.parametrize("text", [CROWDED, ENDED, "any words"])
def test_resource_exhausted_status_is_server_full(text: str) -> None:
    call = grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), grpc.aio.Metadata(), text)
    assert type(from_rpc(call, "host:8001")) is ServerFull
    assert type(from_exception(InferenceServerException(text, "StatusCode.RESOURCE_EXHAUSTED"), "host")) is ServerFull


async def test_full_queue_of_large_requests_is_server_full() -> None:
    with pytest.raises(BadRequest) as refused:
        await Pace(max_waiting_bytes=0).wait(LARGE_BYTES + 1)
    assert isinstance(from_text(refused.value.client_message), ServerFull)


def test_starting_or_missing_server_maps_to_server_unavailable() -> None:
    call = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "no connect")
    assert type(from_rpc(call, "host:8001")) is ServerUnavailable
    assert type(from_text("unavailable: the server is starting")) is ServerUnavailable


def test_core_internal_error_maps_to_server_unavailable() -> None:
    lost = grpc.aio.AioRpcError(
        grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), "Internal error from Core"
    )
    assert type(from_rpc(lost, "host:8001")) is ServerUnavailable
    wrapped = InferenceServerException("Internal error from Core", "StatusCode.INTERNAL")
    assert type(from_exception(wrapped, "host:8001")) is ServerUnavailable


def test_unavailable_model_version_maps_to_server_unavailable() -> None:
    text = "Request for unknown model: 'speech' has no available versions"
    call = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata(), text)
    assert type(from_rpc(call, "host:8001")) is ServerUnavailable
    wrapped = InferenceServerException(text, "StatusCode.NOT_FOUND")
    assert type(from_exception(wrapped, "host:8001")) is ServerUnavailable
    assert type(from_text(text)) is ServerUnavailable
