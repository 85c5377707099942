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


NO_VERSION = "Request for unknown model: 'speech' has no available versions"


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        *(("RESOURCE_EXHAUSTED", text, ServerFull) for text in (CROWDED, ENDED, "any words")),
        ("UNAVAILABLE", "no connect", ServerUnavailable),
        ("INTERNAL", "Internal error from Core", ServerUnavailable),
        ("NOT_FOUND", NO_VERSION, ServerUnavailable),
    ],
)
def test_status_determines_the_error(status: str, text: str, kind: type[Exception]) -> None:
    call = grpc.aio.AioRpcError(grpc.StatusCode[status], grpc.aio.Metadata(), grpc.aio.Metadata(), text)
    assert type(from_rpc(call, "host:8001")) is kind
    assert type(from_exception(InferenceServerException(text, f"StatusCode.{status}"), "host:8001")) is kind


@pytest.mark.parametrize("text", ["unavailable: the server is starting", NO_VERSION])
def test_server_that_is_not_ready_is_unavailable(text: str) -> None:
    assert type(from_text(text)) is ServerUnavailable


async def test_full_queue_of_large_requests_is_server_full() -> None:
    with pytest.raises(BadRequest) as refused:
        await Pace(max_waiting_bytes=0).wait(LARGE_BYTES + 1)
    assert isinstance(from_text(refused.value.client_message), ServerFull)
