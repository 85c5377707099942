"""Check that a requested model is served.

WORKAROUND(triton): requests for unknown models must not reach Triton. It answers them immediately, even while another
response is being written to the stream, and gRPC aborts the process if two writes overlap. Streams of Triton 2.51 and
of later releases are affected.
"""

from collections.abc import Awaitable, Callable

import grpc
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelReadyRequest, ModelReadyResponse

from stretto.serving.proxy import access
from stretto.serving.proxy.access import Access, Metadata
from stretto.serving.proxy.infer_request import SHOWN, UNAVAILABLE, BadRequest

OURS = frozenset({"speech", *access.INNER_MODELS})  # these read client-disconnect flags from the proxy
VERSIONS = ("", "1")  # of our models

Ask = Callable[[bytes], Awaitable[bytes]]


class ServedModels:
    """Check of requested models: our own by name, others by a ModelReady call to Triton."""

    def __init__(self, allowed: Access, ask: Ask) -> None:
        """Create the check.

        Args:
            allowed: Access rules.
            ask: Calls ModelReady with a serialised request.
        """
        self._access, self._ask = allowed, ask

    async def check(self, head: ModelInferRequest, metadata: Metadata) -> None:
        """Raise BadRequest if the caller may not use the request's model, or if the server does not have it.

        Args:
            head: The request.
            metadata: Metadata of the call.
        """
        name, version = head.model_name, head.model_version
        if name in access.INNER_MODELS and not self._access.admits(access.MODELS, metadata):
            raise BadRequest(f"model_name: {access.refusal(access.MODELS)}", head.id)
        if name not in OURS:
            if not await self._is_served(head):
                expected = "model_name: expected a model that the server has"
                raise BadRequest(f"{expected}, got {name[:SHOWN]!r}, version {version[:SHOWN]!r}", head.id)
        elif version not in VERSIONS:
            raise BadRequest(f"model_version: expected '1' or none, got {version[:SHOWN]!r}", head.id)

    async def _is_served(self, head: ModelInferRequest) -> bool:
        request = ModelReadyRequest(name=head.model_name, version=head.model_version)
        try:
            return bool(ModelReadyResponse.FromString(await self._ask(request.SerializeToString())).ready)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                return False
            raise BadRequest(
                "the server does not say whether it has this model; try again", head.id, UNAVAILABLE
            ) from None
