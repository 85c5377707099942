"""Triton's adapter of the preprocessor."""

from typing import Any

import triton_python_backend_utils as pb_utils
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.triton_io import schema, stub
from stretto.triton_io.draining import DrainGate
from stretto.triton_io.failures import failed_response, log_failure
from stretto.triton_io.parameters import ModelParameters
from stretto.triton_io.prompt_tensors import write_prompt
from stretto.triton_io.ring import check_ring
from stretto.triton_io.seal import ServerKey
from stretto.triton_io.tensors import read_array, read_bytes, read_files, read_scalar


class TritonPythonModel:
    """A request to a prompt.

    in   text, messages, task, options         STRING [1]   all optional
         audio                                 STRING [n]   optional, a file for each turn that means one
         pcm_in                                FP32 [n]     optional, mono at sample_rate
         sample_rate                           INT32 [1]    optional, Hz
    out  rows                                  INT32 [P, S] token ids of the prompt
         prompt                                UINT8 [n]    sealed JSON: Prompt without its rows and features
         features                              FP32 [F, M]  log-mel frames; absent where the family hears otherwise
    """

    def initialize(self, args: dict[str, Any]) -> None:
        parameters = ModelParameters(args)
        self.preprocessor = Preprocessor(parameters.path("checkpoint"), device=parameters.device)
        self.gate = DrainGate.from_environment()
        self.key = ServerKey(stub.server_pid())

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        """The response to one request, an error included."""
        try:
            with self.gate.admit():
                prompt = self.preprocessor.prepare(read_request(request))
                check_ring(prompt.delivery.form.ring)
                return pb_utils.InferenceResponse(write_prompt(prompt, self.key.seal))
        except Exception as error:
            log_failure(error, "preprocessor")
            return failed_response(error, "preprocessor")

    def finalize(self) -> None:
        self.key.close()


def read_request(request: Any) -> RawRequest:
    """The inputs as they came."""
    return RawRequest(
        text=read_bytes(request, schema.TEXT),
        audio=read_files(request, schema.AUDIO),
        pcm_in=read_array(request, schema.PCM_IN),
        sample_rate=read_scalar(request, schema.SAMPLE_RATE),
        messages=read_bytes(request, schema.MESSAGES),
        task=read_bytes(request, schema.TASK),
        options=read_bytes(request, schema.OPTIONS),
    )
