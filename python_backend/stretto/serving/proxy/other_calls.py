"""A call that is no inference: a message of its kind, and of who has no key a small one."""

from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.wrappers_pb2 import StringValue
from tritonclient.grpc import service_pb2

from stretto.serving.proxy.access import HEALTH_CHECK, SERVICE
from stretto.serving.proxy.infer_request import BadRequest
from stretto.serving.proxy.shared_memory import check_registration

MAX_SMALL_BYTES = 1 << 16  # it carries names; a model, which its files may come with, is loaded with the key only
_TRITON = service_pb2.DESCRIPTOR.services_by_name[SERVICE.strip("/").rpartition(".")[2]].methods
# A health check is one string, too (grpc/health/v1/health.proto), of a package that is not installed.
_KINDS: dict[str, type[Message]] = {HEALTH_CHECK: StringValue}
_KINDS |= {SERVICE + method.name: GetMessageClass(method.input_type) for method in _TRITON}


def check_other_call(method: str, request: bytes, is_key_holder: bool) -> None:
    """BadRequest for a message that Triton must not see; what it cannot read, it calls an internal error."""
    if not is_key_holder and len(request) > MAX_SMALL_BYTES:
        raise BadRequest(f"request: expected at most {MAX_SMALL_BYTES} bytes, got {len(request)}")
    try:
        message = _KINDS[method].FromString(request)
    except DecodeError:
        name = method.rpartition("/")[2]
        raise BadRequest(f"request: expected the message of {name}, got bytes that are none") from None
    if isinstance(message, service_pb2.SystemSharedMemoryRegisterRequest):
        check_registration(message)
