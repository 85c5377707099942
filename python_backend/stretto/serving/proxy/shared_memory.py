"""Check of shared memory that clients register with Triton: the server's own is excluded."""

from tritonclient.grpc.service_pb2 import SystemSharedMemoryRegisterRequest

from stretto.serving.proxy.infer_request import BadRequest

OURS = ("stretto_", "triton_python_backend_")
OF_CLIENTS = "stretto_in_"


def check_registration(request: SystemSharedMemoryRegisterRequest) -> None:
    """Raise BadRequest if the segment belongs to the server; tensors could otherwise access its memory."""
    name = request.key.lstrip("/")
    if name.startswith(OURS) and not name.startswith(OF_CLIENTS):
        raise BadRequest(f"key: expected a segment of the client's, got {name!r}, whose prefix is for the server's own")
