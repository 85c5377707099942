"""Access rules of the proxy, and the launcher's messages to the proxy.

The rules cover calls, models and shared memory. The messages are sent through pipes, because other users could read the
key from command lines in `ps`.
"""

import hmac
import json
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import unquote

import grpc
from tritonclient.grpc.service_pb2 import (
    ModelInferRequest,
    ModelReadyRequest,
    ModelReadyResponse,
    SystemSharedMemoryRegisterRequest,
)

from stretto.errors import UNAVAILABLE
from stretto.proxy.infer_request import SHOWN, BadRequest
from stretto_contract.limits import host_of

# State messages after the config. While a model restarts, new requests are refused and requests in flight are ended:
# either all of them, or only those that have no response yet or share a stream with other requests.
READY = "ready"
UNREADY = "unready"
ENDING_ALL = "ending all"
ENDING_UNANSWERED = "ending unanswered"
STOPPING = "stopping"  # last message; a launcher whose pipe closes without it has died

Message = TypeVar("Message")


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports on which the proxy listens. A configured port of 0 is replaced by the chosen free port.

    Attributes:
        grpc: gRPC port.
        metrics: Metrics port.
        http: HTTP port; None if Triton serves HTTP itself.
    """

    grpc: int
    metrics: int
    http: int | None = None

    def to_json(self) -> str:
        """Return the ports as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Ports":
        """Parse the output of `to_json`; raise ValueError for other text, such as an error message."""
        return _parse(cls, text)


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """Configuration of the proxy. A port of 0 selects a free port.

    Attributes:
        address: IP address to listen on.
        grpc_port: gRPC port.
        metrics_port: Metrics port.
        http_port: HTTP port; None if Triton serves HTTP itself.
        triton_grpc: Path of Triton's gRPC socket, without the colon and port that Triton appends.
        triton_metrics: Path of Triton's metrics socket.
        disconnects: Path of the client-disconnect flags.
        key: Secret whose holders may use all APIs.
        allowed: APIs in `CLOSED` that the user has opened to all clients.
        max_request_bytes: Maximum size of a gRPC message, in bytes.
        cleanup: Command to execute if the launcher has died; empty for none.
        cloning_models: Names of the ensembles for clients that clone voices.
    """

    address: str
    grpc_port: int
    metrics_port: int
    http_port: int | None
    triton_grpc: str
    triton_metrics: str
    disconnects: str
    key: str
    allowed: tuple[str, ...]
    max_request_bytes: int
    cleanup: tuple[str, ...] = ()
    cloning_models: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the config as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ProxyConfig":
        """Parse the output of `to_json`; raise ValueError for other text."""
        return _parse(cls, text)


def _parse(kind: type[Message], text: str) -> Message:
    """Parse a message. Errors name the invalid field but not its value, which may be the key."""
    record = json.loads(text)
    kinds = get_type_hints(kind)
    if not isinstance(record, dict) or record.keys() != kinds.keys():
        got = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"{kind.__name__}: expected an object of {', '.join(kinds)}, got {got}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    for name, value in values.items():
        of = kinds[name]
        is_list = isinstance(value, tuple)
        found = {type(each) for each in (value if is_list else [value])}
        allowed = {str} if get_origin(of) is tuple else set(get_args(of) or [of])
        if is_list != (get_origin(of) is tuple) or not found <= allowed:
            raise ValueError(f"{kind.__name__}.{name}: expected {of}, got {type(record[name]).__name__}")
    return kind(**values)


CALLER_HEADER = "stretto-caller"  # set by a holder of the key: the caller on whose behalf the call is made
KEY_HEADER = "triton-grpc-protocol-stretto-key"  # Triton's header name for a key called `stretto-key`
OPEN = "open"
REPOSITORY = "model-repository"
# direct calls to the ensemble's steps; Triton's HTTP service instead of ours
MODELS = "models"
HTTP = "http"
SERVICE = "/inference.GRPCInferenceService/"
MODEL_INFER = f"{SERVICE}ModelInfer"
MODEL_STREAM_INFER = f"{SERVICE}ModelStreamInfer"
MODEL_READY = f"{SERVICE}ModelReady"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
CLOSED_APIS = {
    "shared-memory": tuple(
        f"{kind}SharedMemory{action}" for kind in ("System", "Cuda") for action in ("Status", "Register", "Unregister")
    ),
    REPOSITORY: ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    "trace": ("TraceSetting",),
    "logging": ("LogSettings",),
}
OPEN_CALLS = ["ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig"]
OPEN_CALLS += ["ModelStatistics", "ModelInfer", "ModelStreamInfer"]

CLOSED = (*CLOSED_APIS, MODELS, HTTP)  # unless --allow opens them

# API of each forwarded method.
APIS = {SERVICE + call: OPEN for call in OPEN_CALLS} | {HEALTH_CHECK: OPEN}
APIS |= {SERVICE + call: api for api, calls in CLOSED_APIS.items() for call in calls}

INNER_MODELS = ("preprocessor", "language_model", "acoustic_decoder")

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
        """Return the client's identity for the models' fair-share limits: its host and any named caller.

        Only a holder of the key, such as a gateway on the server's host, can name callers.

        Args:
            peer: Peer of the call, as reported by gRPC.
            metadata: Metadata of the call.
        """
        host = host_of_call(peer)
        caller = next((value for name, value in metadata if name == CALLER_HEADER), "")
        if not isinstance(caller, str) or not re.fullmatch(r"[0-9a-z]{1,64}", caller, re.ASCII):
            return host
        return f"{host}/{caller}" if self.is_key_holder(metadata) else host

    def is_key_holder(self, metadata: Metadata) -> bool:
        """Return True if the metadata contains the secret."""
        given = next((value for name, value in metadata if name == KEY_HEADER), "")
        return isinstance(given, str) and hmac.compare_digest(given.encode(), self.key.encode())


def refusal(api: str) -> str:
    """Return the error message for a client that may not use the API `api`."""
    return f"the {api} API is closed: start the server with --allow {api}, or send its key in the header {KEY_HEADER}"


ENSEMBLE = "speech"
VERSIONS = ("", "1")  # of our models

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
        """Names of all ensembles."""
        return self.cloning | {ENSEMBLE}

    @property
    def names(self) -> frozenset[str]:
        """Names of all models."""
        return self.ensembles | {*INNER_MODELS}


class ServedModels:
    """Checks that the server has a requested model: our own by name, others by asking Triton."""

    def __init__(self, allowed: Access, ours: frozenset[str], ask: Ask) -> None:
        """Create the check.

        Args:
            allowed: Access rules.
            ours: Names of our models.
            ask: Sends a serialised ModelReadyRequest to Triton, and returns the serialised response.
        """
        self._access = allowed
        self._ours = ours
        self._ask = ask

    async def check(self, head: ModelInferRequest, metadata: Metadata) -> None:
        """Raise BadRequest if the client may not use the request's model, or if the server does not have it.

        Args:
            head: The request, without tensor contents.
            metadata: Metadata of the call.
        """
        name = head.model_name
        version = head.model_version
        if name in INNER_MODELS and not self._access.admits(MODELS, metadata):
            raise BadRequest(f"model_name: {refusal(MODELS)}", head.id)
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
    """Raise BadRequest if a client tries to register the server's own shared memory.

    Otherwise, the client's tensors could refer to that memory.
    """
    name = request.key.lstrip("/")
    if name.startswith(SERVER_PREFIXES) and not name.startswith(OF_CLIENTS):
        raise BadRequest(f"key: expected a name without the server's own prefix, got {name!r}")


def host_of_call(peer: str) -> str:
    """Return the host of a gRPC peer such as `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`; see `host_of`."""
    kind, _, place = unquote(peer).partition(":")
    return host_of(place.rpartition(":")[0].strip("[]")) if kind in ("ipv4", "ipv6") else peer
