"""Names of Triton's APIs, calls and headers, and of our models."""

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
MODEL_METADATA = f"{SERVICE}ModelMetadata"
MODEL_CONFIG = f"{SERVICE}ModelConfig"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
CLOSED_APIS = {
    "shared-memory": tuple(
        f"{memory}SharedMemory{action}"
        for memory in ("System", "Cuda")
        for action in ("Status", "Register", "Unregister")
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
ENSEMBLE = "speech"
COMMAND = "adapters"  # input of the language model for commands of holders of the key
