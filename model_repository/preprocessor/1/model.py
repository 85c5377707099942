"""Triton's adapter of the preprocessor."""

from typing import Any

from stretto.preprocessing.audio_process import AudioProcess
from stretto.preprocessing.lanes import AudioLanes, Load
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.preprocessing.text_part import read_part
from stretto.triton_io import schema, strings, stub
from stretto.triton_io.draining import DrainGate
from stretto.triton_io.parameters import ModelParameters
from stretto.triton_io.preparing_service import PreparingService
from stretto.triton_io.seal import SealKey
from stretto.triton_io.tensors import read_array, read_bytes, read_files, read_scalar


class TritonPythonModel:
    """A request to a prompt, or to the next part of a text that is being spoken.

    in   text, messages, task, options, session STRING [1]  all optional
         audio                                 STRING [n]   optional, a file for each turn that means one
         pcm_in                                FP32 [n]     optional, mono at sample_rate
         sample_rate                           INT32 [1]    optional, Hz
    out  rows                                  INT32 [P, S] token ids of the prompt; absent of a part
         prompt                                UINT8 [n]    sealed JSON: Prompt without its rows and features, TextPart
         features                              FP32 [F, M]  log-mel frames; absent where the family hears otherwise
    """

    def initialize(self, args: dict[str, Any]) -> None:
        stub.give_back_large_memory()
        strings.install()
        parameters = ModelParameters(args)
        limit = Load(parameters.number("max_audio_bytes"), parameters.number("max_audio_requests"))
        self.lanes = AudioLanes(AudioProcess, parameters.number("long_audio_lanes"), limit)
        self.preprocessor = Preprocessor(parameters.path("checkpoint"), device=parameters.device)
        self.key = SealKey(stub.server_pid())
        gate = DrainGate.from_environment()
        self.service = PreparingService(self.preprocessor.prepare, read_part, self.lanes, self.key.seal, gate)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.service.answer(request, read_request) for request in requests]

    def finalize(self) -> None:
        self.lanes.close()
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
        session=read_bytes(request, schema.SESSION),
    )
