"""Messages of calls other than inference."""

import pytest
from tritonclient.grpc import service_pb2

from stretto.proxy.apis import APIS, HEALTH_CHECK, MODEL_INFER, MODEL_STREAM_INFER, SERVICE
from stretto.proxy.grpc_proxy import MAX_SMALL_BYTES, check_other_call
from stretto.proxy.infer_request import BadRequest

REGISTER = f"{SERVICE}SystemSharedMemoryRegister"


@pytest.mark.parametrize("method", sorted(APIS.keys() - {MODEL_INFER, MODEL_STREAM_INFER}))
def test_malformed_grpc_messages_are_a_client_error(method: str) -> None:
    check_other_call(method, b"", False)
    for request in (b"\x0a\x05abc", b"\xff"):
        with pytest.raises(BadRequest, match=rf"^request: expected a message for {method.rpartition('/')[2]}, got "):
            check_other_call(method, request, True)


def test_names_must_be_valid_utf8() -> None:
    check_other_call(HEALTH_CHECK, b"\x0a\x06speech", False)
    for method in (HEALTH_CHECK, f"{SERVICE}ModelReady"):
        with pytest.raises(BadRequest, match="bytes that cannot be parsed"):
            check_other_call(method, b"\x0a\x02\xff\xfe", False)


def test_requests_without_the_key_are_limited_to_small_bodies() -> None:
    long = service_pb2.ModelReadyRequest(name="a" * MAX_SMALL_BYTES).SerializeToString()
    for method in APIS.keys() - {MODEL_INFER, MODEL_STREAM_INFER}:
        with pytest.raises(BadRequest, match=rf"^request: expected at most {MAX_SMALL_BYTES} bytes, got {len(long)}$"):
            check_other_call(method, long, False)
    loaded = service_pb2.RepositoryModelLoadRequest(model_name="a" * MAX_SMALL_BYTES)
    check_other_call(f"{SERVICE}RepositoryModelLoad", loaded.SerializeToString(), True)


def test_server_owned_shared_memory_cannot_be_registered() -> None:
    own = service_pb2.SystemSharedMemoryRegisterRequest(name="mine")
    for key in ("/stretto_flow_7_x", "//stretto_launch_7_x", "triton_python_backend_shm_region_1"):
        own.key = key
        with pytest.raises(BadRequest, match=r"^key: expected a name without the server's own prefix"):
            check_other_call(REGISTER, own.SerializeToString(), False)
    own.key = "/stretto_in_1"
    check_other_call(REGISTER, own.SerializeToString(), False)
