"""Triton's last answers to queries about itself and its models, which the proxy sends while the server sleeps."""

from collections.abc import Mapping

import grpc
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2, service_pb2_grpc

from stretto.proxy.apis import HEALTH_CHECK, MODEL_CONFIG, MODEL_METADATA, MODEL_READY, SERVICE
from stretto.proxy.infer_request import SHOWN, BadRequest

ANSWER_S = 5.0
SERVER_METADATA = f"{SERVICE}ServerMetadata"
# a healthy server, in the three forms in which clients ask for it
HEALTHY = {f"{SERVICE}ServerLive": b"\x08\x01", f"{SERVICE}ServerReady": b"\x08\x01", HEALTH_CHECK: b"\x08\x01"}
NAMED_MODEL = (MODEL_READY, MODEL_METADATA, MODEL_CONFIG)
REMEMBERED = {*HEALTHY, SERVER_METADATA, *NAMED_MODEL}  # calls that do not wake the server

Key = tuple[str, str, str]  # method, and a model's name and version


class LastAnswers:
    """Answers of Triton just before it was stopped.

    Args:
        answers: Serialised response for each call; name and version are empty if the call names no model.
    """

    def __init__(self, answers: Mapping[Key, bytes]) -> None:
        self._answers = dict(answers)

    @classmethod
    async def fetch(cls, triton: grpc.aio.Channel) -> "LastAnswers":
        """Ask Triton about itself and each of its ready models; raise AioRpcError if it does not answer."""
        stub = service_pb2_grpc.GRPCInferenceServiceStub(triton)
        metadata = await stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=ANSWER_S)
        answers: dict[Key, bytes] = {(SERVER_METADATA, "", ""): metadata.SerializeToString()}
        index = await stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True), timeout=ANSWER_S)
        is_ready = service_pb2.ModelReadyResponse(ready=True).SerializeToString()
        for model in index.models:
            named = {"name": model.name, "version": model.version}
            about = await stub.ModelMetadata(service_pb2.ModelMetadataRequest(**named), timeout=ANSWER_S)
            config = await stub.ModelConfig(service_pb2.ModelConfigRequest(**named), timeout=ANSWER_S)
            for version in ("", model.version):
                answers[MODEL_READY, model.name, version] = is_ready
                answers[MODEL_METADATA, model.name, version] = about.SerializeToString()
                answers[MODEL_CONFIG, model.name, version] = config.SerializeToString()
        return cls(answers)

    def answer(self, method: str, request: Message) -> bytes:
        """Return the serialised response to a call in `REMEMBERED`; raise BadRequest if Triton had no such model."""
        if method in HEALTHY:
            return HEALTHY[method]
        name = getattr(request, "name", "")
        version = getattr(request, "version", "")
        response = self._answers.get((method, name, version))
        if response is None and method == MODEL_READY:
            return b""
        if response is None:
            raise BadRequest(f"name: expected a model that the server has, got {name[:SHOWN]!r}")
        return response
