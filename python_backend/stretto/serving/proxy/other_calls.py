"""Validation of calls other than inference: type, and size for callers without the key."""

from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.wrappers_pb2 import StringValue
from tritonclient.grpc import service_pb2

from stretto.serving.proxy.access import HEALTH_CHECK, SERVICE
from stretto.serving.proxy.infer_request import BadRequest
from stretto.serving.proxy.shared_memory import check_registration

MAX_SMALL_BYTES = 1 << 16  # messages carry names; only key holders may load models, with files in the message
_TRITON = service_pb2.DESCRIPTOR.services_by_name[SERVICE.strip("/").rpartition(".")[2]].methods
# A health check is also a single string (grpc/health/v1/health.proto); its package is not installed.
_KINDS: dict[str, type[Message]] = {HEALTH_CHECK: StringValue}
_KINDS |= {SERVICE + method.name: GetMessageClass(method.input_type) for method in _TRITON}


def check_other_call(method: str, request: bytes, is_key_holder: bool) -> None:
    """Raise BadRequest for an unreadable, oversized or forbidden message.

    Triton would answer an unreadable one with an internal error.

    Args:
        method: Full method name.
        request: Serialised message.
        is_key_holder: True if the caller has sent the key; the message may then be large.
    """
    if not is_key_holder and len(request) > MAX_SMALL_BYTES:
        raise BadRequest(f"request: expected at most {MAX_SMALL_BYTES} bytes, got {len(request)}")
    try:
        message = _KINDS[method].FromString(request)
    except DecodeError:
        name = method.rpartition("/")[2]
        raise BadRequest(f"request: expected the message of {name}, got bytes that are none") from None
    if isinstance(message, service_pb2.SystemSharedMemoryRegisterRequest):
        check_registration(message)
