"""Which models a request may be for: ours, and others' that Triton has.

A request for another must not reach Triton. Beside answers that are being written it answers one at once, and gRPC ends
a process that writes twice at a time (Triton 2.51's streams, and later ones').
"""

from collections.abc import Awaitable, Callable

import grpc
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelReadyRequest, ModelReadyResponse

from stretto.serving.proxy import access
from stretto.serving.proxy.access import Access, Metadata
from stretto.serving.proxy.infer_request import SHOWN, UNAVAILABLE, BadRequest

OURS = frozenset({"speech", *access.INNER_MODELS})  # which look for clients that have left where the proxy says so
VERSIONS = ("", "1")  # of ours

Ask = Callable[[bytes], Awaitable[bytes]]


class ServedModels:
    """Knows ours, and asks Triton of others'. ask: makes a call of ModelReady."""

    def __init__(self, allowed: Access, ask: Ask) -> None:
        self._access, self._ask = allowed, ask

    async def check(self, head: ModelInferRequest, metadata: Metadata) -> None:
        """BadRequest where the request's model is closed to who sends this metadata, or there is no such one."""
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
