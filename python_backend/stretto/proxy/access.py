"""Access rules of the proxy, for calls, models and shared memory."""

import hmac
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from urllib.parse import unquote

import grpc
from tritonclient.grpc.service_pb2 import (
    ModelInferRequest,
    ModelReadyRequest,
    ModelReadyResponse,
    SystemSharedMemoryRegisterRequest,
)

from stretto.errors import UNAVAILABLE
from stretto.proxy.apis import CALLER_HEADER, COMMAND, ENSEMBLE, INNER_MODELS, KEY_HEADER, MODELS, OPEN
from stretto.proxy.infer_request import SHOWN, BadRequest
from stretto_contract.limits import host_of

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Access:
    """Access rules.

    Attributes:
        key: Secret whose holders may use all APIs.
        allowed: APIs in `CLOSED` that the user has opened to all clients of this server.
    """

    key: str
    allowed: frozenset[str]

    def admits(self, api: str, metadata: Metadata) -> bool:
        """Return True if a call with this metadata may use the API `api`."""
        return api == OPEN or api in self.allowed or self.is_key_holder(metadata)

    def client(self, peer: str, metadata: Metadata) -> str:
        """Return the client's identity for the models' fair-share limits: its host, and the caller that it names.

        Only a holder of the key, such as a gateway on the server's host, can name callers.
        """
        host = host_of_call(peer)
        caller = next((value for name, value in metadata if name == CALLER_HEADER), "")
        if not isinstance(caller, str) or not re.fullmatch(r"[0-9a-z]{1,64}", caller, re.ASCII):
            return host
        return f"{host}/{caller}" if self.is_key_holder(metadata) else host

    def is_key_holder(self, metadata: Metadata) -> bool:
        key = next((value for name, value in metadata if name == KEY_HEADER), "")
        return isinstance(key, str) and hmac.compare_digest(key.encode(), self.key.encode())


def refusal(api: str) -> str:
    """Return the error message for a client that may not use the API `api`."""
    return f"the {api} API is closed: start the server with --allow {api}, or send its key in the header {KEY_HEADER}"


VERSIONS = ("", "1")  # valid versions of our models

Ask = Callable[[bytes], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class OurModels:
    """Names of our models, which read client-disconnect flags from the proxy.

    Attributes:
        cloning: Ensembles for clients that clone voices, whose replies may also be requested in one response.
    """

    cloning: frozenset[str] = frozenset()

    @property
    def ensembles(self) -> frozenset[str]:
        return self.cloning | {ENSEMBLE}

    @property
    def names(self) -> frozenset[str]:
        return self.ensembles | {*INNER_MODELS}


class ServedModels:
    """Checks that the server has a requested model: our own by name, others by asking Triton.

    Args:
        ask: Sends a serialised ModelReadyRequest to Triton, and returns the serialised response.
    """

    def __init__(self, allowed: Access, ours: frozenset[str], ask: Ask) -> None:
        self._access = allowed
        self._ours = ours
        self._ask = ask

    async def check(self, head: ModelInferRequest, metadata: Metadata) -> None:
        """Raise BadRequest if the client may not use the model of a request, or if the server does not have it."""
        name = head.model_name
        version = head.model_version
        if name in INNER_MODELS and not self._access.admits(MODELS, metadata):
            raise BadRequest(f"model_name: {refusal(MODELS)}", head.id)
        if any(tensor.name == COMMAND for tensor in head.inputs) and not self._access.is_key_holder(metadata):
            expected = f"the server's key in the header {KEY_HEADER}"
            raise BadRequest(f"inputs.{COMMAND}: expected {expected}, got none or another one", head.id)
        if name not in self._ours:
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
                "the server did not report whether it has this model; try again", head.id, UNAVAILABLE
            ) from None


SERVER_PREFIXES = ("stretto_", "triton_python_backend_")
OF_CLIENTS = "stretto_in_"


def check_registration(request: SystemSharedMemoryRegisterRequest) -> None:
    """Raise BadRequest if a client registers the server's own shared memory, to which its tensors could then refer."""
    name = request.key.lstrip("/")
    if name.startswith(SERVER_PREFIXES) and not name.startswith(OF_CLIENTS):
        raise BadRequest(f"key: expected a name without the server's own prefix, got {name!r}")


def host_of_call(peer: str) -> str:
    """Return the host of a gRPC peer such as `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000` (`host_of`)."""
    scheme, _, address = unquote(peer).partition(":")
    return host_of(address.rpartition(":")[0].strip("[]")) if scheme in ("ipv4", "ipv6") else peer
