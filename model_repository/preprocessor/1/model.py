"""Triton adapter of the preprocessor."""

import json
import os
from pathlib import Path
from typing import Any

from stretto.triton_io import stub  # other imports follow later; see triton_io/stub.py


class TritonPythonModel:
    """Conversion of a request to a prompt, or to the next part of streamed text or live audio.

    in   text, messages, task, options, session STRING [1]  all optional
         audio                                 STRING [n]   optional, one file per turn with "audio"
         pcm_in                                FP32 [n]     optional, mono at sample_rate
         sample_rate                           INT32 [1]    optional, Hz
         image                                 STRING [n]   optional, one file per turn with "image"
         reference_wav                         FP32 [1, n]  optional; with it or `target_text`, no input above is read
         reference_wav_len                     INT32 [1, 1] optional, samples
         reference_text, target_text           STRING [1, 1] optional
    out  rows                                  INT32 [P, S] token ids of the prompt; absent for a part
         prompt                                UINT8 [n]    authenticated MessagePack: Prompt without rows and
                                                            features, TextPart, or AudioPart
         features                              FP32 [F, M]  log-mel frames; absent without an audio encoder
         patches                               FP32 [F, M]  patches of images; absent without one
    """

    def initialize(self, args: dict[str, Any]) -> None:
        stub.close_inherited_sockets()
        stub.switch_threads_often()
        stub.give_back_large_memory()
        from stretto.preprocessing.audio import AudioLanes, Load
        from stretto.preprocessing.audio_worker import AudioProcess
        from stretto.preprocessing.hearing import open_hearing
        from stretto.preprocessing.other_clients import CloningRequest
        from stretto.preprocessing.request import Preprocessor, RawRequest, read_part
        from stretto.triton_io import tensors
        from stretto.triton_io.flow import HeldSlots
        from stretto.triton_io.preparing_service import PreparingService
        from stretto.triton_io.seal import SealKey
        from stretto.triton_io.stub import DrainGate
        from stretto.triton_io.tensors import ModelParameters, read_cloning_inputs, read_inputs

        tensors.install()
        parameters = ModelParameters(args)
        limit = Load(parameters.number("max_audio_bytes"), parameters.number("max_audio_requests"))
        self.lanes = AudioLanes(AudioProcess, parameters.number("long_audio_lanes"), limit)
        has_aligner = parameters.strings.get("has_aligner") == "true"
        folder = os.environ.get(stub.ENCODINGS)
        chunking = json.loads(parameters.strings.get("chunking") or "{}")
        words = os.environ.get(stub.PRONUNCIATIONS)
        folders = (Path(folder) if folder else None, chunking, Path(words) if words else None)
        options = (None, parameters.device, has_aligner, *folders)
        self.preprocessor = Preprocessor(parameters.path("checkpoint"), *options)
        self.key = SealKey(stub.server_pid())

        def read(request: Any) -> RawRequest:
            cloning = CloningRequest.from_inputs(read_cloning_inputs(request))
            if cloning is not None:
                return cloning.to_raw(self.preprocessor.family)
            return RawRequest(**read_inputs(request))

        self.read = read
        gate = DrainGate.from_environment()
        self.hearing = open_hearing(self.preprocessor.family, parameters.path("checkpoint"), parameters.device)
        prepare = self.preprocessor.prepare
        seal = self.key.seal
        slots = HeldSlots(stub.server_pid())
        self.service = PreparingService(prepare, read_part, self.lanes, seal, gate, self.hearing, slots)
        stub.keep_loaded_objects()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.service.answer(request, self.read) for request in requests]

    def finalize(self) -> None:
        self.lanes.close()
        if self.hearing is not None:
            self.hearing.close()
        self.key.close()
