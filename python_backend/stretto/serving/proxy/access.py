"""RPC methods that the proxy forwards, and access control for them."""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass

KEY_HEADER = "triton-grpc-protocol-stretto-key"  # Triton's header name for a key called `stretto-key`
OPEN, REPOSITORY = "open", "model-repository"
MODELS, HTTP = "models", "http"  # direct calls to the ensemble's steps; Triton's HTTP service instead of ours
SERVICE = "/inference.GRPCInferenceService/"
MODEL_INFER, MODEL_STREAM_INFER = f"{SERVICE}ModelInfer", f"{SERVICE}ModelStreamInfer"
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
        key: Secret that permits the closed APIs.
        allowed: APIs that are open to all clients.
    """

    key: str
    allowed: frozenset[str]

    def admits(self, api: str, metadata: Metadata) -> bool:
        """Return True if a call with this metadata may use the API."""
        return api == OPEN or api in self.allowed or self.is_key_holder(metadata)

    def is_key_holder(self, metadata: Metadata) -> bool:
        """Return True if the metadata contains the key."""
        given = next((value for name, value in metadata if name == KEY_HEADER), "")
        return isinstance(given, str) and hmac.compare_digest(given.encode(), self.key.encode())


def refusal(api: str) -> str:
    """Return the error message for a caller without access to the API."""
    return f"the {api} API is closed: start the server with --allow {api}, or send its key in the header {KEY_HEADER}"
