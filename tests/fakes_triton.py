"""Fake `triton_python_backend_utils`, a module that exists only inside Triton's stub."""

import json
import sys
import types
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FINAL = 1


class Tensor:
    """Array with the stub's `as_numpy` and dlpack interfaces."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name = name
        assert array.dtype == np.object_ or array.flags.c_contiguous, "the stub would copy it"
        self._array = array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array

    def __dlpack__(self, **options: Any) -> Any:
        return np.require(self._array, requirements="W").__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class TritonError:
    """A code and a message."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = UNKNOWN) -> None:
        self._message = message
        self._code = code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


@dataclass
class InferenceResponse:
    """Tensors or an error."""

    output_tensors: list[Tensor]
    error: TritonError | None = None

    def array(self, name: str) -> np.ndarray | None:
        return next((tensor.as_numpy() for tensor in self.output_tensors if tensor.name() == name), None)


class ResponseSender:
    """Sender that records responses and, like the stub, refuses any after the final flag."""

    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.is_final = False
        self.client_is_gone = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.is_final, "sent after the final flag"
        if response is not None:
            self.responses.append(response)
        self.is_final = bool(flags & FINAL)

    def is_cancelled(self) -> bool:
        return self.client_is_gone


@dataclass
class Request:
    """Input arrays by name."""

    inputs: dict[str, np.ndarray]
    sender: ResponseSender = field(default_factory=ResponseSender)
    given: dict[str, Any] = field(default_factory=dict)

    def parameters(self) -> str:
        return json.dumps(self.given)

    def get_response_sender(self) -> ResponseSender:
        return self.sender

    def is_cancelled(self) -> bool:
        return self.sender.client_is_gone


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    return Tensor(name, request.inputs[name]) if name in request.inputs else None


class Metric:
    """A number."""

    def __init__(self, labels: dict[str, str]) -> None:
        self.value, self.labels = 0.0, labels

    def increment(self, by: float) -> None:
        assert by >= 0
        self.value += by

    def set(self, value: float) -> None:
        self.value = value


class MetricFamily:
    """Metric family that records its metrics by name in `made`."""

    COUNTER, GAUGE = "counter", "gauge"
    made: dict[str, Metric]

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name = name
        self.kind = kind

    def Metric(self, labels: dict[str, str]) -> Metric:
        return MetricFamily.made.setdefault(self.name, Metric(labels))


class Logger:
    """Logger that records error lines."""

    errors: list[str]

    @staticmethod
    def log_error(message: str) -> None:
        Logger.errors.append(message)


def install() -> types.ModuleType:
    """Install this fake as `triton_python_backend_utils`, with nothing logged or counted yet."""
    Logger.errors = []
    MetricFamily.made = {}
    module = sys.modules.setdefault("triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
    vars(module).update(
        Tensor=Tensor,
        TritonError=TritonError,
        InferenceResponse=InferenceResponse,
        MetricFamily=MetricFamily,
        Logger=Logger,
        get_input_tensor_by_name=get_input_tensor_by_name,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
    )
    return module
